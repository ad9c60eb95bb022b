"""Renders conversations with a chat template, for a given date, and reads templates from files.

transformers lets a template print today's date (`strftime_now`), so that the same prompt has other
tokens tomorrow. Here a template prints the day it is given: the first day of a run, which is
recorded with it.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import date, datetime, time
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateError, TemplateSyntaxError

from ..errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[tuple[str, str]]
"""Role and text of each turn."""

NOT_THINKING: dict[str, Any] = {"enable_thinking": False, "thinking": False, "thinking_budget": 0}
"""Variables that turn a template's thinking mode off: those of Qwen3 and most others, of
DeepSeek-V3.1 and Kimi, of Seed-OSS. A template that does not know a name ignores it."""

_DAY: ContextVar[str | None] = ContextVar("day that templates print", default=None)
_DATES = "ntkprobe_dates"
# transformers passes data only, no functions: a macro looks up what each format comes to. The line
# break behind it is its own (trim_blocks), so that the template begins on a line as before.
_ON_A_DAY = (
    "{%- macro strftime_now(format) -%}{{- " + _DATES + "[format] if format in " + _DATES + " else "
    "raise_exception('a date format that is computed cannot be kept to one day') -}}"
    "{%- endmacro %}\n"
)
_TWO_DAYS = ("1999-12-31", "2010-06-15")


def conversation(text: str, answer: str | None = None, system: str | None = None) -> Messages:
    """Return the messages of a conversation of one turn.

    Args:
        text: the user's.
        answer: the assistant's, if there is one.
        system: what stands before, if anything.
    """
    roles = {"system": system, "user": text, "assistant": answer}
    return [(role, content) for role, content in roles.items() if content is not None]


@contextmanager
def dated(day: str | None) -> Generator[None]:
    """Make templates that are resolved in the block print this day instead of today.

    Args:
        day: as `2026-03-01`; None changes nothing.

    Yields:
        Nothing.
    """
    token = _DAY.set(day or _DAY.get())
    try:
        yield
    finally:
        _DAY.reset(token)


def current_day() -> str:
    """Return the day that templates print here: that of `dated`, else today, as `2026-03-01`."""
    return _DAY.get() or date.today().isoformat()


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Messages,
    *,
    name: str = "chat",
    source: str | None = None,
    day: str | None = None,
    listed: bool = False,
    generation_prompt: bool = False,
) -> str:
    """Return a conversation rendered by a template, with thinking modes off.

    Args:
        tokenizer: the model's.
        messages: the turns.
        name: of the template, for messages.
        source: its Jinja text; None for the tokenizer's own.
        day: what it prints as today; None for `current_day()`.
        listed: give each content as a list of parts, `[{"type": "text", "text": …}]`.
        generation_prompt: end with what begins an answer.

    Returns:
        Text, with special tokens written out.

    Raises:
        UserError: if the template fails.
    """
    turns = [{"role": role, "content": _content(text, listed)} for role, text in messages]
    shifted, more = 0, dict(NOT_THINKING)
    try:
        text = tokenizer.get_chat_template(source)
        if "strftime_now" in text:
            more[_DATES] = dict(_spelled(text, day or current_day()))
            text, shifted = _ON_A_DAY + text, 1
        return str(
            tokenizer.apply_chat_template(
                turns,
                chat_template=text,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **more,
            )
        )
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        line = error.lineno - shifted if isinstance(error, TemplateSyntaxError) else None
        place = "" if line is None else f", line {line}"
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"the chat template {name!r} fails{place}: {reason}") from error


def prints_the_day(tokenizer: "PreTrainedTokenizerBase", messages: Messages, **how: Any) -> bool:
    """Return whether a template writes another text on another day.

    Args:
        tokenizer: the model's.
        messages: the turns.
        how: further arguments of `render`.
    """
    one, other = (render(tokenizer, messages, day=day, **how) for day in _TWO_DAYS)
    return one != other


def takes_lists(
    tokenizer: "PreTrainedTokenizerBase", messages: Messages, **how: Any
) -> bool | None:
    """Return the form of contents that a template renders: False texts, True lists, None neither.

    Args:
        tokenizer: the model's.
        messages: the turns, their texts different from one another and from anything else there.
        how: further arguments of `render`.
    """
    for listed in (False, True):
        try:
            text = render(tokenizer, messages, listed=listed, **how)
        except UserError:
            continue
        written_out = listed and ("'type'" in text or '"type"' in text)  # the list itself
        if all(content in text for _, content in messages) and not written_out:
            return listed
    return None


def _content(text: str, listed: bool) -> Any:
    return [{"type": "text", "text": text}] if listed else text


@lru_cache(maxsize=64)
def _spelled(source: str, day: str) -> tuple[tuple[str, str], ...]:
    """Return what every text constant of a template comes to as the format of a date."""
    midnight = datetime.combine(date.fromisoformat(day), time())
    constants = {
        str(value)[1:-1] for _, kind, value in Environment().lex(source) if kind == "string"
    }
    return tuple((each, midnight.strftime(each)) for each in sorted(constants) if "%" in each)


def shipped_templates() -> dict[str, str]:
    """Return the templates of A.3 that come with the package: names and Jinja texts."""
    folder = files("ntkprobe.presets") / "templates"
    found = [file for file in folder.iterdir() if file.name.endswith(".jinja")]
    return {
        file.name.removesuffix(".jinja"): file.read_text("utf-8")
        for file in sorted(found, key=lambda file: file.name)
    }


def template_from_file(path: Path) -> tuple[str, str]:
    """Return a template's name, with the digest of its text, and its Jinja text.

    Args:
        path: of a Jinja file.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        source = path.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"cannot read the template {path}: give auto, chat, raw, one of "
            f"{list(shipped_templates())}, or a Jinja file"
        ) from error
    return f"{path.name}#{sha256(source.encode()).hexdigest()[:8]}", source
