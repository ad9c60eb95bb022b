"""The second branch of a contrastive decoder: another prompt or model, with a KV cache of its own.

`generate` runs the plain branch and knows nothing of this one, which a logits processor runs beside
it over the tokens that were chosen: one short forward pass a token, and none once it is dropped.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from ..generation import input_device, left_padded, text_config


class Branch:
    """The distribution of the next token under prompts of its own, as an answer grows.

    Args:
        model: a causal language model in evaluation mode; one without a KV cache runs the whole
            text again for every token.
        prompts: one for each row, of any lengths.
        around: what has to be entered for each forward pass, such as an expert's adapter.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.around = model, around
        self.ids, self.mask = left_padded(prompts, device=input_device(model))
        self.cache: Any = None
        self.cached = 0

    @torch.no_grad()
    def logits(self, chosen: Int[Tensor, "batch new"]) -> Float[Tensor, "batch vocab"]:
        """Return the logits of the token after the prompts and all that was chosen since.

        Args:
            chosen: the tokens that came to each row since the last call; none in the first.

        Returns:
            Logits; a text that exceeds the model's context is a `UserError`.
        """
        self.ids = torch.cat([self.ids, chosen.to(self.ids.device)], 1)
        self.mask = torch.nn.functional.pad(self.mask, (0, chosen.shape[1]), value=1)
        self._insist_on_room()
        optional = {
            "position_ids": (self.mask.cumsum(-1) - 1).clamp(min=0)[:, self.cached :],
            "logits_to_keep": 1,
            "use_cache": True,
            "past_key_values": self.cache,
        }
        known = _parameters(self.model)
        with self.around():
            output = self.model(
                input_ids=self.ids[:, self.cached :],
                attention_mask=self.mask,
                **{name: value for name, value in optional.items() if name in known},
            )
        self.cache = getattr(output, "past_key_values", None)
        self.cached = 0 if self.cache is None else self.ids.shape[1]
        return output.logits[:, -1]

    def _insist_on_room(self) -> None:
        context = getattr(text_config(self.model), "max_position_embeddings", None)
        longest = self.ids.shape[1]  # the longest row has no padding
        if context is not None and longest > context:
            raise UserError(
                f"the contrast prompt and the answer have {longest} tokens and exceed the model's "
                f"context of {context}: shorten the prompts or max_new_tokens"
            )


def _parameters(model: Any) -> set[str]:
    """Return what the model's forward pass takes; an adapter's own signature says nothing."""
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(owner.forward).parameters)
