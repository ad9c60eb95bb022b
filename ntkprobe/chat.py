"""How a prompt becomes tokens: the tokenizer's chat template, another one, or none (A.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError, TemplateSyntaxError

from .errors import UserError
from .prompts import Prompt
from .unicode_text import flaw_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "Hello"
"""A user's message and an answer that every tokenizer can write, to see what a template adds."""


@dataclass(frozen=True)
class Template:
    """One way to turn prompts, and answers to them, into tokens.

    Whatever continues a prompt is tokenised in its place: after a chat template the first word of
    an answer has no leading space. Ids are concatenated, so that a prompt has the same ids alone
    and with an answer. A template that knows a thinking mode is rendered without it: the position
    after the prompt is that of the answer's first token.

    Attributes:
        name: for the record: `chat`, `raw`, a shipped template's name, or `FILE#digest`.
        source: the Jinja text; None for the tokenizer's own template.
        raw: no template: the text alone, with the special tokens that the tokenizer puts first.
    """

    name: str
    source: str | None = None
    raw: bool = False

    def encode(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt: Prompt | str,
        max_length: int | None = None,
    ) -> list[int]:
        """Return the ids whose last position is measured: generation prompt and response included.

        Args:
            tokenizer: the model's.
            prompt: a prompt, or just its text; its `response` comes after the generation prompt.
            max_length: in tokens, everything counted; a longer prompt loses the end of its text,
                never the template around it.

        Returns:
            Token ids, with one BOS at most. An empty prompt, a failing template and a `max_length`
            without room for the text are each a `UserError`.
        """
        text, response = (prompt, "") if isinstance(prompt, str) else (prompt.text, prompt.response)
        answer = self._answer_ids(tokenizer, text, response) if response else []
        ids = self._prompt_ids(tokenizer, text)
        if max_length is not None and len(ids) + len(answer) > max_length:
            ids = self._shortened(tokenizer, text, max_length - len(answer))
        return ids + answer

    def encode_pair(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt_text: str,
        response_text: str,
        system: str | None = None,
    ) -> tuple[list[int], list[bool]]:
        r"""Return the ids of a prompt with its answer, and which of them are the answer's.

        The answer is what follows the longest common prefix of the prompt's ids (with generation
        prompt) and the whole conversation's. It ends with the end-of-turn token, which it includes:
        the template's own (`<|im_end|>`), else EOS. What a template puts behind that token (a
        newline, in ChatML) is left out, since a model that has ended its turn never writes it.

        Args:
            tokenizer: the model's.
            prompt_text: what the user says.
            response_text: what the assistant is to answer.
            system: a system message; None leaves the template's own, if any.

        Returns:
            `(input_ids, response_mask)`, of equal length.

        Raises:
            UserError: for an empty prompt or answer, or a template that fails or hides the answer.
        """
        _require_text(response_text, "answer")
        if self.raw:
            if system is not None:
                raise UserError("a raw prompt has no place for a system message: use a template")
            prompt_ids = self._prompt_ids(tokenizer, prompt_text)
            full_ids = prompt_ids + _tokenise(tokenizer, response_text)
        else:
            prompt_ids = self._prompt_ids(tokenizer, prompt_text, system)
            rendered = self._render(tokenizer, prompt_text, response_text, system)
            full_ids = _single_bos(tokenizer, _tokenise(tokenizer, rendered))
        shared = zip(prompt_ids, full_ids, strict=False)
        start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], shared))
        if start == len(full_ids):
            raise UserError(f"the template {self.name!r} does not render the assistant's answer")
        ids = full_ids[:start] + _ended(tokenizer, full_ids[start:])
        return ids, [position >= start for position in range(len(ids))]

    def encode_phrases(
        self, tokenizer: "PreTrainedTokenizerBase", phrases: Sequence[str]
    ) -> list[tuple[int, ...]]:
        """Return the ids of phrases as beginnings of an answer.

        Args:
            tokenizer: the model's.
            phrases: such as `phrases.phrase_set()`.

        Returns:
            The ids of each. After a template, those of the phrase in its place; for raw prompts,
            those of the phrase on its own, as A.5 has it (no space is put before it).
        """
        return [tuple(self._answer_ids(tokenizer, _PROBE, phrase)) for phrase in phrases]

    def end_of_turn(self, tokenizer: "PreTrainedTokenizerBase") -> int:
        """Return the id that ends an answer, which generation has to stop at."""
        return self.encode_pair(tokenizer, _PROBE, _PROBE)[0][-1]

    def opening(self, tokenizer: "PreTrainedTokenizerBase", system: str | None = None) -> list[int]:
        """Return the ids before the user's first text; a last one that merges with it is left out.

        Args:
            tokenizer: the model's.
            system: a system message. Where there is no role for it (the template fails or drops it,
                or there is none), it begins the user's text, with a blank line behind it.

        Returns:
            Ids that a prompt begins with.
        """
        if self.raw:
            ids, own = self._prompt_ids(tokenizer, _PROBE), _tokenise(tokenizer, _PROBE)
            bos = ids[: len(ids) - len(own)] if ids[-len(own) :] == own else []
            return bos + (_tokenise(tokenizer, f"{system}\n\n") if system else [])
        text = self._render_with(tokenizer, system) if system else self._render(tokenizer, _PROBE)
        head = text.rpartition(_PROBE)[0]
        if not head:
            return []
        whole = _single_bos(tokenizer, _tokenise(tokenizer, text))
        pairs = zip(_single_bos(tokenizer, _tokenise(tokenizer, head)), whole, strict=False)
        return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]

    def _render_with(self, tokenizer: "PreTrainedTokenizerBase", system: str) -> str:
        try:
            text = self._render(tokenizer, _PROBE, system=system)
        except UserError:  # Gemma's: "System role not supported"
            text = ""
        if system.strip() in text:
            return text
        return self._render(tokenizer, f"{system}\n\n{_PROBE}")

    def _prompt_ids(
        self, tokenizer: "PreTrainedTokenizerBase", text: str, system: str | None = None
    ) -> list[int]:
        _require_text(text, "prompt")
        if not self.raw:
            rendered = self._render(tokenizer, text, system=system)
            return _single_bos(tokenizer, _tokenise(tokenizer, rendered))
        ids = list(tokenizer(text)["input_ids"])
        # A tokenizer that closes every text with EOS would have us measure what follows its end.
        eos = tokenizer.eos_token_id
        closed = eos is not None and len(ids) > 1 and ids[-1] == eos
        added = closed and not text.endswith(str(tokenizer.eos_token))
        return _single_bos(tokenizer, ids[:-1] if added else ids)

    def _answer_ids(
        self, tokenizer: "PreTrainedTokenizerBase", text: str, answer: str
    ) -> list[int]:
        _require_text(answer, "answer")
        if self.raw:
            return _tokenise(tokenizer, answer)
        before = self._render(tokenizer, text)
        lead = self._lead(tokenizer)
        before_ids = _tokenise(tokenizer, before)
        ids = _tokenise(tokenizer, before + lead + answer)
        if ids[: len(before_ids)] == before_ids:
            return ids[len(before_ids) :]
        return _tokenise(tokenizer, lead + answer)  # the two would merge at the seam

    def _lead(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return the space that a template puts before an answer, which the model has to write."""
        before = self._render(tokenizer, _PROBE)
        tail = self._render(tokenizer, _PROBE, _PROBE).removeprefix(before)
        lead = tail.partition(_PROBE)[0]
        return lead if lead.isspace() else ""

    def _shortened(self, tokenizer: "PreTrainedTokenizerBase", text: str, room: int) -> list[int]:
        ids = self._prompt_ids(tokenizer, text)
        if self.raw and room > 0:
            return ids[:room]
        text_ids = _tokenise(tokenizer, text)
        for kept in range(len(text_ids) - (len(ids) - room), 0, -1):
            shorter = str(tokenizer.decode(text_ids[:kept])).strip()
            if shorter and len(ids := self._prompt_ids(tokenizer, shorter)) <= room:
                return ids
        raise UserError(
            f"max_length leaves {room} tokens for a prompt, of which the template {self.name!r} "
            "takes all: raise it"
        )

    def _render(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        text: str,
        answer: str | None = None,
        system: str | None = None,
    ) -> str:
        roles = {"system": system, "user": text, "assistant": answer}
        messages = [{"role": r, "content": c} for r, c in roles.items() if c is not None]
        try:
            return str(
                tokenizer.apply_chat_template(
                    messages,
                    chat_template=self.source,
                    tokenize=False,
                    add_generation_prompt=answer is None,
                    enable_thinking=False,
                )
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            place = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"the chat template {self.name!r} fails{place}: {reason}") from error


RAW = Template("raw", raw=True)
"""The text of the prompt alone."""


def shipped_templates() -> dict[str, str]:
    """Return the templates of A.3 that come with the package: names and Jinja texts."""
    folder = files("ntkprobe.presets") / "templates"
    found = [file for file in folder.iterdir() if file.name.endswith(".jinja")]
    return {
        file.name.removesuffix(".jinja"): file.read_text("utf-8")
        for file in sorted(found, key=lambda file: file.name)
    }


def resolve_template(tokenizer: "PreTrainedTokenizerBase", spec: str | Path = "auto") -> Template:
    """Return the template that `--template` names.

    Args:
        tokenizer: the model's.
        spec: `chat` (the tokenizer's own), `raw`, `auto` (`chat` where the tokenizer has one, else
            `raw`), a shipped template (`qwen2.5`, `llama-3`) or a Jinja file.

    Returns:
        A template that has been rendered once, so that a broken one is told before a model runs.

    Raises:
        UserError: if the tokenizer has no template of its own, or the file is missing or broken.
    """
    name, shipped = str(spec), shipped_templates()
    if name == "raw" or (name == "auto" and not tokenizer.chat_template):
        return RAW
    if name == "chat" and not tokenizer.chat_template:
        raise UserError(
            f"this tokenizer has no chat template: use raw, one of {list(shipped)}, or a Jinja file"
        )
    if name in ("auto", "chat"):
        template = Template("chat")
    elif name in shipped:
        template = Template(name, shipped[name])
    else:
        template = _from_file(Path(spec), list(shipped))
    if _PROBE not in template._render(tokenizer, _PROBE):
        raise UserError(f"the chat template {template.name!r} does not render the user's message")
    return template


def _from_file(path: Path, shipped: list[str]) -> Template:
    try:
        source = path.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"cannot read the template {path}: give auto, chat, raw, one of {shipped}, "
            "or a Jinja file"
        ) from error
    return Template(f"{path.name}#{sha256(source.encode()).hexdigest()[:8]}", source)


def _require_text(text: str, what: str) -> None:
    if not text.strip():
        raise UserError(f"an empty {what}: give it some text")
    if flaw := flaw_of(text):
        raise UserError(f"a {what} {flaw}")


def _tokenise(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    # A template's text has its special tokens written out; the tokenizer adds none.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _single_bos(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    extra = sum(1 for _ in takewhile(lambda token: token == bos, ids)) - 1 if bos is not None else 0
    if not ids[max(extra, 0) :]:
        raise UserError("an empty prompt: the tokenizer makes no tokens of it")
    return ids[max(extra, 0) :]


def _ended(tokenizer: "PreTrainedTokenizerBase", answer: list[int]) -> list[int]:
    """Return an answer's ids up to its end-of-turn token; EOS is added if it has none.

    Args:
        tokenizer: tells which ids are special.
        answer: ids behind the prompt.

    Returns:
        Ids that end with the end-of-turn token.

    Raises:
        UserError: if there is neither an end-of-turn token nor EOS.
    """
    special = set(tokenizer.all_special_ids)
    last = max((i for i, token in enumerate(answer) if token in special), default=-1)
    if last >= 0 and not str(tokenizer.decode(answer[last + 1 :])).strip():
        return answer[: last + 1]
    if tokenizer.eos_token_id is None:
        raise UserError("no token ends an answer: the tokenizer has no EOS, nor has the template")
    return [*answer, tokenizer.eos_token_id]
