"""The options of `ntkprobe measure`, and what they ask for: which run, measured how, where to."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .. import estimators, mitigations, plugins
from ..errors import UserError, one_line
from ..places import measurements_beside, measurements_of
from ..settings import Flag
from ..stages import Stage, only_template
from ..watcher.settings import (
    ENCODING,
    OUTPUT,
    ActivationSettings,
    DirectionSettings,
    InfluenceSettings,
    MeasureSettings,
    RefusalSettings,
)
from ._options import SOURCE, config_defaults, named_stages, preset_defaults

if TYPE_CHECKING:
    from ..watcher.choices import Choice, Following

CHECKPOINTS, INFLUENCE = "Which checkpoints", "Influence of pairs that are learnt"
FOLLOWING = "A run that still trains"


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """What `ntkprobe measure` is asked for.

    Attributes:
        ckpt_dir: a training run, or one checkpoint of it.
        prompts: CSV, JSONL, JSON, Parquet, or text with a prompt a line; may be repeated.
        model: the base model, a folder or hub name; it is step 0, and the base of adapters.
        stage: a named model (folder, hub name, GGUF file, adapter) in place of a run's checkpoints;
            once for each, in order.
        output_dir: the folder that measurements are written to.
        only: measure only these, separated by commas: `kernel`, `refusal`, `activations`,
            `directions`, `influence`.
        limit: only the first N prompts of each group, to try things out.
        preset: settings of the paper and, where it gives none, those reported of its authors' code.
        config: a YAML file with these options.
        dry_run: only list what would be measured.
        overwrite: discard what OUT holds.
        settings: how every checkpoint is measured.
        template: `auto` (chat where the tokenizer has one), `chat`, `raw`, `plain` (User: …,
            Assistant:), or a Jinja file; with stages `STAGE=` names the one it is for.
        influence: predict what learning each of some pairs does to refusals.
        updated: the pairs (prompt, response) that are learnt; by default the run's own data.
        answer: the response of updated prompts that have none.
        influence_loss: loss of a pair: `sum` or `mean` over the answer's tokens, or the first's.
        influence_parameters: what a step moves: `auto` (`lora` for adapters, else `all`), or as
            for `--parameters`.
        steps: only steps from A to B by C; several ranges separated by commas.
        shard: be worker i of n; under torchrun or a Slurm array this is set automatically.
        convert: first convert shards of FSDP and DeepSpeed into OUT; this unpickles files of the
            run, which can run code, so do it with your own.
        revisions: with a hub `--model`: fetch these revisions and measure them as a run.
        ray: measure as tasks of this Ray cluster: `HOST:PORT`, or `auto`.
        follow: wait for checkpoints of a run that trains.
        poll_interval: with `--follow`: seconds between two checks for new checkpoints.
        idle_timeout: with `--follow`: stop after so many seconds without a new checkpoint.
        until_step: with `--follow`: stop after this step.
        report_to: also write group means for TensorBoard, into OUT; may be repeated.
    """

    ckpt_dir: Annotated[Path | None, Flag(metavar="RUN")] = None
    prompts: Annotated[list[str] | None, Flag(metavar=SOURCE)] = None
    model: str | None = None
    stage: Annotated[list[str] | None, Flag(metavar="NAME=MODEL")] = None
    output_dir: Annotated[Path | None, Flag(metavar="OUT", shows="RUN-ntk")] = None
    only: Annotated[str | None, Flag(metavar="WHAT")] = None
    limit: int | None = None
    preset: Annotated[str | None, Flag(metavar="paper", callback=preset_defaults)] = None
    config: Annotated[Path | None, Flag(metavar="FILE", callback=config_defaults)] = None
    dry_run: bool = False
    overwrite: bool = False
    settings: MeasureSettings = field(default_factory=MeasureSettings)
    template: Annotated[
        list[str] | None, Flag(panel=ENCODING, metavar="[STAGE=]TEMPLATE", shows="auto")
    ] = None
    influence: Annotated[str | None, Flag(panel=INFLUENCE, metavar="refusal")] = None
    updated: Annotated[str | None, Flag(panel=INFLUENCE, metavar=SOURCE)] = None
    answer: Annotated[str | None, Flag(panel=INFLUENCE)] = None
    influence_loss: Annotated[str, Flag(panel=INFLUENCE, metavar="sum|mean|first_token")] = (
        InfluenceSettings.loss
    )
    influence_parameters: Annotated[str, Flag(panel=INFLUENCE)] = InfluenceSettings.parameters
    steps: Annotated[str | None, Flag(panel=CHECKPOINTS, metavar="A:B:C")] = None
    shard: Annotated[str | None, Flag(panel=CHECKPOINTS, metavar="i/n")] = None
    convert: Annotated[bool, Flag(panel=CHECKPOINTS)] = False
    revisions: Annotated[str | None, Flag(panel=CHECKPOINTS, metavar="step1000,…")] = None
    ray: Annotated[str | None, Flag(panel=CHECKPOINTS, metavar="ADDRESS")] = None
    follow: Annotated[bool, Flag(panel=FOLLOWING)] = False
    poll_interval: Annotated[float, Flag(panel=FOLLOWING, least=0.01)] = 10.0
    idle_timeout: Annotated[float | None, Flag(panel=FOLLOWING)] = None
    until_step: Annotated[int | None, Flag(panel=FOLLOWING)] = None
    report_to: Annotated[list[str] | None, Flag(panel=OUTPUT, metavar="tensorboard")] = None

    def with_revisions(self) -> "MeasureOptions":
        """Return options for the run that a model's revisions make, fetched from the hub.

        Returns:
            The same where no revisions are asked for; else with `NAME-revisions` here as the run.

        Raises:
            UserError: if there is nothing to measure, or the revisions cannot be had.
        """
        if self.stage:
            return self
        if self.ckpt_dir is None and self.model is None:
            raise UserError(
                "nothing to measure: give --ckpt-dir RUN, or --model MODEL, or both; or --stage "
                "NAME=MODEL for each of several models"
            )
        if not self.revisions:
            return self
        from ..checkpoints.revisions import fetch_revisions

        if self.ckpt_dir is not None or self.model is None or Path(self.model).exists():
            raise UserError(
                "--revisions are those of a model on the hub: give --model NAME, no folder"
            )
        place = Path(Path(self.model).name + "-revisions")
        names = [name.strip() for name in self.revisions.split(",") if name.strip()]
        fetch_revisions(self.model, names, place)
        print(one_line(f"{len(names)} revisions of {self.model} are in {place}"), file=sys.stderr)
        return replace(self, ckpt_dir=place, model=None, revisions=None)

    def converted(self) -> Path | None:
        """Return the run, or with `--convert` the folder in OUT that its shards are converted into.

        Raises:
            UserError: if there is no run, or it still trains.
        """
        if not self.convert:
            return self.ckpt_dir
        from ..checkpoints.conversion import convert_run

        if self.ckpt_dir is None:
            raise UserError("--convert needs the run whose shards are converted: give --ckpt-dir")
        if self.follow:
            raise UserError("--convert is for a run that has ended: leave out --follow")
        if self.dry_run:
            return self.ckpt_dir
        return convert_run(self.ckpt_dir, self.place() / "converted", self.model)

    def place(self) -> Path:
        """Return `--output-dir`, or `RUN-ntk`, or `NAME-ntk` here; `RUN-M-ntk` under a mitigation.

        Returns:
            The folder of the measurements; that of stages is `stages-ntk`.
        """
        if self.output_dir is not None:
            return self.output_dir
        mitigation = self.settings.mitigation
        under = mitigation.name if mitigation else ""
        if self.stage:
            return Path(measurements_of("stages", under))
        if self.ckpt_dir is not None:
            return measurements_beside(self.ckpt_dir, under)
        return Path(measurements_of(Path(str(self.model)).name, under))

    def measured(self) -> MeasureSettings:
        """Return how to measure what is asked for, without what is not.

        Returns:
            The settings, with the pairs whose influence is measured read from their file.
        """
        how = self.settings
        if how.kernel is not None:
            plugins.load(estimators, how.kernel.estimator)
        asked = self._kinds()
        activations = how.activations or ActivationSettings()
        answers = how.refusal or RefusalSettings()
        directions = DirectionSettings(
            layers=activations.layers,
            max_new_tokens=answers.max_new_tokens,
            phrases=answers.phrase_sets[0],
        )
        return replace(
            how,
            template="auto" if self.stage else only_template(self.template),
            kernel=how.kernel if "kernel" in asked else None,
            refusal=how.refusal if "refusal" in asked else None,
            activations=activations if "activations" in asked else None,
            directions=directions if "directions" in asked else None,
            influence=self._influence() if "influence" in asked else None,
        )

    def stages(self) -> tuple[Stage, ...]:
        """Return the named models that are measured, with their templates; empty for a run.

        Raises:
            UserError: if an option of a run is given with them.
        """
        if not self.stage:
            return ()
        of_run = ("ckpt_dir", "revisions", "ray", "follow", "until_step", "idle_timeout")
        for name in of_run:
            if getattr(self, name):
                raise UserError(
                    f"--{name.replace('_', '-')} is about the checkpoints of a run, and --stage "
                    "names models: leave one of them out"
                )
        return named_stages(self.stage, self.template, self.model)

    def _kinds(self) -> set[str]:
        """Return what is to be measured: by default kernel and refusal, and what a flag is about.

        Raises:
            UserError: if `--only` names something else, or contradicts another flag.
        """
        flags = {"activations": "layers", "influence": "influence"}
        given = {"activations": self.settings.activations, "influence": self.influence}
        extra = {kind for kind, value in given.items() if value}
        if "directions" in (self.only or ""):
            extra -= {"activations"}  # --layers are theirs
        mitigation = self.settings.mitigation
        decodes = mitigation is not None and mitigations.load(mitigation).kind == "decoding"
        if self.only is None and decodes:
            print(
                f"{mitigation} is a decoding method, which has no kernel of its own: "
                "refusal alone is measured",
                file=sys.stderr,
            )
        usual = {"refusal"} if decodes else {"kernel", "refusal"}
        only = self.only
        asked = usual | extra if only is None else set(only.replace(" ", "").split(","))
        if unknown := sorted(asked - {"kernel", "refusal", "directions", *flags}):
            raise UserError(
                f"no --only {unknown[0]!r}: choose from kernel, refusal, activations, directions "
                "and influence, joined by ,"
            )
        if left_out := sorted(extra - asked):
            kind = left_out[0]
            raise UserError(f"--{flags[kind]} is about {kind}: give --only {only},{kind}")
        if decodes and "influence" in asked:
            raise UserError("a decoding method has no influence of its own: leave out --influence")
        usual_how = (InfluenceSettings.loss, InfluenceSettings.parameters)
        changed = (self.influence_loss, self.influence_parameters) != usual_how
        if "influence" not in asked and (self.updated or self.answer or changed):
            raise UserError(
                "--updated, --answer, --influence-loss and --influence-parameters go with "
                "--influence refusal"
            )
        return asked

    def _influence(self) -> InfluenceSettings:
        """Return which pairs' influence is measured; on standard error, where they are from.

        Raises:
            UserError: if no pairs are known.
        """
        from ..measurement.influence.examples import (
            RecordedPairs,
            read_recorded,
            read_updated,
            recorded_data,
        )

        if self.updated is not None:
            source = self.updated
            found = RecordedPairs(read_updated(self.updated, self.answer))
        else:
            path = recorded_data(self.ckpt_dir)
            if path is None:
                raise UserError(
                    "--influence needs the pairs that are learnt: give --updated FILE (columns "
                    "prompt and response), since no data.parquet lies beside the checkpoints"
                )
            source, found = str(path), read_recorded(path)
        drawn, refusal = self.settings.kernel, self.settings.refusal
        settings = InfluenceSettings(
            updated=found.pairs,
            system=found.system,
            max_length=found.max_length,
            target=self.influence or InfluenceSettings.target,
            loss=self.influence_loss,
            parameters=self.influence_parameters,
            phrases=(refusal or RefusalSettings()).first_phrases,
            per_group=drawn.per_group if drawn else InfluenceSettings.per_group,
            seed=drawn.seed if drawn else InfluenceSettings.seed,
        )
        source_line = f"updated pairs from {source}: {settings.sample().describe()}"
        print(one_line(source_line), *found.remarks, sep="\n", file=sys.stderr)
        return settings

    def choice(self) -> "Choice":
        """Return which checkpoints this process measures."""
        from ..watcher.choices import Choice, parse_shard, parse_steps

        return Choice(
            steps=parse_steps(self.steps) if self.steps else (), shard=parse_shard(self.shard)
        )

    def following(self) -> "Following | None":
        """Return how to wait for checkpoints, if at all.

        Raises:
            UserError: if there is nothing to follow.
        """
        from ..watcher.choices import Following

        if not self.follow:
            if self.until_step is not None or self.idle_timeout is not None:
                raise UserError("--until-step and --idle-timeout go with --follow")
            return None
        if self.ckpt_dir is None:
            raise UserError("--follow needs the run to follow: give --ckpt-dir RUN")
        return Following(
            poll_interval=self.poll_interval,
            idle_timeout=self.idle_timeout,
            until_step=self.until_step,
        )
