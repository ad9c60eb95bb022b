"""The state of a kernel's backward pass between two stages, in a file.

A call that was stopped goes on there. A state is each prompt's cotangents, `[k, tokens, width]`, at
what enters the stage last run, and the kernels summed up so far. Cotangents are stored by prompt,
not by micro-batch, so that a call with more or less free memory goes on with other micro-batches.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...checkpoints import settings_digest, weights_digest
from ...errors import UserError, one_line
from ...kernel import Probe, last_logits
from ...storage import write_tensors
from .module_settings import module_settings

SECONDS_APART = 300
_LOG = logging.getLogger("ntkprobe")
_COTANGENTS, _SUM = "cotangents", "sum"
# Of the largest value read: other threads and processors round otherwise.
_ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-4}
_ROUNDING_LOW_PRECISION = 1e-3

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
        """Store a state in place of the one before; where it cannot be, the call goes on without.

        States can be larger than any result: a disk that they fill has room for the kernel.
        """
        cotangents = {
            f"{_COTANGENTS}.{row}.{number}": each.contiguous().cpu()
            for row, passes in enumerate(state.cotangents)
            for number, each in enumerate(passes)
        }
        sums = {f"{_SUM}.{place}": pairs for place, pairs in state.sums.items()}
        stage = {"stage": torch.tensor(state.stage)}
        try:
            write_tensors(self._path, {**self._this_call(), **stage, **cotangents, **sums})
        except (OSError, SafetensorError) as error:  # the latter of a full disk
            _LOG.warning("no state of the kernel in %s: %s", self._path, one_line(error))
        self._saved_at = time.monotonic()

    def load(self) -> StageState | None:
        """Return the state stored; `None` if there is none, or that of another call."""
        if not self._path.is_file():
            return None
        found, now = _tensors(self._path), self._this_call()
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

    def _this_call(self) -> dict[str, Tensor]:
        """Return what tells this call from others: a digest, and the values that it reads.

        A digest of the weights does not know of hooks, such as a method's that steers activations;
        the values read do.
        """
        if self._call is None:
            digest = _digest_of_call(self._model, self._probes, *self._settings)
            with torch.no_grad():  # else all prompts' activations would be held at one time
                read = [
                    each.read(last_logits(self._model, [each.input_ids])[0])
                    for each in self._probes
                ]
            values = torch.stack(read).cpu()
            self._call = {"call": torch.tensor(list(digest.encode())), "read": values}
        return self._call


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return what the file of a state holds.

    Raises:
        UserError: if it is damaged, or a file of another kind, which is not to be replaced.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} is no whole state of a kernel ({one_line(error)}): remove it, or give another "
            "file"
        ) from error
    if not {"call", "read", "stage"} <= found.keys():
        raise UserError(f"{path} is no state of a kernel: give another file")
    return found


def _close(stored: Tensor, now: Tensor) -> bool:
    """Return whether values read are the same but for rounding."""
    if stored.shape != now.shape or stored.dtype != now.dtype:
        return False
    allowed = _ROUNDING.get(now.dtype, _ROUNDING_LOW_PRECISION) * now.double().abs().max()
    return bool((stored.double() - now.double()).abs().max() <= allowed)


def _digest_of_call(model: nn.Module, probes: Sequence[Probe], *settings: Any) -> str:
    """Return a digest of weights and config, of what is read of which prompts, and settings.

    What an adapter multiplies its matrices with, and which one is active, are in no weight and in
    no config of the base.
    """
    config: Any = getattr(model, "config", None)
    modules = [(name, *module_settings(module)) for name, module in model.named_modules()]
    found = sha256(weights_digest(model).encode())
    of_config = settings_digest(config.to_dict()) if config is not None else None
    found.update(repr([of_config, modules, settings]).encode())
    for probe in probes:
        for tensor in (probe.input_ids, probe.tokens, probe.cotangents):
            if tensor is not None:
                found.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
                found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
