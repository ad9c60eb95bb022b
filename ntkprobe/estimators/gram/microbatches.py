"""The prompts of a model in micro-batches, and the kernel as a sum over their backward stages."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ...kernel import Blocks, Probe
from ...models.batching import split
from ...models.memory import free_bytes
from ...progress import progress
from .backward import BackwardSchedule, BlockwiseBackward, Factors, PerSampleGradients
from .contractions import Cache
from .factors import Factor, sum_factors
from .gradient_rules import Key
from .inner_products import evaluate, lazy_product
from .rule_check import Plan
from .stage_state import PromptCotangents, StageState, StateFile
from .stored_kernels import KernelsByGroup, StoredKernel, SymmetricKernel, rectangular, symmetric

Groups = Callable[[str], Sequence[Hashable]]
Sums = dict[Hashable, Blocks]
Fallbacks = tuple[set[str], set[str]]

# Tokens of one micro-batch: at most, and enough where there are many prompts. Products within one
# micro-batch take half the operations; smaller micro-batches have less padding.
_MOST_TOKENS = {"cpu": 3072, "cuda": 4096}
_ENOUGH_TOKENS = {"cpu": 1280, "cuda": 4096}
_MANY_PROMPTS = 32
_MEMORY_SHARE = 0.4  # of the memory that is free


class MicroBatch:
    """The backward pass of some prompts of similar length.

    Attributes:
        rows: the rows of the kernel that are theirs.
    """

    def __init__(
        self, plan: Plan, probes: Sequence[Probe], watched: dict[str, nn.Parameter], start: int
    ) -> None:
        self.rows = slice(start, start + len(probes))
        formed = {n: p for n, p in watched.items() if plan.handled[n] == "autograd"}
        ruled = {n: p for n, p in watched.items() if n not in formed}
        schedule = plan.schedule
        self._passes: list[BlockwiseBackward | PerSampleGradients] = []
        self._passes += [BlockwiseBackward(schedule, probes, ruled)] if ruled else []
        self._passes += [PerSampleGradients(schedule, probes, formed)] if formed else []
        self._stages = plan.stages
        self._used_later: set[str] = set()
        self._stored: dict[tuple[Key, int], list[Factor]] = {}

    def factors(self, stage: int) -> Factors:
        """Return the factors, summed over all uses, of parameters that no later stage uses.

        May be called again for the same stage: factors of tied parameters are stored by stage.
        """
        complete: dict[Key, list[Factor]] = {}
        for backward in self._passes:
            for key, uses in backward.run(stage).items():
                self._stored[key, stage] = uses
                self._used_later |= {key[0]} if stage not in self._stages[key[0]] else set()
        for (key, used), uses in self._stored.items():
            if self._last_stage(key) >= stage and used >= stage:
                complete.setdefault(key, []).extend(uses)
        return {key: sum_factors(uses) for key, uses in complete.items()}

    def advance(self, stage: int) -> None:
        """Go from a stage to the next, dropping the factors that are complete."""
        for backward in self._passes:
            backward.advance()
        self._stored = {
            (key, used): uses
            for (key, used), uses in self._stored.items()
            if self._last_stage(key) < stage
        }

    def cotangents(self, first: int) -> list[PromptCotangents] | None:
        """Return each prompt's cotangents of the stage to run next, of every pass.

        `None` where more is carried on to it than them and the factors of a first stage, or where
        what was summed up so far turns out wrong.

        Args:
            first: the first stage; a tied head's factors are those of it.
        """
        found = [backward.cotangents_by_prompt() for backward in self._passes]
        carried = any(used != first for _, used in self._stored)
        if None in found or carried or any(self.fallbacks()):
            return None
        return list(zip(*(each for each in found if each), strict=True))

    def go_on_at(self, stage: int, cotangents: Sequence[PromptCotangents], first: int) -> None:
        """Run `stage` next, with what `cotangents` returned; the first stage is run again."""
        self.factors(first)
        self.advance(first)
        for backward, own in zip(self._passes, zip(*cotangents, strict=True), strict=True):
            backward.go_on_at(stage, own)

    def fallbacks(self) -> Fallbacks:
        """Return the parameters found without a rule, and those used at stages not planned."""
        return set().union(*(backward.no_rule for backward in self._passes)), self._used_later

    def _last_stage(self, key: Key) -> int:
        return min(self._stages[key[0]], default=-1)


class MicroBatches:
    """All prompts of one model, in micro-batches of similar length, the shortest first.

    Attributes:
        order: the rows of the prompts, as given, in this order.
        k: the number of values read from each prompt.
        batches: the micro-batches.
        stages: the stages to run, in the order of the backward pass.
    """

    def __init__(
        self,
        plan: Plan,
        probes: Sequence[Probe],
        watched: dict[str, nn.Parameter],
        batch_size: int,
    ) -> None:
        self.order = sorted(range(len(probes)), key=lambda row: len(probes[row].input_ids))
        self.k = len(probes[0])
        by_length = [probes[row] for row in self.order]
        batches = split(plan.schedule.model, [probe.input_ids for probe in by_length], batch_size)
        self.batches = [
            MicroBatch(plan, [by_length[at] for at in rows], watched, rows[0]) for rows in batches
        ]
        last = [stages[-1] for stages in plan.stages.values() if stages]
        first = len(plan.schedule.blocks or ())
        self.stages: Sequence[int] = range(first, min(last) - 1, -1) if last else ()

    def fallbacks(self) -> Fallbacks:
        """Return the parameters found without a rule, and those used at stages not planned."""
        no_rule, used_later = zip(*(batch.fallbacks() for batch in self.batches), strict=True)
        return set().union(*no_rule), set().union(*used_later)


def kernel_sums(
    observed: MicroBatches,
    updated: MicroBatches,
    names: Sequence[str],
    groups: Groups,
    state_file: StateFile | None = None,
) -> Mapping[Hashable, Blocks]:
    """Return K, `[n, k, m, l]` in float64, summed over each group of parameters.

    Args:
        observed: the prompts of the rows.
        updated: those of the columns: the same object, for the kernel of one model.
        names: the parameters.
        groups: returns the groups that a parameter belongs to, one or several.
        state_file: where the state is stored now and then, and gone on from, for one model.

    Returns:
        The kernels by group; of one model each is stored as its half and made whole when it is
        taken, because with many groups they are large.
    """
    same, n, m = observed is updated, len(observed.order), len(updated.order)
    # A group's sum is made with its first block.
    empty = symmetric(n, observed.k) if same else rectangular(n, observed.k, m, updated.k)
    sums: dict[Hashable, StoredKernel] = defaultdict(empty)
    keys = list(dict.fromkeys(key for name in names for key in groups(name)))
    first = _restored(observed, sums, keys, state_file) if same and state_file else None
    stages = [stage for stage in observed.stages if first is None or stage <= first]
    height, width = len(observed.batches), len(updated.batches)
    products = len(stages) * (height * (height + 1) // 2 if same else height * width)
    with progress(total=products, desc="kernel", unit="product", leave=False) as bar:
        for stage in stages:
            for rows, columns, blocks in _stage_blocks(observed, updated, stage, groups):
                for key, block in blocks.items():
                    sums[key].add(rows, columns, block.cpu())
                bar.update()
            for batch in observed.batches if same else [*observed.batches, *updated.batches]:
                batch.advance(stage)
            if same and state_file and state_file.due:
                _store(observed, sums, keys, stage - 1, state_file)
    places = (torch.tensor(side.order).argsort() for side in (observed, updated))
    return KernelsByGroup({key: sums[key] for key in keys}, *places)


def _store(
    batches: MicroBatches,
    sums: Mapping[Hashable, StoredKernel],
    keys: Sequence[Hashable],
    stage: int,
    state_file: StateFile,
) -> None:
    """Store the state before a stage, where it has the form that can be stored."""
    found = [batch.cotangents(batches.stages[0]) for batch in batches.batches]
    if None in found or stage not in batches.stages:
        return
    halves = {
        keys.index(k): each.pairs for k, each in sums.items() if isinstance(each, SymmetricKernel)
    }
    rows = [row for each in found if each for row in each]
    state_file.save(StageState(stage, rows, halves))


def _restored(
    batches: MicroBatches,
    sums: Mapping[Hashable, StoredKernel],
    keys: Sequence[Hashable],
    state_file: StateFile,
) -> int | None:
    """Go on from the state stored.

    Returns:
        The stage to run next; `None` where no state of this call is stored.
    """
    state = state_file.load()
    if state is None:
        return None
    for place, pairs in state.sums.items():
        half = sums[keys[place]]
        assert isinstance(half, SymmetricKernel)
        half.pairs.copy_(pairs)
    for batch in batches.batches:
        batch.go_on_at(state.stage, state.cotangents[batch.rows], batches.stages[0])
    return state.stage


def _stage_blocks(
    observed: MicroBatches, updated: MicroBatches, stage: int, groups: Groups
) -> Iterator[tuple[slice, slice, Sums]]:
    """Yield the rows, columns and blocks that a stage adds to each group, by micro-batches."""
    same = observed is updated
    stored: dict[int, Factors] = {}
    for j, right in enumerate(updated.batches):
        columns = right.factors(stage)
        for i, left in enumerate(observed.batches[: j + 1] if same else observed.batches):
            rows = columns if same and i == j else stored.get(i) or left.factors(stage)
            if fits_in_memory(rows, len(observed.batches)):
                stored[i] = rows
            yield left.rows, right.rows, _group_sums(rows, columns, groups)


def _group_sums(left: Factors, right: Factors, groups: Groups) -> Sums:
    """Return the inner products of two micro-batches' factors, summed over each group."""
    cache: Cache = {}
    products = [
        (groups(key[0]), lazy_product(p, q, cache))
        for key in left
        if key in right
        for p in left[key]
        for q in right[key]
    ]
    sums: Sums = {}
    blocks = evaluate(product for _, product in products)
    for (theirs, _), block in zip(products, blocks, strict=True):
        for group in theirs:
            sums[group] = sums[group] + block if group in sums else block
    return sums


