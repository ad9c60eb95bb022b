"""What an answer of `ntkprobe evaluate` takes, by what prompts share and how many go together.

`python benchmarks/answers.py --model MODEL --prompts FILE` writes `answers.md`. MODEL is a folder
or a GGUF file, FILE what `ntkprobe measure --prompts` takes. All ways answer the same prompts in
one process and on one thread, by its processor time.
"""

import argparse
from pathlib import Path
from time import process_time
from typing import Any
from unittest import mock

from support.real_models import add_arguments, loaded
from support.tables import machine, table, write

from ntkprobe.evaluation.answers import FIRST_BATCH, LocalModel, Question
from ntkprobe.evaluation.settings import AnswerSettings
from ntkprobe.models import cached
from ntkprobe.prompts.templates import resolve_template

BATCHES = (16, FIRST_BATCH, 64)


def main() -> None:
    """Answer the prompts in every way, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--count", type=int, default=64, help="prompts")
    parser.add_argument("--new-tokens", type=int, default=20)
    given = parser.parse_args()
    if (there := loaded(given)) is None:
        return
    model, tokenizer, prompts = there
    texts = [prompt.text for prompt in prompts][: given.count]
    ways = [(shares, size) for size in BATCHES for shares in (False, True)]
    taken = {way: answered(model, tokenizer, texts, given.new_tokens, *way) for way in ways}
    seconds, answers = taken[ways[0]]
    rows = [
        [
            "run once" if shares else "run with every prompt",
            str(size),
            f"{took / len(texts):.3f}",
            f"{took / seconds:.2f}",
            f"{sum(map(str.__eq__, found, answers))} of {len(texts)}",
        ]
        for (shares, size), (took, found) in taken.items()
    ]
    header = ["what prompts begin with", "prompts at a time", "CPU s each", "ratio", "same answers"]
    about = (
        f"{Path(given.model).name}; {len(texts)} prompts, {given.new_tokens} tokens at most; "
        f"{machine()}; by `python benchmarks/answers.py`. `ntkprobe evaluate` runs what all "
        f"prompts begin with once where the model allows that, {FIRST_BATCH} at a time."
    )
    print(write(__file__, "# Answers", about, table(header, rows)))


def answered(
    model: Any, tokenizer: Any, texts: list[str], new_tokens: int, shares: bool, size: int
) -> tuple[float, list[str]]:
    """Return the processor seconds, and the answers in the order of the prompts."""
    template = resolve_template(tokenizer, "auto")
    settings = AnswerSettings(max_new_tokens=new_tokens)
    backend = LocalModel(model, tokenizer, template, settings, batch_size=size)
    questions = [Question(str(number), text) for number, text in enumerate(texts)]
    usable = cached.usable if shares else lambda *_: False
    start = process_time()
    with mock.patch.object(cached, "usable", usable):
        found = {each.id: each.answer for batch in backend.answer(questions) for each in batch}
    return process_time() - start, [found[question.id] for question in questions]


if __name__ == "__main__":
    main()
