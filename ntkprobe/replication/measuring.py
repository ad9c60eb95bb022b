"""What is measured: along the runs, of the models that SFT starts from, and before SFT."""

from pathlib import Path

from ..checkpoints import find_checkpoints, load_model, load_tokenizer
from ..measurement.proposition1 import measure_bounds
from ..prompts.prompt_set import Prompt, PromptSet
from ..storage import write_table
from ..watcher import (
    ActivationSettings,
    Choice,
    InfluenceSettings,
    KernelSettings,
    MeasureSettings,
    RefusalSettings,
    measure_run,
    parse_steps,
)
from .plan import Stage
from .workspace import PHRASES, Workspace


def measure(place: Workspace, stage: Stage) -> None:
    """Measure every checkpoint of a run: kernel by layer, P(refuse), answers.

    Of the first seed's final models the activations on XSTest are kept as well (figures 7 and 8).

    Raises:
        UserError: if a checkpoint could not be measured.
    """  # ruff: ignore[docstring-extraneous-exception]
    settings = MeasureSettings(
        kernel=KernelSettings(by="layer", per_group=place.scale.kernel),
        refusal=RefusalSettings(phrases=PHRASES, max_new_tokens=place.scale.tokens),
        load=place.load,
        verify=stage.seed == place.settings.seeds[0],
    )
    _measured(
        place,
        prompts_of(place, "along"),
        place.out / "ntk" / stage.folder,
        settings,
        ckpt_dir=place.run(stage),
    )
    if stage.seed == place.settings.seeds[0]:
        activations(place, stage)


def activations(place: Workspace, stage: Stage) -> None:
    """Keep what the layers of a run's final model hold on XSTest's prompts."""
    groups = {"safe": "seemingly_toxic", "unsafe": "toxic"}
    rows = place.splits.rows("xstest")
    prompts = PromptSet(tuple(Prompt(row["prompt"], groups[row["kind"]]) for row in rows))
    last = max(checkpoint.step for checkpoint in find_checkpoints(place.run(stage)))
    settings = MeasureSettings(
        kernel=None,
        refusal=None,
        activations=ActivationSettings(layers="all"),
        load=place.load,
    )
    _measured(
        place,
        prompts,
        place.out / "activations" / stage.folder,
        settings,
        ckpt_dir=place.run(stage),
        choice=Choice(steps=parse_steps(str(last))),
    )


def start(place: Workspace, stage: Stage) -> None:
    """Measure a model that SFT starts from: XSTest's two halves, and Proposition 1's terms."""
    model = place.settings.model if stage.run == "base" else str(place.run(stage) / "final")
    folder = place.out / "start" / stage.folder
    settings = MeasureSettings(
        kernel=KernelSettings(by="layer", per_group=None),
        refusal=RefusalSettings(phrases=PHRASES, generate=False),
        load=place.load,
        verify=False,
    )
    _measured(place, prompts_of(place, "xstest_kernel"), folder, settings, model=model)
    path = folder / "bounds.parquet"
    if not path.is_file():
        few = prompts_of(place, "along").sample(place.scale.bounds)
        found = measure_bounds(
            load_model(model, place.load),
            load_tokenizer(model, local=False),
            few,
            layer=place.layer,
            directions=place.scale.directions,
        )
        write_table(path, found.frame())


def predict(place: Workspace) -> None:
    """Measure in the base what may predict over-refusal: similarity, and signed influence."""
    pairs = place.splits.rows("refusals")[: place.scale.pairs]
    learnt = PromptSet(tuple(Prompt(r["prompt"], "toxic", response=r["response"]) for r in pairs))
    toxic = tuple(Prompt(row["prompt"], "toxic") for row in pairs)
    asked = prompts_of(place, "along").in_group("seemingly_toxic")
    settings = MeasureSettings(
        kernel=KernelSettings(per_group=None),
        refusal=RefusalSettings(phrases=PHRASES, generate=False),
        influence=InfluenceSettings(updated=learnt, phrases=PHRASES, per_group=None),
        load=place.load,
        verify=False,
    )
    prompts = PromptSet((*asked, *toxic))
    folder = place.out / "start" / "prediction"
    _measured(place, prompts, folder, settings, model=place.settings.model)


def prompts_of(place: Workspace, name: str) -> PromptSet:
    """Return a set of prompts with groups."""
    return PromptSet.from_file(place.splits.path(name))


def _measured(
    place: Workspace,
    prompts: PromptSet,
    folder: Path,
    settings: MeasureSettings,
    *,
    ckpt_dir: Path | None = None,
    model: str | None = None,
    choice: Choice | None = None,
) -> None:
    """Measure, and raise if that was interrupted or something failed.

    Raises:
        KeyboardInterrupt: if the user stopped it.
        OSError: if a checkpoint could not be measured.
    """
    outcome = measure_run(
        prompts, folder, ckpt_dir=ckpt_dir, model=model, settings=settings, choice=choice
    )
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.failed:
        step, why = next(iter(outcome.failed.items()))
        raise OSError(f"step {step} of {ckpt_dir or model} could not be measured: {why}")
