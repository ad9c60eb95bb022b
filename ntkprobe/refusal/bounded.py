"""Phrases after prompts, as far as they matter: a phrase is at most as probable as its beginning.

The distribution after a prompt gives the probability of each phrase's first token, and so a bound
of every phrase that begins with it. A beginning is run only while what it could add to any of the
sums of phrases exceeds `tolerance` of that sum; what was not run is kept as a bound.

Most prompts need the same beginnings. Behind the first few prompts all are run; those that most of
these needed are run behind the others in one pass, before each goes on with its own. What a prompt
turns out not to need is not used, so that its numbers do not depend on other prompts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import expm1

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ..models.cached import CachedPrompts
from ..models.generation import require_numbers
from .trie import PhraseTrie, log_sums

TOLERANCE = 1e-4
"""How far log P_refuse may be off, and by default is at most."""

WIDEST = 1.5
"""Beginnings of one prompt in a pass at most, in multiples of their mean: the rest is padding."""

PILOTS = 4
"""Prompts behind which all beginnings are run, to see which are usual."""

LARGEST = 1 << 26
"""Logits held at once: a quarter of a GiB in float32."""

ROWS = {"cpu": 16, "cuda": 64}
"""Prompts behind which beginnings are run at a time: their keys and values are held once more."""


@dataclass(frozen=True)
class Bounded:
    """log P (natural logarithms) of phrases after prompts, from below and from above.

    Attributes:
        lower: `[prompts, phrases]` float64; −∞ where a phrase was not run to its end.
        upper: the same where it was, else log P of the longest beginning that was.
    """

    lower: Float64[Tensor, "prompts phrases"]
    upper: Float64[Tensor, "prompts phrases"]


@dataclass
class UsualBeginnings:
    """How many prompts needed each beginning.

    Attributes:
        prompts: how many there were.
        counts: of them, by the beginning's number in the trie.
    """

    prompts: int = 0
    counts: Counter[int] = field(default_factory=Counter)

    def note(self, done: Bool[Tensor, "prompts nodes"]) -> None:
        """Count what some prompts needed."""
        self.prompts += len(done)
        self.counts.update(done.nonzero()[:, 1].tolist())

    def nodes(self) -> list[int]:
        """Return what at least half of the prompts needed, parents before their children."""
        return sorted(n for n, count in self.counts.items() if n and 2 * count >= self.prompts)


@torch.no_grad()
def score_bounded(
    read: CachedPrompts,
    trie: PhraseTrie,
    sums: Sequence[Sequence[int]],
    *,
    tolerance: float = TOLERANCE,
    rows: Sequence[int] | None = None,
    usual: UsualBeginnings | None = None,
) -> Bounded:
    """Return log P of phrases behind a batch of prompts that was run.

    Args:
        read: the prompts; not changed.
        trie: of the phrases, none of them empty.
        sums: which phrases each of the sums to be formed is over.
        tolerance: by how much the logarithm of any of the sums may be too small; 0 runs all.
        rows: the prompts' numbers, for messages.
        usual: what earlier prompts needed, with the same trie; these are counted, too.

    Returns:
        The bounds: log Σ upper − log Σ lower is at most the tolerance, for each of the sums.
    """
    numbers = list(range(len(read.lengths)) if rows is None else rows)
    most = ROWS.get(read.logits.device.type, ROWS["cpu"])
    room = LARGEST // (min(most, len(numbers)) * read.logits.shape[1])
    search = _Search(trie, sums, tolerance, numbers, room)
    usual, everyone = usual or UsualBeginnings(), range(len(numbers))
    unknown = not usual.prompts and tolerance > 0 and len(numbers) > 2 * PILOTS
    pilots = everyone[:: len(numbers) // PILOTS][:PILOTS] if unknown else range(0)
    if pilots:
        _search_behind(read, list(pilots), search, range(1, len(trie.nodes)))
        usual.note(search.done[list(pilots)])
    others = [row for row in everyone if row not in pilots]
    for first in range(0, len(others), most):
        some = others[first : first + most]
        _search_behind(read, some, search, usual.nodes())
        usual.note(search.done[some])
    return search.bounds()


def _search_behind(
    read: CachedPrompts, active: list[int], search: "_Search", first: Sequence[int]
) -> None:
    """Run some beginnings behind some prompts of a batch, then what else each of them needs."""
    batch = read.fork()
    if len(active) < len(read.lengths):
        batch.select(active)
    columns: list[dict[int, int]] = [{} for _ in read.lengths]

    def run(chosen: Sequence[Sequence[int]]) -> None:
        logits = _run(batch, search.trie, chosen, [columns[row] for row in active])
        search.read(active, chosen, logits)

    search.read(active, [[0]] * len(active), batch.logits[:, None])
    for start in range(0, len(first), search.room):
        run([first[start : start + search.room]] * len(active))
    while any(chosen := search.next_nodes(active)):
        going = [place for place, nodes in enumerate(chosen) if nodes]
        if len(going) < len(active):
            batch.select(going)
            active = [active[place] for place in going]
        run([chosen[place] for place in going])


def _run(
    batch: CachedPrompts,
    trie: PhraseTrie,
    chosen: Sequence[Sequence[int]],
    columns: Sequence[dict[int, int]],
) -> Float[Tensor, "batch nodes vocab"]:
    """Run beginnings behind their prompts and ancestors, and note in which columns they are.

    Returns:
        The logits after each, padded at the end.
    """
    before, new = batch.columns, max(map(len, chosen))
    size = (len(chosen), new)
    tokens, positions = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    real = torch.zeros(size, dtype=torch.bool)
    seen = torch.zeros(*size, before + new, dtype=torch.bool)
    for row, nodes in enumerate(chosen):
        own = batch.real[row].cpu().clone()
        own[list(columns[row].values())] = False  # the prompt alone
        columns[row].update({node: before + place for place, node in enumerate(nodes)})
        for place, node in enumerate(nodes):
            ids = trie.nodes[node]
            tokens[row, place], real[row, place] = ids[-1], True
            positions[row, place] = batch.lengths[row] + len(ids) - 1
            seen[row, place, :before] = own
            seen[row, place, [columns[row][each] for each in trie.ancestors[node]]] = True
    return batch.run(tokens, positions, seen.to(batch.real.device), real)


class _Search:
    """What is known of each beginning and phrase behind each prompt, and what to run next."""

    def __init__(
        self,
        trie: PhraseTrie,
        sums: Sequence[Sequence[int]],
        tolerance: float,
        numbers: Sequence[int],
        room: int,
    ) -> None:
        self.trie, self.share, self.room = trie, expm1(tolerance), max(1, room)
        self.everything, self.numbers = tolerance <= 0, numbers
        size, prompts = len(trie.nodes), len(numbers)
        self.log_p = torch.full((prompts, size), -torch.inf, dtype=torch.float64)
        self.log_p[:, 0] = 0
        self.known = torch.zeros(prompts, size, dtype=torch.bool)
        self.known[:, 0] = True
        self.done = torch.zeros(prompts, size, dtype=torch.bool)
        self.phrases = torch.full((prompts, len(trie.steps)), -torch.inf, dtype=torch.float64)
        self.complete = torch.zeros(prompts, len(trie.steps), dtype=torch.bool)
        self.steps: list[dict[int, Tensor]] = [{} for _ in numbers]
        """By prompt and beginning that was run: log P of each of its next tokens."""
        self.summed = torch.zeros(len(sums), len(trie.steps), dtype=torch.float64)
        for which, columns in enumerate(sums):
            self.summed[which, list(columns)] = 1

    @cached_property
    def _through(self) -> Float64[Tensor, "nodes phrases"]:
        """Which phrases go through which beginning."""
        found = torch.zeros(len(self.trie.nodes), len(self.trie.steps), dtype=torch.float64)
        for phrase, steps in enumerate(self.trie.steps):
            found[[node for node, _ in steps], phrase] = 1
        return found

    def read(self, active: Sequence[int], chosen: Sequence[Sequence[int]], logits: Tensor) -> None:
        """Read the logits after beginnings that were run, for when they are needed."""
        for place, (row, nodes) in enumerate(zip(active, chosen, strict=True)):
            values = logits[place, : len(nodes)]
            totals = log_sums(values)
            require_numbers(~totals.isfinite().all()[None], [self.numbers[row]])
            for value, total, node in zip(values, totals.cpu(), nodes, strict=True):
                tokens = [token for token, _, _ in self.trie.follow[node]]
                self.steps[row][node] = value[tokens].double().cpu() - total

    def _enter(self, row: int, node: int) -> None:
        """Take in what follows from the logits after a beginning."""
        self.done[row, node] = True
        for step, (_, child, ends) in zip(
            self.steps[row][node], self.trie.follow[node], strict=True
        ):
            here = self.log_p[row, node] + step
            if child is not None:
                self.log_p[row, child], self.known[row, child] = here, True
            self.phrases[row, ends], self.complete[row, ends] = here, True

    def next_nodes(self, active: Sequence[int]) -> list[list[int]]:
        """Return which beginnings to run next behind each of some prompts; none where it is done.

        What could add more than the tolerance to a sum, however large it gets, has to be run. If
        there is no such beginning, the likeliest are until the rest together is within it.
        """
        found = [self._unread(row) for row in active]
        busy = [len(nodes) for nodes in found if nodes]
        most = max(1, round(WIDEST * sum(busy) / len(busy))) if busy else 0
        return [nodes[: min(most, self.room)] for nodes in found]

    def _unread(self, row: int) -> list[int]:
        """Enter what one prompt needs and was run.

        Returns:
            What it needs besides, the likeliest first.
        """
        while True:
            needed = self._needed(row)
            read = [node for node in needed if node in self.steps[row]]
            if not read:
                return needed
            for node in read:
                self._enter(row, node)

    def _needed(self, row: int) -> list[int]:
        """Return the beginnings to be run behind one prompt, the likeliest first."""
        frontier = (self.known[row] & ~self.done[row]).nonzero()[:, 0]
        if self.everything:
            return (~self.done[row]).nonzero()[:, 0].tolist()
        open_phrases = self.summed * ~self.complete[row]
        counts = open_phrases @ self._through[frontier].T
        # In multiples of the largest, which no exponential makes zero.
        largest = torch.cat([self.phrases[row], self.log_p[row, frontier]]).max()
        mass = counts * (self.log_p[row, frontier] - largest).exp()
        sums = (self.summed * (self.phrases[row] - largest).exp()).sum(1)
        rest = mass.sum(1)
        if bool((rest <= self.share * sums).all()):
            return []
        order = mass.amax(0).argsort(descending=True)
        certain = (mass > self.share * (sums + rest)[:, None]).any(0)[order]
        if bool(certain.any()):
            return frontier[order][certain].tolist()
        left = rest[:, None] - mass[:, order].cumsum(1)
        enough = (left <= self.share * sums[:, None]).all(0)
        first = int(enough.nonzero()[0, 0]) if bool(enough.any()) else len(order) - 1
        return frontier[order][: first + 1].tolist()

    def bounds(self) -> Bounded:
        """Return the bounds of log P of every phrase, from what has been run so far."""
        open_bounds = torch.full_like(self.phrases, 0.0)
        for phrase, steps in enumerate(self.trie.steps):
            nodes = [node for node, _ in steps]
            open_bounds[:, phrase] = self.log_p[:, nodes].where(self.known[:, nodes], 0.0).amin(1)
        upper = self.phrases.where(self.complete, open_bounds)
        return Bounded(self.phrases.where(self.complete, -torch.inf), upper)
