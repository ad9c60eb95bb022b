"""The scheme of A.6 without its step size: a VJP gives w, a JVP (forward mode) J(x′) w exactly."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap
from transformers import PreTrainedModel

from ..errors import UserError
from ..kernel import Blocks, Probe, last_logits, prepare
from ..models.parameters import ParameterSelection, called_with
from ..models.validation import count, finite

Theta = dict[str, Tensor]
_NO_DERIVATIVE = ("forward AD", "forward-mode", "requires_grad_() inside", "jvp")


@dataclass(frozen=True)
class ForwardMode:
    """One updated prompt after another: backward for w, then forward with its own derivative.

    Attributes:
        columns_at_once: columns in one vectorised pass, for so many copies of the parameters.
        batch_size: how many observed prompts go through the model at once.
    """

    columns_at_once: int = 1
    batch_size: int = 128

    def __post_init__(self) -> None:
        """Refuse sizes that are none."""
        count("columns_at_once", self.columns_at_once)
        count("batch_size", self.batch_size)

    def __call__(
        self,
        model: nn.Module,
        probes: Sequence[Probe],
        parameters: str | ParameterSelection = "all",
    ) -> Blocks:
        """Return K, exact up to rounding; fused attention gives way to eager while it runs."""
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
        readers = [Reader(model, probes[s : s + size]) for s in range(0, len(probes), size)]
        with differentiable_forwards(model), torch.no_grad():
            some = [
                torch.cat([along(w, reader, theta) for reader in readers])
                for w in self._gradients(Reader(model, [probes[updated]]), theta)
            ]
        return torch.cat(some, dim=2)

    def _gradients(self, reader: "Reader", theta: Theta) -> Iterator[Theta]:
        """Yield w = J(x)ᵀ e_i of a reader's one prompt, some i at once, stacked in front."""
        finite(last_logits(reader.model, [probe.input_ids for probe in reader.probes]))
        values, pull = vjp(reader.at, theta)  # type: ignore[misc]
        basis = torch.eye(values.numel(), dtype=values.dtype, device=values.device)
        for some in basis.split(self.columns_at_once):
            yield vmap(lambda e: pull(e.view_as(values))[0])(some)


class Reader(nn.Module):
    """What probes read, as a function of θ: a module, so that tied weights change together."""

    def __init__(self, model: nn.Module, probes: Sequence[Probe]) -> None:
        super().__init__()
        self.model, self.probes = model, probes

    def forward(self) -> Float[Tensor, "n k"]:
        """Return the values read of every prompt."""
        logits = last_logits(self.model, [probe.input_ids for probe in self.probes])
        return torch.stack([probe.read(z) for probe, z in zip(self.probes, logits, strict=True)])

    def at(self, theta: Theta) -> Float[Tensor, "n k"]:
        """Return the values read with `theta` in place of the parameters that it names."""
        return called_with(self, theta)


def along(w: Theta, reader: Reader, theta: Theta) -> Float64[Tensor, "n k l"]:
    """Return J(x′) w of every observed prompt, for each of the columns stacked in `w`."""
    moves = vmap(lambda column: jvp(reader.at, (theta,), (column,))[1])(w)
    return moves.permute(1, 2, 0).double().cpu()


@contextmanager
def differentiable_forwards(model: nn.Module) -> Generator[None]:
    """Hold the model to what has a forward derivative inside the `with` block.

    In PyTorch, fused attention (`sdpa`, flash) and `grouped_mm` experts have none; and inside a
    transform the embedding's output may not be told to require a gradient, which gradient
    checkpointing does by a hook.

    Raises:
        UserError: for a model with something else that has none.
        RuntimeError: as it came, where it is about something else.
    """
    with ExitStack() as stack:
        # The outermost transformers model: an adapter wraps it, another module may not be one.
        for module in [m for m in model.modules() if isinstance(m, PreTrainedModel)][:1]:
            stack.enter_context(_switched(module))
        try:
            yield
        except (NotImplementedError, RuntimeError) as error:
            why = str(error).partition("\n")[0]
            if not any(known in why for known in _NO_DERIVATIVE):
                raise
            raise UserError(
                f"{type(model).__name__} cannot be differentiated forwards ({why}): "
                "take the gram estimator, which only goes backwards"
            ) from error


@contextmanager
def _switched(model: PreTrainedModel) -> Generator[None]:
    """Hold one transformers model to its plain implementations inside the `with` block."""
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    before = [(c, c._attn_implementation, c._experts_implementation) for c in configs.values()]
    hooks = model.get_input_embeddings()._forward_hooks
    kept = hooks.copy()
    try:
        model.set_attn_implementation("eager")
        if model._can_set_experts_implementation():
            model.set_experts_implementation("batched_mm")
        # By name: of hooks set twice transformers forgets the first, and peft sets its own.
        for key, hook in kept.items():
            if getattr(hook, "__name__", "").startswith("make_inputs_require_grad"):
                del hooks[key]
        yield
    finally:
        for config, attention, experts in before:
            config._attn_implementation = attention
            config._experts_implementation = experts
        hooks.update(kept)
