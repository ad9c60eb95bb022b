"""A measurement compared with its checkpoint, loaded by transformers and peft alone.

The model as measured may have been merged with an adapter, may share its base with other adapters,
and was run in padded batches. Here the files are loaded again by `from_pretrained`, an adapter
stays unmerged, each prompt runs alone and unpadded, and the kernel is the inner product of two
autograd gradients. The measurement's own loading, batching, estimators and selections are not used.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ...checkpoints import LoadSettings
from ...models.batching import forgetting_lengths
from ...models.gradients import gradients
from .measured_sample import MeasuredSample
from .plain_load import WrongMeasurement, adds_low_rank_only, load_plainly, merged

# Relative to the largest logit, to ‖J′‖‖J‖, and to max(1, |log P|). In half precision a merged
# weight W + ΔW is rounded once more than W and ΔW apart.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF = 0.1


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison with the files.

    Attributes:
        errors: the relative error of `logits`, `kernel` and `log P(refuse)`, as far as measured.
        tolerances: the largest error allowed for each.
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
            WrongMeasurement: naming the quantities that differ.
        """
        wrong = [
            f"{name} by {error:.1e} (at most {self.tolerances[name]:.0e})"
            for name, error in self.errors.items()
            if not error <= self.tolerances[name]
        ]
        if wrong:
            raise WrongMeasurement(
                f"the measurement of {what} differs from the files loaded plainly in "
                f"{', '.join(wrong)}: do not use its numbers; report the model's and the "
                "adapter's config.json"
            )


def compare_with_files(
    sample: MeasuredSample,
    model: str | Path,
    adapter: Path | None = None,
    load: LoadSettings | None = None,
    *,
    named: str | None = None,
) -> Comparison:
    """Load a checkpoint plainly and compare a measurement with it.

    Args:
        sample: the measured values.
        model: the folder or hub name of the model, or of the base below an adapter.
        adapter: the adapter's folder.
        load: precision, device and attention, which are the measurement's.
        named: the checkpoint's name in messages.

    Returns:
        The errors, which are within their tolerances: `WrongMeasurement` is raised where they are
        not, or where the files hold weights that the model has no place for, or lack some.

    Raises:
        UserError: if the files cannot be loaded.
    """  # ruff: ignore[docstring-extraneous-exception]
    plain = load_plainly(str(model), adapter, load or LoadSettings())
    allowed = _TOLERANCES.get(sample.dtype, _HALF)
    # No pass may see the lengths of the texts before it, as with dynamic rotary embeddings.
    with forgetting_lengths(plain):
        errors = {"logits": _logit_error(plain, sample)}
        if sample.log_refusal is not None:
            errors["log P(refuse)"] = _refusal_error(plain, sample, allowed)
        if sample.kernel is not None:
            errors["kernel"] = _kernel_error(plain, sample)
    found = Comparison(errors, dict.fromkeys(errors, allowed))
    found.check(named or str(adapter or model))
    return found


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
    least, most = sample.log_refusal, sample.log_refusal_at_most
    assert least is not None and most is not None
    each = zip(sample.input_ids, least, most, strict=True)
    errors = [_refusal_difference(model, ids, (a, b), sample, allowed) for ids, a, b in each]
    return float(torch.tensor(errors).max())  # unlike max(), NaN where one is


def _refusal_difference(
    model: nn.Module,
    ids: Sequence[int],
    bounds: tuple[Float64[Tensor, ""], Float64[Tensor, ""]],
    sample: MeasuredSample,
    allowed: float,
) -> float:
    """Return how far one prompt is outside its bounds, each phrase in a pass of its own.

    Where rotary factors depend on the length of the text (longrope), the probability of a token is
    that after the text before it: if the results disagree, each token has a pass of its own.
    """
    error = float("inf")
    for score in (_phrase_at_once, _phrase_by_token):
        plain = torch.stack([score(model, ids, each) for each in sample.phrases]).logsumexp(0)
        outside = (bounds[0] - plain).maximum(plain - bounds[1]).clamp(min=0)
        error = float(outside / plain.abs().clamp(min=1))
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
    """Return log P(phrase | prompt), by a pass over the text before each of its tokens."""
    steps = [
        _logits(model, [*ids, *phrase[:place]])[-1].double().log_softmax(-1)[token]
        for place, token in enumerate(phrase)
    ]
    return torch.stack(steps).sum().cpu()


def _kernel_error(model: nn.Module, sample: MeasuredSample) -> float:
    """Return the largest |K − ⟨g′, g⟩| / (‖g′‖ ‖g‖) over the entries of two prompts."""
    assert sample.kernel is not None and sample.tokens is not None
    if set(sample.selection.terms) != {"lora"} and not adds_low_rank_only(model):
        model = merged(model)  # its logits have been compared unmerged
    chosen = _selected(model, sample)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    ids = sample.input_ids[-2:]
    row_gradients = [
        gradients(_logits(model, each)[-1, token], chosen)
        for each, token in zip((ids[0], ids[-1]), sample.tokens, strict=True)
    ]
    expected = torch.tensor(
        [[_inner_product(a, b) for b in row_gradients] for a in row_gradients], dtype=torch.float64
    )
    lengths = expected.diagonal().sqrt()
    scale = (lengths[:, None] * lengths).clamp(min=torch.finfo(torch.float64).tiny)
    return float(((sample.kernel - expected).abs() / scale).max())


def _selected(model: nn.Module, sample: MeasuredSample) -> list[nn.Parameter]:
    """Return the parameters of the kernel, from the files where the selection allows it.

    `lora` selects the parameters that peft trains. `all` selects every tensor but the low-rank
    factors: these act through the weight to which they are added, whose gradient is that of the
    merged weight. A tensor that an adapter trains in the place of one of the base counts, and the
    tensor it replaces has no gradient. Other terms select the measured parameters by name.
    """
    terms, wanted = set(sample.selection.terms), set(sample.names)
    found: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        factor = ".lora_" in name
        if (
            ("all" in terms and not factor)
            or ("lora" in terms and parameter.requires_grad)
            or (terms - {"all", "lora"} and not factor and _name_in_base(name) in wanted)
        ):
            found[id(parameter)] = parameter
    return list(found.values())


def _name_in_base(name: str) -> str:
    """Return the name in the base model of a PeftModel's parameter, or of the one it replaces."""
    bare = name.removeprefix("base_model.model.")
    bare = re.sub(r"\.token_adapter\.trainable_tokens_delta\.\w+$", ".weight", bare)
    return re.sub(r"\.(base_layer|token_adapter|modules_to_save\.\w+)(?=\.)", "", bare)


def _inner_product(left: list[Tensor], right: list[Tensor]) -> float:
    """Return the inner product over all parameters, in float64."""
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(left, right, strict=True))
