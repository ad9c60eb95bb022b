"""The modules that peft adds to a model, identified by class and by the tensors they hold.

An adapter wraps modules of the base model, replaces some of them by trained copies, and overwrites
rows of others. These functions return the effective parameters of the base model, the parameters
that the adapter trains, and the tied tensors that it changes at one end only.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class ParameterLocation:
    """A module attribute of the effective base model; a tied parameter has several.

    Attributes:
        name: the parameter's name in the base model without an adapter.
        holder: the module that holds it.
        attribute: its name in that module.
        layers: peft's layers around the holder, the outermost first.
    """

    name: str
    holder: nn.Module
    attribute: str
    layers: tuple[nn.Module, ...]

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter held."""
        found = self.holder._parameters[self.attribute]
        assert found is not None
        return found

    def assign(self, parameter: nn.Parameter) -> None:
        """Replace the parameter held."""
        self.holder._parameters[self.attribute] = parameter

    def changes(self) -> list[tuple[Any, str]]:
        """Return the layers that change the parameter's effect, each with an adapter's name."""
        return [
            (layer, adapter)
            for layer in self.layers
            if _changes_attribute(layer, self.attribute)
            for adapter in _active_unmerged(layer)
        ]

    def trained_rows(self) -> list[nn.Parameter]:
        """Return the parameters that replace single rows of it (`trainable_token_indices`)."""
        return [
            layer.trainable_tokens_delta[adapter]
            for layer, adapter in self.changes()
            if hasattr(layer, "trainable_tokens_delta")
        ]


def parameter_locations(model: nn.Module) -> list[ParameterLocation]:
    """Return the locations of the effective base model's parameters, in the model's order.

    A module that an adapter trains whole (`modules_to_save`) replaces its original.
    """
    return list(_locations(model, "", ()))


def _locations(
    module: nn.Module, prefix: str, layers: tuple[nn.Module, ...]
) -> Iterator[ParameterLocation]:
    """Yield the parameter locations of a module and of its descendants."""
    inner = effective_module(module)
    if inner is not module:
        own = (module,) if _is_layer(module) else ()
        yield from _locations(inner, prefix, layers + own)
        return
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield ParameterLocation(prefix + name, module, name, layers)
    for name, child in module._modules.items():
        if child is not None:
            yield from _locations(child, f"{prefix}{name}.", ())


def effective_module(module: Any) -> nn.Module:
    """Return the base model's effective module inside one of peft's; else the module itself."""
    found = module
    if "_orig_mod" in module._modules:  # the wrapper of torch.compile
        found = module._orig_mod
    elif "peft" in sys.modules:  # else nothing can be peft's
        from peft import PeftModel
        from peft.tuners.tuners_utils import BaseTuner
        from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

        if isinstance(module, PeftModel):
            found = module.base_model
        elif isinstance(module, BaseTuner):
            found = module.model
        elif isinstance(module, TrainableTokensWrapper):
            found = module.token_adapter
        elif isinstance(module, ModulesToSaveWrapper):
            acting = [name for name in module.active_adapters if name in module.modules_to_save]
            whole = acting and not module.disable_adapters
            found = module.modules_to_save[acting[0]] if whole else module.original_module
        elif _is_layer(module):
            found = module.base_layer
    return found if isinstance(found, nn.Module) else module


def acting_adapters(model: nn.Module) -> frozenset[str]:
    """Return the names of the adapters that act in some layer of a model now, unmerged."""
    layers = [module for module in model.modules() if _is_layer(module)]
    return frozenset(name for layer in layers for name in _active_unmerged(layer))


def _is_layer(module: nn.Module) -> bool:
    """Return whether a module is a layer of peft that wraps one of the base model's."""
    if "peft" not in sys.modules:
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer) and "base_layer" in module._modules


def _active_unmerged(layer: Any) -> list[str]:
    """Return the adapters of a layer that are active and not merged."""
    if layer.disable_adapters or layer.merged:
        return []
    held = [attrgetter(attribute)(layer) for attribute in layer.adapter_layer_names]
    return [name for name in layer.active_adapters if any(name in each for each in held)]


