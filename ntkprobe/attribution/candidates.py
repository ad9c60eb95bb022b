"""What pairs that a run was not trained on would have done to its prompts: which to add.

The sum over checkpoints of Eq. 2, for candidates in place of training pairs, each as if it had been
one more of them.
"""

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import UserError
from ..measurement.encoding import as_prompt_set, evaluating
from ..measurement.influence.prediction import trained_parameters
from ..models.parameters import ParameterSelection
from ..progress import progress as long_stage
from ..prompts.prompt_set import Prompt, PromptSet
from ..training.data import Pair
from ..watcher.models import Models
from .attribution import wanted
from .encoded import Encoded
from .products import PairGradients, products
from .settings import AttributionSettings
from .training_run import TrainingRun, opening
from .weights import run_weights


def rank_candidates(
    run: str | PathLike[str],
    *,
    prompts: PromptSet | Iterable[Prompt | str],
    candidates: Sequence[Pair],
    settings: AttributionSettings | None = None,
    model: str | None = None,
    pairs: str | Path | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Order pairs by how much a step on each would have lowered what is observed, on average.

    Args:
        run: a run of `ntkprobe train sft`, or the checkpoints of another trainer's.
        prompts: whose log P(refuse), or other target, is to fall.
        candidates: requests and answers; those without room in the run's length are left out.
        settings: as for `attribute`; the estimator `exact`, over `checkpoints` or `final`.
        model: the base below adapters; None for the one that they name.
        pairs: what the run was trained on; None for its own `data.parquet`.
        progress: show a bar on stderr.

    Returns:
        `prompt`, `response` and `change`, the mean over the prompts, lowest first.

    Raises:
        UserError: if there is nothing to order, or the settings are none of these.
    """
    how = settings or AttributionSettings()
    if how.estimator != "exact" or how.over == "steps":
        raise UserError("candidates are ordered exactly, over checkpoints or the final one")
    trained, asked = TrainingRun(Path(run), pairs), as_prompt_set(prompts)
    _ = trained.texts  # that they are others than were trained on is told before all else
    if not len(asked) or not candidates:
        raise UserError("nothing to order: give a prompt and a candidate at least")
    with opening(Models(model, how.load, merge=False), None) as opened:
        scanned = wanted(trained.checkpoints(), how.over, ())
        encoded = Encoded.of(trained, opened, scanned[-1], asked, how)
        weights, _ = run_weights(trained, scanned, encoded.pairs, how.loss == "mean")
        rows = encoded.candidates(candidates, trained)
        changes = np.zeros(len(rows))
        for each in long_stage(scanned, desc="candidates", unit="checkpoint", disable=not progress):
            with opened.opened(each) as (network, _), evaluating(network):
                chosen = how.parameters
                chosen = trained_parameters(network) if chosen == "auto" else chosen
                theta = ParameterSelection.parse(chosen).parameters(network)
                _, held = encoded.observed.held(network, theta)
                gradients = PairGradients(network, theta, rows, how.batch_size, how.loss == "mean")
                found = products(gradients, range(len(rows)), held).mean(1)
                changes = changes - weights[each.checkpoint.step] * found.numpy()
    texts = [(row.pair.prompt, row.pair.response) for row in rows]
    frame = pd.DataFrame(texts, columns=["prompt", "response"]).assign(change=changes)
    return frame.sort_values("change", kind="stable", ignore_index=True)
