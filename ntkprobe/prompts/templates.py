"""How a prompt becomes tokens: the tokenizer's chat template, another one, or none (A.3)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..errors import UserError
from .answer_start import AnswerStart, find_answer_start, text_after_prompt
from .prompt_set import Prompt
from .reasoning import answered
from .rendering import (
    Messages,
    conversation,
    current_day,
    prints_the_day,
    render,
    shipped_templates,
    takes_lists,
    template_from_file,
)
from .special_tokens import (
    TurnEnd,
    continuation_ids,
    ended,
    open_ended_ids,
    puts_bos_first,
    rendered_ids,
    single_bos,
    turn_end,
)
from .unicode_text import require_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What every tokenizer can write, to see what a template adds.
_PROBE, _REPLY, _NEXT = "Hello", "Fine", "Why?"

_USUAL_ENDS: "WeakKeyDictionary[Any, dict[Any, tuple[AnswerStart, TurnEnd]]]" = WeakKeyDictionary()
"""Where the answers of each tokenizer's templates usually begin and how they end, found once."""


@dataclass(frozen=True)
class Template:
    """One way to turn prompts, and answers to them, into tokens.

    Whatever continues a prompt is tokenised in its place: after a chat template the first word of
    an answer has no leading space. Ids are concatenated, so that a prompt has the same ids alone
    and with an answer. A template that knows a thinking mode is rendered without it, and a block
    of reasoning that it opens all the same is closed (`answer_start`): the position after the
    prompt is that of the answer's first token.

    Attributes:
        name: for the record: `chat`, `raw`, a shipped template's name, or `FILE#digest`.
        source: the Jinja text; None for the tokenizer's own template.
        raw: no template: the text alone, with the special tokens that the tokenizer puts first.
        day: what a template that prints today's date prints, as `2026-03-01`; None for one that
            prints none.
        listed: whether contents are given as lists of parts, `[{"type": "text", "text": …}]`.
    """

    name: str
    source: str | None = None
    raw: bool = False
    day: str | None = None
    listed: bool = False

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
        text, response = (prompt, "") if isinstance(prompt, str) else (prompt.text, prompt.answer)
        answer = self._answer_ids(tokenizer, text, response) if response else []
        ids = self._prompt_ids(tokenizer, text)
        if max_length is not None and len(ids) + len(answer) > max_length:
            ids = self._truncated_ids(tokenizer, text, max_length - len(answer))
        return ids + answer

    def encode_pair(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt_text: str,
        response_text: str,
        system: str | None = None,
    ) -> tuple[list[int], list[bool]]:
        """Return the ids of a prompt with its answer, and which of them are the answer's.

        The answer follows the ids that `encode` gives the prompt. It ends with the end-of-turn
        token, which it includes: the template's own (`<|im_end|>`), else EOS. What a template puts
        behind that token (a newline, in ChatML) is left out, since a model that has ended its turn
        never writes it.

        Args:
            tokenizer: the model's.
            prompt_text: the user's text.
            response_text: the assistant's answer.
            system: a system message; None leaves the template's own, if any.

        Returns:
            `(input_ids, response_mask)`, of equal length.

        Raises:
            UserError: for an empty prompt or answer, or a template that fails or hides the answer.
        """
        require_text(response_text, "answer")
        if self.raw and system is not None:
            raise UserError("a raw prompt has no place for a system message: use a template")
        if self.raw:
            prompt = self._prompt_ids(tokenizer, prompt_text)
            answer = ended(tokenizer, rendered_ids(tokenizer, response_text))
        else:
            require_text(prompt_text, "prompt")
            before, start = self._answer_start(tokenizer, prompt_text, system)
            prompt = single_bos(tokenizer, rendered_ids(tokenizer, before))
            whole = self._render(tokenizer, prompt_text, response_text, system)
            shown = start.rendered_answer(whole, response_text, self.name)
            answer = self._learnt_ids(tokenizer, before, start, shown)
        return prompt + answer, [False] * len(prompt) + [True] * len(answer)

    def _learnt_ids(
        self, tokenizer: "PreTrainedTokenizerBase", before: str, start: AnswerStart, shown: str
    ) -> list[int]:
        """Return the ids of a rendered answer after its prompt, with its end-of-turn token."""
        end = self._usual_ends(tokenizer)[1]
        closing = start.after_answer if end.text is None else end.text
        ids = continuation_ids(tokenizer, before, f"{start.leading_space}{shown}{closing}")
        return ids if ids[-1] in end.stops else ended(tokenizer, ids)

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
        return self.encode_pair(tokenizer, _PROBE, _REPLY)[0][-1]

    def stop_ids(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Return the ids that generation has to stop at: `end_of_turn`, and what begins a turn."""
        more = () if self.raw else self._usual_ends(tokenizer)[1].stops
        return sorted({self.end_of_turn(tokenizer), *more})

    def stop_texts(self, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
        r"""Return what begins the user's next turn (`\nUser:`), where no token ends an answer."""
        turn = None if self.raw else self._usual_ends(tokenizer)[1].next_turn
        return () if turn is None else (turn,)

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
            ids, own = self._prompt_ids(tokenizer, _PROBE), rendered_ids(tokenizer, _PROBE)
            bos = ids[: len(ids) - len(own)] if ids[-len(own) :] == own else []
            return bos + (rendered_ids(tokenizer, f"{system}\n\n") if system else [])
        text = self._render_with(tokenizer, system) if system else self._render(tokenizer, _PROBE)
        head = text.rpartition(_PROBE)[0]
        if not head:
            return []
        whole = single_bos(tokenizer, rendered_ids(tokenizer, text))
        pairs = zip(single_bos(tokenizer, rendered_ids(tokenizer, head)), whole, strict=False)
        return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]

    def _render_with(self, tokenizer: "PreTrainedTokenizerBase", system: str) -> str:
        try:
            text = self._render(tokenizer, _PROBE, system=system)
        except UserError:  # Gemma's: "System role not supported"
            text = ""
        if system.strip() in text:
            return text
        return self._render(tokenizer, f"{system}\n\n{_PROBE}")

    def leaves_reasoning_out(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        answer: str,
        prompt_text: str = _PROBE,
        system: str | None = None,
    ) -> bool:
        """Return whether an answer that is learnt has reasoning in front, which is not learnt.

        Args:
            tokenizer: the model's.
            answer: as it is given.
            prompt_text: the user's text.
            system: a system message.
        """
        alone = answered(answer)
        if self.raw or alone is None or alone == answer:
            return False
        return self._answer_start(tokenizer, prompt_text, system)[1].has_reasoning

    def bridge(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return the text appended to a usual prompt; `remarks` counts the other prompts."""
        return "" if self.raw else self._usual_ends(tokenizer)[0].bridge

    def remarks(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        texts: Iterable[str] = (),
        system: str | None = None,
    ) -> list[str]:
        """Return what to know about the template when reading the results, a line each.

        Args:
            tokenizer: the model's.
            texts: of the prompts; those whose answers begin elsewhere are counted.
            system: a system message that they have.
        """
        if self.raw:
            return []
        dated = f"the template {self.name!r} prints a date: {self.day}, throughout this run"
        first = [dated] if self.day else []
        if turns := self.stop_texts(tokenizer):
            first.append(
                f"the template {self.name!r} has no token that ends a turn: an answer ends where "
                f"the model writes {turns[0]!r}, the user's next turn"
            )
        usual = self._usual_ends(tokenizer)[0].change
        own = Counter(self._answer_start(tokenizer, text, system)[1].change for text in texts)
        switched = [
            f"{count} prompts switch reasoning: {remark or 'nothing is put behind them'}"
            for remark, count in own.items()
            if remark != usual
        ]
        return [*first, *([usual] if usual else []), *switched]

    def _prompt_ids(self, tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
        require_text(text, "prompt")
        if not self.raw:
            rendered, _ = self._answer_start(tokenizer, text)
            return single_bos(tokenizer, rendered_ids(tokenizer, rendered))
        return single_bos(tokenizer, open_ended_ids(tokenizer, text))

    def _answer_ids(
        self, tokenizer: "PreTrainedTokenizerBase", text: str, answer: str
    ) -> list[int]:
        require_text(answer, "answer")
        if self.raw:
            return rendered_ids(tokenizer, answer)
        before, start = self._answer_start(tokenizer, text)
        return continuation_ids(tokenizer, before, start.leading_space + answer)

    def _answer_start(
        self, tokenizer: "PreTrainedTokenizerBase", text: str, system: str | None = None
    ) -> tuple[str, AnswerStart]:
        """Return a rendered prompt up to its answer, and the text around the answer."""
        usual = self._usual_ends(tokenizer)[0]
        before = self._render(tokenizer, text, system=system)
        # A template that renders no answers leaves nothing to compare the prompt with.
        whole = "" if usual.after_answer is None else self._render(tokenizer, text, _REPLY, system)
        after_text = text_after_prompt(before, text, usual.after_text)
        start = find_answer_start(before, whole, after_text, _REPLY, self.name)
        return before + start.bridge, start

    def _usual_ends(self, tokenizer: "PreTrainedTokenizerBase") -> tuple[AnswerStart, TurnEnd]:
        """Return how answers usually begin and end, computed once for a template."""
        known = _USUAL_ENDS.setdefault(tokenizer, {})
        key = self, str(tokenizer.chat_template)
        if key not in known:
            before, turns = self._render(tokenizer, _PROBE), conversation(_PROBE, _REPLY)
            whole = self._rendered_or_empty(tokenizer, turns)
            after = before.rpartition(_PROBE)[2]
            start = find_answer_start(before, whole, after, _REPLY, self.name)
            more = self._rendered_or_empty(tokenizer, [*turns, ("user", _NEXT)])
            between = more.rpartition(_NEXT)[0].rpartition(_REPLY)[2]
            known[key] = start, turn_end(tokenizer, start.after_answer or "", between)
        return known[key]

    def _rendered_or_empty(self, tokenizer: "PreTrainedTokenizerBase", messages: Messages) -> str:
        """Return a rendered conversation; empty if the template cannot render it."""
        how: dict[str, Any] = {"source": self.source, "day": self.day, "listed": self.listed}
        try:
            return render(tokenizer, messages, name=self.name, **how)
        except UserError:  # callers that need this conversation refuse it
            return ""

    def _truncated_ids(
        self, tokenizer: "PreTrainedTokenizerBase", text: str, room: int
    ) -> list[int]:
        # A character that is cut, which decodes as U+FFFD, is left out.
        ids = self._prompt_ids(tokenizer, text)
        if self.raw and room > 0:
            return ids[:room]
        text_ids = rendered_ids(tokenizer, text)
        for kept in range(len(text_ids) - (len(ids) - room), 0, -1):
            shorter = str(tokenizer.decode(text_ids[:kept])).rstrip("\ufffd").strip()
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
        return render(
            tokenizer,
            conversation(text, answer, system),
            name=self.name,
            source=self.source,
            day=self.day,
            listed=self.listed,
            generation_prompt=answer is None,
        )


RAW = Template("raw", raw=True)
"""The text of the prompt alone."""


def resolve_template(tokenizer: "PreTrainedTokenizerBase", spec: str | Path = "auto") -> Template:
    """Return the template that `--template` names.

    Args:
        tokenizer: the model's.
        spec: `chat` (the tokenizer's own), `raw`, `auto` (`chat` where the tokenizer has one, else
            `raw`), a shipped template (`plain`, `qwen2.5`, `llama-3`) or a Jinja file.

    Returns:
        A template that has been rendered once, so that a broken one is refused before a model runs.

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
        first = "{{- bos_token -}}" if name == "plain" and puts_bos_first(tokenizer) else ""
        template = Template(name, first + shipped[name])
    else:
        template = Template(*template_from_file(Path(spec)))
    return _with_contents_and_day(tokenizer, template)


def _with_contents_and_day(tokenizer: "PreTrainedTokenizerBase", template: Template) -> Template:
    """Return a template with the form of its contents and the day that it prints set.

    Raises:
        UserError: if it fails, or does not render the user's text.
    """
    how: dict[str, Any] = {"name": template.name, "source": template.source}
    prompt, answered_prompt = conversation(_PROBE), conversation(_PROBE, _REPLY)
    listed = takes_lists(tokenizer, answered_prompt, **how)
    if listed is None:
        listed = takes_lists(tokenizer, prompt, **how, generation_prompt=True)
    if listed is None:
        template._render(tokenizer, _PROBE)  # says why it fails, if it does
        raise UserError(f"the chat template {template.name!r} does not render the user's message")
    dated = prints_the_day(tokenizer, prompt, **how, listed=listed, generation_prompt=True)
    return replace(template, day=current_day() if dated else None, listed=listed)
