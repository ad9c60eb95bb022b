"""What pairs that a run was not trained on would have done to its prompts: which to add.

The sum over checkpoints of Eq. 2, for candidates in place of training pairs, each as if it had been
one more of them.
"""

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

import pandas as pd

from ..prompts.prompt_set import Prompt, PromptSet
from ..training.data import Pair
from .attribution import attribute
from .result import Attribution


def rank_candidates(
    run: str | PathLike[str],
    *,
    prompts: PromptSet | Iterable[Prompt | str],
    candidates: Sequence[Pair],
    **options: Any,
) -> pd.DataFrame | None:
    """Order pairs by how much a step on each would have lowered what is observed, on average.

    Args:
        run: a run of `ntkprobe train sft`, or the checkpoints of another trainer's.
        prompts: whose log P(refuse), or other target, is to fall.
        candidates: requests and answers; those without room in the run's length are left out.
        options: those of `attribute`: `settings`, `output_dir`, `steps` and others.

    Returns:
        `prompt`, `response` and `change`, the mean over the prompts, lowest first; None where
        other workers' blocks are missing.
    """
    found = attribute(run, prompts=prompts, candidates=candidates, **options)
    return None if found is None else ordered(found)


def ordered(found: Attribution) -> pd.DataFrame:
    """Return the pairs of an attribution by what they do on average, as `rank_candidates` does."""
    frame = found.pairs[["prompt", "response"]].assign(change=found.changes.mean(0))
    return frame.sort_values("change", kind="stable", ignore_index=True)
