"""A measurement compared with its checkpoint, loaded by transformers and peft alone.

The model as measured may have been merged with an adapter, may share its base with other adapters,
and was run in padded batches. Here the files are loaded again by `from_pretrained`, an adapter
stays unmerged, each prompt runs alone and unpadded, and the kernel is the inner product of two
autograd gradients. Nothing of the measurement's own loading, batching, estimators or selections is
used.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ..backward import gradients
from ..checkpoints import LoadSettings, gguf_file
from ..errors import UserError
from .measured_sample import MeasuredSample

# Relative to the largest logit, to ‖J′‖‖J‖, and to max(1, |log P|). In half precision a merged
# weight W + ΔW is rounded once more than W and ΔW apart.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF = 0.1


class WrongMeasurement(RuntimeError):
    """A measurement is not that of the checkpoint it is said to be of."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison with the files found.

    Attributes:
        errors: the relative error of `logits`, `kernel` and `log P(refuse)`, as far as measured.
        tolerances: what each may be.
    """

    errors: dict[str, float]
    tolerances: dict[str, float]

    def __str__(self) -> str:
        """Return one line for a log."""
        found = ", ".join(f"{what} {error:.1e}" for what, error in self.errors.items())
        return f"compared with the checkpoint loaded anew, unmerged, prompt by prompt: {found}"

    def check(self, what: str) -> None:
        """Raise unless every error is within its tolerance; NaN is not.

        Args:
            what: the checkpoint, for the message.

        Raises:
            WrongMeasurement: naming what differs.
        """
        wrong = [
            f"{name} by {error:.1e} (at most {self.tolerances[name]:.0e})"
            for name, error in self.errors.items()
            if not error <= self.tolerances[name]
        ]
        if wrong:
            raise WrongMeasurement(
                f"the measurement of {what} differs from the files loaded plainly in "
                f"{', '.join(wrong)}: its numbers are not to be used; report the model's and the "
                "adapter's config.json"
            )


def compare_with_files(
    sample: MeasuredSample,
    model: str | Path,
    adapter: Path | None = None,
    load: LoadSettings | None = None,
) -> Comparison:
    """Load a checkpoint plainly and compare a measurement with it.

    Args:
        sample: what was measured.
        model: the folder or hub name of the model, or of the base below an adapter.
        adapter: the adapter's folder.
        load: precision, device and attention, which are the measurement's.

    Returns:
        The errors, which are within their tolerances: `WrongMeasurement` is raised where they are
        not, or where the files hold weights that the model has no place for, or lack some.

    Raises:
        UserError: if the files cannot be loaded.
    """  # ruff: ignore[docstring-extraneous-exception]
    plain = _load_plainly(str(model), adapter, load or LoadSettings())
    errors = {"logits": _logit_error(plain, sample)}
    allowed = _TOLERANCES.get(sample.dtype, _HALF)
    tolerances = {"logits": allowed}
    if sample.log_refusal is not None:
        errors["log P(refuse)"] = _refusal_error(plain, sample, allowed)
        tolerances["log P(refuse)"] = allowed
    if sample.kernel is not None:
        errors["kernel"] = _kernel_error(plain, sample)
        tolerances["kernel"] = allowed
    found = Comparison(errors, tolerances)
    found.check(str(adapter or model))
    return found


def _load_plainly(name: str, adapter: Path | None, load: LoadSettings) -> nn.Module:
    """Return the model as transformers and peft load it.

    Raises:
        UserError: if it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    file = gguf_file(name)
    place, reading = (name, {}) if file is None else (str(file.parent), {"gguf_file": file.name})
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=getattr(torch, load.dtype),
            attn_implementation=load.attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=Path(place).is_dir(),
            output_loading_info=True,
            **reading,
            **({"device_map": load.device_map} if load.device_map else {}),
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as error:
        raise UserError(f"cannot load {name} once more to compare: {error}") from error
    model, report = loaded
    _check_report(model, report, name)
    model = model if load.device_map else model.to(load.placement())
    return (model if adapter is None else _with_adapter(model, adapter)).eval()


def _with_adapter(model: Any, adapter: Path) -> nn.Module:
    """Return the model with its adapter beside it, what the adapter trains requiring gradients."""
    from peft import PeftModel

    rows = _embedding_rows(adapter)
    if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    wrapped = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    _separate_ends(wrapped)
    return wrapped


def _separate_ends(model: Any) -> None:
    """Give the head a matrix of its own where it was the embedding and LoRA changes them apart.

    Merged, the two are different matrices, and so parameters of their own.
    """
    from peft.tuners.lora import LoraLayer

    base = model.get_base_model()
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    lora = any(isinstance(end, LoraLayer) for end in ends)
    if not lora or getattr(model.active_peft_config, "ensure_weight_tying", False):
        return
    source, output = (getattr(end, "base_layer", end) for end in ends)
    if output is not None and output.weight is source.weight:
        output.weight = nn.Parameter(source.weight.detach().clone())


def _embedding_rows(adapter: Path) -> int | None:
    """Return how many tokens the embedding in an adapter's file has; None if it holds none."""
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        for key in file.keys():
            if key.endswith("embed_tokens.weight"):
                return int(file.get_slice(key).get_shape()[0])
    return None


