"""Base classes of mitigations: `Steering` has hooks, `Decoding` a logits processor.

A method is a module `snake_case` of this folder with the class `SnakeCase`, a frozen dataclass
(`eq=False` if it holds tensors) that inherits `Steering` or `Decoding`:

    @dataclass(frozen=True, eq=False)
    class Surgical(Steering):
        coefficient: float = 1.0                 # a setting: --set coefficient=0.5, JSON on disk
        vector: Tensor | None = learned()        # learned by `fit`: safetensors on disk

Settings are `bool`, `int`, `float`, `str`, `None` or tuples of them, and are checked in
`__post_init__` (`UserError`); from a command line or a file, `checked_settings` checks their names
and types. Neutral settings (a weight of 0) are the identity, bit for bit.

**A processor's protocol.** `generate` calls a `transformers.LogitsProcessor` with the ids so far,
`[batch, seq]`, padded on the left, and the scores of the next token, `[batch, vocab]`; it returns
new scores and changes nothing in place. The ids of the first call of a sequence are the prompts;
each later call has one more column. A processor that keeps state (a KV cache, a count of steps)

- has `begin(attention_mask)`, which forgets all state. It is called before every sequence by
  `ntkprobe.models.generation.generate_answers` and by the refusal scoring, with the prompts' mask
  `[batch, prompt]` (1 for tokens, 0 for padding);
- begins anew by itself where `begin` was not called (`model.generate` alone): when the ids are not
  the last call's with one more column. Then leading pad tokens count as padding;
- may have `hooks(model)`, live inside `applied`, and has to be right without them, too.

P_refuse of a decoding method is teacher-forced through its processor: for each phrase `begin`,
then a call for the prompts, for the prompts and the phrase's first token, and so on, always in the
order of a generation; the probability of a token is the softmax of the scores returned, in which
−∞ means a token that is excluded. A processor that is right in greedy generation is right here.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import nn

from ..errors import UserError
from ..models.architecture import Before, Hook, hooked
from ..models.generation import text_config
from ..prompts.prompt_set import PromptSet

if TYPE_CHECKING:
    from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

Identity = dict[str, Any]
"""Type, layers, hidden size and vocabulary of the model that a method was fitted on."""


def learned() -> Any:
    """Return the dataclass field of something that `fit` learns: a tensor, or what JSON holds."""
    return field(default=None, kw_only=True, repr=False, metadata={"learned": True})


@dataclass(frozen=True, eq=False)
class Mitigation(ABC):
    """A method: settings, and what was learned.

    Attributes:
        kind: `steering` or `decoding`.
        source: the paper, and where in it.
        adapter_apart: whether the model's own adapter must not be merged into it, since the method
            also runs the model without it.
        models: the settings that name a folder with another model.
        fitted_on: the identity of the model it was fitted on; None if it learned nothing.
    """

    fitted_on: Identity | None = learned()

    kind: ClassVar[str]
    source: ClassVar[str]
    adapter_apart: ClassVar[bool] = False
    models: ClassVar[tuple[str, ...]] = ()

    def fit(
        self, model: nn.Module, tokenizer: "PreTrainedTokenizerBase", prompts: PromptSet
    ) -> Self:
        """Return a copy that carries what was learned; itself, for a method that learns nothing.

        Args:
            model: the model to be mitigated, in evaluation mode.
            tokenizer: its tokenizer.
            prompts: what to learn from, by group.

        Returns:
            A method that can be applied, with `fitted_on=identity(model)`.
        """
        return self


class Steering(Mitigation):
    """A method that changes activations."""

    kind: ClassVar[str] = "steering"

    @abstractmethod
    def hooks(self, model: nn.Module) -> Sequence[tuple[nn.Module, Hook | Before]]:
        """Return hooks as `models.architecture.hooked` takes them; they return new tensors."""


class Decoding(Mitigation):
    """A method that changes the distribution of the next token."""

    kind: ClassVar[str] = "decoding"

    @abstractmethod
    def logits_processor(
        self, model: nn.Module, tokenizer: "PreTrainedTokenizerBase"
    ) -> "LogitsProcessor":
        """Return a new processor, which obeys the protocol above."""


def settings_of(mitigation: Mitigation | type[Mitigation]) -> list[str]:
    """Return the names of a method's settings: every field that is not learned."""
    return [each.name for each in fields(mitigation) if not each.metadata.get("learned")]