def microbatch_size(schedule: BackwardSchedule, probes: Sequence[Probe]) -> int:
    """Return how many prompts to run at once: many for speed, few enough for one block to fit."""
    device = next(schedule.model.parameters()).device
    longest = max(len(p.input_ids) for p in probes)
    most = _MOST_TOKENS.get(device.type, _MOST_TOKENS["cpu"])
    widest = max(_output_width(block) for block in schedule.blocks or [schedule.model])
    fitting = _MEMORY_SHARE * free_bytes(device) / (4 * widest * (len(probes[0]) + 4))
    enough = max(_MANY_PROMPTS * longest, _ENOUGH_TOKENS.get(device.type, _ENOUGH_TOKENS["cpu"]))
    wanted = max(1, int(min(most, enough, fitting) / longest))
    batches = -(-len(probes) // wanted)
    return -(-len(probes) // batches)


def _output_width(module: nn.Module) -> int:
    """Return roughly how many numbers a module's matrices compute for one token."""
    return max(sum(p.shape[-2] for p in module.parameters() if p.dim() > 1), 1)


def fits_in_memory(factors: Factors, batches: int) -> bool:
    """Return whether the factors of a stage can be stored for this many micro-batches."""
    tensors = [x for uses in factors.values() for f in uses for x in vars(f).values()]
    stored = [x for x in tensors if isinstance(x, Tensor)]
    if not stored or batches == 1:
        return True
    total = batches * sum(x.numel() * x.element_size() for x in stored)
    return total < _MEMORY_SHARE * free_bytes(stored[-1].device)
