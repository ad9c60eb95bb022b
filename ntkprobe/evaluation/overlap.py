"""Counts of evaluated or measured prompts that the model was trained on.

A run of `ntkprobe train` records its training prompts (`data.parquet`) and the model that it
started from (`training.yaml`), which may be the result of another such run.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..prompts.files import TEXT_COLUMNS, prompt_of, text_column
from ..prompts.prompt_set import PromptSet, normalised
from ..prompts.selections import PromptSelection
from ..storage import training_settings
from .benchmarks import BenchmarkPrompts

DATA = "data.parquet"


def training_prompts(
    models: Iterable[Path], files: Iterable[str | Path] = ()
) -> dict[str, set[str]]:
    """Return the recorded training prompts of models, by source.

    Args:
        models: folders of models and adapters: a run, its `final`, or one of its checkpoints.
        files: further training data, of other trainers, whole or as `FILE:COLUMN=VALUE`.

    Returns:
        Prompts as they are compared (`prompts.normalised`); empty if nothing is recorded.
    """
    runs = dict.fromkeys(run for model in models for run in _runs(model))
    sources: dict[str, str | Path] = {str(run): run / DATA for run in runs}
    sources |= {str(file): file for file in files}
    return {name: _texts(file) for name, file in sources.items()}


def origin(models: Iterable[Path]) -> str | None:
    """Return the model that the first stage of training started from, if it is recorded.

    Args:
        models: folders of models and adapters: a run, its `final`, or one of its checkpoints.

    Returns:
        A name on the hub, or a folder.
    """
    runs = [run for model in models for run in _runs(model)]
    return _began_with(runs[-1]) if runs else None


def overlap(questions: BenchmarkPrompts, trained: Mapping[str, set[str]]) -> dict[str, Any] | None:
    """Return how many prompts of a benchmark were trained on.

    Args:
        questions: the benchmark.
        trained: from `training_prompts`.

    Returns:
        `prompts` (how many, of any source), `of`, `kinds` and `sources` (how many of each); None if
        no training data is known.
    """
    if not trained:
        return None
    asked = [normalised(text) for text in questions.table["prompt"]]
    known = set().union(*trained.values())
    seen = questions.table[[text in known for text in asked]]
    return {
        "prompts": len(seen),
        "of": len(asked),
        "kinds": {str(kind): int(n) for kind, n in seen["kind"].value_counts().items()},
        "sources": {name: sum(t in texts for t in asked) for name, texts in trained.items()},
    }


def measured_overlap(prompts: PromptSet, trained: Mapping[str, set[str]]) -> dict[str, Any] | None:
    """Return how many of the prompts to be measured were trained on.

    Args:
        prompts: to be measured.
        trained: from `training_prompts`.

    Returns:
        `prompts` (how many, of any source), `of`, `groups` and `sources` (how many of each); None
        if no training data is known.
    """
    if not trained:
        return None
    known = set().union(*trained.values())
    asked = [(normalised(prompt.text), prompt.group) for prompt in prompts]
    seen = Counter(group for text, group in asked if text in known)
    return {
        "prompts": seen.total(),
        "of": len(asked),
        "groups": dict(seen),
        "sources": {name: sum(t in texts for t, _ in asked) for name, texts in trained.items()},
    }


def _runs(model: Path) -> Iterator[Path]:
    """Yield the training runs that produced a model, the last one first."""
    seen: set[Path] = set()
    while True:
        place = model.resolve()
        run = next((each for each in (place, place.parent) if (each / DATA).is_file()), None)
        if run is None or run in seen:
            return
        seen.add(run)
        yield run
        before = _began_with(run)
        # Runs are often moved together: a relative path may be meant from one of the run's parents.
        places = [Path(str(before)), *(parent / str(before) for parent in run.parents[:3])]
        found = [place for place in places if before and place.is_dir()]
        if not found:
            return
        model = found[0]


def _began_with(run: Path) -> str | None:
    """Return the model that a training run started from; None where it is not recorded."""
    try:
        before = training_settings(run).get("model")
    except UserError:
        return None
    return None if before is None else str(before)


def _texts(file: str | Path) -> set[str]:
    """Return the normalised prompts of a file.

    Raises:
        UserError: if it has no column of prompts.
    """
    chosen = PromptSelection.parse(file)
    rows = chosen.rows()
    if not any(map(text_column, rows)):
        raise UserError(
            f"{chosen.path} has no prompts: needed is a column out of {list(TEXT_COLUMNS)}"
        )
    return {normalised(str(prompt_of(row))) for row in rows} - {""}
