"""The sign with which SCANS steers each position of each sequence, from ids and cache."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError


class SequenceTracker:
    """Tracks sequences through passes with and without a cache.

    Padding may be on either side. An instruction ends at the last occurrence of the ids that the
    template puts behind it. A prompt is classified once; its sign is constant in every later pass
    and has no derivative.

    Args:
        ending: the ids that end an instruction.
        judge: classifies prompts, their ids up to there, as harmful: `[n]` bool.

    Attributes:
        signs: of the present pass, [batch, seq]: 1 or −1 from the instruction's end on, 0 before.
        paused: whether the classifier's own pass is running.
    """

    def __init__(self, ending: Tensor, judge: Callable[[Sequence[Tensor]], Tensor]) -> None:
        self.signs = torch.zeros(0, 0)
        self.paused = False
        self._ending, self._judge = ending.tolist(), judge
        self._known: dict[tuple[int, ...], float] = {}
        self._columns = 0
        self._ids: Tensor | None = None
        self._ends: Tensor | None = None
        self._own: Tensor | None = None

    def keep_ids(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Store the ids that the embedding gets: a decoder in a larger model gets no ids."""
        if not self.paused and args:
            self._ids = args[0]

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Set the signs of a pass from the arguments of the decoder.

        Raises:
            UserError: if no instruction ends in a sequence, or its beginning was never seen.
        """
        if self.paused:
            return
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        ids = given.get("input_ids")
        ids = self._ids if ids is None else ids
        if ids is None:
            raise UserError("SCANS needs token ids: give the model input_ids, not inputs_embeds")
        past = self._past(given)
        if not past:
            self._begin(ids, given.get("attention_mask"), given.get("position_ids"))
        if self._ends is None or self._own is None or len(self._ends) != len(ids):
            raise UserError("a sequence began before SCANS was applied: begin it inside the block")
        self._columns = past + ids.shape[1]
        columns = past + torch.arange(ids.shape[1])
        self.signs = (columns >= self._ends[:, None]) * self._own[:, None]

    def _past(self, given: dict[str, Any]) -> int:
        """Return how many columns came before a pass; a state alone (Mamba, RWKV) counts none."""
        if (cache := given.get("past_key_values")) is not None:
            return int(cache.get_seq_length())
        states = given.get("cache_params")
        begun = given.get("state") is not None if states is None else states.has_previous_state()
        return self._columns if begun else 0

    def _begin(self, ids: Tensor, mask: Any, positions: Tensor | None) -> None:
        """Find the instructions' ends, and classify new prompts."""
        rows = ids.tolist()
        ends = [self._end(row) for row in rows]
        lengths = _lengths(ends, mask, positions)
        prompts = [
            tuple(row[end + 1 - length : end + 1])
            for row, end, length in zip(rows, ends, lengths, strict=True)
        ]
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new:
            # `gram` records the operations of a pass; these are not part of it.
            with torch._C.DisableTorchFunction():
                self._judge_now(new)
        self._ends = torch.tensor(ends)
        self._own = torch.tensor([self._known[prompt] for prompt in prompts])

    def _judge_now(self, prompts: list[tuple[int, ...]]) -> None:
        self.paused = True
        try:
            harmful = self._judge([torch.tensor(prompt) for prompt in prompts]).tolist()
        finally:
            self.paused = False
        self._known |= {p: 1.0 if bad else -1.0 for p, bad in zip(prompts, harmful, strict=True)}

    def _end(self, row: list[int]) -> int:
        """Return the position of the last token of the last ending, of adjoining ones the first.

        Raises:
            UserError: if there is none.
        """
        size = len(self._ending)
        for start in reversed(range(len(row) - size + 1)):
            if row[start : start + size] == self._ending:
                # Behind an ending of one token come its copies, where a pass is padded by them.
                while start and row[start - 1 : start - 1 + size] == self._ending:
                    start -= 1
                return start + size - 1
        raise UserError(
            "a prompt has no end of an instruction: SCANS steers prompts of the template it was "
            "fitted with, which is not the one used here"
        )


def _lengths(ends: list[int], mask: Any, positions: Tensor | None) -> list[int]:
    """Return how many tokens, padding left out, each sequence has up to its end."""
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return [int(row[: end + 1].sum()) for row, end in zip(mask, ends, strict=True)]
    if positions is not None:
        rows = positions.reshape(-1, positions.shape[-1])[: len(ends)].expand(len(ends), -1)
        return [int(row[end]) + 1 for row, end in zip(rows, ends, strict=True)]
    return [end + 1 for end in ends]
