"""The second branch of a contrastive decoder: another prompt or model, with a KV cache of its own.

`generate` runs the plain branch and knows nothing of this one, which a logits processor runs beside
it over the tokens that were chosen: one short forward pass a token, and none once it is dropped.
Where both branches are of one model, the passes are one (`_together`).
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from ..models.architecture import clamped_casts
from ..models.batching import LengthRule, context_length, forgetting_lengths, padding_known
from ..models.generation import (
    input_device,
    left_padded,
    require_numbers,
    text_config,
    try_left_padding,
)
from .joint_pass import JointCache, can_join, joint_inputs, plain_output


class Branch:
    """The distribution of the next token under prompts of its own, as an answer grows.

    Rows that padding would change (`batching`) are branches of their own, and a cache is dropped
    where the model begins to compute texts otherwise.

    Args:
        model: a causal language model in evaluation mode; one without a KV cache runs the whole
            text again for every token.
        prompts: one for each row, of any lengths.
        around: what has to be entered for each forward pass, such as an expert's adapter; such a
            branch has passes of its own.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.around = model, around
        self.prompts, self.rule = prompts, LengthRule.of(model)
        unequal = len(set(map(len, prompts))) > 1
        if unequal:
            try_left_padding(model, prompts)
        alone = unequal and (self.rule or padding_known(model, "left") is False)
        self.parts = [Branch(model, [prompt], around) for prompt in prompts] if alone else []
        self.ids, self.mask = left_padded(prompts, device=input_device(model))
        self.cache: Any = None
        self.cached = 0  # columns that need no pass any more
        self.joined: JointCache | None = None
        self.ahead: Tensor | None = None  # logits that came with the plain branch's

    @torch.no_grad()
    def logits(self, chosen: Int[Tensor, "batch new"]) -> Float[Tensor, "batch vocab"]:
        """Return the logits of the token after the prompts and all that was chosen since.

        Args:
            chosen: the tokens that came to each row since the last call; none in the first.

        Returns:
            Logits. A text that exceeds the model's context, and NaN, are each a `UserError`.
        """
        if self.parts:
            rows = chosen.split(1)
            return torch.cat([one.logits(row) for one, row in zip(self.parts, rows, strict=True)])
        if self.ahead is None:
            self._append(chosen)
            logits = self._run()
        else:
            logits, self.ahead = self.ahead, None
        require_numbers(logits.isnan().any(-1), range(len(logits)))
        return logits

    def join(self, kwargs: dict[str, Any], width: int) -> dict[str, Any] | None:
        """Return what to call the model with, so that its next token is this branch's, too.

        Args:
            kwargs: what `generate` calls it with.
            width: the plain branch's, with the new token.

        Returns:
            None where that cannot be done: the branch then has a pass of its own.
        """
        rows, cache = len(self.ids), kwargs.get("past_key_values")
        if self.cache is None or self.around is not nullcontext or self.ahead is not None:
            return None
        if self.rule or padding_known(self.model, "left") is False:
            return None
        if not can_join(kwargs, self.cache, rows, width):
            return None
        if self.joined is None:
            self.joined = JointCache.of(cache, self.cache, rows)
        elif not self.joined.fits(cache):
            self._start_again()
            return None
        self._append(kwargs["input_ids"])
        return joint_inputs(kwargs, self.joined.both, self.mask, width)

    def part(self, output: Any) -> Any:
        """Return the plain branch's part of a joint pass, and keep the other."""
        assert self.joined is not None
        self.joined.grow()
        self.cached = self.ids.shape[1]
        self.ahead = output.logits[self.joined.rows :, -1]
        return plain_output(output, self.joined.rows, self.joined.plain)

    def _append(self, chosen: Int[Tensor, "batch new"]) -> None:
        self.ids = torch.cat([self.ids, chosen.to(self.ids.device)], 1)
        self.mask = torch.nn.functional.pad(self.mask, (0, chosen.shape[1]), value=1)
        context = context_length(text_config(self.model))
        longest = self.ids.shape[1]  # the longest row has no padding
        if context is not None and longest > context:
            raise UserError(
                f"the contrast prompt and the answer have {longest} tokens and exceed the model's "
                f"context of {context}: shorten the prompts or max_new_tokens"
            )

    def _start_again(self) -> None:
        self.joined = self.cache = None
        self.cached = 0

    def _run(self) -> Float[Tensor, "batch vocab"]:
        length = self.ids.shape[1]
        if self.joined is not None or self.rule.regime(length) != self.rule.regime(self.cached):
            self._start_again()
        optional = {
            "position_ids": (self.mask.cumsum(-1) - 1).clamp(min=0)[:, self.cached :],
            "logits_to_keep": 1,
            "use_cache": True,
            "past_key_values": self.cache,
        }
        known = _parameters(self.model)
        with self.around(), forgetting_lengths(self.model), clamped_casts(self.model):
            output = self.model(
                input_ids=self.ids[:, self.cached :],
                attention_mask=self.mask,
                **{name: value for name, value in optional.items() if name in known},
            )
        self.cache = getattr(output, "past_key_values", None)
        self.cached = 0 if self.cache is None else self.ids.shape[1]
        return output.logits[:, -1]


def _parameters(model: Any) -> set[str]:
    """Return what the model's forward pass takes; an adapter's own signature says nothing."""
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(owner.forward).parameters)