def _check_report(model: nn.Module, report: dict[str, Any], name: str) -> None:
    """Raise where the files and the model do not hold the same weights.

    Raises:
        WrongMeasurement: naming them.
    """
    # transformers 5 stores no buffer that a model computes; older files may hold its values.
    computed = {key for key, _ in model.named_buffers()}
    left = sorted({str(key) for key in report["unexpected_keys"]} - computed)
    lacking = sorted(map(str, report["missing_keys"]))
    for what, keys in (("weights that the model has no place for", left), ("no", lacking)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise WrongMeasurement(f"{name} holds {what} {', '.join(keys[:3])}{more}")


def _logits(model: nn.Module, ids: Sequence[int]) -> Float[Tensor, "positions vocab"]:
    """Return the logits at all positions of one prompt, alone and unpadded."""
    device = next(model.parameters()).device
    return model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False).logits[0]


@torch.no_grad()
def _logit_error(model: nn.Module, sample: MeasuredSample) -> float:
    """Return the largest difference of a logit over the largest logit."""
    plain = torch.stack([_logits(model, ids)[-1].double().cpu() for ids in sample.input_ids])
    return float((plain - sample.logits).abs().max() / plain.abs().max())


@torch.no_grad()
def _refusal_error(model: nn.Module, sample: MeasuredSample, allowed: float) -> float:
    """Return the largest |Δ log P_refuse| / max(1, |log P_refuse|) over the prompts."""
    assert sample.log_refusal is not None
    pairs = zip(sample.input_ids, sample.log_refusal, strict=True)
    return max(_refusal_difference(model, ids, found, sample, allowed) for ids, found in pairs)


def _refusal_difference(
    model: nn.Module,
    ids: Sequence[int],
    found: Float64[Tensor, ""],
    sample: MeasuredSample,
    allowed: float,
) -> float:
    """Return the error at one prompt, each phrase teacher-forced in a pass of its own.

    Where a model's factors depend on the length of the text (longrope), the probability of a token
    is that after the text before it: if the passes disagree, each token gets one.
    """
    error = float("inf")
    for score in (_phrase_at_once, _phrase_by_token):
        plain = torch.stack([score(model, ids, each) for each in sample.phrases]).logsumexp(0)
        error = float((plain - found).abs() / plain.abs().clamp(min=1))
        if error <= allowed:
            break
    return error


def _phrase_at_once(
    model: nn.Module, ids: Sequence[int], phrase: Sequence[int]
) -> Float64[Tensor, ""]:
    """Return log P(phrase | prompt), by one pass over both."""
    logits = _logits(model, [*ids, *phrase])[len(ids) - 1 : -1].double().log_softmax(-1)
    return logits[torch.arange(len(phrase)), list(phrase)].sum().cpu()


def _phrase_by_token(
    model: nn.Module, ids: Sequence[int], phrase: Sequence[int]
) -> Float64[Tensor, ""]:
    """Return log P(phrase | prompt), by a pass over what stands before each of its tokens."""
    steps = [
        _logits(model, [*ids, *phrase[:place]])[-1].double().log_softmax(-1)[token]
        for place, token in enumerate(phrase)
    ]
    return torch.stack(steps).sum().cpu()


def _kernel_error(model: nn.Module, sample: MeasuredSample) -> float:
    """Return the largest |K − ⟨g′, g⟩| / (‖g′‖ ‖g‖) over the entries of two prompts."""
    assert sample.kernel is not None and sample.tokens is not None
    chosen = _selected(model, sample)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    ids = sample.input_ids[-2:]
    pulled = [
        gradients(_logits(model, each)[-1, token], chosen)
        for each, token in zip((ids[0], ids[-1]), sample.tokens, strict=True)
    ]
    expected = torch.tensor([[_inner(a, b) for b in pulled] for a in pulled], dtype=torch.float64)
    lengths = expected.diagonal().sqrt()
    scale = (lengths[:, None] * lengths).clamp(min=torch.finfo(torch.float64).tiny)
    return float(((sample.kernel - expected).abs() / scale).max())


def _selected(model: nn.Module, sample: MeasuredSample) -> list[nn.Parameter]:
    """Return the parameters of the kernel, by what the files hold where the selection allows it.

    `lora` is what peft trains of this adapter. `all` is every tensor but the low-rank factors,
    which act through the weight that they are added to, whose gradient is the merged weight's.
    What an adapter trains in the place of a base tensor counts, and the tensor it replaces has no
    gradient. Other selections are those that were measured, by name.
    """
    terms = set(sample.selection.terms)
    if terms & {"all", "lora"}:
        return [
            parameter
            for name, parameter in model.named_parameters()
            if (".lora_" not in name if "all" in terms else False)
            or (parameter.requires_grad if "lora" in terms else False)
        ]
    wanted = set(sample.names)
    named = model.named_parameters(remove_duplicate=False)
    found = {id(p): p for name, p in named if _name_in_base(name) in wanted}
    return list(found.values())


def _name_in_base(name: str) -> str:
    """Return what a parameter of a PeftModel is called in its base, or acts for there."""
    bare = name.removeprefix("base_model.model.")
    bare = re.sub(r"\.token_adapter\.trainable_tokens_delta\.\w+$", ".weight", bare)
    return re.sub(r"\.(base_layer|token_adapter|modules_to_save\.\w+)(?=\.)", "", bare)


def _inner(left: list[Tensor], right: list[Tensor]) -> float:
    """Return the inner product over all parameters, in float64."""
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(left, right, strict=True))