def _changes_attribute(layer: Any, attribute: str) -> bool:
    """Return whether a layer changes the effect of this parameter of its module."""
    if hasattr(layer, "parameter_name"):  # LoRA on a parameter, not on a module
        return bool(attribute == layer.parameter_name)
    if attribute == "bias" and hasattr(layer, "lora_bias"):
        return any(layer.lora_bias.values())
    return attribute == "weight" or not hasattr(layer, "trainable_tokens_delta")


def effective_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of the base model by canonical name, a tied one once.

    The adapter counts as merged: a module trained whole replaces its original, and trained rows of
    an embedding are listed beside the matrix whose rows they replace.
    """
    names, found = _base_names(model), {}
    seen: set[int] = set()
    for location in parameter_locations(model):
        rows = {names.get(id(p), location.name): p for p in location.trained_rows()}
        for name, parameter in {location.name: location.parameter, **rows}.items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found[name] = parameter
    return found


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters that the active adapters train, by name, a tied one once.

    Empty for a model without an adapter. They are
    LoRA's matrices, modules trained whole, single rows of embeddings, and the biases of the base
    model that `bias="all"` or `"lora_only"` trains, which keep their names.
    """
    configs: dict[str, Any] = getattr(model, "peft_config", None) or {}
    if not configs:
        return {}
    biases = {id(p): name for name, p in _trained_biases(model, configs).items()}
    added = {id(p) for module in model.modules() for p in _trained_in(module)}
    return {
        biases.get(id(p), name): p
        for name, p in _root(model).named_parameters()
        if id(p) in added or id(p) in biases
        for name in [name.replace("_orig_mod.", "")]
    }


def _trained_in(module: Any) -> Iterator[nn.Parameter]:
    """Yield the parameters that one of peft's modules holds for its active adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
        return
    for attribute in module.adapter_layer_names:
        held = attrgetter(attribute)(module)
        for adapter in module.active_adapters:
            value = held[adapter] if adapter in held else None
            if isinstance(value, nn.Parameter):
                yield value
            elif isinstance(value, nn.Module):
                yield from value.parameters()


def _trained_biases(model: nn.Module, configs: dict[str, Any]) -> dict[str, nn.Parameter]:
    """Return the biases of the base model that the active adapters train."""
    active = active_adapters(model)
    found: dict[str, nn.Parameter] = {}
    for which in {getattr(configs[name], "bias", "none") for name in configs if name in active}:
        for location in parameter_locations(model):
            adapted = any(hasattr(layer, "lora_bias") for layer in location.layers)
            if location.attribute == "bias" and (
                which == "all" or (str(which).endswith("_only") and adapted)
            ):
                found.setdefault(location.name, location.parameter)
    return found


def active_adapters(model: nn.Module) -> set[str]:
    """Return the names of the adapters that are active in any of peft's modules."""
    if "peft" not in sys.modules:
        return set()
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    ours = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return {name for m in model.modules() if isinstance(m, ours) for name in m.active_adapters}


def _root(model: nn.Module) -> nn.Module:
    """Return the base model without wrappers around the whole of it."""
    inner = effective_module(model)
    return model if inner is model or _is_layer(model) else _root(inner)


def _base_names(model: nn.Module) -> dict[int, str]:
    """Return the first name that torch gives each parameter of the base model, by id."""
    return {id(p): n.replace("_orig_mod.", "") for n, p in _root(model).named_parameters()}


Groups = list[list[ParameterLocation]]


def diverging_ties(model: nn.Module) -> list[Groups]:
    """Return the tied parameters that adapters change at one end only, or differently at each.

    Returns:
        For each such parameter its locations, grouped by change. With the adapter merged each group
        is a parameter of its own.
    """
    held: dict[int, list[ParameterLocation]] = {}
    for location in parameter_locations(model):
        held.setdefault(id(location.parameter), []).append(location)
    found = []
    for some in held.values():
        once = list({(id(p.holder), p.attribute): p for p in some}.values())
        if len(once) > 1 and any(location.changes() for location in once):
            found.append(_group_by_change(once))
    return [groups for groups in found if len(groups) > 1]


