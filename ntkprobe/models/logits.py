"""The logits z(x) after each prompt's last token, for prompts of different lengths."""

from collections.abc import Iterator, Sequence
from numbers import Integral

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import count, require
from .architecture import experts_one_by_one, reading_last_positions
from .batching import forgetting_lengths, keep_verdict, pair_to_try, together
from .validation import check_measurable, check_prompts, not_finite, require_none_broken


def last_logits(
    model: nn.Module, prompts: Sequence[Int[Tensor, " _"]]
) -> Float[Tensor, "batch vocab"]:
    """Return z of prompts of any lengths, equal to that of each prompt alone.

    They are padded on the right, whatever the tokenizer does, without a mask: no position of a
    causal model depends on a later one. Where a model's logits depend on padding all the same, the
    prompts are divided over several passes (`batching.together`).
    """
    groups = together(model, prompts)
    with forgetting_lengths(model):
        found = [padded_logits(model, [prompts[row] for row in rows]) for rows in groups]
    if len(found) == 1:
        return found[0]
    places = torch.tensor([row for rows in groups for row in rows]).argsort()
    return torch.cat(found)[places.to(found[0].device)]


def try_padding(model: nn.Module, prompts: Sequence[Int[Tensor, " _"]]) -> None:
    """Determine, once for each model and length, whether padding on the right changes its logits.

    Args:
        model: the model, in evaluation mode.
        prompts: the prompts to be measured; two of them are run, together and alone.
    """
    inside_transform = torch._C._functorch.peek_interpreter_stack() is not None
    rows = None if inside_transform else pair_to_try(model, prompts)
    if rows is None:
        return
    pair = [torch.as_tensor(prompts[row]) for row in rows]
    with torch.no_grad(), experts_one_by_one(model), forgetting_lengths(model):
        alone = [padded_logits(model, [ids]) for ids in pair]
        if alone[0].shape == alone[1].shape:  # else its logits cover all positions of a text
            keep_verdict(model, "right", padded_logits(model, pair), torch.cat(alone), len(pair[1]))


def padded_logits(
    model: nn.Module, prompts: Sequence[Int[Tensor, " _"]]
) -> Float[Tensor, "batch vocab"]:
    """Return z of prompts in one pass."""
    device, longest = next(model.parameters()).device, max(map(len, prompts))
    # Padded with its own last token: at a pad token some models warn, some mask.
    rows = [torch.cat([ids, ids[-1:].expand(longest - len(ids))]) for ids in prompts]
    last = torch.tensor([len(ids) - 1 for ids in prompts])
    with reading_last_positions(model, last) as gather:
        return gather(model(input_ids=torch.stack(rows).to(device), use_cache=False).logits)


def batched_logits(
    model: nn.Module, prompts: Sequence[Int[Tensor, " _"]], batch_size: int = 32
) -> Iterator[Float[Tensor, "batch vocab"]]:
    """Yield z of all prompts in batches; prompts that cannot be measured are refused by number."""
    check_measurable(model)
    check_prompts(model, prompts)
    try_padding(model, prompts)
    broken: list[int] = []
    for start in range(0, len(prompts), count("batch_size", batch_size)):
        with torch.no_grad():
            logits = last_logits(model, prompts[start : start + batch_size])
        broken += [start + row for row in not_finite(logits)]
        yield logits
    if broken:
        require_none_broken(broken, logits.dtype)


def check_logits(
    model: nn.Module, prompts: Sequence[Int[Tensor, " _"]], batch_size: int = 8
) -> int:
    """Return the number of logits of a model, having checked all prompts by `batched_logits`."""
    return max(logits.shape[-1] for logits in batched_logits(model, prompts, batch_size))


def top_tokens(
    model: nn.Module, prompts: Sequence[Int[Tensor, " _"]], k: int, batch_size: int = 32
) -> list[Int[Tensor, " k"]]:
    """Return the ids of each prompt's k largest logits, largest first."""
    found: list[Tensor] = []
    for logits in batched_logits(model, prompts, batch_size):
        size = logits.shape[-1]
        fits = isinstance(k, Integral) and 1 <= k <= size
        require(fits, f"the top {k!r} of {size} tokens: choose a whole number from 1 to {size}")
        found.extend(logits.float().topk(k).indices.cpu())
    return found
