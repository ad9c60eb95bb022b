"""The similarity of two prompts, or of two groups, as a sum over parts, at every step.

A part's contribution is its share times the similarity; contributions sum to the similarity.
"""

from typing import Any

import numpy as np
import pandas as pd

from ..trajectory import Trajectory
from .packing import Scaled

PAIR_BUDGET = 6_500_000
"""Numbers kept pair by pair and layer by layer, of all runs of a page together: 16 bits each."""

_ENDS = {"embed": -2, "embed+head": -1, "norm": 1, "head": 2}


def layers_of(run: Trajectory, kernel: dict[str, Any], budget: int) -> dict[str, Any] | None:
    """Return the contribution of every part; None where the kernel was not measured by layer.

    Args:
        run: a measured run.
        kernel: as `measured.kernel_of` has it.
        budget: how many numbers may be kept pair by pair; with more, these are of fewer steps.

    Returns:
        `steps`; `places` (a layer's number or a part's name, from input to output) and `parts`
        (`[place, part]`); `groups` `[steps, parts, observed group, updated group]`, means over
        pairs of different prompts in the order of `names`; and, of `pair_steps`,
        `pairs_by_place` `[steps, places, observed, updated]`.
    """
    steps = _steps_with_parts(run)
    if not steps:
        return None
    parts = _parts_in(run, steps[0])
    places = list(dict.fromkeys(place for place, _ in parts))
    prompts = kernel["prompts"]
    kept = _spread(steps, budget // max(1, len(places) * len(prompts) ** 2))
    groups = run.prompts.set_index("prompt")["group"].loc[prompts].to_numpy()
    names = list(dict.fromkeys(groups))
    means = np.full((len(steps), len(parts), len(names), len(names)), np.nan, "<f4")
    pairs = np.full((len(kept), len(places), len(prompts), len(prompts)), np.nan, "<f4")
    for at, step in enumerate(steps):
        grid = _contributions(run, kernel, step, parts)
        means[at] = _by_group(grid, groups, names)
        if step in kept:
            for place, number in _of_places(parts, places):
                pairs[kept.index(step), place] = _sum(pairs[kept.index(step), place], grid[number])
    return {
        "steps": steps,
        "places": places,
        "parts": [list(part) for part in parts],
        "names": names,
        "groups": means,
        "pair_steps": kept,
        "pairs_by_place": Scaled(pairs),
    }


def _steps_with_parts(run: Trajectory) -> list[int]:
    """Return the steps whose kernel was kept by layer, without reading more than their names."""
    from ..storage import step_files, step_of

    found = {step_of(path) for path in step_files(run.folder / "parts", "parquet")}
    return sorted(found & set(run.steps))


def _parts_in(run: Trajectory, step: int) -> list[tuple[str, str]]:
    """Return the parts of a model as `(place, part)`, from input to output."""
    table = _table(run, step)[["place", "part"]].drop_duplicates()
    found = [(str(place), str(part)) for place, part in table.itertuples(index=False, name=None)]
    order = ["attention", "mlp", "norms"]
    return sorted(found, key=lambda p: (_depth(p[0]), order.index(p[1]) if p[1] in order else 3))


def _depth(place: str) -> tuple[int, int]:
    """Return the position of a place from input to output."""
    return (0, int(place)) if place.isdigit() else (_ENDS.get(place, 3), 0)


def _table(run: Trajectory, step: int) -> pd.DataFrame:
    """Return the parts of one step with a column `place`."""
    table = Trajectory(run.folder, steps=[step]).parts()
    place = table["layer"].astype("Int64").astype("string").fillna(table["part"])
    return table.assign(place=place.astype(str))


def _contributions(
    run: Trajectory, kernel: dict[str, Any], step: int, parts: list[tuple[str, str]]
) -> np.ndarray:
    """Return share × similarity of one step, `[parts, observed, updated]`, NaN where missing."""
    table, prompts = _table(run, step), pd.Index(kernel["prompts"])
    grid = np.full((len(parts), len(prompts), len(prompts)), np.nan, "<f4")
    if step not in kernel["steps"]:
        return grid
    at = (
        pd.MultiIndex.from_tuples(parts).get_indexer(
            pd.MultiIndex.from_frame(table[["place", "part"]].astype(str))
        ),
        prompts.get_indexer(table["observed"]),
        prompts.get_indexer(table["updated"]),
    )
    known = np.all([index >= 0 for index in at], axis=0)
    grid[tuple(index[known] for index in at)] = table["share"].to_numpy()[known]
    return grid * kernel["similarity"][kernel["steps"].index(step)]


def _by_group(grid: np.ndarray, groups: np.ndarray, names: list[str]) -> np.ndarray:
    """Return means `[parts, groups, groups]` over pairs of different prompts."""
    means = np.full((len(grid), len(names), len(names)), np.nan, "<f4")
    different = ~np.eye(len(groups), dtype=bool)
    for a, first in enumerate(names):
        for b, second in enumerate(names):
            wanted = np.outer(groups == first, groups == second) & different
            wanted &= np.isfinite(grid).any(axis=0)
            if wanted.any():
                means[:, a, b] = np.nansum(grid[:, wanted], axis=1, dtype=float) / wanted.sum()
    return means


def _of_places(parts: list[tuple[str, str]], places: list[str]) -> list[tuple[int, int]]:
    """Return `(place, part)` numbers, a pair for each part."""
    return [(places.index(place), number) for number, (place, _) in enumerate(parts)]


def _sum(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the sum of two arrays; what only one of them has counts alone."""
    both = np.where(np.isnan(first), 0, first) + np.where(np.isnan(second), 0, second)
    return np.where(np.isnan(first) & np.isnan(second), np.nan, both)


def _spread(steps: list[int], most: int) -> list[int]:
    """Return at most so many steps (at least one), the first and the last among them."""
    if len(steps) <= most:
        return steps
    chosen = np.linspace(0, len(steps) - 1, max(1, most)).round().astype(int)
    return [steps[place] for place in np.unique(chosen)]
