"""The parameters that a kernel is over: the grammar of `--parameters`, and the parts of a model.

A selection is `all`, `lora`, `embed`, `below:L`, `last:N`, `norm`, `head` or `re:PATTERN`, or
several joined by `+`. A parameter has its name in the base model, without what an adapter
adds to it; a tied one, identified by its object, has one name and counts once. `lora` is
everything that the adapter trains, `all` every parameter of the base with the adapter merged.
"""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import UserError
from .architecture import MIXER, decoder_layers, embedding, head
from .peft_modules import (
    ParameterLocation,
    active_adapters,
    diverging_ties,
    effective_module,
    parameter_locations,
    rows_of_several_matrices,
)
from .peft_modules import adapter_parameters as adapter_parameters
from .peft_modules import effective_parameters as effective_parameters

_TERM = re.compile(
    r"all|lora|embed|norm|head|below:(?P<below>\d+)|last:(?P<last>\d+)|re:(?P<re>.+)"
)
_GRAMMAR = "choose from all, lora, embed, below:L, last:N, norm, head, re:PATTERN, joined by +"
_JOINT = re.compile(r"\+(?=(?:all|lora|embed|norm|head)(?:\+|$)|below:|last:|re:|\w+$)")


@dataclass(frozen=True)
class Part:
    """A part of the model: `layer` counts decoder blocks from 1 and is `None` outside them.

    `kind` is `attention`, `mlp` or `norms` in a block; else `embed`, `norm`, `head`, or
    `embed+head` where these are tied.
    """

    layer: int | None
    kind: str

    def __str__(self) -> str:
        """Return a label such as `block 3 attention`."""
        return f"block {self.layer} {self.kind}" if self.layer else self.kind


@dataclass(frozen=True)
class ParameterSelection:
    """A selection of parameters: terms of the grammar."""

    terms: tuple[str, ...]

    @classmethod
    def parse(cls, spec: "str | ParameterSelection") -> "ParameterSelection":
        """Return the selection that `spec` writes, such as `last:2+head`.

        Raises:
            UserError: if a term is unknown or a pattern is no regular expression.
        """
        if isinstance(spec, ParameterSelection):
            return spec
        if not isinstance(spec, str):
            raise UserError(f"parameters={spec!r}: write one text, as last:2+head; {_GRAMMAR}")
        terms = tuple(term.strip() for term in _JOINT.split(spec))
        for term in terms:
            match = _TERM.fullmatch(term)
            if match is None:
                raise UserError(f"parameters {spec!r}: no term {term!r}; {_GRAMMAR}")
            try:
                re.compile(match["re"] or "")
            except re.error as error:
                raise UserError(f"parameters {spec!r}: {term!r} is no pattern: {error}") from None
        return cls(terms)

    def __str__(self) -> str:
        """Return the selection as it is written."""
        return "+".join(self.terms)

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the selected parameters by canonical name, in the model's order, a tied one once.

        Raises:
            UserError: if a block is out of range, a term selects nothing, or an adapter changes
                a selected tied parameter at one end only.
        """
        base, adapter = effective_parameters(model), adapter_parameters(model)
        parts = part_of(model)
        chosen: set[str] = set()
        counted: set[str] = set()  # as parameters of the base model
        for term in self.terms:
            names = set(adapter) if term == "lora" else _matching(term, parts, model)
            counted |= names if term != "lora" else set()
            if not names:
                raise UserError(
                    f"parameters {str(self)!r}: {term!r} selects nothing here; {_hint(term)}"
                )
            chosen |= names
        everything = {**base, **adapter}
        _refuse_tied(str(self), model, [base[n] for n in base if n in counted])
        return _deduplicate({name: everything[name] for name in everything if name in chosen})

    def names(self, model: nn.Module) -> list[str]:
        """Return the canonical names of the selected parameters, in the model's order."""
        return list(self.parameters(model))

    def remarks(self, model: nn.Module) -> list[str]:
        """Return what to know about this selection on this model, a sentence each."""
        parts, terms = part_of(model), set(self.terms)
        kinds = {parts[name].kind for name in self.names(model) if name in parts}
        found = []
        if "embed+head" in kinds and "all" not in terms:
            found.append(
                "the output matrix is the embedding (tied): both uses count, with their cross terms"
            )
        if "lora" in terms and terms != {"lora"}:
            found.append(
                "an adapter's parameters and the base's, at the merged weights, are counted "
                "together: neither the merged model's kernel (all) nor the adapter's own (lora), "
                "and possibly several times as large, even where the adapter's B is 0"
            )
        return found


