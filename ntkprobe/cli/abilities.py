"""`ntkprobe abilities`: measure general ability with lm-evaluation-harness."""

from pathlib import Path
from typing import Annotated

import typer

from ._options import quieten


def abilities(
    output_dir: Annotated[
        Path, typer.Option(metavar="E", help="Where to: an evaluation's folder, or a new one.")
    ],
    model: Annotated[
        str | None, typer.Option(help="A folder, a GGUF file, or a name on the hub.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(metavar="A", help="An adapter over the model.")
    ] = None,
    mitigation: Annotated[
        Path | None, typer.Option(metavar="M", help="What ntkprobe mitigate fit wrote.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A task of the harness; may be repeated.",
            show_default="the paper's 5",
        ),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Tasks of your own, as YAML.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Solved examples.", show_default="the task's own number")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N questions.")] = None,
    chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Ask in the model's chat template.")
    ] = False,
    label: Annotated[
        str | None, typer.Option(help="The method's name in tables.", show_default="the run's")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    device_map: Annotated[
        str | None, typer.Option(metavar="auto", help="Spread one model over all GPUs.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 8,
) -> None:
    r"""Measure general ability with lm-evaluation-harness: MMLU, ARC, OpenBookQA and PIQA.

    Needs `pip install ntkprobe\[lmeval]`. A task that E holds already is not measured again.
    """
    quieten()
    from ..checkpoints import LoadSettings
    from ..evaluation.abilities import TASKS, AbilitySettings, measure_abilities
    from ..evaluation.models import EvaluatedModel

    load = LoadSettings(dtype=dtype, device=device, device_map=device_map)
    found = measure_abilities(
        EvaluatedModel.named(model, adapter, mitigation, load),
        output_dir,
        task or TASKS,
        settings=AbilitySettings(num_fewshot=num_fewshot, limit=limit, chat_template=chat_template),
        label=label,
        include_path=include_path,
        batch_size=batch_size,
    )
    results = (
        f"{name}: {row['metric']} {row['value']:.3f}"
        for name, rows in found.items()
        for row in rows
    )
    typer.echo(f"{', '.join(results)}; next: ntkprobe table {output_dir}")
