"""What measuring one checkpoint of a real model takes, part by part, beside the floor of each part.

`python benchmarks/real_model.py --model MODEL --prompts FILE` writes `real_model.md`. MODEL is a
folder or a GGUF file, FILE what `ntkprobe measure --prompts` takes. All parts run on the same
prompts in one process and on one thread, by its processor time, which other programs disturb less
than the clock; the ratios are what holds elsewhere.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any
from unittest.mock import patch

import torch
from support import floor
from support.real_models import add_arguments, loaded
from support.tables import machine, table, write
from torch import Tensor
from tqdm import tqdm

from ntkprobe.estimators.gram import Gram
from ntkprobe.kernel import Probe
from ntkprobe.measurement import Encoded, encode, measure_refusal
from ntkprobe.models.cached import CachedPrompts, batches, shared_ids
from ntkprobe.models.generation import answer_batch, left_padded, length_batches
from ntkprobe.models.logits import top_tokens
from ntkprobe.prompts.phrases import PAPER31
from ntkprobe.refusal import bound_phrases, phrase_ids, reduce_phrases, score_phrases
from ntkprobe.refusal.bounded import UsualBeginnings
from ntkprobe.refusal.trie import PhraseTrie

SIZES = (8, 32)
"""Prompts at a time that the floors are tried with; the better one counts."""


@dataclass(frozen=True)
class Setting:
    """What is measured: a model, its prompts, and how many tokens an answer has."""

    model: Any
    tokenizer: Any
    encoded: Encoded
    new_tokens: int
    batch_size: int

    @property
    def ids(self) -> list[Tensor]:
        """The prompts' tokens."""
        return [torch.tensor(row) for row in self.encoded.input_ids]

    @property
    def phrases(self) -> list[tuple[int, ...]]:
        """The phrases' tokens."""
        return phrase_ids(self.tokenizer, PAPER31, self.encoded.template)


def main() -> None:
    """Measure every part, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--count", type=int, default=24, help="prompts of P(refuse) and answers")
    parser.add_argument("--kernel", type=int, default=12, help="prompts of the kernel")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    given = parser.parse_args()
    if (there := loaded(given)) is None:
        return
    model, tokenizer, every = there
    prompts = every.take(list(range(0, len(every), max(1, len(every) // given.count))))
    encoded = encode(tokenizer, prompts.take(list(range(min(given.count, len(prompts))))))
    setting = Setting(model, tokenizer, encoded, given.new_tokens, given.batch_size)
    refusals, refusals_floor = refusal_sections(setting)
    kernel, kernel_floor = kernel_sections(setting, given.kernel) if given.kernel else ([], None)
    sections = [
        "# One checkpoint of a real model, part by part",
        f"{Path(given.model).name}; {machine()}, processor time; by `python "
        "benchmarks/real_model.py`.",
        *refusals,
        *kernel,
    ]
    if kernel_floor:
        whole = [sum(each) for each in zip(refusals_floor, kernel_floor, strict=True)]
        sections.append(
            "All of this together, kernel with its check, P(refuse) and answers, takes "
            f"{whole[0] / whole[1]:.2f} times its floors: the kernel's, one forward pass, and "
            "`generate`."
        )
    print(write(__file__, *sections))


def refusal_sections(setting: Setting) -> tuple[list[str], tuple[float, float]]:
    """Return the sections on P(refuse) and answers; what both take, and their floor."""
    ids, phrases = setting.ids, setting.phrases
    passed, _ = min(timed(lambda s=s: forward_pass(setting, s)) for s in SIZES)
    generated, theirs = min(
        (timed(lambda s=s: generate(setting, s)) for s in SIZES), key=lambda one: one[0]
    )
    # A model is tried once before its keys and values are kept, on the shortest and longest prompt.
    by_length = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    ends = [by_length[0], by_length[-1]]
    tried = replace(setting, encoded=encode(setting.tokenizer, setting.encoded.prompts.take(ends)))
    first, _ = timed(lambda: refusal(tried, generate=False))
    bounded, found = timed(lambda: refusal(setting, generate=False))
    both, whole = timed(lambda: refusal(setting, generate=True))
    exact, scores = timed(lambda: score_phrases(setting.model, ids, phrases, batch_size=8))
    expected = reduce_phrases(scores, phrases)
    run, needed = nodes_run(setting)
    least = min(timed(lambda s=s: tokens_needed(setting, round(needed), s))[0] for s in SIZES)
    literal = found.log_probabilities["paper31", "literal"]
    above = found.upper["paper31", "literal"]
    same = sum(a == b.text for a, b in zip(whole.answers, theirs, strict=True))
    rows = [
        ["one forward pass of the prompts", passed, 1.0],
        ["`generate`, at its best", generated, generated / passed],
        [
            "P(refuse) of two, the first call: the model is tried",
            first,
            first / passed,
        ],
        ["P(refuse), within 1e-4", bounded, bounded / passed],
        ["the tokens that it needs, in one pass", least, least / passed],
        ["P(refuse) and answers", both, both / passed],
        ["P(refuse), all phrases, nothing shared", exact, exact / passed],
    ]
    lengths = list(map(len, ids))
    text = [
        f"## Refusals of {len(ids)} prompts",
        f"{min(lengths)} to {max(lengths)} tokens, {len(shared_ids(ids))} of them shared; "
        f"{len(phrases)} phrases, whose trie has {len(PhraseTrie.of(phrases).nodes)} nodes, of "
        f"which {run:.1f} in the mean are run behind a prompt and {needed:.1f} are needed; answers "
        f"of {setting.new_tokens} tokens at most.",
        table(["", "CPU s", "× one pass"], [[n, f"{s:.2f}", f"{r:.2f}"] for n, s, r in rows]),
        f"P(refuse) takes {bounded / least:.2f} times the tokens that it needs: what is particular "
        "to each prompt and the beginnings without which the bound is above 1e-4, with the whole "
        "vocabulary's logits behind each. "
        f"P(refuse) and answers / (one pass + `generate`): {both / (passed + generated):.2f}. "
        f"log P(refuse) is off by {float((literal - expected).abs().max()):.1e} at most, its bound "
        f"by {float((above - expected).abs().max()):.1e}; {same} of {len(ids)} answers are "
        "`generate`'s.",
    ]
    return text, (both, passed + generated)


def kernel_sections(setting: Setting, count: int) -> tuple[list[str], tuple[float, float]]:
    """Return the section on the kernel; what it takes, and its floor."""
    ids = setting.ids[:count]
    tops = top_tokens(setting.model, ids, 10)
    probes = [Probe(x, tokens) for x, tokens in zip(ids, tops, strict=True)]
    passes, _ = timed(lambda: floor.passes(setting.model, probes))
    products = floor.multiply_adds(setting.model, probes) / floor.rate()
    gram = Gram()
    checked, _ = timed(lambda: gram.coverage(setting.model, probes))
    found, _ = timed(lambda: gram.by_part(setting.model, probes))
    rows = [
        ["passes, the floor's", f"{passes:.2f}", ""],
        ["products, the floor's", f"{products:.2f}", ""],
        ["the rules are checked, once in a run of checkpoints", f"{checked:.2f}", ""],
        ["gram by layer", f"{found:.2f}", f"{found / (passes + products):.2f}"],
    ]
    text = [f"## The kernel of {count} prompts", table(["", "CPU s", "× floor"], rows)]
    return text, (checked + found, passes + products)


def timed(what: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor time of a call, and what it returned."""
    start = process_time()
    found = what()
    seconds = process_time() - start
    tqdm.write(f"{seconds:.2f} s")
    return seconds, found


