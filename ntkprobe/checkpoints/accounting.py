"""Every weight of a file is used by the model, or its absence changes nothing: else it is refused.

transformers drops a tensor that a model has no place for with a line in its log, and without one
where its class lists the name to be ignored. Either may be a bias, a block or a head that the model
was trained with: what is measured would be another model than the one in the file. One rule for
every route by which weights come into memory: a tensor that was left over is

- computed: the model makes it itself, with these very values (rotary frequencies, causal masks), or
- documented: the class ignores it, and it belongs to a module that this architecture does not have
  (a vision tower, blocks that predict further tokens), which no logit of a text depends on, or
- refused, by name.
"""

import re
import warnings
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MeasurementWarning, UserError
from .headers import read_header, read_some

if TYPE_CHECKING:
    from torch import Tensor, nn

COMPUTED = ("inv_freq", "bias", "masked_bias", "causal_mask", "mask", "position_ids")
"""Last parts of the names under which models have stored what they compute themselves."""

LARGEST = 256 << 20  # bytes of a tensor that is looked into
_FURTHER = re.compile(r"(?P<blocks>.+)\.(?P<number>\d+)\.")
_PREDICTS_FURTHER = re.compile(r"\.(eh_proj|enorm|hnorm|shared_head)\b")
_OTHER_HEAD = re.compile(r"(^|\.)(score|classifier|qa_outputs|v_head|value_head|reward_head)\b")


@dataclass
class Report:
    """The names that transformers did not match when it loaded a file, before its ignore lists.

    Attributes:
        left_over: names that the model has no place for, renamed as far as it renames any.
        missing: names of the model that the file does not have, or has in another shape.
    """

    left_over: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)


@contextmanager
def unfiltered_report() -> Generator[Report]:
    """Collect the names that `from_pretrained` leaves over inside the `with` block.

    Yields:
        The report, empty until a model was loaded.
    """
    from transformers import PreTrainedModel

    report, name = Report(), "_adjust_missing_and_unexpected_keys"
    filtering: Any = getattr(PreTrainedModel, name)

    def noted(model: Any, found: Any, *others: Any, **named: Any) -> Any:
        report.left_over |= set(found.unexpected_keys)
        report.missing |= set(found.missing_keys) | {key[0] for key in found.mismatched_keys}
        return filtering(model, found, *others, **named)

    setattr(PreTrainedModel, name, noted)
    try:
        yield report
    finally:
        setattr(PreTrainedModel, name, filtering)


def require_every_weight(
    model: "nn.Module", report: Report, files: Iterable[Path], name: str
) -> None:
    """Refuse a model that lacks a tensor, or leaves over one that was a part of it.

    Args:
        model: as it was loaded.
        report: what was left over and missing.
        files: the safetensors that it was loaded from.
        name: for the message.

    Raises:
        UserError: naming the tensors.
    """
    # Resolved: a pin, whose files were judged, may be made of links.
    file_of = {
        key: file for file in (f.resolve() for f in files) for key in read_header(file).spans
    }
    missing = _to_be_filled(model, report.missing)
    values = _values(model, report.left_over, file_of)
    rest = {key for key in report.left_over if not _is_computed(model, key, values.get(key))}
    documented = {key for key in rest if _is_documented(model, key, rest)}
    wrong = sorted(rest - documented)
    if missing:
        besides = f" and has no place for {some(wrong)}" if wrong else ""
        raise UserError(
            f"{name} lacks weights for {some(missing)}{besides}: it does not fit its config.json"
        )
    if wrong:
        raise UserError(
            f"{name} holds weights that its config.json has no place for ({some(wrong)}): left "
            f"out, they would make another model; {_advice(model, wrong)}"
        )
    _require_one_of_each(model, file_of, name)
    if documented:
        kind = type(model).__name__
        summary = f"{len(documented)} tensors of {name} that {kind} does not use are left out"
        warnings.warn(f"{summary}: {some(sorted(documented))}", MeasurementWarning, stacklevel=4)


def some(names: list[str]) -> str:
    """Return the first three names, and the number of others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def require_finite_weights(model: "nn.Module", name: str) -> None:
    """Raise if a parameter, or a buffer that files hold, is NaN or infinite somewhere.

    Raises:
        UserError: naming them.
    """
    stored = model.state_dict().keys()
    buffers = [(key, value) for key, value in model.named_buffers() if key in stored]
    each = (*model.named_parameters(), *buffers)
    wrong = [key for key, value in each if not value.isfinite().all()]
    if wrong:
        raise UserError(
            f"{name} holds NaN or infinity in {some(wrong)}: training may have diverged: "
            "measure earlier checkpoints with --steps"
        )


def _to_be_filled(model: "nn.Module", missing: Collection[str]) -> list[str]:
    """Return which missing names a file has to hold: parameters, and buffers that are stored.

    transformers leaves a missing buffer as the memory was, or at 0 or 1, as its class begins with.

    Returns:
        The names, sorted, without those that the class says files can lack.
    """
    parameters = {key for key, _ in model.named_parameters()}
    optional = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    buffers = {
        key
        for key in set(missing) & model.state_dict().keys() - parameters
        if not any(re.search(pattern, key) for pattern in optional)
    }
    return sorted(set(missing) & parameters | buffers)


def _require_one_of_each(model: "nn.Module", stored: Collection[str], name: str) -> None:
    """Refuse a tensor stored twice, with and without the prefix of the model below the head.

    Raises:
        UserError: naming it.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    twice = sorted(key for key in stored if key.startswith(prefix) and key[len(prefix) :] in stored)
    if prefix != "." and twice:
        raise UserError(
            f"{name} holds {some(twice)} twice, with and without {prefix!r}: remove the wrong one"
        )


def _values(
    model: "nn.Module", left_over: Iterable[str], file_of: Mapping[str, Path]
) -> "dict[str, Tensor]":
    """Return the tensors stored under left-over names that a model might compute itself."""
    made = {key.rpartition(".")[2] for key, _ in model.named_buffers()} | set(COMPUTED)
    wanted: dict[str, str] = {}
    for key in left_over:
        stored = _stored_as(key, file_of) if key.rpartition(".")[2] in made else None
        if stored is not None:
            wanted[key] = stored
    found: dict[str, Tensor] = {}
    for file in {file_of[stored] for stored in wanted.values()}:
        names = [stored for stored in wanted.values() if file_of[stored] == file]
        found |= read_some(file, names, LARGEST)
    return {key: found[stored] for key, stored in wanted.items() if stored in found}


def _stored_as(key: str, stored: Collection[str]) -> str | None:
    """Return the name in the file of a tensor, whose prefix transformers may have changed."""
    if key in stored:
        return key
    alike = [name for name in stored if key.endswith(f".{name}") or name.endswith(f".{key}")]
    return alike[0] if len(alike) == 1 else None


def _is_computed(model: "nn.Module", key: str, value: "Tensor | None") -> bool:
    """Return whether the model computes this tensor itself, with these values."""
    if value is None:
        return False
    last = key.rpartition(".")[2]
    if last == "masked_bias":
        return value.numel() == 1 and float(value) <= -1e4
    if last == "inv_freq" and _are_frequencies(model, value):
        return True
    own = (each for name, each in model.named_buffers() if name.rpartition(".")[2] == last)
    return any(_agree(value, each) for each in own) or _is_mask(value) or _counts(value)


def _agree(value: "Tensor", own: "Tensor") -> bool:
    """Return whether two tensors are equal to the precision in which the first was stored."""
    import torch

    if value.squeeze().shape != own.squeeze().shape or own.is_meta:
        return False
    eps = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    return torch.allclose(
        value.squeeze().double(), own.squeeze().double().cpu(), rtol=4 * eps, atol=eps * 1e-3
    )


def _are_frequencies(model: "nn.Module", value: "Tensor") -> bool:
    """Return whether these are the rotary frequencies before the scaling that config.json names."""
    import torch

    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    rope: Any = getattr(text, "rope_parameters", None) or {}
    theta = getattr(text, "rope_theta", None) or rope.get("rope_theta")
    if not isinstance(theta, int | float) or value.ndim != 1:
        return False
    steps = torch.arange(len(value), dtype=torch.float64) / len(value)
    return _agree(value, float(theta) ** -steps)


def _is_mask(value: "Tensor") -> bool:
    """Return whether a tensor says which positions see which: a band below the diagonal of ones."""
    import torch

    square = value.squeeze()
    if square.ndim != 2 or square.shape[0] != square.shape[1]:
        return False
    seen = torch.ones(square.shape, dtype=torch.bool).tril()
    window = int((square[-1] != 0).sum())
    return torch.equal(square.to(torch.float32), (seen & ~seen.tril(-window)).to(torch.float32))


def _counts(value: "Tensor") -> bool:
    """Return whether a tensor holds the numbers 0, 1, 2, … and nothing else."""
    import torch

    return not value.is_floating_point() and torch.equal(
        value.flatten().long(), torch.arange(value.numel())
    )


def _is_documented(model: "nn.Module", key: str, left_over: Collection[str]) -> bool:
    """Return whether the class ignores this name, and it is of a module that the model lacks.

    The lists are patterns: one for a block that predicts further tokens, `model.layers.61`, would
    hide a block that a shortened config.json leaves out, one for a mask a bias.
    """
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    if not any(re.search(pattern, key) for pattern in patterns):
        return False
    if _module(model, key.rpartition(".")[0]) is not None:
        return False
    block = _further_block(model, key)
    return block is None or any(
        other.startswith(block) and _PREDICTS_FURTHER.search(other) for other in left_over
    )


def _further_block(model: "nn.Module", key: str) -> str | None:
    """Return the beginning of a name that belongs to a block after the model's last one."""
    match = _FURTHER.match(key)
    while match is not None:
        if _module(model, match["blocks"]) is not None:
            own = _module(model, f"{match['blocks']}.{match['number']}")
            return match[0] if own is None else None
        match = _FURTHER.match(f"{match['blocks']}.")
    return None


def _module(model: "nn.Module", name: str) -> "nn.Module | None":
    """Return the submodule of that name, with or without the prefix; None if there is none."""
    for full in (name, f"{getattr(model, 'base_model_prefix', '')}.{name}"):
        try:
            return model.get_submodule(full) if name else None
        except AttributeError:
            continue
    return None


def _advice(model: "nn.Module", wrong: list[str]) -> str:
    """Return advice about weights that the model has no parameter for."""
    if any(_OTHER_HEAD.search(key) for key in wrong):
        return "a reward model or classifier is no language model: name the model it was made from"
    if block := next(filter(None, (_further_block(model, key) for key in wrong)), None):
        blocks = len(list(_module(model, block.rstrip(".").rpartition(".")[0]).children()))  # type: ignore[union-attr]
        return f"config.json says that there are {blocks} blocks: correct num_hidden_layers"
    if any(key.endswith(".bias") for key in wrong):
        return "say in config.json that there are biases (attention_bias, mlp_bias, …)"
    return "correct config.json, or save the model again with save_pretrained"
