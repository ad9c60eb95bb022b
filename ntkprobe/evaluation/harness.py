"""A model inside lm-evaluation-harness, with a mitigation or without.

Needs the extra `ntkprobe[lmeval]`; imported only where it is used.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from ..models.batching import LengthRule, padding_known
from ..models.generation import try_left_padding
from ..models.logits import try_padding
from ..progress import progress as long_stage

Request = tuple[Any, list[int], list[int]]
"""Text of a request, token ids of its context, token ids of its continuation."""


def harness_model(
    model: Any, tokenizer: Any, processors: Sequence[Any], *, mitigated: bool, batch_size: int
) -> HFLM:
    """Return a model for `lm_eval.simple_evaluate`.

    Args:
        model: with its adapter, and with the hooks of a mitigation in place.
        tokenizer: its tokenizer.
        processors: logits processors of a decoding mitigation.
        mitigated: whether a mitigation is applied; continuations are then scored token by token,
            as in a generation, without padding, which its hooks would see.
        batch_size: requests at a time, without a mitigation.

    Returns:
        The harness's own class, or one that differs in how continuations are read.
    """
    if not mitigated:
        return _Padded(model, tokenizer, batch_size)
    return _Mitigated(model, tokenizer, processors)


class _Padded(HFLM):
    """Scores padded batches; one request at a time where padding changes the model's numbers."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        size = 1 if LengthRule.of(model) else batch_size
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=size)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if self.batch_size > 1:
            texts = [(context + more)[-self.max_length - 1 : -1] for _, context, more in requests]
            try_padding(self.model, [torch.tensor(ids) for ids in texts if ids])
            self._one_by_one_where_padding_shows()
        return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        if self.batch_size > 1:
            texts = [
                self.tok_encode(request.args[0])[1 - self.max_length :] for request in requests
            ]
            try_left_padding(self.model, [ids for ids in texts if ids])
            self._one_by_one_where_padding_shows()
        return super().generate_until(requests, disable_tqdm)

    def _one_by_one_where_padding_shows(self) -> None:
        if False in (padding_known(self.model, side) for side in ("right", "left")):
            self.batch_size_per_gpu = 1


class _Mitigated(HFLM):
    """Scores continuations in the order of a generation: the context, then token by token."""

    def __init__(self, model: Any, tokenizer: Any, processors: Sequence[Any]) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=1)
        self._processors = list(processors)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        answers = []
        for key, context, continuation in long_stage(
            requests, desc="log-likelihoods", unit="request", disable=disable_tqdm
        ):
            answer = self._read(context, continuation)
            answers.append(answer)
            self.cache_hook.add_partial("loglikelihood", key, answer)
        return answers

    def _model_generate(self, context: Any, max_length: int, stop: Any, **settings: Any) -> Any:
        from transformers import LogitsProcessorList

        processors = LogitsProcessorList(self._processors)
        return super()._model_generate(
            context, max_length, stop, **settings, logits_processor=processors
        )

    def _read(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """Return the log-probability of a continuation, and whether it is the greedy one."""
        total, greedy = 0.0, True
        scores = self._scores(list(context), list(continuation))
        for token, row in zip(continuation, scores, strict=True):
            total += float(row.log_softmax(-1)[token])
            greedy = greedy and int(row.argmax()) == token
        return total, greedy

    @torch.no_grad()
    def _scores(self, context: list[int], continuation: list[int]) -> Iterator[Tensor]:
        """Yield the scores `[vocab]` from which each token of a continuation would be taken."""
        begin = max(len(context) + len(continuation) - 1 - self.max_length, 0)
        ids = torch.tensor([context[min(begin, len(context) - 1) :]], device=self.device)
        for processor in self._processors:
            if hasattr(processor, "begin"):
                processor.begin(torch.ones_like(ids))
        rule, past, cached = LengthRule.of(self.model), None, 0
        for place, token in enumerate(continuation):
            if rule.regime(ids.shape[1]) != rule.regime(cached):
                past, cached = None, 0  # its keys were computed otherwise
            out = self.model(input_ids=ids[:, cached:], past_key_values=past, use_cache=True)
            past, cached = out.past_key_values, ids.shape[1]
            scores = out.logits[:, -1].float()
            for processor in self._processors:
                scores = processor(ids, scores)
            yield scores[0]
            if place + 1 < len(continuation):
                ids = torch.cat([ids, torch.tensor([[token]], device=self.device)], dim=1)
