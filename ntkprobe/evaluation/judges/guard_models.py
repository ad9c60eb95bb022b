"""Guard models: causal language models that were trained to classify answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...checkpoints import LoadSettings, load_model, load_tokenizer
from ...errors import UserError
from ...models.batching import context_length
from ...models.generation import generate_answers
from ...prompts.reasoning import answered
from ...prompts.rendering import Messages, render, takes_lists
from ...prompts.special_tokens import reply_ends
from ..verdicts import UNDETERMINED, Item, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_PROBES = (("user", "Is this the question?"), ("assistant", "Here is an answer."))
"""A conversation with texts of our own, to see whether a template renders it."""


@dataclass(frozen=True)
class GuardModel:
    """A guard model, loaded when it is first used.

    Attributes:
        model: a folder, or a name on the hub.
        load: how it is loaded.
        batch_size: answers at a time, which changes no verdict in float32.
        max_new_tokens: of a reply.
    """

    model: str
    load: LoadSettings
    batch_size: int
    max_new_tokens: int

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The guard's tokenizer, loaded when it is first needed, from the hub too."""
        return load_tokenizer(self.model, local=False)

    @cached_property
    def network(self) -> Any:
        """Its weights, loaded when they are first needed."""
        return load_model(self.model, self.load)

    def reply(self, texts: Sequence[str]) -> list[str]:
        """Return the guard's reply to each rendered text.

        Args:
            texts: in the guard's format, special tokens included.

        Returns:
            Replies; a text that is too long for the guard's context gets an empty one.
        """
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        context = context_length(self.network.config)
        fits = [
            row
            for row, tokens in enumerate(ids)
            if context is None or len(tokens) + self.max_new_tokens <= context
        ]
        replies = [""] * len(texts)
        if fits:
            generated = generate_answers(
                self.network,
                self.tokenizer,
                [ids[row] for row in fits],
                max_new_tokens=self.max_new_tokens,
                batch_size=self.batch_size,
                stop_ids=sorted(reply_ends(self.tokenizer)),
            )
            for row, reply in zip(fits, generated, strict=True):
                replies[row] = reply
        return replies

    def rendered(self, messages: Messages) -> str:
        """Return a conversation in the guard's own chat template, contents as it takes them.

        Args:
            messages: role and text of each turn.
        """
        how: dict[str, Any] = {"name": self.model, "listed": self._listed}
        return render(self.tokenizer, messages, **how, generation_prompt=True)

    @property
    def identity(self) -> dict[str, str]:
        """What a verdict depends on besides the guard's name, where it is not the usual."""
        return {"contents": "lists of parts"} if self._listed else {}

    @cached_property
    def _listed(self) -> bool:
        """Whether its template takes contents as lists of parts, as Llama Guard 3 1B's and 4's do.

        Raises:
            UserError: if it has no template, or one that shows no conversation either way.
        """
        if not self.tokenizer.chat_template:
            raise UserError(
                f"the guard {self.model} has no chat template, so that it cannot be asked: give "
                "the published guard, or a copy with its chat_template.jinja"
            )
        listed = takes_lists(self.tokenizer, _PROBES, name=self.model)
        if listed is None:
            render(self.tokenizer, _PROBES, name=self.model)  # says why it fails, if it does
            raise UserError(
                f"the chat template of the guard {self.model} does not render the conversation, so "
                "that it would be asked the same for every answer: give the published guard, or a "
                "copy with its chat_template.jinja"
            )
        return listed


@dataclass(frozen=True)
class GuardJudge:
    """The settings that judges by a guard share.

    Attributes:
        model: a folder, or a name on the hub.
        dtype: precision of its weights.
        device: where it runs.
        batch_size: answers at a time.
    """

    model: str
    dtype: str = "bfloat16"
    device: str = "auto"
    batch_size: int = 8

    @cached_property
    def guard(self) -> GuardModel:
        """The guard, loaded when it is first asked."""
        load = LoadSettings(dtype=self.dtype, device=self.device, attn_implementation="sdpa")
        return GuardModel(self.model, load, self.batch_size, max_new_tokens=32)


def guard_verdicts(
    items: Sequence[Item],
    guard: GuardModel,
    render: Callable[[Item], str],
    parse: Callable[[str], str | None],
) -> list[Verdict]:
    """Return a guard's verdicts.

    Args:
        items: answers; one that is empty or unfinished reasoning is not sent.
        guard: the model.
        render: from an item to the guard's input.
        parse: from a reply, without its reasoning, to a verdict; None for another format.

    Returns:
        One verdict an item, with the whole reply as `detail`; a reply that cannot be parsed is
        undetermined.
    """
    verdicts = [item.undetermined for item in items]
    rows = [row for row, verdict in enumerate(verdicts) if verdict is None]
    replies = guard.reply([render(items[row].shown) for row in rows]) if rows else []
    for row, reply in zip(rows, replies, strict=True):
        verdict = parse(answered(reply) or "") or UNDETERMINED
        verdicts[row] = Verdict(items[row].id, verdict, reply.strip() or "too long for the guard")
    return [verdict for verdict in verdicts if verdict is not None]
