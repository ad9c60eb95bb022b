"""How many prompts, pairs and answers a hypothesis leaves out, since they could not be measured."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from .data_files import SAFETY_SETS
from .hypotheses import every_prediction
from .plan import MAIN
from .results import HELD_OUT, Kernel, Results

Count = tuple[int, int, str]
"""How many, of how many, what."""


def left_out(name: str, results: Results, seed: int) -> list[str]:
    """Return what the numbers of a hypothesis are without, such as `2 of 60 prompts …`.

    Args:
        name: of the hypothesis.
        results: the folders.
        seed: of the runs.

    Returns:
        A text for each kind of thing; none where everything was measured.
    """
    return [
        f"{number} of {of} {what}" for number, of, what in _COUNTS[name](results, seed) if number
    ]


def _along(results: Results, seed: int) -> Iterator[Count]:
    table = results.along(f"stl-{seed}")
    ends = table.loc[table["step"].isin([table["step"].min(), table["step"].max()]), "refuses"]
    yield _missing(ends, "answers at the first and the last checkpoint have no verdict")


def _base_kernels(results: Results, seed: int) -> Iterator[Count]:
    yield _pairs(results.xstest_kernel("base"), "of XSTest")
    yield _pairs(results.kernel(f"stl-{seed}"), "held out")


def _starting_kernels(results: Results, seed: int) -> Iterator[Count]:
    for run in MAIN:
        yield _pairs(results.kernel(f"{run}-{seed}"), f"held out, before {run}")


def _answers(results: Results, seed: int) -> Iterator[Count]:
    for run in MAIN:
        table = results.table(f"{run}-{seed}")
        counted = table.loc[table["set"].isin((*HELD_OUT, *SAFETY_SETS)), "refused"]
        yield _missing(counted, f"answers of {run} have no verdict")


def _predictions(results: Results, seed: int) -> Iterator[Count]:
    table = every_prediction(results, seed)
    yield _missing(table["refuses"], "prompts have no verdict on their last answer")
    known = table.loc[table["refuses"].notna()].drop(columns="refuses")
    yield int(known.isna().any(axis=1).sum()), len(table), "prompts lack a predictor or a P(refuse)"


def _bounds(results: Results, seed: int) -> Iterator[Count]:
    for start in ("base", f"dcr-{seed}", f"control-{seed}"):
        terms = results.bounds(start)
        yield _off_diagonal(
            terms.bounded + terms.cosine, f"pairs of prompts in {start} lack a term"
        )


def _missing(values: pd.Series, what: str) -> Count:
    return int(values.isna().sum()), len(values), what


def _pairs(kernel: Kernel, of: str) -> Count:
    return _off_diagonal(kernel.values, f"ordered pairs of prompts {of} have no similarity")


def _off_diagonal(values: np.ndarray, what: str) -> Count:
    apart = values[~np.eye(len(values), dtype=bool)]
    return int(np.isnan(apart).sum()), apart.size, what


_COUNTS: dict[str, Callable[[Results, int], Iterator[Count]]] = {
    "H1": _along,
    "H2": _base_kernels,
    "H3": _starting_kernels,
    "H4": _answers,
    "H5": _predictions,
    "H6": _bounds,
}