def _group_by_change(some: list[ParameterLocation]) -> Groups:
    """Return locations in groups that adapters change in the same way."""
    groups: Groups = []
    for location in some:
        match = next((group for group in groups if _have_same_changes(group[0], location)), None)
        if match is None:
            groups.append([location])
        else:
            match.append(location)
    return groups


def _have_same_changes(one: ParameterLocation, other: ParameterLocation) -> bool:
    """Return whether adapters change a parameter in the same way at two locations."""
    a, b = one.changes(), other.changes()
    return len(a) == len(b) and all(_is_same_change(*x, *y) for x, y in zip(a, b, strict=True))


def _is_same_change(layer: Any, adapter: str, other: Any, others: str) -> bool:
    """Return whether two of peft's layers add the same: the same rows, or tied matrices."""
    if layer is other:
        return adapter == others
    if hasattr(layer, "trainable_tokens_delta") and hasattr(other, "trainable_tokens_delta"):
        same = layer.trainable_tokens_delta[adapter] is other.trainable_tokens_delta[others]
        return same and layer.token_indices[adapter] == other.token_indices[others]
    plain = not getattr(layer, "lora_variant", {}) and not getattr(other, "lora_variant", {})
    if not (plain and hasattr(layer, "scaling") and hasattr(other, "scaling")):
        return False
    return _nearly_equal(layer.get_delta_weight(adapter), other.get_delta_weight(others))


def _nearly_equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two changes of a matrix are equal up to rounding."""
    if one.shape != other.shape:
        return False
    tolerance = 1e-5 if one.dtype in (torch.float32, torch.float64) else 1e-2
    return bool((one - other).abs().max() <= tolerance * one.abs().max())


def rows_of_several_matrices(model: nn.Module) -> set[int]:
    """Return the ids of trained rows that replace rows of several matrices at once.

    peft trains them so where the configuration ties the ends of a model whose weights are not tied.
    """
    matrices: dict[int, set[int]] = {}
    for location in parameter_locations(model):
        for rows in location.trained_rows():
            matrices.setdefault(id(rows), set()).add(id(location.parameter))
    return {rows for rows, several in matrices.items() if len(several) > 1}


def untie(model: nn.Module) -> None:
    """Give each end of a tied parameter that adapters change differently a parameter of its own.

    Nothing that the model computes changes. Merged or not, its base parameters are then the same;
    with one parameter at both ends, peft's merge would change both.

    Args:
        model: the model, in place.
    """
    for groups in diverging_ties(model):
        for group in groups[1:]:
            _give_own_parameter(group)


def separate_for_merging(model: nn.Module) -> Groups:
    """Untie all tied parameters that an adapter changes, even if it changes both ends alike.

    peft merges at every end: it would add the same change twice to one tensor.

    Returns:
        The locations to tie again after merging.
    """
    untie(model)
    held: dict[int, list[ParameterLocation]] = {}
    for location in parameter_locations(model):
        if location.changes():
            held.setdefault(id(location.parameter), []).append(location)
    alike = [
        list({(id(p.holder), p.attribute): p for p in some}.values()) for some in held.values()
    ]
    alike = [some for some in alike if len(some) > 1]
    for some in alike:
        for location in some[1:]:
            _give_own_parameter([location])
    return alike


def retie(groups: Groups) -> None:
    """Assign the first location's parameter to all locations of each group."""
    for group in groups:
        for location in group[1:]:
            location.assign(group[0].parameter)


def _give_own_parameter(group: list[ParameterLocation]) -> None:
    """Assign a copy of their parameter to locations."""
    shared = group[0].parameter
    own = nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
    for location in group:
        location.assign(own)