@torch.no_grad()
def forward_pass(setting: Setting, size: int) -> None:
    """Run all prompts, of like lengths together, and read their last logits."""
    for rows in length_batches(setting.ids, size):
        ids, mask = left_padded([setting.ids[row] for row in rows])
        setting.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)


def generate(setting: Setting, size: int) -> list[Any]:
    """Return what the model's own `generate` answers."""
    answers: list[Any] = [None] * len(setting.ids)
    for rows in length_batches(setting.ids, size):
        found = answer_batch(
            setting.model,
            setting.tokenizer,
            [setting.ids[row] for row in rows],
            max_new_tokens=setting.new_tokens,
            stop_ids=setting.encoded.template.stop_ids(setting.tokenizer),
        )
        for row, answer in zip(rows, found, strict=True):
            answers[row] = answer
    return answers


def refusal(setting: Setting, *, generate: bool) -> Any:
    """Return what the package measures."""
    return measure_refusal(
        setting.model,
        setting.tokenizer,
        setting.encoded,
        generate=generate,
        max_new_tokens=setting.new_tokens,
        batch_size=setting.batch_size,
    )


def nodes_run(setting: Setting) -> tuple[float, float]:
    """Return how many beginnings are run behind a prompt in the mean, and how many are needed."""
    counted: list[int] = []
    original = CachedPrompts.run
    usual = UsualBeginnings()

    def counting(kept: CachedPrompts, tokens: Tensor, *rest: Any) -> Tensor:
        counted.append(int(rest[2].sum()))
        return original(kept, tokens, *rest)

    with patch.object(CachedPrompts, "run", counting):
        for _, kept in batches(setting.model, setting.ids, setting.batch_size):
            bound_phrases(kept, setting.phrases, usual=usual)
    needed = sum(count for node, count in usual.counts.items() if node)
    return sum(counted) / len(setting.ids), needed / len(setting.ids)


@torch.no_grad()
def tokens_needed(setting: Setting, beginnings: int, size: int) -> None:
    """Run as many tokens as P(refuse) cannot do without, with logits where it reads them.

    Behind what all prompts begin with, which is left out: each prompt's own tokens, and as many
    others as beginnings are needed. That they attend to one another, and not as a tree does to
    more, changes little of what a pass takes.
    """
    shared = len(shared_ids(setting.ids))
    for rows in length_batches(setting.ids, size):
        own = [
            torch.cat([setting.ids[row][shared:], setting.ids[row][:1].expand(beginnings)])
            for row in rows
        ]
        ids, mask = left_padded(own)
        setting.model(
            input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=beginnings + 1
        )


if __name__ == "__main__":
    main()
