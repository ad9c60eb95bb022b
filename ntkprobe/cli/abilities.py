"""`ntkprobe abilities`: measure general ability with lm-evaluation-harness."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from ..evaluation.settings import AbilitySettings
from ..settings import Flag, LoadSettings
from ._options import command_of, quieten


@dataclass(frozen=True, kw_only=True)
class AbilitiesOptions:
    """What `ntkprobe abilities` is asked for.

    Attributes:
        output_dir: where to: an evaluation's folder, or a new one.
        model: a folder, a GGUF file, or a name on the hub.
        adapter: an adapter over the model.
        mitigation: what `ntkprobe mitigate fit` wrote.
        task: a task of the harness; may be repeated.
        include_path: tasks of your own, as YAML.
        abilities: how abilities are measured.
        label: the method's name in tables.
        load: how the model is loaded.
        batch_size: questions at a time.
    """

    output_dir: Annotated[Path, Flag(metavar="E")]
    model: str | None = None
    adapter: Annotated[Path | None, Flag(metavar="A")] = None
    mitigation: Annotated[Path | None, Flag(metavar="M")] = None
    task: Annotated[list[str] | None, Flag(metavar="NAME", shows="the paper's 5")] = None
    include_path: Annotated[Path | None, Flag(metavar="DIR")] = None
    abilities: AbilitySettings = field(default_factory=AbilitySettings)
    label: Annotated[str | None, Flag(shows="the run's")] = None
    load: Annotated[LoadSettings, Flag(only=("dtype", "device", "device_map"))] = field(
        default_factory=LoadSettings
    )
    batch_size: Annotated[int, Flag(least=1)] = 8


@command_of(AbilitiesOptions)
def abilities(options: AbilitiesOptions) -> None:
    r"""Measure general ability with lm-evaluation-harness: MMLU, ARC, OpenBookQA and PIQA.

    Needs `pip install ntkprobe\[lmeval]`. A task that E holds already is not measured again.
    """
    quieten()
    from ..evaluation.abilities import TASKS, measure_abilities
    from ..evaluation.models import EvaluatedModel

    found = measure_abilities(
        EvaluatedModel.named(options.model, options.adapter, options.mitigation, options.load),
        options.output_dir,
        options.task or TASKS,
        settings=options.abilities,
        label=options.label,
        include_path=options.include_path,
        batch_size=options.batch_size,
    )
    results = (
        f"{name}: {row['metric']} {row['value']:.3f}"
        for name, rows in found.items()
        for row in rows
    )
    typer.echo(f"{', '.join(results)}; next: ntkprobe table {options.output_dir}")
