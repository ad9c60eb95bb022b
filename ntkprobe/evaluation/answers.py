"""Backends that answer prompts in batches: a model in memory, or one behind a server."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UserError
from .server import Failure, Server
from .settings import AnswerSettings

if TYPE_CHECKING:
    from transformers import LogitsProcessor, PreTrainedTokenizerBase

    from ..models.cached import Beginning
    from ..prompts.templates import Template

FIRST_BATCH = 32
"""Prompts at a time by default; halved when memory runs out."""

SERVER_BATCH = 16
"""A server's answers that are written together by default."""


@dataclass(frozen=True)
class Question:
    """A prompt to be answered, with its id."""

    id: str
    prompt: str


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        id: the prompt's.
        answer: the text.
        n_tokens: its length in tokens; None where a server does not report it.
        ended: whether the model stopped by itself, rather than at the limit of tokens.
        seconds: the time of the batch, divided by its answers.
    """

    id: str
    answer: str
    n_tokens: int | None
    ended: bool | None
    seconds: float


class ModelBackend(Protocol):
    """Answers prompts in batches.

    Attributes:
        failures: one line for each prompt without an answer; such prompts are in no batch.
    """

    failures: list[str]

    def answer(self, questions: Sequence[Question]) -> Iterator[list[Completion]]:
        """Yield batches of answers in the order in which they are completed."""
        ...


class LocalModel:
    """A model in memory. In float32 its answers do not depend on the batch.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        template: how prompts become tokens.
        settings: length, temperature and seed of the answers.
        processors: logits processors, as `mitigations.applied` yields them.
        batch_size: prompts at a time; None for `FIRST_BATCH`, halved when memory runs out.
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

    def answer(self, questions: Sequence[Question]) -> Iterator[list[Completion]]:
        """Yield batches of answers, the longest prompts first.

        Yields:
            Answers to prompts of similar length, which share a forward pass.
        """
        from ..models.generation import require_measurable, try_left_padding
        from ..models.memory import halving

        ids = [
            self.template.encode(self.tokenizer, each.prompt, self.settings.max_length)
            for each in questions
        ]
        require_measurable(self.model, ids, new_tokens=self.settings.max_new_tokens)
        shared = self._shared_beginning(ids)
        if shared is None:
            try_left_padding(self.model, ids, self.processors)
        remaining = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        while remaining:
            respond = partial(self._respond, questions, ids, remaining, shared)
            if self.halves:
                size = min(self.batch_size, len(remaining))
                answers, fitted = halving(respond, size)
                self.batch_size = fitted if fitted < size else self.batch_size
            else:
                answers = respond(self.batch_size)
            yield list(answers.values())
            remaining = [row for row in remaining if row not in answers]

    def _respond(
        self,
        questions: Sequence[Question],
        ids: Sequence[list[int]],
        remaining: Sequence[int],
        shared: "Beginning | None",
        size: int,
    ) -> dict[int, Completion]:
        """Return the answers to the first of the remaining questions, by row.

        Args:
            questions: all of them.
            ids: their prompts, encoded.
            remaining: rows that are not answered yet.
            shared: what all prompts begin with; None where each is to be run whole.
            size: how many at a time, at most.
        """
        from ..models.generation import answered_together

        rows = list(remaining[:size])
        if shared is None:
            rows = answered_together(self.model, ids, rows, self.settings.max_new_tokens)[0]
        begin = time.perf_counter()
        names = [questions[row].id for row in rows]
        answers = self._generate(names, [ids[row] for row in rows], shared, rows)
        seconds = (time.perf_counter() - begin) / len(rows)
        return {
            row: Completion(questions[row].id, each.text, each.n_tokens, each.ended, seconds)
            for row, each in zip(rows, answers, strict=True)
        }

    def _shared_beginning(self, ids: Sequence[list[int]]) -> "Beginning | None":
        """Return what all prompts begin with, run once; None where each is to be run whole."""
        from torch import OutOfMemoryError

        from ..models.cached import Beginning, usable
        from ..models.memory import as_out_of_memory

        if self.processors or self.settings.temperature:
            return None
        try:
            with as_out_of_memory():
                if usable(self.model, ids, self.settings.max_new_tokens - 1):
                    return Beginning.of(self.model, ids)
        except OutOfMemoryError:  # the trial reads the logits of whole prompts; answers do not
            pass
        return None

    def _generate(
        self,
        names: Sequence[str],
        ids: Sequence[list[int]],
        shared: "Beginning | None",
        rows: Sequence[int],
    ) -> list[Any]:
        """Return the answers of a batch; `rows` are its prompts' numbers, for messages."""
        from ..models.cached import read
        from ..models.generation import answer_batch, answer_cached
        from .sampling import sampling_processors

        options: dict[str, Any] = {
            "max_new_tokens": self.settings.max_new_tokens,
            "stop_ids": self.template.stop_ids(self.tokenizer),
            "stop_texts": self.template.stop_texts(self.tokenizer),
            "rows": rows,
        }
        if shared is not None:
            kept = read(self.model, ids, shared)
            return answer_cached(kept, self.tokenizer, **options)
        sampling = sampling_processors(names, self.settings)
        processors = [*self.processors, *sampling]
        return answer_batch(self.model, self.tokenizer, ids, logits_processor=processors, **options)


class RemoteModel:
    """A model behind an OpenAI-compatible server, which renders its own chat template.

    Args:
        server: its address and the model's name.
        settings: length, temperature and seed of the answers.
        batch_size: answers in a batch; None for `SERVER_BATCH`.
    """

    def __init__(
        self, server: Server, settings: AnswerSettings, batch_size: int | None = None
    ) -> None:
        if settings.template not in ("auto", "chat"):
            raise UserError(
                f"--template {settings.template} goes with a model in memory: a server renders its "
                "own chat template; leave --template out"
            )
        if settings.max_length is not None:
            raise UserError(
                "--max-length goes with a model in memory: a server is sent whole prompts"
            )
        self.server, self.settings = server, settings
        self.batch_size = batch_size or SERVER_BATCH
        self.failures: list[str] = []

    def answer(self, questions: Sequence[Question]) -> Iterator[list[Completion]]:
        """Yield batches of answers in the order in which the server completes them.

        Yields:
            Answers; a failed request is recorded in `failures`.
        """
        sampling: dict[str, Any] = {
            "max_tokens": self.settings.max_new_tokens,
            "temperature": self.settings.temperature,
        }
        if self.settings.temperature:
            sampling["seed"] = self.settings.seed
        turns = [[{"role": "user", "content": each.prompt}] for each in questions]
        batch: list[Completion] = []
        begin = time.perf_counter()
        for number, reply in self.server.chat(turns, **sampling):
            if isinstance(reply, Failure):
                self.failures.append(reply.reason)
                continue
            seconds = time.perf_counter() - begin
            begin = time.perf_counter()
            batch.append(
                Completion(questions[number].id, str(reply), reply.n_tokens, reply.ended, seconds)
            )
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch
