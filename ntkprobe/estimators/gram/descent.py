"""All prompts of a model going down together, tile by tile, and the kernel added up on the way."""

from collections.abc import Callable, Hashable, Iterator, Sequence

import torch
from torch import nn

from ...kernel import Blocks, Probe
from ...models.batching import split
from ...progress import progress
from .factors import Factor, summed
from .formed import Formed
from .memory import fits
from .passes import Factors, Pass
from .products import Known, begun, finished
from .rules import Key
from .trial import Plan

Groups = Callable[[str], Sequence[Hashable]]
Sums = dict[Hashable, Blocks]
Missed = tuple[set[str], set[str]]


class Tile:
    """Some of the prompts, of about one length, and the rows of the kernel that are theirs."""

    def __init__(
        self, plan: Plan, probes: Sequence[Probe], watched: dict[str, nn.Parameter], start: int
    ) -> None:
        self.rows = slice(start, start + len(probes))
        alone = {n: p for n, p in watched.items() if plan.handled[n] == "autograd"}
        ruled = {n: p for n, p in watched.items() if n not in alone}
        self._passes: list[Pass | Formed] = [Pass(plan.route, probes, ruled)] if ruled else []
        self._passes += [Formed(plan.route, probes, alone)] if alone else []
        self._stages = plan.stages
        self._late: set[str] = set()
        self._kept: dict[tuple[Key, int], list[Factor]] = {}

    def factors(self, stage: int) -> Factors:
        """Return the factors of the parameters that no stage below uses, all their uses summed.

        May be called again for the same stage: what a tied parameter has so far is kept by stage.
        """
        done: dict[Key, list[Factor]] = {}
        for part in self._passes:
            for key, uses in part.run(stage).items():
                self._kept[key, stage] = uses
                self._late |= {key[0]} if stage not in self._stages[key[0]] else set()
        for (key, used), uses in self._kept.items():
            if self._last(key) >= stage and used >= stage:
                done.setdefault(key, []).extend(uses)
        return {key: summed(uses) for key, uses in done.items()}

    def descend(self, stage: int) -> None:
        """Leave a stage for the one below, forgetting the factors that are done with."""
        for part in self._passes:
            part.descend()
        self._kept = {
            (key, used): uses for (key, used), uses in self._kept.items() if self._last(key) < stage
        }

    def missed(self) -> Missed:
        """Return the parameters that turned out to have no rule, and those used where none was."""
        return set().union(*(part.unruled for part in self._passes)), self._late

    def _last(self, key: Key) -> int:
        """Return the lowest stage that uses a parameter."""
        return min(self._stages[key[0]], default=-1)


class Descent:
    """All prompts of one model, shortest first, in tiles."""

    def __init__(
        self,
        plan: Plan,
        probes: Sequence[Probe],
        watched: dict[str, nn.Parameter],
        batch_size: int,
    ) -> None:
        self.order = sorted(range(len(probes)), key=lambda row: len(probes[row].input_ids))
        self.size = len(probes[0])
        inside = [probes[row] for row in self.order]
        batches = split(plan.route.model, [probe.input_ids for probe in inside], batch_size)
        # By length, so that what may share a pass stands side by side.
        self.tiles = [Tile(plan, [inside[at] for at in rows], watched, rows[0]) for rows in batches]
        lowest = [stages[-1] for stages in plan.stages.values() if stages]
        self.stages = range(len(plan.route.blocks or ()), min(lowest) - 1, -1) if lowest else ()

    def missed(self) -> Missed:
        """Return what the plan had missed of its parameters, as of a tile."""
        each = [tile.missed() for tile in self.tiles]
        return set().union(*(unruled for unruled, _ in each)), set().union(
            *(late for _, late in each)
        )

    def restored(self, blocks: Blocks, columns: "Descent") -> Blocks:
        """Return a kernel with the prompts in the order they were given in."""
        rows = torch.tensor(self.order).argsort()
        return blocks[rows][:, :, torch.tensor(columns.order).argsort()]


def kernels(observed: Descent, updated: Descent, names: Sequence[str], groups: Groups) -> Sums:
    """Return K as a sum over groups of parameters.

    Args:
        observed: the prompts of the rows.
        updated: those of the columns: the same object, for the kernel of one model.
        names: the parameters.
        groups: the groups that a parameter belongs to, one or several.
    """
    n, m = len(observed.order), len(updated.order)
    shape = (n, observed.size, m, updated.size)
    keys = dict.fromkeys(key for name in names for key in groups(name))
    sums: Sums = {key: torch.zeros(shape, dtype=torch.float64) for key in keys}
    same = observed is updated
    rows, columns = len(observed.tiles), len(updated.tiles)
    products = len(observed.stages) * (rows * (rows + 1) // 2 if same else rows * columns)
    with progress(total=products, desc="kernel", unit="product", leave=False) as bar:
        for stage in observed.stages:
            for left, right, blocks in _stage(observed, updated, stage, groups):
                for key, block in blocks.items():
                    sums[key][left, :, right] += block.cpu()
                    if same and left != right:
                        sums[key][right, :, left] += block.cpu().permute(2, 3, 0, 1)
                bar.update()
            for tile in observed.tiles if same else [*observed.tiles, *updated.tiles]:
                tile.descend(stage)
    return {key: observed.restored(blocks, updated) for key, blocks in sums.items()}


def _stage(
    observed: Descent, updated: Descent, stage: int, groups: Groups
) -> Iterator[tuple[slice, slice, Sums]]:
    """Yield the rows, columns and blocks that a stage adds to each group, tile by tile."""
    same = observed is updated
    kept: dict[int, Factors] = {}
    for j, right in enumerate(updated.tiles):
        above = right.factors(stage)
        for i, left in enumerate(observed.tiles[: j + 1] if same else observed.tiles):
            beside = above if same and i == j else kept.get(i) or left.factors(stage)
            if fits(beside, len(observed.tiles)):
                kept[i] = beside
            yield left.rows, right.rows, _blocks(beside, above, groups)


def _blocks(left: Factors, right: Factors, groups: Groups) -> Sums:
    """Return the products of two tiles' factors, added up by group."""
    known: Known = {}
    products = [
        (groups(key[0]), begun(p, q, known))
        for key in left
        if key in right
        for p in left[key]
        for q in right[key]
    ]
    sums: Sums = {}
    blocks = finished(product for _, product in products)
    for (found, _), block in zip(products, blocks, strict=True):
        for group in found:
            sums[group] = sums[group] + block if group in sums else block
    return sums
