"""What peft put into a model, told by its modules and whose tensors they hold, not by name.

An adapter wraps modules of the base model, replaces some of them by trained copies, and overwrites
rows of others. Here is what of the base model is in force below it, what the adapter trains, and
which tied tensors it changes at one end only.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Place:
    """One place where the base model in force holds a parameter; a tied parameter has several.

    Attributes:
        name: the name there, as if there were no adapter.
        holder: the module that holds it.
        attribute: under which name.
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

    def hold(self, parameter: nn.Parameter) -> None:
        """Hold another parameter from now on."""
        self.holder._parameters[self.attribute] = parameter

    def changes(self) -> list[tuple[Any, str]]:
        """Return the layers that change what this parameter does, each with an adapter's name."""
        return [
            (layer, adapter)
            for layer in self.layers
            if _touches(layer, self.attribute)
            for adapter in _acting(layer)
        ]

    def trained_rows(self) -> list[nn.Parameter]:
        """Return what stands for single rows of it (`trainable_token_indices`)."""
        return [
            layer.trainable_tokens_delta[adapter]
            for layer, adapter in self.changes()
            if hasattr(layer, "trainable_tokens_delta")
        ]


def places(model: nn.Module) -> list[Place]:
    """Return where the base model in force holds its parameters, in the model's order.

    A module that an adapter trains whole (`modules_to_save`) stands where its original was.
    """
    return list(_places(model, "", ()))


def _places(module: nn.Module, prefix: str, layers: tuple[nn.Module, ...]) -> Iterator[Place]:
    """Yield the places of a module and of those below it."""
    inner = in_force(module)
    if inner is not module:
        own = (module,) if _is_layer(module) else ()
        yield from _places(inner, prefix, layers + own)
        return
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield Place(prefix + name, module, name, layers)
    for name, child in module._modules.items():
        if child is not None:
            yield from _places(child, f"{prefix}{name}.", ())


def in_force(module: Any) -> nn.Module:
    """Return the module that stands for the base model's own in the place of one of peft's."""
    found = module
    if "_orig_mod" in module._modules:  # torch.compile's wrapper
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


def _is_layer(module: nn.Module) -> bool:
    """Return whether a module is one of peft's around one of the base model's."""
    if "peft" not in sys.modules:
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer) and "base_layer" in module._modules


def _acting(layer: Any) -> list[str]:
    """Return the adapters of a layer that are in force and not merged."""
    if layer.disable_adapters or layer.merged:
        return []
    held = [attrgetter(attribute)(layer) for attribute in layer.adapter_layer_names]
    return [name for name in layer.active_adapters if any(name in each for each in held)]


def _touches(layer: Any, attribute: str) -> bool:
    """Return whether a layer changes what this parameter of its module does."""
    if hasattr(layer, "parameter_name"):  # LoRA on a parameter, not on a module
        return bool(attribute == layer.parameter_name)
    if attribute == "bias" and hasattr(layer, "lora_bias"):
        return any(layer.lora_bias.values())
    return attribute == "weight" or not hasattr(layer, "trainable_tokens_delta")


def effective_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of the base model by canonical name, a tied one once.

    The adapter counts as merged: a module trained whole stands for its original, and trained rows
    of an embedding stand beside the matrix whose rows they replace.
    """
    names, found = _names(model), {}
    seen: set[int] = set()
    for place in places(model):
        rows = {names.get(id(p), place.name): p for p in place.trained_rows()}
        for name, parameter in {place.name: place.parameter, **rows}.items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found[name] = parameter
    return found


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return everything that the active adapters train, by name, a tied one once; none without one.

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
        for place in places(model):
            adapted = any(hasattr(layer, "lora_bias") for layer in place.layers)
            if place.attribute == "bias" and (
                which == "all" or (str(which).endswith("_only") and adapted)
            ):
                found.setdefault(place.name, place.parameter)
    return found


def active_adapters(model: nn.Module) -> set[str]:
    """Return the names of the adapters that some of peft's modules has switched on."""
    if "peft" not in sys.modules:
        return set()
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    ours = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return {name for m in model.modules() if isinstance(m, ours) for name in m.active_adapters}


def _root(model: nn.Module) -> nn.Module:
    """Return the base model without what is wrapped around the whole of it."""
    inner = in_force(model)
    return model if inner is model or _is_layer(model) else _root(inner)


def _names(model: nn.Module) -> dict[int, str]:
    """Return the first name of each parameter, as torch tells it, in the base model."""
    return {id(p): n.replace("_orig_mod.", "") for n, p in _root(model).named_parameters()}


Groups = list[list[Place]]


def divided(model: nn.Module) -> list[Groups]:
    """Return the tied parameters that adapters change at one end only, or differently at each.

    Returns:
        For each such parameter the places that hold it, in groups of one change. Counted as merged
        these are several parameters.
    """
    held: dict[int, list[Place]] = {}
    for place in places(model):
        held.setdefault(id(place.parameter), []).append(place)
    found = []
    for some in held.values():
        once = list({(id(p.holder), p.attribute): p for p in some}.values())
        if len(once) > 1 and any(place.changes() for place in once):
            found.append(_grouped(once))
    return [groups for groups in found if len(groups) > 1]


def _grouped(some: list[Place]) -> Groups:
    """Return places in groups that adapters change in the same way."""
    groups: Groups = []
    for place in some:
        home = next((group for group in groups if _alike(group[0], place)), None)
        if home is None:
            groups.append([place])
        else:
            home.append(place)
    return groups


def _alike(one: Place, other: Place) -> bool:
    """Return whether adapters change a parameter in the same way at two places."""
    a, b = one.changes(), other.changes()
    return len(a) == len(b) and all(_same(*x, *y) for x, y in zip(a, b, strict=True))


def _same(layer: Any, adapter: str, other: Any, others: str) -> bool:
    """Return whether two of peft's layers add the same: the same rows, or tied matrices."""
    if layer is other:
        return adapter == others
    if hasattr(layer, "trainable_tokens_delta") and hasattr(other, "trainable_tokens_delta"):
        same = layer.trainable_tokens_delta[adapter] is other.trainable_tokens_delta[others]
        return same and layer.token_indices[adapter] == other.token_indices[others]
    plain = not getattr(layer, "lora_variant", {}) and not getattr(other, "lora_variant", {})
    if not (plain and hasattr(layer, "scaling") and hasattr(other, "scaling")):
        return False
    return _equal(layer.get_delta_weight(adapter), other.get_delta_weight(others))


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two changes of a matrix are equal up to rounding."""
    if one.shape != other.shape:
        return False
    slack = 1e-5 if one.dtype in (torch.float32, torch.float64) else 1e-2
    return bool((one - other).abs().max() <= slack * one.abs().max())


def rows_of_several(model: nn.Module) -> set[int]:
    """Return the identities of trained rows that stand for rows of several matrices at once.

    peft trains them so where the configuration ties the ends of a model whose weights are not tied.
    """
    matrices: dict[int, set[int]] = {}
    for place in places(model):
        for rows in place.trained_rows():
            matrices.setdefault(id(rows), set()).add(id(place.parameter))
    return {rows for rows, several in matrices.items() if len(several) > 1}


def untie(model: nn.Module) -> None:
    """Give each end of a tied parameter that adapters change differently a parameter of its own.

    Nothing that the model computes changes. Merged or not, its base parameters are then the same;
    with one parameter at both ends, peft's merge would change both.

    Args:
        model: the model, in place.
    """
    for groups in divided(model):
        for group in groups[1:]:
            _hold_apart(group)


def separate_for_merging(model: nn.Module) -> Groups:
    """Untie whatever an adapter changes, also where it changes both ends alike.

    peft merges at every end: into one tensor it would add the same change twice.

    Returns:
        The places that are to be tied again once merged.
    """
    untie(model)
    held: dict[int, list[Place]] = {}
    for place in places(model):
        if place.changes():
            held.setdefault(id(place.parameter), []).append(place)
    alike = [
        list({(id(p.holder), p.attribute): p for p in some}.values()) for some in held.values()
    ]
    alike = [some for some in alike if len(some) > 1]
    for some in alike:
        for place in some[1:]:
            _hold_apart([place])
    return alike


def tie_again(groups: Groups) -> None:
    """Let the places of each group hold the first one's parameter."""
    for group in groups:
        for place in group[1:]:
            place.hold(group[0].parameter)


def _hold_apart(group: list[Place]) -> None:
    """Give places a parameter of their own, of the same values."""
    shared = group[0].parameter
    own = nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
    for place in group:
        place.hold(own)
