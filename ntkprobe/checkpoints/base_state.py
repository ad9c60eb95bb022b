"""The state of a base model before an adapter, to restore it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class _ObjectState:
    """An object's attributes, and the contents of its dictionaries and sets."""

    owner: Any
    kind: type
    attributes: dict[str, Any]
    contents: dict[str, Any]

    @classmethod
    def of(cls, owner: Any) -> "_ObjectState":
        """Return the current state of an object, by reference."""
        attributes = dict(vars(owner))
        inner = {k: v.copy() for k, v in attributes.items() if isinstance(v, dict | set)}
        return cls(owner, type(owner), attributes, inner)

    def restore(self) -> None:
        """Restore the object's state."""
        if type(self.owner) is not self.kind:  # torch's parametrisations change it
            self.owner.__class__ = self.kind
        now = vars(self.owner)
        now.clear()
        now.update(self.attributes)
        for name, content in self.contents.items():
            self.attributes[name].clear()
            self.attributes[name].update(content)


@dataclass(frozen=True)
class BaseState:
    """A model's modules, tensors and configurations, by reference: nothing is copied.

    Attributes:
        model: the model.
        states: every module and configuration.
        values: every parameter, with its tensor and whether it required a gradient.
    """

    model: nn.Module
    states: list[_ObjectState] = field(default_factory=list)
    values: list[tuple[nn.Parameter, Tensor, bool]] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module) -> "BaseState":
        """Return the current state of a model."""
        owners = {id(owner): owner for owner in (*model.modules(), *_configurations(model))}
        values = [(p, p.data, p.requires_grad) for p in model.parameters()]
        return cls(model, [_ObjectState.of(owner) for owner in owners.values()], values)

    def guard(self) -> None:
        """Replace all tensors by copies, which in-place operations then change."""
        for parameter, data, _ in self.values:
            parameter.data = data.clone()
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.clone()

    def guard_named(self, names: set[str]) -> None:
        """Put copies in the place of some parameters and buffers, by their names in the model."""
        wanted = {
            id(p) for n, p in self.model.named_parameters(remove_duplicate=False) if n in names
        }
        for parameter, data, _ in self.values:
            if id(parameter) in wanted:
                parameter.data = data.clone()
        for prefix, module in self.model.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and f"{prefix}.{name}".lstrip(".") in names:
                    module._buffers[name] = buffer.clone()

    def restore(self) -> None:
        """Restore the model's state."""
        for state in self.states:
            state.restore()
        for parameter, data, required in self.values:
            parameter.data = data
            parameter.requires_grad_(required)


def _configurations(model: nn.Module) -> Iterator[Any]:
    """Yield the configurations of a model's modules, and those inside them."""
    from transformers import PreTrainedConfig

    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            yield config
            yield from (v for v in vars(config).values() if isinstance(v, PreTrainedConfig))