def learned_by(mitigation: Mitigation | type[Mitigation]) -> list[str]:
    """Return the names of what a method learns."""
    return [each.name for each in fields(mitigation) if each.metadata.get("learned")]


def identity(model: nn.Module) -> Identity:
    """Return the properties that two models must share to use the same fitted vectors."""
    config = text_config(model)
    return {
        "type": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocabulary": config.vocab_size,
    }


def require_same_model(mitigation: Mitigation, model: nn.Module) -> None:
    """Check that the method was fitted on a model like this one, or learned nothing.

    Raises:
        UserError: naming what differs.
    """
    if mitigation.fitted_on is None:
        return
    here = identity(model)
    differs = [
        f"{key} {value!r} there, {here.get(key)!r} here"
        for key, value in mitigation.fitted_on.items()
        if here.get(key) != value
    ]
    if differs:
        raise UserError(
            f"{type(mitigation).__name__} was fitted on another model ({'; '.join(differs)}): "
            "fit it on this one with ntkprobe mitigate fit"
        )


@contextmanager
def applied(
    mitigation: Mitigation | None, model: nn.Module, tokenizer: "PreTrainedTokenizerBase"
) -> Generator["LogitsProcessorList"]:
    """Apply a method to a model while the block lasts; no hook is left afterwards.

    Args:
        mitigation: a fitted method; None changes nothing.
        model: the model it was fitted on, with or without an adapter.
        tokenizer: its tokenizer.

    Yields:
        Logits processors for `model.generate`, `generate_answers` and `measure_refusal`; none for
        steering, whose hooks are live inside.

    Raises:
        UserError: if the method was fitted on another model.
    """
    from transformers import LogitsProcessorList

    if mitigation is None:
        yield LogitsProcessorList()
        return
    require_same_model(mitigation, model)
    if isinstance(mitigation, Steering):
        with hooked(mitigation.hooks(model)):
            yield LogitsProcessorList()
    elif isinstance(mitigation, Decoding):
        processor = mitigation.logits_processor(model, tokenizer)
        with hooked(processor.hooks(model) if hasattr(processor, "hooks") else []):
            yield LogitsProcessorList([processor])
    else:
        raise UserError(f"{type(mitigation).__name__} is neither Steering nor Decoding")


def defaults_of(kind: type[Mitigation]) -> dict[str, Any]:
    """Return the settings of a method with their defaults, None where one has to be given."""
    return {each.name: _default(each) for each in fields(kind) if each.name in settings_of(kind)}


def checked_settings(kind: type[Mitigation], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that fit a method.

    Args:
        kind: the method's class.
        values: by name, as JSON or YAML holds them; several values also joined by commas.

    Returns:
        The same, of the types of their defaults.

    Raises:
        UserError: for a setting that the method does not have, or of another type.
    """
    known = defaults_of(kind)
    for name in values:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f": did you mean {near[0]!r}?" if near else f": choose from {list(known)}"
            raise UserError(f"{kind.__name__} has no setting {name!r}{hint}")
    return {name: _fitting(name, value, known[name]) for name, value in values.items()}


def _default(each: Field) -> Any:
    if each.default_factory is not MISSING:
        return each.default_factory()
    return None if each.default is MISSING else each.default


def _fitting(name: str, value: Any, default: Any) -> Any:
    """Return a value of the default's type.

    Raises:
        UserError: if it is none.
    """
    if isinstance(default, tuple) and default:
        parts = [each.strip() for each in value.split(",")] if isinstance(value, str) else value
        parts = parts if isinstance(parts, list | tuple) else [parts]
        return tuple(_fitting(name, part, default[0]) for part in parts)
    if isinstance(value, list) and isinstance(default, tuple | None):
        return tuple(value)
    if default is None or type(value) is type(default):
        return value
    try:
        if isinstance(default, str) and type(value) is int:
            return str(value)
        if isinstance(default, float) and not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise UserError(f"{name} is {value!r}: give {type(default).__name__}, such as {default!r}")
