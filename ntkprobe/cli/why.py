"""`ntkprobe why`: find training pairs that pushed a prompt to or from refusal."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError, one_line
from ._options import SOURCE, config_defaults, quieten

if TYPE_CHECKING:
    from ..attribution import Attribution, AttributionSettings
    from ..prompts.prompt_set import PromptSet

Flag = typer.Option


def why(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run of ntkprobe train sft.", show_default=False)
    ],
    file: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...", help=f"Files of prompts: {SOURCE}.", show_default=False
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None, Flag(metavar="TEXT", help="A prompt; may be repeated.")
    ] = None,
    refused_by: Annotated[
        Path | None,
        Flag(metavar="OUT", help="All prompts that a measurement found refused at its last step."),
    ] = None,
    pairs: Annotated[
        Path | None,
        Flag(metavar="FILE", help="What the run was trained on.", show_default="RUN/data.parquet"),
    ] = None,
    model: Annotated[
        str | None, Flag(help="The base model of adapters.", show_default="the one they name")
    ] = None,
    output_dir: Annotated[
        Path | None, Flag(metavar="DIR", help="Keep finished work, and write tables and a figure.")
    ] = None,
    target: Annotated[
        str, Flag(help="What was pushed: refusal, refusal_prefix_free, tokens or response.")
    ] = "refusal",
    token: Annotated[
        list[str] | None,
        Flag(metavar="TEXT", help="With --target tokens: a token; may be repeated."),
    ] = None,
    over: Annotated[
        str, Flag(help="checkpoints (TracIn's sum), final, or steps (as StepCallback recorded).")
    ] = "checkpoints",
    recorded_steps: Annotated[
        Path | None,
        Flag(
            metavar="DIR", help="With --over steps: the recorded steps.", show_default="RUN-steps"
        ),
    ] = None,
    steps: Annotated[
        str | None, Flag(metavar="A:B:C", help="Only checkpoints of these steps.")
    ] = None,
    estimator: Annotated[str, Flag(help="exact, or sketch (with a standard error).")] = "exact",
    side: Annotated[int, Flag(help="Of a sketch: rows and columns of a layer's projection.")] = 4,
    parts: Annotated[int, Flag(help="Of a sketch: independent projections.")] = 8,
    index: Annotated[
        Path | None,
        Flag(metavar="DIR", help="A sketch's folder of features.", show_default="DIR/index"),
    ] = None,
    candidates: Annotated[
        Path | None,
        Flag(
            metavar="FILE",
            help="Pairs that were not trained on: order these, for train sft --recipe influence.",
        ),
    ] = None,
    loss: Annotated[str, Flag(help="Of a pair: sum over its tokens, or mean.")] = "sum",
    parameters: Annotated[
        str, Flag(help="Parameters that training moves; auto is lora with an adapter, else all.")
    ] = "auto",
    top: Annotated[int, Flag(help="Pairs shown in each direction.")] = 5,
    shard: Annotated[
        str | None, Flag(metavar="i/n", help="Be worker i of n; needs --output-dir.")
    ] = None,
    batch_size: Annotated[int, Flag(help="Pairs at a time.")] = 16,
    dtype: Annotated[str, Flag(help="float32, float64, bfloat16 or float16.")] = "float32",
    device: Annotated[str, Flag(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    config: Annotated[
        Path | None,
        Flag(
            metavar="FILE",
            help="A YAML file with these options.",
            callback=config_defaults,
            is_eager=True,
        ),
    ] = None,
) -> None:
    """Say which training pairs pushed prompts towards refusal, and which away from it.

    Effects are first-order and signed, summed over the run, for every pair that was trained on.
    With --output-dir it can be stopped: the same command goes on.
    """
    _why(dict(locals()))


def _why(options: dict[str, Any]) -> None:
    """Attribute, show, write, and end with one line.

    Raises:
        UserError: if the call makes no sense.
    """
    from ..watcher.choices import parse_shard, parse_steps

    place, shard = options["output_dir"], parse_shard(options["shard"])
    if shard != (0, 1) and place is None:
        raise UserError("--shard needs a folder that all workers share: give --output-dir DIR")
    if options["candidates"] and place is None:
        raise UserError("--candidates needs a folder for what comes out: give --output-dir DIR")
    if options["top"] < 1:
        raise UserError(f"--top {options['top']}: give 1 or more")
    settings, prompts = _settings(options), _prompts(options)
    quieten()
    from ..attribution import attribute
    from ..training.data import read_pairs

    found = attribute(
        options["run"],
        prompts=prompts,
        settings=settings,
        pairs=options["pairs"],
        model=options["model"],
        output_dir=place,
        index_dir=options["index"],
        recorded_steps=options["recorded_steps"],
        steps=parse_steps(options["steps"]) if options["steps"] else (),
        shard=shard,
        candidates=read_pairs(options["candidates"]) if options["candidates"] else None,
        progress=True,
    )
    if found is None:
        typer.echo(
            f"worker {shard[0]} of {shard[1]} has ended: once all have, the same command without "
            "--shard shows what came out"
        )
        return
    for remark in found.remarks:
        print(one_line(remark), file=sys.stderr)
    if options["candidates"]:
        _write_candidates(found, place, options["top"])
        return
    for line in lines(found, options["top"]):
        typer.echo(line)
    typer.echo(_closing_line(found, place))


def _write_candidates(found: "Attribution", place: Path, top: int) -> None:
    """Write candidates in the order in which they would have lowered what is observed."""
    from ..attribution.candidates import ordered
    from ..storage import replacing

    frame, file = ordered(found), place / "candidates.jsonl"
    with replacing(file) as hidden:
        frame.to_json(hidden, orient="records", lines=True, force_ascii=False)
    for row in frame.head(top).to_dict("records"):
        typer.echo(one_line(f"{row['change']:+.3g}  {row['prompt']} → {row['response']}"))
    closing = f"{len(frame)} candidates: ntkprobe train sft --recipe influence --seemingly {file}"
    typer.echo(one_line(closing))


def _settings(options: dict[str, Any]) -> "AttributionSettings":
    """Return how to attribute."""
    from ..attribution import AttributionSettings
    from ..checkpoints import LoadSettings
    from ..models.projections import ProjectionSettings

    names = ("target", "over", "estimator", "loss", "parameters", "batch_size")
    return AttributionSettings(
        **{name: options[name] for name in names},
        tokens=tuple(options["token"] or ()),
        projection=ProjectionSettings(side=options["side"], parts=options["parts"]),
        load=LoadSettings(
            dtype=options["dtype"], device=options["device"], attn_implementation="sdpa"
        ),
    )


def _prompts(options: dict[str, Any]) -> "PromptSet":
    """Return the prompts to explain, those typed first.

    Raises:
        UserError: if there are none.
    """
    from ..prompts.prompt_set import Prompt, PromptSet

    typed = [Prompt(text, "seemingly_toxic") for text in options["prompt"] or []]
    files = options["file"] or []
    read = list(PromptSet.from_files(files, otherwise="seemingly_toxic")) if files else []
    refused = _refused(options["refused_by"]) if options["refused_by"] else []
    if not (typed or read or refused):
        raise UserError('no prompts to explain: give --prompt "…", a FILE, or --refused-by OUT')
    return PromptSet((*typed, *read, *refused))


def _refused(folder: Path) -> list[Any]:
    """Return the prompts whose answers refuse at the last step of a measurement."""
    from ..attribution.refused_prompts import refused_prompts

    return list(refused_prompts(folder))


def lines(found: "Attribution", top: int) -> list[str]:
    """Return what is shown on a terminal, where hostile texts do nothing.

    Args:
        found: the attribution.
        top: pairs each way.
    """
    shown = []
    for row, prompt in enumerate(found.observed):
        shown.append(one_line(f"{prompt.text}  ({found.quantity} = {found.values[row]:.2f})"))
        rows = found.top(row, top)
        for way in ("towards", "away"):
            each = rows[rows["direction"] == way]
            shown.append(f"  {way}:" + ("" if len(each) else " no pair"))
            shown += [f"    {_pair(pair)}" for pair in each.to_dict("records")]
        shown.append("")
    return shown


def _pair(row: Mapping[Any, Any]) -> str:
    """Return one pair as a line."""
    error = f" ± {row['error']:.2g}" if row["error"] else ""
    numbers = f"{row['change']:+.3g}{error}  {row['share']:+.1%}"
    source = f" {row['source']}" if row["source"] else ""
    return one_line(f"{numbers}  [{row['pair']}{source}] {row['prompt']} → {row['response']}")


def _closing_line(found: "Attribution", place: Path | None) -> str:
    """Write the tables and the figure where they are asked for.

    Returns:
        The last line.
    """
    what = f"{len(found.observed)} prompts, {len(found.pairs)} pairs"
    if place is None:
        return f"{what}; keep the table with --output-dir DIR"
    found.write(place)
    figure = found.figure()
    for ending in ("png", "pdf"):
        figure.savefig(place / f"why.{ending}")
    return one_line(f"{what}: {place}/attribution.parquet, top.parquet, why.png")
