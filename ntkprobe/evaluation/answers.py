"""Who answers: a model in memory, or one behind a server. Answers come in batches, as they are."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UserError
from .server import Failure, Server
from .settings import AnswerSettings

if TYPE_CHECKING:
    from transformers import LogitsProcessor, PreTrainedTokenizerBase

    from ..prompts.templates import Template

FIRST_BATCH = 16
"""Prompts at a time, where nobody says how many; halved when memory runs out."""


@dataclass(frozen=True)
class Asked:
    """A prompt to be answered."""

    id: str
    prompt: str


@dataclass(frozen=True)
class Given:
    """One answer.

    Attributes:
        id: the prompt's.
        answer: the text.
        n_tokens: its length; None where a server does not say.
        ended: whether the model ended it itself.
        seconds: an answer's share of the time that its batch took.
    """

    id: str
    answer: str
    n_tokens: int | None
    ended: bool | None
    seconds: float


class Respondent(Protocol):
    """Answers prompts, a batch at a time; what cannot be had is missing from all batches."""

    failures: list[str]

    def answer(self, asked: Sequence[Asked]) -> Iterator[list[Given]]:
        """Yield batches of answers, as they are finished."""
        ...


class LocalModel:
    """A model in memory, whose answers do not depend on the batch (in float32).

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        template: how prompts become tokens.
        settings: how it answers.
        processors: what changes its logits first, as `mitigations.applied` yields it.
        batch_size: prompts at a time; None to begin with `FIRST_BATCH`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase",
        template: "Template",
        settings: AnswerSettings,
        *,
        processors: Sequence["LogitsProcessor"] = (),
        batch_size: int | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise UserError(f"--batch-size {batch_size}: give 1 or more, or auto")
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.settings, self.processors = settings, processors
        self.batch_size, self.halves = batch_size or FIRST_BATCH, batch_size is None
        self.failures: list[str] = []

    def answer(self, asked: Sequence[Asked]) -> Iterator[list[Given]]:
        """Yield batches of answers, the longest prompts first.

        Yields:
            Answers to prompts of similar length.
        """
        from ..models.generation import answered_together, require_measurable, try_left_padding

        ids = [
            self.template.encode(self.tokenizer, each.prompt, self.settings.max_length)
            for each in asked
        ]
        require_measurable(self.model, ids, room=self.settings.max_new_tokens)
        try_left_padding(self.model, ids, self.processors)
        left = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        while left:
            batch, room = left[: self.batch_size], self.settings.max_new_tokens
            rows = answered_together(self.model, ids, batch, room)[0]
            begin = time.perf_counter()
            found = self._batch([asked[row] for row in rows], [ids[row] for row in rows])
            if found is None:
                continue
            seconds = (time.perf_counter() - begin) / len(rows)
            yield [
                Given(asked[row].id, each.text, each.n_tokens, each.ended, seconds)
                for row, each in zip(rows, found, strict=True)
            ]
            left = [row for row in left if row not in set(rows)]

    def _batch(self, asked: Sequence[Asked], ids: Sequence[list[int]]) -> list[Any] | None:
        """Return the answers of a batch; None if it was too large, and the next one is smaller.

        Raises:
            OutOfMemoryError: if it cannot be made smaller.
        """
        from torch import OutOfMemoryError

        from ..models.generation import answer_batch
        from .sampling import drawn

        try:
            return answer_batch(
                self.model,
                self.tokenizer,
                ids,
                max_new_tokens=self.settings.max_new_tokens,
                stop_ids=self.template.stop_ids(self.tokenizer),
                logits_processor=[*self.processors, *drawn(asked, self.settings)],
            )
        except OutOfMemoryError:
            if len(ids) == 1 or not self.halves:
                raise
            self.batch_size = len(ids) // 2
            return None


class RemoteModel:
    """A model behind an OpenAI-compatible server, which renders its own chat template.

    Args:
        server: where it is.
        settings: how it answers.
        batch_size: answers in one file; None for `FIRST_BATCH`.
    """

    def __init__(
        self, server: Server, settings: AnswerSettings, batch_size: int | None = None
    ) -> None:
        if settings.template not in ("auto", "chat"):
            raise UserError(
                f"--template {settings.template} goes with a model in memory: a server renders its "
                "own chat template; leave --template out"
            )
        self.server, self.settings = server, settings
        self.batch_size = batch_size or FIRST_BATCH
        self.failures: list[str] = []

    def answer(self, asked: Sequence[Asked]) -> Iterator[list[Given]]:
        """Yield batches of answers as the server gives them.

        Yields:
            Answers that came one after the other.
        """
        sampling: dict[str, Any] = {
            "max_tokens": self.settings.max_new_tokens,
            "temperature": self.settings.temperature,
        }
        if self.settings.temperature:
            sampling["seed"] = self.settings.seed
        turns = [[{"role": "user", "content": each.prompt}] for each in asked]
        batch: list[Given] = []
        begin = time.perf_counter()
        for number, reply in self.server.chat(turns, **sampling):
            if isinstance(reply, Failure):
                self.failures.append(reply.reason)
                continue
            seconds = time.perf_counter() - begin
            begin = time.perf_counter()
            batch.append(Given(asked[number].id, str(reply), reply.n_tokens, reply.ended, seconds))
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch
