"""What influence on log P(refuse) takes on a real model, by how many pairs' gradients are held.

`python benchmarks/influence_real.py --model MODEL --prompts FILE` writes `influence_real.md`. MODEL
is a folder or a GGUF file, FILE what `ntkprobe measure --prompts` takes. A pair alone is predicted
in forward mode, several together in reverse (`ntk.influence(mode="auto")`). All run in one process
and on one thread, by its processor time.
"""

import argparse
from pathlib import Path
from time import process_time

from support.real_models import add_arguments, loaded
from support.tables import machine, table, write

import ntkprobe as ntk
from ntkprobe.prompts.prompt_set import Prompt, PromptSet

TOGETHER = (1, 2, 4, 7)
LEARNT = "I cannot help with that."


def main() -> None:
    """Predict the same pairs in groups of each size, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--count", type=int, default=6, help="observed prompts")
    given = parser.parse_args()
    if (there := loaded(given)) is None:
        return
    model, tokenizer, prompts = there
    observed, learnt = prompts[: given.count], prompts[given.count :][: max(TOGETHER)]
    pairs = [Prompt(each.text, each.group, response=LEARNT) for each in learnt]
    alone, rows = None, []
    for number in TOGETHER:
        start = process_time()
        found = ntk.influence(
            model,
            tokenizer,
            observed=observed,
            updated=PromptSet(tuple(pairs[:number])),
            tokens=None,
            reductions=("literal", "prefix_free"),
        ).refusals["literal"]
        each = (process_time() - start) / found.numel()
        alone = alone or (each, found[0])
        apart = float((found[0] - alone[1]).norm() / alone[1].norm())
        rows.append([str(number), f"{each:.2f}", f"{each / alone[0]:.2f}", f"{apart:.1e}"])
    header = ["pairs together", "CPU s a pair and prompt", "ratio", "first pair, apart"]
    about = (
        f"{Path(given.model).name}; {len(observed)} observed prompts, the paper's 31 phrases, both "
        f"reductions; {machine()}; by `python benchmarks/influence_real.py`. *Apart*: the first "
        "pair's numbers against forward mode, relative, in the norm over the prompts. As many "
        "pairs go together as 0.3 of the free memory holds gradients of."
    )
    print(write(__file__, "# Influence on a real model", about, table(header, rows)))


if __name__ == "__main__":
    main()
