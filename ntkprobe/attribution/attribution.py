"""`attribute`: products of all pairs' gradients with those of the prompts, at every checkpoint."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..measurement.encoding import as_prompt_set, evaluating
from ..measurement.influence.prediction import trained_parameters
from ..models.gradients import WholeGradients
from ..models.parameters import ParameterSelection
from ..models.projections import Projections
from ..places import require_outside
from ..progress import progress as long_stage
from ..prompts.prompt_set import Prompt, PromptSet
from ..training.data import Pair
from ..watcher.choices import StepRange
from ..watcher.models import Models
from ..watcher.scan import ScannedCheckpoint
from . import index
from .encoded import Encoded
from .pair_blocks import PairBlocks, require_attribution, require_recorded, settle
from .products import PairGradients, features, products
from .recorded_steps import over_steps
from .result import Attribution
from .settings import AttributionSettings
from .training_run import OpenedRun, TrainingRun, opening
from .weights import run_weights


def attribute(
    run: str | PathLike[str],
    *,
    prompts: PromptSet | Iterable[Prompt | str],
    settings: AttributionSettings | None = None,
    pairs: str | Path | None = None,
    model: str | None = None,
    output_dir: str | PathLike[str] | None = None,
    index_dir: str | PathLike[str] | None = None,
    recorded_steps: str | PathLike[str] | None = None,
    steps: Sequence[StepRange] = (),
    shard: tuple[int, int] = (0, 1),
    candidates: Sequence[Pair] | None = None,
    progress: bool = False,
    **options: Any,
) -> Attribution | None:
    """Attribute what training did to each prompt to the training pairs.

    Args:
        run: a run of `ntkprobe train sft`, or the checkpoints of another trainer's.
        prompts: what is explained; bare strings count as `normal`.
        settings: how; the defaults explain refusals, exactly, over all checkpoints.
        pairs: a file of what the run was trained on; None for its own `data.parquet`.
        model: the base below adapters; None for the one that they name.
        output_dir: where what is finished is kept, so that a stopped call goes on; None for memory.
        index_dir: where a sketch's features are, for any other prompts; None for `index` in there.
        recorded_steps: the folder of recorded steps; None for `RUN-steps`.
        steps: only checkpoints of these steps; none for all.
        shard: (i, n): compute the blocks of worker i of n only.
        candidates: pairs that the run was not trained on, in place of those that it was: what a
            step on each would have done, as if it had been one more of them.
        progress: show a bar on stderr.
        options: settings by name, such as `target="tokens", tokens=("Sorry",)`.

    Returns:
        The attribution; None where other workers' blocks are missing.

    Raises:
        UserError: if the run lacks its data or checkpoints, or something changed since.
    """
    how = _settings(settings, options)
    for option, folder in (("--output-dir", output_dir), ("--index", index_dir)):
        if folder is not None:
            require_outside(Path(folder), Path(run), option)
    trained = TrainingRun(Path(run), pairs)
    _ = trained.texts  # that they are others than were trained on is reported before all else
    explained = as_prompt_set(prompts)
    if not len(explained):
        raise UserError("no prompts to explain: give one at least")
    if candidates is not None:
        _require_orderable(candidates, how)
    place = None if output_dir is None else Path(output_dir)
    if place is not None:
        require_attribution(place)
    models = Models(model, how.load, merge=False)
    with opening(models, place) as opened:
        if how.over == "steps":
            if steps or shard != (0, 1):
                raise UserError(
                    "the sum over recorded steps takes all of them, in one process: leave out the "
                    "choice of checkpoints and the shard"
                )
            folder = Path(recorded_steps) if recorded_steps else None
            scanned = trained.checkpoints()
            encoded = Encoded.of(trained, opened, scanned[0], explained, how)
            record = _record(how, encoded, opened, scanned)
            if place is not None:
                require_recorded(place / "run.json", record, **_ATTRIBUTION)
            found = over_steps(trained, opened, encoded, how, folder, progress=progress)
            if place is not None:
                settle(place / "run.json", record, **_ATTRIBUTION)
            return found
        work = _AttributionRun(trained, opened, explained, how, steps, place, index_dir, candidates)
        work.compute(shard, progress)
        return work.result()


def _require_orderable(candidates: Sequence[Pair], how: AttributionSettings) -> None:
    """Check that there are candidates, and that what they would have done can be said.

    Raises:
        UserError: if not.
    """
    if not candidates:
        raise UserError("nothing to order: give a candidate at least")
    if how.over == "steps":
        raise UserError("candidates took no step of the run: leave out over='steps' (--over steps)")


_ATTRIBUTION = {"what": "the attribution", "instead": "give another --output-dir"}


def _record(
    how: AttributionSettings,
    encoded: Encoded,
    opened: OpenedRun,
    scanned: Sequence[ScannedCheckpoint],
) -> dict[str, Any]:
    """Return what the numbers of an attribution depend on, as its folder keeps it."""
    adapted = scanned[-1].verdict.kind == "adapter"
    return {
        "settings": how.record(),
        "pairs": encoded.pairs_digest,
        "base": (opened.models.base_identity() or ("", ""))[1] if adapted else "",
        "prompts": encoded.observed_digest,
        "checkpoints": {str(s.checkpoint.step): opened.identity(s) for s in scanned},
    }


def _settings(given: AttributionSettings | None, options: dict[str, Any]) -> AttributionSettings:
    """Return the settings with changes by name.

    Raises:
        UserError: if there is no such setting.
    """
    known = AttributionSettings.__dataclass_fields__
    if unknown := sorted(set(options) - set(known)):
        raise UserError(f"no setting {unknown[0]!r}: choose from {sorted(known)}")
    return replace(given or AttributionSettings(), **options)


class _AttributionRun:
    """The checkpoints of one attribution, and what was found at each."""

    def __init__(
        self,
        run: TrainingRun,
        opened: OpenedRun,
        prompts: PromptSet,
        how: AttributionSettings,
        steps: Sequence[StepRange],
        place: Path | None,
        index_dir: str | PathLike[str] | None,
        candidates: Sequence[Pair] | None,
    ) -> None:
        self.run, self.opened, self.how, self.place = run, opened, how, place
        self.scanned = wanted(run.checkpoints(), how.over, steps)
        self.encoded = Encoded.of(run, opened, self.scanned[-1], prompts, how)
        self.weights, said = run_weights(run, self.scanned, self.encoded.pairs, how.loss == "mean")
        if candidates is not None:  # the weights stay those of the pairs that were trained on
            self.encoded = self.encoded.of_candidates(candidates, run)
        self.index = Path(index_dir) if index_dir else place / "index" if place else None
        exact = how.estimator == "exact"
        folder = (place / "products" if place else None) if exact else self.index
        self.blocks = PairBlocks(folder, len(self.encoded.pairs), how.block)
        self.prompts = PairBlocks(place / "prompts" if place else None, 1, 1)
        self.remarks = [*said, *self.encoded.remarks]
        self.which = {s.checkpoint.step: opened.identity(s) for s in self.scanned}
        record = _record(how, self.encoded, opened, self.scanned)
        self.base = record["base"]
        self._compare_index()
        if place is not None:
            weights = {str(step): weight for step, weight in self.weights.items()}
            settle(place / "run.json", {**record, "weights": weights}, **_ATTRIBUTION)

    def compute(self, shard: tuple[int, int], progress: bool) -> None:
        """Compute the blocks that are missing, of this worker."""
        todo = {s.checkpoint.step: self._todo(s, shard) for s in self.scanned}
        total = sum(len(self.blocks.rows(start)) for starts in todo.values() for start in starts)
        with long_stage(total=total, desc="attributing", unit="pair", disable=not progress) as bar:
            for each_scanned in self.scanned:
                step = each_scanned.checkpoint.step
                if todo[step] or not self._prompts_known(step):
                    with self.opened.opened(each_scanned) as (model, which), evaluating(model):
                        self._at(model, step, which, todo[step], bar)

    def result(self) -> Attribution | None:
        """Return the sum over the checkpoints; None where blocks are missing."""
        steps = [s.checkpoint.step for s in self.scanned]
        if any(self._todo(s, (0, 1)) for s in self.scanned):
            return None
        for step in steps:  # a worker may have been stopped between its last block and the merge
            self._merge(step)
        m, n = len(self.encoded.observed.prompts), len(self.encoded.pairs)
        total, variance, positive = (np.zeros((m, n)) for _ in range(3))
        counted = 0
        for step in steps:
            found, error = self._found(step)
            part = -self.weights[step] * found
            total, variance = total + part, variance + (self.weights[step] * error) ** 2
            positive += part > 0
            counted += bool((part != 0).any())
        agreeing = np.where(total > 0, positive, counted - positive) / max(counted, 1)
        values = self._held_file(steps[-1])["values"].numpy()
        return Attribution(
            self.encoded.observed.prompts,
            values,
            self.encoded.frame(),
            total,
            np.sqrt(variance),
            agreeing,
            self.weights,
            self.how.record(),
            tuple(self.remarks),
        )

    def _at(self, model: nn.Module, step: int, which: str, starts: list[int], bar: Any) -> None:
        """Compute some blocks at one checkpoint, and what is needed of the prompts."""
        selection = self._selection(model)
        chosen = ParameterSelection.parse(selection).parameters(model)
        mean = self.how.loss == "mean"
        size = self.how.batch_size
        values, held = self.encoded.observed.held(model, chosen)
        pairs = PairGradients(model, chosen, self.encoded.pairs, size, mean) if starts else None
        project = None
        if self.how.estimator == "sketch":
            project = Projections(chosen, self.how.projection, salt=str(step))
            queries = project({name: [WholeGradients(g)] for name, g in held.items()})
            self._keep_held(step, {"values": values, "queries": queries.cpu()}, which)
            self._describe_index(step, which, selection)
        else:
            self._keep_held(step, {"values": values}, which)
        for start in starts:
            assert pairs is not None
            rows = list(self.blocks.rows(start))
            if project is None:
                found = {"products": products(pairs, rows, held)}
            else:
                found = index.as_stored(features(pairs, rows, project))
            self.blocks.write(step, start, found, which)
            bar.update(len(rows))
        self._merge(step)

    def _selection(self, model: nn.Module) -> str:
        chosen = self.how.parameters
        return trained_parameters(model) if chosen == "auto" else chosen

    def _describe_index(self, step: int, which: str, selection: str) -> None:
        if self.index is not None:
            path = index.description(self.index, step)
            index.describe(path, step, which, self._index_digest(), selection, self.how.projection)

    def _index_digest(self) -> str:
        """Return what features depend on besides checkpoint, selection and projection."""
        return f"{self.encoded.pairs_digest}/{self.how.loss}/{self.how.load.dtype}/{self.base}"

    def _compare_index(self) -> None:
        """Compare an index that is there with what it is to be used for."""
        if self.how.estimator == "sketch" and self.index is not None:
            for step, which in self.which.items():
                path = index.description(self.index, step)
                index.compare(path, which, self._index_digest(), self.how.projection)

    def _merge(self, step: int) -> None:
        """Make one file of a sketch's blocks, once all are there.

        Several workers may find them all there: each writes the same file, the first to finish
        removes the blocks, and the others stop where they miss one.

        Raises:
            FileNotFoundError: if a block is missing and nobody merged it.
        """
        if self.how.estimator != "sketch" or not self.index:
            return
        if not self._indexed(step):
            if self.blocks.missing(step):
                return
            try:
                index.merge(self.blocks, step, index.features_file(self.index, step))
            except FileNotFoundError:
                if not self._indexed(step):
                    raise
        self.blocks.forget(step)

    def _indexed(self, step: int) -> bool:
        sketched = self.how.estimator == "sketch" and self.index is not None
        return sketched and index.features_file(self.index, step).is_file()  # type: ignore[arg-type]

    def _todo(self, each_scanned: ScannedCheckpoint, shard: tuple[int, int]) -> list[int]:
        """Return the blocks that are missing at a checkpoint."""
        step = each_scanned.checkpoint.step
        return [] if self._indexed(step) else self.blocks.missing(step, shard)

    def _found(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the products at a checkpoint and their errors, `[m, n]`."""
        if self.how.estimator == "exact":
            found = torch.cat([block["products"] for block in self.blocks.each(step)]).T.numpy()
            return found, np.zeros_like(found)
        source = index.features_file(self.index, step) if self.index else (self.blocks, step)
        means, errors = index.Index(source).products(self._held_file(step)["queries"])
        return means.numpy(), errors.numpy()

    # What is known of the prompts at each checkpoint, beside the blocks.

    def _prompts_known(self, step: int) -> bool:
        return not self.prompts.missing(step)

    def _held_file(self, step: int) -> dict[str, Tensor]:
        return self.prompts.read(step, 0)

    def _keep_held(self, step: int, tensors: dict[str, Tensor], which: str) -> None:
        self.prompts.write(step, 0, tensors, which)


def wanted(
    scanned: list[ScannedCheckpoint], over: str, steps: Sequence[StepRange]
) -> list[ScannedCheckpoint]:
    """Return the checkpoints that count.

    Raises:
        UserError: if there is none.
    """
    if steps:
        chosen = [s for s in scanned if any(s.checkpoint.step in some for some in steps)]
        if not chosen:
            have = [s.checkpoint.step for s in scanned]
            raise UserError(f"no checkpoint of the steps asked for: the run has {have}")
        scanned = chosen
    return scanned[-1:] if over == "final" else scanned
