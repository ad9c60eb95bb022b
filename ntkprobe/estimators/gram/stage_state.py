"""The state of a kernel's backward pass between two stages, in a file.

A call that was stopped goes on there. A state is each prompt's cotangents, `[k, tokens, width]`, at
what enters the stage last run, and the kernels summed up so far. Cotangents are stored by prompt,
not by micro-batch, so that a call with more or less free memory goes on with other micro-batches.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ...checkpoints import settings_digest, weights_digest
from ...kernel import Probe
from ...storage import read_tensors, write_tensors

STAGES_APART = 4
_COTANGENTS, _SUM = "cotangents", "sum"

PromptCotangents = Sequence[Float[Tensor, "k _ width"]]
"""`[k, tokens, width]` of one prompt, in each of the backward passes that its micro-batch takes."""


@dataclass(frozen=True)
class StageState:
    """The state before a stage.

    Attributes:
        stage: what to run next.
        cotangents: by the kernel's row.
        sums: the stored half of each group's kernel, by the group's place among all.
    """

    stage: int
    cotangents: Sequence[PromptCotangents]
    sums: Mapping[int, Float64[Tensor, "pairs k k"]]


@dataclass(frozen=True)
class StateFile:
    """The file of the last state of one call.

    Attributes:
        path: of the file.
        call: a digest of everything that a state depends on.
    """

    path: Path
    call: str

    def save(self, state: StageState) -> None:
        """Store a state in place of the one before."""
        rows = enumerate(state.cotangents)
        cotangents = {
            f"{_COTANGENTS}.{row}.{number}": each.contiguous().cpu()
            for row, passes in rows
            for number, each in enumerate(passes)
        }
        sums = {f"{_SUM}.{place}": pairs for place, pairs in state.sums.items()}
        numbers = {"stage": torch.tensor(state.stage), "call": _as_tensor(self.call)}
        write_tensors(self.path, {**numbers, **cotangents, **sums})

    def load(self) -> StageState | None:
        """Return the state stored; `None` if there is none, or that of another call."""
        if not self.path.is_file():
            return None
        found = {name: torch.from_numpy(array) for name, array in read_tensors(self.path).items()}
        if not torch.equal(found["call"], _as_tensor(self.call)):
            return None
        cotangents: dict[int, dict[int, Tensor]] = {}
        sums: dict[int, Tensor] = {}
        for name, tensor in found.items():
            kind, *places = name.split(".")
            if kind == _COTANGENTS:
                cotangents.setdefault(int(places[0]), {})[int(places[1])] = tensor
            elif kind == _SUM:
                sums[int(places[0])] = tensor
        ordered = [[passes[n] for n in sorted(passes)] for _, passes in sorted(cotangents.items())]
        return StageState(int(found["stage"]), ordered, sums)


def digest_of_call(
    model: nn.Module,
    probes: Sequence[Probe],
    groups: Mapping[str, Sequence[Hashable]],
    *settings: Any,
) -> str:
    """Return a digest of a model's weights and config, what is read of its prompts, and settings.

    Args:
        model: the model.
        probes: its prompts.
        groups: those of each parameter, in their order.
        settings: whatever else the numbers depend on, as `repr` shows it.
    """
    config: Any = model.config
    found = sha256(weights_digest(model).encode())
    found.update(repr([settings_digest(config.to_dict()), groups, settings]).encode())
    for probe in probes:
        for tensor in (probe.input_ids, probe.tokens, probe.cotangents):
            if tensor is not None:
                found.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
                found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return found.hexdigest()


def _as_tensor(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)
