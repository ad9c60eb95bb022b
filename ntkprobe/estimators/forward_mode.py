"""The scheme of A.6 without its step size: a VJP gives w, a JVP (forward mode) J(x′) w exactly."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap
from transformers import PreTrainedModel

from ..errors import UserError, count
from ..kernel import Blocks, Probe, last_logits, prepare
from ..models.padding_row import constant_padding_row
from ..models.parameters import ParameterSelection, call_with_parameters
from ..models.validation import finite

Theta = dict[str, Tensor]
_NO_DERIVATIVE = ("forward AD", "forward-mode", "requires_grad_() inside", "jvp")


@dataclass(frozen=True)
class ForwardMode:
    """One updated prompt after another: a VJP for w, then a JVP along w for all observed prompts.

    Attributes:
        columns_at_once: columns in one vectorised pass, each with a copy of the parameters.
        batch_size: number of observed prompts in one forward pass.
    """

    columns_at_once: int = 1
    batch_size: int = 128

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive whole numbers."""
        count("columns_at_once", self.columns_at_once)
        count("batch_size", self.batch_size)

    def __call__(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        parameters: str | ParameterSelection = "all",
    ) -> Blocks:
        """Return K, exact up to rounding; eager replaces fused attention while it runs."""
        prepare(model, probes, parameters)
        updates = range(len(probes))
        return torch.stack([self.columns(model, probes, b, parameters) for b in updates], 2)

    def columns(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        updated: int,
        parameters: str | ParameterSelection = "all",
    ) -> Float64[Tensor, "n k l"]:
        """Return the columns of one updated prompt, K[:, :, updated, :]."""
        chosen = prepare(model, probes, parameters)
        names = {id(p): f"model.{name}" for name, p in model.named_parameters()}
        theta = {names[id(p)]: p.detach() for p in chosen.values()}
        size = self.batch_size
        batches = [ProbeValues(model, probes[s : s + size]) for s in range(0, len(probes), size)]
        with differentiable_forwards(model), constant_padding_row(model), torch.no_grad():
            some = [
                torch.cat([jvp_columns(w, batch, theta) for batch in batches])
                for w in self._gradients(ProbeValues(model, [probes[updated]]), theta)
            ]
        return torch.cat(some, dim=2)

    def _gradients(self, updated: "ProbeValues", theta: Theta) -> Iterator[Theta]:
        """Yield w = J(x)ᵀ e_i of one prompt, for some i at once, which are the first dimension."""
        finite(last_logits(updated.model, [probe.input_ids for probe in updated.probes]))
        values, pull_back = vjp(updated.at, theta)  # type: ignore[misc]
        basis = torch.eye(values.numel(), dtype=values.dtype, device=values.device)
        for some in basis.split(self.columns_at_once):
            yield vmap(lambda e: pull_back(e.view_as(values))[0])(some)


class ProbeValues(nn.Module):
    """The values read by probes as a function of θ: a module, so that tied weights stay tied."""

    def __init__(self, model: nn.Module, probes: Sequence[Probe]) -> None:
        super().__init__()
        self.model, self.probes = model, probes

    def forward(self) -> Float[Tensor, "n k"]:
        """Return the values read of every prompt."""
        logits = last_logits(self.model, [probe.input_ids for probe in self.probes])
        return torch.stack([probe.read(z) for probe, z in zip(self.probes, logits, strict=True)])

    def at(self, theta: Theta) -> Float[Tensor, "n k"]:
        """Return the values read with `theta` in place of the parameters that it names."""
        return call_with_parameters(self, theta)


def jvp_columns(w: Theta, observed: ProbeValues, theta: Theta) -> Float64[Tensor, "n k l"]:
    """Return J(x′) w of every observed prompt, for each of the columns stacked in `w`."""
    tangents = vmap(lambda column: jvp(observed.at, (theta,), (column,))[1])(w)
    return tangents.permute(1, 2, 0).double().cpu()


@contextmanager
def differentiable_forwards(model: nn.Module) -> Generator[None]:
    """Restrict the model to operations with a forward derivative inside the `with` block.

    In PyTorch, fused attention (`sdpa`, flash) and `grouped_mm` experts have none. Nor may the
    embedding's output be set to require a gradient inside a transform, as a hook of gradient
    checkpointing does.

    Raises:
        UserError: if another operation of the model has no forward derivative.
        RuntimeError: any other error, unchanged.
    """
    with ExitStack() as stack:
        # The outermost transformers model: an adapter wraps it, another module may not be one.
        for module in [m for m in model.modules() if isinstance(m, PreTrainedModel)][:1]:
            stack.enter_context(_plain_implementations(module))
        try:
            yield
        except (NotImplementedError, RuntimeError) as error:
            why = str(error).partition("\n")[0]
            if not any(known in why for known in _NO_DERIVATIVE):
                raise
            raise UserError(
                f"{type(model).__name__} cannot be differentiated forwards ({why}): "
                "take the gram estimator, which uses reverse mode only"
            ) from error


@contextmanager
def _plain_implementations(model: PreTrainedModel) -> Generator[None]:
    """Set one transformers model to its plain implementations inside the `with` block."""
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    before = [(c, c._attn_implementation, c._experts_implementation) for c in configs.values()]
    hooks = model.get_input_embeddings()._forward_hooks
    original_hooks = hooks.copy()
    try:
        model.set_attn_implementation("eager")
        if model._can_set_experts_implementation():
            model.set_experts_implementation("batched_mm")
        # By name: of hooks set twice transformers forgets the first, and peft sets its own.
        for key, hook in original_hooks.items():
            if getattr(hook, "__name__", "").startswith("make_inputs_require_grad"):
                del hooks[key]
        yield
    finally:
        for config, attention, experts in before:
            config._attn_implementation = attention
            config._experts_implementation = experts
        hooks.update(original_hooks)
