"""The state of a kernel's backward pass between two stages, in a file.

A call that was stopped goes on there. A state is each prompt's cotangents, `[k, tokens, width]`, at
what enters the stage last run, and the kernels summed up so far. Cotangents are stored by prompt,
not by micro-batch, so that a call with more or less free memory goes on with other micro-batches.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ...checkpoints import settings_digest, weights_digest
from ...kernel import Probe, last_logits
from ...storage import read_tensors, write_tensors

SECONDS_APART = 300
_COTANGENTS, _SUM = "cotangents", "sum"
_ROUNDING = 1e-3  # of the largest value read: other threads and processors round otherwise

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


class StateFile:
    """The file of the last state of one call, written every few minutes.

    Args:
        path: of the file.
        model: the model.
        probes: its prompts.
        settings: whatever else the numbers depend on, as `repr` shows it.
    """

    def __init__(
        self, path: Path, model: nn.Module, probes: Sequence[Probe], *settings: Any
    ) -> None:
        self._path, self._model, self._probes, self._settings = path, model, probes, settings
        self._saved_at = time.monotonic()
        self._call: dict[str, Tensor] | None = None

    @property
    def due(self) -> bool:
        """Whether the last state, or the call's beginning, is long enough ago."""
        return time.monotonic() - self._saved_at >= SECONDS_APART

    def save(self, state: StageState) -> None:
        """Store a state in place of the one before."""
        cotangents = {
            f"{_COTANGENTS}.{row}.{number}": each.contiguous().cpu()
            for row, passes in enumerate(state.cotangents)
            for number, each in enumerate(passes)
        }
        sums = {f"{_SUM}.{place}": pairs for place, pairs in state.sums.items()}
        stage = {"stage": torch.tensor(state.stage)}
        write_tensors(self._path, {**self._this_call(), **stage, **cotangents, **sums})
        self._saved_at = time.monotonic()

    def load(self) -> StageState | None:
        """Return the state stored; `None` if there is none, or that of another call."""
        if not self._path.is_file():
            return None
        found = {name: torch.from_numpy(array) for name, array in read_tensors(self._path).items()}
        now = self._this_call()
        if not torch.equal(found["call"], now["call"]) or not _close(found["read"], now["read"]):
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

    def remove(self) -> None:
        """Remove the file: the call is done."""
        self._path.unlink(missing_ok=True)

    def _this_call(self) -> dict[str, Tensor]:
        """Return what tells this call from others: a digest, and the values that it reads.

        A digest of the weights does not know of hooks, such as a method's that steers activations;
        the values read do.
        """
        if self._call is None:
            digest = _digest_of_call(self._model, self._probes, *self._settings)
            read = [
                each.read(last_logits(self._model, [each.input_ids])[0]) for each in self._probes
            ]
            values = torch.stack(read).double().cpu()
            self._call = {"call": torch.tensor(list(digest.encode())), "read": values}
        return self._call


def _close(stored: Tensor, now: Tensor) -> bool:
    """Return whether values read are the same but for rounding."""
    same = stored.shape == now.shape
    return same and bool((stored - now).abs().max() <= _ROUNDING * now.abs().max())


def _digest_of_call(model: nn.Module, probes: Sequence[Probe], *settings: Any) -> str:
    """Return a digest of weights and config, of what is read of which prompts, and settings."""
    config: Any = model.config
    found = sha256(weights_digest(model).encode())
    found.update(repr([settings_digest(config.to_dict()), settings]).encode())
    for probe in probes:
        for tensor in (probe.input_ids, probe.tokens, probe.cotangents):
            if tensor is not None:
                found.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
                found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
