"""The second branch of a contrastive decoder: another prompt or model, with a KV cache of its own.

`generate` runs the plain branch. A logits processor runs this one over the same chosen tokens, one
forward pass a token, until it is dropped. Where both branches are of one model, they share a pass
(`joint_pass`).
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from ..models.batching import LengthRule, context_length, forgetting_lengths, padding_known
from ..models.generation import (
    input_device,
    left_padded,
    require_numbers,
    text_config,
    try_left_padding,
)
from ..models.precision import clamped_casts
from .joint_pass import JointCache, can_join, joint_inputs, plain_output


class Branch:
    """The distribution of the next token under prompts of its own, as an answer grows.

    Rows whose numbers padding would change (`models.batching`) are branches of their own. The cache
    is dropped at lengths from which the model computes differently (`LengthRule`).

    Args:
        model: a causal language model in evaluation mode; one without a KV cache runs the whole
            text again for every token.
        prompts: one for each row, of any lengths.
        around: a context entered for each forward pass, such as an expert's adapter; such a branch
            shares no pass.
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
        separate = unequal and (self.rule or padding_known(model, "left") is False)
        self.parts = [Branch(model, [prompt], around) for prompt in prompts] if separate else []
        self.ids, self.mask = left_padded(prompts, device=input_device(model))
        self.cache: Any = None
        self.cached = 0  # columns whose keys and values are in the cache
        self.joined: JointCache | None = None
        self.next_logits: Tensor | None = None  # from a shared pass

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
        if self.next_logits is None:
            self._append(chosen)
            logits = self._run()
        else:
            logits, self.next_logits = self.next_logits, None
        require_numbers(logits.isnan().any(-1), range(len(logits)))
        return logits

    def join(self, kwargs: dict[str, Any], width: int) -> dict[str, Any] | None:
        """Return the arguments of a pass over the next token of both branches.

        Args:
            kwargs: those with which `generate` calls the model.
            width: the plain branch's, with the new token.

        Returns:
            None where that is not possible; the branch then has a pass of its own.
        """
        rows, cache = len(self.ids), kwargs.get("past_key_values")
        if self.cache is None or self.around is not nullcontext or self.next_logits is not None:
            return None
        if self.rule or padding_known(self.model, "left") is False:
            return None
        if not can_join(kwargs, self.cache, rows, width):
            return None
        if self.joined is None:
            self.joined = JointCache.of(cache, self.cache, rows)
        elif not self.joined.fits(cache):
            self._reset_cache()
            return None
        self._append(kwargs["input_ids"])
        return joint_inputs(kwargs, self.joined.both, self.mask, width)

    def part(self, output: Any) -> Any:
        """Return the plain branch's part of a shared pass; this branch's logits are stored."""
        assert self.joined is not None
        self.joined.grow()
        self.cached = self.ids.shape[1]
        self.next_logits = output.logits[self.joined.rows :, -1]
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

    def _reset_cache(self) -> None:
        self.joined = self.cache = None
        self.cached = 0

    def _run(self) -> Float[Tensor, "batch vocab"]:
        length = self.ids.shape[1]
        if self.joined is not None or self.rule.regime(length) != self.rule.regime(self.cached):
            self._reset_cache()
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
    """Return the parameter names of the forward pass of a model, or of an adapter's base."""
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(owner.forward).parameters)
