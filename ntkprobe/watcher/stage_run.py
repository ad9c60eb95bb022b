"""`measure_stages`: each of some named models once, in order, into one folder."""

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpoints import Checkpoint, Incomplete
from ..errors import UserError, one_line
from ..measurement.verification import WrongMeasurement
from ..places import require_outside
from ..prompts.prompt_set import PromptSet
from ..prompts.rendering import current_day
from ..stages import Record, Stage, require_distinct, united
from .choices import Choice
from .folder import MeasurementFolder
from .loop import MeasuringLoop
from .measure import CheckpointMeasurer
from .models import Models
from .recorder import Recorder
from .reporting import Outcome, Sinks
from .run import OVER_ADAPTER, kernel_needs_adapter, require_first_tokens
from .settings import MeasureSettings, require_same
from .stage_preparation import PreparedStage, prepared, remarks
from .stored_tables import StoredTables


def measure_stages(
    prompts: PromptSet,
    output_dir: Path,
    stages: Sequence[Stage],
    *,
    model: str | None = None,
    settings: MeasureSettings | None = None,
    choice: Choice | None = None,
    overwrite: bool = False,
    report_to: Sequence[str] = (),
    about: dict[str, Any] | None = None,
) -> Outcome:
    """Measure named models into a folder; what is there already is not measured again.

    Each stage has a tokenizer and a template of its own. A stage that cannot be measured does not
    keep the others from it; a further stage at the end is measured in addition.

    Args:
        prompts: what to measure on.
        output_dir: the folder, in none of the models' own.
        stages: in order; their place from 0 is the step of their tables.
        model: the model below adapters that name none here.
        settings: how to measure; templates are those of the stages.
        choice: which of them, by place.
        overwrite: forget what the folder holds.
        report_to: names of sinks, such as `tensorboard`, that show group means meanwhile.
        about: further entries of `run.json`.

    Returns:
        What became of every stage, by its place.

    Raises:
        UserError: if nothing can be measured as asked.
    """  # ruff: ignore[docstring-extraneous-exception]
    how, which = asked(output_dir, stages, settings, choice)
    folder = MeasurementFolder(output_dir, overwrite=overwrite)
    recorder = StageRecorder(folder, prompts, how, about or {})
    recorder.check()
    require_first_tokens(folder, how, which)
    kernels = [n for n in range(len(stages)) if folder.measured("kernel", n) is not None]
    ready = prepared(
        stages,
        prompts,
        base=model,
        max_length=how.max_length,
        day=folder.record.get("prompts", {}).get("template_date") or current_day(),
        reference=kernels[0] if kernels else None,
    )
    worker = "-of-".join(map(str, which.shard))
    with closing(folder), closing(Sinks(report_to, output_dir, worker)) as sinks:
        loop = StageLoop(recorder, [one for one in ready if which.wants_place(one.step)], sinks)
        try:
            if any(one.failure is None for one in ready):
                recorder.settle(ready)
                for line in (_description(recorder, ready), *remarks(ready)):
                    print(one_line(line), file=sys.stderr)
            loop.run()
        except KeyboardInterrupt:
            loop.outcome.interrupted = True
    loop.outcome.names = dict(enumerate(stage.name for stage in stages))
    loop.outcome.total = len(folder.steps_in(output_dir))
    return loop.outcome


def asked(
    output_dir: Path,
    stages: Sequence[Stage],
    settings: MeasureSettings | None,
    choice: Choice | None,
) -> tuple[MeasureSettings, Choice]:
    """Return how and which stages are measured, as far as this needs no folder and no tokenizer.

    Args:
        output_dir: the folder of measurements.
        stages: in order.
        settings: how to measure; None for the defaults.
        choice: which of them; None for all.

    Raises:
        UserError: if nothing can be measured so.
    """  # ruff: ignore[docstring-extraneous-exception]
    require_distinct(stages)
    for stage in stages:
        if Path(stage.model).is_dir():  # else a name on the hub
            require_outside(output_dir, Path(stage.model), what=f"the stage {stage.name}")
    how, which = without_auto(settings or MeasureSettings(), stages), choice or Choice()
    how.check()
    require_places(stages, which, how)
    return how, which


class StageRecorder(Recorder):
    """Measures stages on one set of prompts, into one folder; arguments as `Recorder`'s."""

    _now: PreparedStage | None = None

    def check(self) -> None:
        """Raise if the folder holds something else, as far as this is known without a tokenizer."""
        self._require_same([])

    def _require_same(self, stages: Sequence[Record]) -> list[dict]:
        return agreed(self.folder, self.settings, self.prompts, stages)

    def settle(self, stages: Sequence[PreparedStage]) -> None:
        """Settle with the folder what is measured.

        Args:
            stages: all of them, one of which at least can be measured.
        """
        found = self._require_same([one.record for one in stages])
        encoded = [one.encoded for one in stages if one.encoded is not None]
        days = [each.template.day for each in encoded if each.template.day]
        prompts = {
            "digest": self.prompts.digest,
            "count": len(self.prompts),
            **({"template_date": days[0]} if days else {}),
        }
        self.folder.adopt({**self.settings.record(prompts), "stages": found}, self.about)
        self.folder.write_prompts(encoded[0], set(self.rows))
        if self.settings.influence is not None:
            self.folder.write_updated(self.settings.influence.sample())

    def take_up(self, stage: PreparedStage) -> None:
        """Measure this stage from now on.

        Args:
            stage: one that can be measured.
        """
        before = self._now.record["architecture"] if self._now else None
        if stage.record["architecture"] != before:  # the estimator is verified on each kind
            self._verified = self._covered = self._remarked = False
        self._now = stage
        self._tokenizer, self._encoded = stage.tokenizer, stage.encoded

    def named(self, step: int) -> str:
        """Return what a stage is called in messages."""
        now = self._now
        return now.stage.name if now is not None and now.step == step else super().named(step)

    def missing(self, step: int, identity: str) -> list[str]:
        """Return which of `folder.MEASURED` this stage still lacks and can have."""
        kinds = super().missing(step, identity)
        other = self._now is not None and self._now.other_vocabulary
        return [kind for kind in kinds if not (other and kind == "kernel")]


