"""`ntkprobe why`: find training pairs that pushed a prompt to or from refusal."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..attribution.settings import AttributionSettings
from ..errors import UserError, one_line
from ..models.projection_settings import SKETCH
from ..settings import Flag
from ._options import SOURCE, command_of, config_defaults, quieten, report_line

if TYPE_CHECKING:
    from ..attribution import Attribution
    from ..prompts.prompt_set import PromptSet


@dataclass(frozen=True, kw_only=True)
class WhyOptions:
    """What `ntkprobe why` is asked for.

    Attributes:
        run: a run of ntkprobe train sft, or another trainer's with --pairs.
        file: files of prompts.
        prompt: a prompt; may be repeated.
        refused_by: all prompts that a measurement found refused at its last step.
        pairs: what the run was trained on.
        model: the base model of adapters.
        output_dir: keep finished work, and write tables and a figure.
        attribution: what is attributed, and how.
        recorded_steps: with --over steps: the recorded steps.
        steps: only checkpoints of these steps.
        index: a sketch's folder of features.
        candidates: pairs that were not trained on: order these, for train sft --recipe influence.
        top: pairs shown in each direction.
        shard: be worker i of n; needs --output-dir.
        config: a YAML file with these options.
    """

    run: Annotated[Path, Flag(argument=True, metavar="RUN")]
    file: Annotated[
        list[str] | None,
        Flag(argument=True, metavar="[FILE]...", help=f"Files of prompts: {SOURCE}."),
    ] = None
    prompt: Annotated[list[str] | None, Flag(metavar="TEXT")] = None
    refused_by: Annotated[Path | None, Flag(metavar="OUT")] = None
    pairs: Annotated[Path | None, Flag(metavar="FILE", shows="RUN/data.parquet")] = None
    model: Annotated[str | None, Flag(shows="the one they name")] = None
    output_dir: Annotated[Path | None, Flag(metavar="DIR")] = None
    attribution: AttributionSettings = field(default_factory=AttributionSettings)
    recorded_steps: Annotated[Path | None, Flag(metavar="DIR", shows="RUN-steps")] = None
    steps: Annotated[str | None, Flag(metavar="A:B:C")] = None
    index: Annotated[Path | None, Flag(panel=SKETCH, metavar="DIR", shows="DIR/index")] = None
    candidates: Annotated[Path | None, Flag(metavar="FILE")] = None
    top: int = 5
    shard: Annotated[str | None, Flag(metavar="i/n")] = None
    config: Annotated[Path | None, Flag(metavar="FILE", callback=config_defaults)] = None


@command_of(WhyOptions)
def why(options: WhyOptions) -> None:
    """Say which training pairs pushed prompts towards refusal, and which away from it.

    Effects are first-order and signed, summed over the run, for every pair that was trained on.
    With --output-dir it can be stopped: the same command goes on.
    """  # ruff: ignore[docstring-missing-exception]
    from ..watcher.choices import parse_shard, parse_steps

    place, shard = options.output_dir, parse_shard(options.shard)
    if shard != (0, 1) and place is None:
        raise UserError("--shard needs a folder that all workers share: give --output-dir DIR")
    if options.candidates and place is None:
        raise UserError("--candidates needs a folder for what comes out: give --output-dir DIR")
    if options.top < 1:
        raise UserError(f"--top {options.top}: give 1 or more")
    settings, prompts = options.attribution, _prompts(options)
    quieten()
    from ..attribution import attribute
    from ..training.data import read_pairs

    found = attribute(
        options.run,
        prompts=prompts,
        settings=settings,
        pairs=options.pairs,
        model=options.model,
        output_dir=place,
        index_dir=options.index,
        recorded_steps=options.recorded_steps,
        steps=parse_steps(options.steps) if options.steps else (),
        shard=shard,
        candidates=read_pairs(options.candidates) if options.candidates else None,
        progress=True,
    )
    if found is None:
        typer.echo(
            f"worker {shard[0]} of {shard[1]} has ended: once all have, the same command without "
            "--shard shows what came out"
        )
        return
    for remark in found.remarks:
        report_line(remark)
    if options.candidates and place:
        _write_candidates(found, place, options.top)
        return
    for line in lines(found, options.top):
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


def _prompts(options: WhyOptions) -> "PromptSet":
    """Return the prompts to explain, those typed first.

    Raises:
        UserError: if there are none.
    """
    from ..prompts.prompt_set import Prompt, PromptSet

    typed = [Prompt(text, "seemingly_toxic") for text in options.prompt or []]
    files = options.file or []
    read = list(PromptSet.from_files(files, otherwise="seemingly_toxic")) if files else []
    refused = _refused(options.refused_by) if options.refused_by else []
    if not (typed or read or refused):
        raise UserError('no prompts to explain: give --prompt "…", a FILE, or --refused-by OUT')
    return PromptSet((*typed, *read, *refused))


def _refused(folder: Path) -> list[Any]:
    """Return the prompts whose answers refuse at the last step of a measurement."""
    from ..attribution.observed import refused_prompts

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
