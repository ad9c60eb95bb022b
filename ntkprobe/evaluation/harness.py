"""A model of ours inside lm-evaluation-harness, with whatever steers it or changes its logits.

Needs the extra `ntkprobe[lmeval]`; imported only where it is used.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm.auto import tqdm

from ..batching import LengthRule

Request = tuple[Any, list[int], list[int]]
"""What is asked, as text, and the token ids of a context and of a continuation."""


def harness_model(
    model: Any, tokenizer: Any, processors: Sequence[Any], *, mitigated: bool, batch_size: int
) -> HFLM:
    """Return a model for `lm_eval.simple_evaluate`.

    Args:
        model: with its adapter, and with the hooks of a mitigation in place.
        tokenizer: its tokenizer.
        processors: what changes its logits first.
        mitigated: whether a mitigation is at work; then continuations are read as an answer is
            generated, token by token, without any padding that its hooks would see.
        batch_size: requests at a time, without a mitigation.

    Returns:
        The harness's own class, or one that differs in how continuations are read.
    """
    if not mitigated:
        # Its batches are padded to the longest: one request each where that changes the others.
        size = 1 if LengthRule.of(model) else batch_size
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)
    return _Mitigated(model, tokenizer, processors)


class _Mitigated(HFLM):
    """Reads continuations in the order of a generation: the context, then token after token."""

    def __init__(self, model: Any, tokenizer: Any, processors: Sequence[Any]) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=1)
        self._processors = list(processors)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        answers = []
        for key, context, continuation in tqdm(requests, disable=disable_tqdm):
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
        out = self.model(input_ids=ids, use_cache=True)
        for place, token in enumerate(continuation):
            scores = out.logits[:, -1].float()
            for processor in self._processors:
                scores = processor(ids, scores)
            yield scores[0]
            if place + 1 < len(continuation):
                new = torch.tensor([[token]], device=self.device)
                ids = torch.cat([ids, new], dim=1)
                out = self.model(input_ids=new, past_key_values=out.past_key_values, use_cache=True)