class StageLoop(MeasuringLoop):
    """Measures stages one after the other.

    Args:
        recorder: measures a model and writes the tables.
        stages: in order.
        sinks: where to show what was measured.
    """

    def __init__(
        self, recorder: StageRecorder, stages: Sequence[PreparedStage], sinks: Sinks
    ) -> None:
        super().__init__(CheckpointMeasurer(recorder, Models(None)), None, None, sinks)
        self.recorder = recorder
        self.stages = stages
        self.outcome.names = {one.step: one.stage.name for one in stages}

    def _measure_all(self) -> None:
        how = self.recorder.settings
        apart = kernel_needs_adapter(how) or (how.influence is not None and _moves_adapter(how))
        models = Models(None)
        self._bar.total = len(self.stages)
        for one in self.stages:
            self._bar.set_postfix_str(one.stage.name)
            place = Checkpoint(one.step, Path(one.stage.model))
            if one.failure is not None:
                self._fail(place, one.failure, None)
            else:
                if models.name != one.base:  # a base stays in memory for the adapters over it
                    merge = not (apart or self.recorder.adapter_apart)
                    models = Models(one.base, how.load, merge=merge)
                self.measurer = CheckpointMeasurer(self.recorder, models)
                self.recorder.take_up(one)
                self._attempt(place, partial(self._measured, one), one.adapter)
            self._bar.update()

    def _measured(self, one: PreparedStage) -> list[str]:
        """Return what was measured of a stage now.

        Raises:
            UserError: if there is nothing that can be.
        """
        how = self.recorder.settings
        alone = not (how.refusal or how.activations or how.directions or how.influence)
        if one.other_vocabulary and alone:
            raise UserError(
                f"another vocabulary ({one.other_vocabulary}): kernels over different tokens do "
                "not compare, so that there is nothing to measure"
            )
        try:
            if one.adapter is not None:
                return self.measurer.of_checkpoint(one.adapter)
            return self.measurer.of_base(one.step)
        except Incomplete as why:  # nobody looks again
            raise UserError(f"{one.stage.model} changed while it was read: {why}") from why
        except WrongMeasurement as why:  # of this stage: the others are loaded on their own
            self.folder.set_aside(one.step, self.recorder.settings)
            raise UserError(str(why)) from why


def _description(recorder: StageRecorder, stages: Sequence[PreparedStage]) -> str:
    """Return one line about what is measured on what."""
    names = ", ".join(
        f"{one.stage.name} ({one.record['template']})" for one in stages if not one.failure
    )
    return f"{recorder.describe()} prompts at the stages {names}"


def _moves_adapter(how: MeasureSettings) -> bool:
    return how.influence is not None and how.influence.needs_adapter


def agreed(
    folder: StoredTables, how: MeasureSettings, prompts: PromptSet | None, stages: Sequence[Record]
) -> list[dict]:
    """Return the stages of a folder with those of this call, having compared all that is settled.

    Args:
        folder: of the measurements.
        how: what is asked for.
        prompts: what is measured on; None to leave out whether the folder has other ones.
        stages: what is known of each; none to compare the settings alone.

    Raises:
        UserError: naming what differs.
    """  # ruff: ignore[docstring-extraneous-exception]
    old = folder.settled
    about = {} if prompts is None else {"digest": prompts.digest, "count": len(prompts)}
    require_same(folder.path, old, {**how.record(about), "stages": stages or [{}]})
    return united(folder.path, old.get("stages", []), stages)


def require_places(stages: Sequence[Stage], choice: Choice, how: MeasureSettings) -> None:
    """Raise if there is no stage at the places chosen, or none with the adapter asked about.

    Args:
        stages: in order.
        choice: whose steps count, and not which of them are this worker's.
        how: what is asked for.

    Raises:
        UserError: naming the places that there are.
    """
    chosen = [s for n, s in enumerate(stages) if Choice(steps=choice.steps).wants_place(n)]
    if not chosen:
        have = ", ".join(f"{place} {stage.name}" for place, stage in enumerate(stages))
        raise UserError(f"no stage at the places that --steps asks for: there are {have}")
    if kernel_needs_adapter(how) and not any(stage.adapter for stage in chosen):
        names = ", ".join(stage.name for stage in chosen)
        raise UserError(f"{OVER_ADAPTER}, and none is among the stages chosen ({names})")


def without_auto(how: MeasureSettings, stages: Sequence[Stage]) -> MeasureSettings:
    """Return settings by which influence is over the same parameters at every stage."""
    pairs = how.influence
    if pairs is None or pairs.parameters != "auto" or all(one.adapter for one in stages):
        return how
    return replace(how, influence=replace(pairs, parameters="all"))