def parse_selections(
    specs: Sequence[str | ParameterSelection],
) -> list[ParameterSelection]:
    """Return several selections.

    Raises:
        UserError: if they are one string, which would be read letter by letter.
    """
    if isinstance(specs, str):
        raise UserError(
            f"selections={specs!r}: give a list of them, such as ['last:2+head', 'all']"
        )
    return [ParameterSelection.parse(spec) for spec in specs]


def remarks(model: nn.Module, selections: Sequence[ParameterSelection]) -> list[str]:
    """Return the remarks about several selections on a model, a line each."""
    return [f"parameters {s}: {text}" for s in selections for text in s.remarks(model)]


def _deduplicate(named: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return each parameter by its first name: a module trained whole has two."""
    first: dict[int, str] = {}
    for name, parameter in named.items():
        first.setdefault(id(parameter), name)
    return {name: named[name] for name in first.values()}


def _hint(term: str) -> str:
    """Return what to do about a term that selects nothing."""
    if term == "lora":
        return "it has no adapter: load one with peft, or choose all"
    return "print(ntkprobe.models.parameters.part_of(model)) lists its parameters"


def _matching(term: str, parts: dict[str, Part], model: nn.Module) -> set[str]:
    """Return the names of the base parameters that one term other than `lora` selects.

    Raises:
        UserError: if a block is out of range.
    """
    match = _TERM.fullmatch(term)
    assert match is not None
    if match["re"]:
        return {name for name in parts if re.search(match["re"], name)}
    if match["below"] or match["last"]:
        depth, count = len(decoder_layers(model)), int(match["below"] or match["last"])
        if not 1 <= count <= depth:
            raise UserError(
                f"parameters {term!r}: the model has {depth} blocks; choose from 1 to {depth}"
            )
        first = 1 if match["below"] else depth - count + 1
        final = count if match["below"] else depth
        embedded = _matching("embed", parts, model) if match["below"] else set()
        return embedded | {
            name for name, part in parts.items() if first <= (part.layer or 0) <= final
        }
    if term == "all":
        return set(parts)
    return {name for name, part in parts.items() if not part.layer and term in part.kind.split("+")}


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters that can be selected, the base model's and the adapter's, each once."""
    return _deduplicate({**effective_parameters(model), **adapter_parameters(model)})


def _refuse_tied(selection: str, model: nn.Module, counted: list[nn.Parameter]) -> None:
    """Refuse parameters that represent several, or that peft trains together with others.

    Args:
        selection: as it is written.
        model: the model.
        counted: the parameters that count as the base model's, with the adapter merged.

    Raises:
        UserError: naming the parameter.
    """
    ids = {id(parameter) for parameter in counted}
    for one, other, *_ in diverging_ties(model):
        if id(one[0].parameter) in ids:
            raise UserError(
                f"parameters {selection!r}: the adapter changes {one[0].name} and "
                f"{other[0].name}, which are tied, in different ways: call "
                "ntkprobe.models.peft_modules.untie(model), which does not change its outputs, "
                "or load it with ntkprobe.checkpoints.adapted"
            )
    if ids & rows_of_several_matrices(model):
        raise UserError(
            f"parameters {selection!r}: the adapter's trainable_token_indices are rows of two "
            "matrices at once: load it merged, with ntkprobe.checkpoints.adapted"
        )
    configs = getattr(model, "peft_config", None) or {}
    tied = {name for name in configs if getattr(configs[name], "target_modules_to_tie", None)}
    if "lora" in selection.split("+") and active_adapters(model) & tied:
        raise UserError(
            f"parameters {selection!r}: the adapter's matrices at both ends of a tied embedding "
            "are one in memory (ensure_weight_tying): choose all, over the merged model"
        )


def part_of(model: nn.Module) -> dict[str, Part]:
    """Return the part of the model that each base parameter belongs to, by canonical name."""
    blocks = {id(block): layer for layer, block in enumerate(_blocks(model), start=1)}
    found: dict[int, Part] = {}
    for _, module in model.named_modules():
        if id(module) in blocks:
            for parameter_name, parameter in module.named_parameters():
                found.setdefault(
                    id(parameter), Part(blocks[id(module)], _kind_in(module, parameter_name))
                )
    held = parameter_locations(model)
    found = _parts_outside_blocks(model, held, found) | found
    for location in held:  # trained rows of an embedding belong where its matrix does
        found |= {id(p): found[id(location.parameter)] for p in location.trained_rows()}
    return {name: found[id(p)] for name, p in effective_parameters(model).items()}


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Return the decoder blocks, none where the model has no list of them."""
    try:
        return decoder_layers(model)
    except UserError:
        return []


def _kind_in(block: nn.Module, name: str) -> str:
    """Return the kind of a block's parameter: `norms`, `attention` (any mixer), or `mlp`.

    A parameter of the block itself scales channels, as a norm's weight does, and counts as one.
    """
    child, _, inner = name.partition(".")
    if not inner:
        return "norms"
    module = effective_module(getattr(block, child))
    if "norm" in type(module).__name__.lower() or "norm" in child:
        return "norms"
    return "attention" if MIXER.search(child) else "mlp"


def _parts_outside_blocks(
    model: nn.Module, held: list[ParameterLocation], inside: dict[int, Part]
) -> dict[int, Part]:
    """Return the parts of the parameters outside the blocks, by id."""
    heads, embeddings = _effective_ids(head(model)), _effective_ids(embedding(model))
    found: dict[int, Part] = {}
    for location in held:
        own, words = id(location.parameter), location.name.lower()
        if own in inside or own in found:
            continue
        if own in heads:
            kind = "embed+head" if own in embeddings else "head"
        elif "embed" in words or own in embeddings:
            kind = "embed"
        else:
            kind = (
                "norm"
                if "norm" in words or "ln_f" in words
                else "head"
                if "out" in words
                else "embed"
            )
        found[own] = Part(None, kind)
    return found


def _effective_ids(module: nn.Module | None) -> set[int]:
    return (
        set()
        if module is None
        else {id(location.parameter) for location in parameter_locations(module)}
    )


def call_with_parameters(module: nn.Module, theta: dict[str, Tensor], *args: Any) -> Any:
    """Return the output of a module with other tensors in the place of its parameters.

    `torch.func.functional_call` alone restores a wrong tensor where two modules share a parameter
    container, as peft's trained rows of a tied embedding do.

    Args:
        module: the module.
        theta: by the names of `named_parameters()`; tied parameters change together.
        args: the module's arguments.
    """
    names: dict[int, list[str]] = {}
    seen: set[tuple[int, str]] = set()
    for prefix, holder in module.named_modules(remove_duplicate=False):
        for attribute, parameter in holder._parameters.items():
            if parameter is not None and (id(holder), attribute) not in seen:
                seen.add((id(holder), attribute))
                path = f"{prefix}.{attribute}" if prefix else attribute
                names.setdefault(id(parameter), []).append(path)
    everywhere = {
        name: theta[each[0]] for each in names.values() if each[0] in theta for name in each
    }
    return functional_call(module, everywhere, args, tie_weights=False)


@contextmanager
def requiring_grad(model: nn.Module, parameters: dict[str, nn.Parameter]) -> Generator[None]:
    """Make exactly these parameters require a gradient inside the `with` block."""
    before = {p: p.requires_grad for p in model.parameters()}
    wanted = {id(p) for p in parameters.values()}
    try:
        for parameter in before:
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


def difference(now: Tensor, old: Tensor) -> Tensor:
    """Return how a tensor has changed; in float32 where it has less, which has no room for it."""
    wide = torch.promote_types(now.dtype, torch.float32)
    return now.to(wide) - old.to(wide)
