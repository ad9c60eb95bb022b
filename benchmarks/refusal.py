"""How much faster one pass over the trie of the refusal phrases is than a pass for each phrase.

`python benchmarks/refusal.py` writes `refusal.md`; minutes on one core. All ways of one line run in
turn on the same work, several times over, on one thread; the ratios are of the medians of their
processor time, which other programs on the machine disturb less than the clock.
"""

import re
from collections.abc import Callable
from statistics import median
from time import process_time

import torch
from support.models import Shape, ragged_prompts
from support.tables import machine, table, write
from torch import Tensor, nn
from tqdm import tqdm

from ntkprobe.models.generation import left_padded, length_batches
from ntkprobe.prompts.phrases import PAPER31
from ntkprobe.refusal import score_phrases
from ntkprobe.refusal.rows import score_by_rows
from ntkprobe.refusal.trie import PhraseTrie

BATCH = 8
REPEATS = 3
MIDDLE = Shape(512, 8, 8000)
CASES = [
    ("prompts of a line, without a template", MIDDLE, 6, (20, 30)),
    ("the same within a chat template", MIDDLE, 6, (50, 60)),
    ("very short prompts", MIDDLE, 6, (5, 10)),
    ("long prompts", MIDDLE, 2, (200, 300)),
    ("a small model", Shape(128, 4, 2000), 16, (20, 30)),
    ("the vocabulary of Qwen2.5", Shape(512, 8, 151_936), 4, (20, 30)),
]

Ids = list[tuple[int, ...]]


def main() -> None:
    """Time every case, and write the table."""
    torch.set_num_threads(1)
    phrases = tokens_of(PAPER31)
    header = ["", "model", "prompts × tokens", "one pass, CPU s", "31 batched passes, ×"]
    header += ["one text at a time, ×", "largest difference of log P"]
    rows = [measured(*case, phrases) for case in tqdm(CASES, leave=False)]
    longest = max(map(len, phrases))
    sections = [
        "# The refusal probability in one pass",
        f"log P of the paper's 31 phrases after every prompt, float32. The phrases have "
        f"{sum(map(len, phrases))} tokens (words and marks; {longest} the longest), their trie "
        f"{len(PhraseTrie.of(phrases).nodes) - 1} nodes to run. *One pass* is "
        f"`refusal.score_phrases` with {BATCH} prompts at a time, its check of the model included. "
        "The others are times of it: *31 batched passes* runs each phrase behind a padded batch of "
        "prompts and computes only the phrase's logits; *one text at a time* has no batch and no "
        "padding. The difference is that of the one pass to the package's oracle. Medians of "
        f"{REPEATS} interleaved runs, processor time; {machine()}; by "
        "`python benchmarks/refusal.py`.",
        table(header, rows),
    ]
    print(write(__file__, *sections))


def tokens_of(phrases: tuple[str, ...]) -> Ids:
    """Return ids of words and punctuation marks, as byte-level BPE splits common English."""
    split = [re.findall(r"'\w+|\w+|[^\w\s]", phrase) for phrase in phrases]
    numbers = {word: i for i, word in enumerate(dict.fromkeys(w for words in split for w in words))}
    return [tuple(numbers[word] for word in words) for words in split]


def measured(
    title: str, shape: Shape, count: int, lengths: tuple[int, int], phrases: Ids
) -> list[str]:
    """Return one line of the table."""
    model = shape.build()
    prompts = ragged_prompts(count, lengths, shape.vocabulary)
    ways: dict[str, Callable[[], Tensor]] = {
        "one pass": lambda: score_phrases(model, prompts, phrases, batch_size=BATCH),
        "batched": lambda: batched_passes(model, prompts, phrases),
        "single": lambda: single_passes(model, prompts, phrases),
    }
    seconds, found = timed(ways)
    oracle = score_by_rows(model, prompts, phrases)
    assert (found["batched"] - oracle).abs().max() < 1e-3
    assert (found["single"] - oracle).abs().max() < 1e-3
    ours = seconds.pop("one pass")
    difference = float((found["one pass"] - oracle).abs().max())
    return [
        title,
        f"d = {shape.width}, {shape.depth} layers, {shape.vocabulary} words",
        f"{count} × {lengths[0]}–{lengths[1]}",
        f"{ours:.2f}",
        *(f"{other / ours:.1f}" for other in seconds.values()),
        f"{difference:.0e}",
    ]


def timed(ways: dict[str, Callable[[], Tensor]]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the median seconds of each way, all of them run in turn, and what they found."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for _ in range(REPEATS):
        for name, way in ways.items():
            start = process_time()
            found[name] = way()
            seconds[name].append(process_time() - start)
    return {name: median(each) for name, each in seconds.items()}, found


@torch.no_grad()
def batched_passes(model: nn.Module, prompts: list[Tensor], phrases: Ids) -> Tensor:
    """Return log P by a batched pass for each phrase: what one writes who knows padding."""
    scores = torch.empty(len(prompts), len(phrases), dtype=torch.float64)
    for column, phrase in enumerate(phrases):
        for rows in length_batches(prompts, BATCH):
            texts = [[*prompts[row].tolist(), *phrase] for row in rows]
            ids, mask = left_padded(texts)
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                use_cache=False,
                logits_to_keep=len(phrase) + 1,
            ).logits[:, :-1]
            chosen = logits.log_softmax(-1)[:, torch.arange(len(phrase)), list(phrase)]
            scores[rows, column] = chosen.double().sum(-1)
    return scores


@torch.no_grad()
def single_passes(model: nn.Module, prompts: list[Tensor], phrases: Ids) -> Tensor:
    """Return log P by a pass for each prompt and phrase, without batch or padding."""
    scores = torch.empty(len(prompts), len(phrases), dtype=torch.float64)
    for row, prompt in enumerate(prompts):
        for column, phrase in enumerate(phrases):
            text = torch.tensor([[*prompt.tolist(), *phrase]])
            logits = model(text, use_cache=False, logits_to_keep=len(phrase) + 1).logits[0, :-1]
            chosen = logits.log_softmax(-1)[torch.arange(len(phrase)), list(phrase)]
            scores[row, column] = chosen.double().sum()
    return scores


if __name__ == "__main__":
    main()
