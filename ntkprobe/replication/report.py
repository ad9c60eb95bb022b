"""The report of a replication: verdicts, the numbers behind them, figures and tables."""

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import pandas as pd

from ..errors import UserError, one_line
from ..figures import draw_figures, find_runs
from ..storage import replacing
from ..tables import make_table
from .data_files import SAFETY_SETS
from .evaluating import why_unfit
from .hypotheses import HYPOTHESES, LEAST_OVER_REFUSAL, better_predictor
from .labels import agreement_lines, write_sample
from .left_out import left_out
from .plan import FURTHER, MAIN, STEERED, TIMED, Stage, needed, stages
from .results import HELD_OUT, Results, share
from .settings import ReplicationSettings
from .subjects import require_unchanged
from .verdicts import Draw, Finding, of_seeds, overall
from .workspace import Workspace

FIGURES = (
    ("refusals", "ntk", ("fig1", "fig4", "fig5")),
    ("compare", "ntk", ("fig6", "layers", "neighbours")),
    ("measure", "ntk", ("fig3",)),
    ("activations", "activations", ("fig7", "fig8")),
)
"""Figures, after the stage that has to be done and the folder that they are drawn from."""
TABLES = ("1", "2", "3")


def write_report(workspace: Workspace) -> Path:
    """Write OUT/report.md, OUT/figures and OUT/tables from what was measured so far.

    Args:
        workspace: folder and settings.

    Returns:
        The report.

    Raises:
        UserError: if a stage was done with another model than its run holds now.
    """  # ruff: ignore[docstring-extraneous-exception]
    results = Results(workspace.out)
    record = json.loads((workspace.out / "replication.json").read_text())
    require_unchanged(workspace.out, stages(record["seeds"]))
    seeds = [seed for seed in record["seeds"] if any(map(workspace.done, _of_seed(seed)))]
    everything = [stage for stage in stages(record["seeds"]) if stage.what == "evaluate"]
    if all(map(workspace.done, everything)):
        write_sample(workspace.out, final_models(workspace, seeds))
    drawn = [*_figures(workspace, seeds), *_tables(workspace, seeds)]
    text = "\n".join(
        chain(
            _head(workspace, record, seeds),
            _verdicts(workspace, results, seeds),
            _models(workspace, results, seeds),
            [
                "",
                "## The filters, against labels of a reading",
                "",
                *agreement_lines(workspace.out),
            ],
            _costs(workspace),
            ["", "## Figures and tables", "", *drawn, ""],
        )
    )
    path = workspace.out / "report.md"
    with replacing(path) as hidden:
        hidden.write_text(text, "utf-8")
    return path


def final_models(workspace: Workspace, seeds: Sequence[int]) -> list[str]:
    """Return the names of all final models with answers."""
    runs = [Stage("evaluate", r, seed) for seed in seeds for r in (*MAIN, *FURTHER, *STEERED)]
    done = [stage.folder for stage in (Stage("evaluate", "base"), *runs) if workspace.done(stage)]
    return [name for name in done if not why_unfit(workspace.out, name)]


def _of_seed(seed: int) -> list[Stage]:
    """Return the stages of one seed."""
    return [stage for stage in stages([seed]) if stage.seed == seed]


def _head(workspace: Workspace, record: dict, seeds: Sequence[int]) -> Iterator[str]:
    """Yield what was run."""
    compared = record["compared"]
    rate = workspace.rate
    choice = json.loads((workspace.out / "choice.json").read_text())
    digest = f" (SHA-256 {compared['model']})" if record.get("gguf") else ""
    what = "the dequantised model of the file" if record.get("gguf") else "the model"
    yield "# Replication"
    yield ""
    yield (
        f"Model: {what} {Path(record['model']).name}{digest}, in"
        f" {compared['dtype']}; scale `{compared['scale']}`; seeds"
        f" {', '.join(map(str, seeds)) or 'none yet'}; learning rate {rate:g}."
    )
    if choice["met"] is False:
        yield ""
        yield (
            "**The condition on STL (80 % of the development split's toxic prompts refused, at most"
            " 5 % of the normal ones) was met by no learning rate;** the one with the largest"
            " difference was taken."
        )
    if compared["scale"] == "toy":
        yield ""
        yield "**Scale `toy` is for tests: none of these numbers means anything.**"


def _verdicts(workspace: Workspace, results: Results, seeds: Sequence[int]) -> Iterator[str]:
    """Yield the verdicts, and the numbers below each of them."""
    summary = ["", "## Verdicts", "", _row(["", "claim", *(f"seed {s}" for s in seeds), "pooled"])]
    summary.append("|" + "---|" * (len(seeds) + 3))
    details: list[str] = []
    for name, (claim, make) in HYPOTHESES.items():
        whole = [seed for seed in seeds if all(map(workspace.done, needed(name, seed)))]
        if not whole:
            summary.append(_row([name, claim, *["not measured yet"] * (len(seeds) + 1)]))
            continue
        resamples = workspace.scale.resamples
        per_seed, pooled = of_seeds({seed: make(results, seed) for seed in whole}, resamples)
        words = [overall(per_seed[s]) if s in whole else "not measured yet" for s in seeds]
        fewer = set(ReplicationSettings.seeds) - set(whole)  # than docs/replication.md asks for
        about = f" (of {', '.join(f'seed {seed}' for seed in whole)} alone)" if fewer else ""
        summary.append(_row([name, claim, *words, f"**{overall(pooled)}**{about}"]))
        details += ["", f"### {name}: {claim}", "", *_findings(per_seed, pooled)]
        if name == "H5":
            extra = {seed: [better_predictor(results, seed)] for seed in whole}
            details += ["", *_findings(*of_seeds(extra, resamples), judged=False)]
        for seed in whole:
            if without := left_out(name, results, seed):
                details += ["", f"Left out of seed {seed}: {'; '.join(without)}."]
    yield from summary
    yield from details


def _findings(
    per_seed: dict[int, list[Finding]], pooled: list[Finding], *, judged: bool = True
) -> Iterator[str]:
    """Yield a table of the inequalities of one hypothesis."""
    yield _row(["number", "has to be", *(f"seed {seed}" for seed in per_seed), "pooled"])
    yield "|" + "---|" * (len(per_seed) + 3)
    for at, finding in enumerate(pooled):
        seeds = [_cell(found[at], judged) for found in per_seed.values()]
        side = finding.side if judged else "–"
        yield _row([finding.about, side, *seeds, _cell(finding, judged)])


def _cell(finding: Finding, judged: bool) -> str:
    """Return a number with its interval and verdict."""
    if finding.value != finding.value:
        return "no value"
    text = f"{finding.value:.3g} ({finding.low:.3g} to {finding.high:.3g})"
    return f"{text}, {finding.word}" if judged else text


def _models(workspace: Workspace, results: Results, seeds: Sequence[int]) -> Iterator[str]:
    """Yield a table of the refusal rates and the loss of every final model."""
    yield from ["", "## Final models", ""]
    yield (
        "Refused, in per cent, by XSTest's prefixes on greedy answers; in brackets with answers"
        ' that begin "No," or "No.", which are left out before them. XSTest, safe, was trained on'
        " by DCR, its control and STL-aug; the methods on STL were fitted on some of it. Loss: nats"
        " per token of held-out Alpaca answers."
    )
    yield ""
    columns = (
        "OKTest, yes or no",
        "OKTest, open",
        "CoCoNot contrast",
        "held out, both",
        "XSTest safe (trained on)",
        "safety prompts",
        "normal",
        "loss",
    )
    yield _row(["model", *columns])
    yield "|" + "---|" * (len(columns) + 1)
    for name in final_models(workspace, seeds):
        table = results.table(name)
        ok = table["set"] == "oktest"
        parts = [
            table.loc[ok & (table["type"] == "yes or no")],
            table.loc[ok & (table["type"] == "open")],
            table.loc[table["set"] == "coconot_contrast"],
            table.loc[table["set"].isin(HELD_OUT)],
            table.loc[(table["set"] == "xstest") & (table["kind"] == "safe")],
            table.loc[table["set"].isin(SAFETY_SETS)],
            table.loc[table["set"] == "normal"],
        ]
        loss = results.losses(name)
        yield _row([name, *map(_refused, parts), "–" if loss != loss else f"{loss:.3f}"])
    for name in (f"{method}-{seed}" for seed in seeds for method in STEERED):
        if why := why_unfit(workspace.out, name):
            yield ""
            yield f"{name} could not be fitted: {one_line(why)}"
    stl = [f"stl-{seed}" for seed in seeds if workspace.done(Stage("evaluate", "stl", seed))]
    weak = [results.over_refusal(name, Draw()) for name in stl]
    if weak and min(weak) < LEAST_OVER_REFUSAL:
        yield ""
        yield "STL refuses fewer than 5 % of the held-out safe prompts with some seed: see H4."


def _refused(answers: pd.DataFrame) -> str:
    """Return which share of some answers is refused, without and with "No, …", in per cent."""
    known = int(answers["refused"].notna().sum())
    if not known:
        return "–"
    rates = [100 * share(answers[name]) for name in ("refused", "refused_with_no")]
    text = f"{rates[0]:.1f} ({rates[1]:.1f})"
    return text if known == len(answers) else f"{text}, {known} of {len(answers)}"


def _costs(workspace: Workspace) -> Iterator[str]:
    """Yield seconds and memory of every stage that is done, of the report itself none."""
    header = ["stage", "seconds", "of processors", "GiB at most so far"]
    yield from ["", "## Seconds and memory", "", _row(header), "|---|---|---|---|"]
    rows = [json.loads(p.read_text()) for p in (workspace.out / "done").glob("[!.]*.json")]
    for row in sorted((r for r in rows if r["stage"] != "report"), key=lambda row: row["stage"]):
        used = row.get("processor_seconds")  # not counted before
        processors = f"{used:.0f}" if used is not None else "–"
        yield _row([row["stage"], f"{row['seconds']:.0f}", processors, str(row["peak_gib"] or "–")])


def _figures(workspace: Workspace, seeds: Sequence[int]) -> Iterator[str]:
    """Draw the figures, each of the first seed that has its measurements.

    Yields:
        A line for each.
    """
    for what, kind, names in FIGURES:
        done = {n: [s for r in MAIN if workspace.done(s := Stage(what, r, n))] for n in seeds}
        measured = next(filter(None, done.values()), [])
        folders = {stage.run: workspace.out / kind / stage.folder for stage in measured}
        there = [f"{run}={path}" for run, path in folders.items() if (path / "run.json").is_file()]
        tables = {} if there else _published_tables(list(folders.values()), names)
        if not (there or tables):
            continue
        drawn = draw_figures(
            find_runs(there),
            workspace.out / "figures",
            names if there else list(tables),
            compare="paper",
            tables=tables,
        )
        for path in drawn.files:
            if path.suffix == ".png":
                yield f"![{path.stem}](figures/{path.name})"
                yield ""
        for name, why in (drawn.missing | drawn.broken).items():
            yield f"- {name} was not drawn: {_without_place(why, workspace)}"


def _published_tables(folders: Sequence[Path], names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return the numbers of figures whose measurements a published copy leaves out, by figure."""
    paths = {name: [f for p in folders if (f := p / f"{name}.parquet").is_file()] for name in names}
    return {
        name: pd.concat(map(pd.read_parquet, files), ignore_index=True)
        for name, files in paths.items()
        if files
    }


def _tables(workspace: Workspace, seeds: Sequence[int]) -> Iterator[str]:
    """Write the tables of the first seed's runs.

    Yields:
        A line for each.
    """
    models = [name for name in final_models(workspace, seeds[:1]) if name != "base"]
    evaluated = [f"{name.rpartition('-')[0]}={workspace.out / 'eval' / name}" for name in models]
    trained = [
        f"{run}={workspace.out / 'runs' / f'{run}-{seed}'}"
        for seed in seeds[:1]
        for run in TIMED
        if (workspace.out / "runs" / f"{run}-{seed}" / "training.json").is_file()
    ]
    for name in TABLES:
        places = trained if name == "2" else evaluated
        if not places:
            yield f"- table {name} was not made: nothing that it shows is done yet"
            continue
        try:
            text = make_table(
                places, name, compare="paper:Qwen2.5-1.5B" if name != "3" else "paper"
            )
        except UserError as error:
            yield f"- table {name} was not made: {_without_place(error, workspace)}"
            continue
        path = workspace.out / "tables" / f"table{name}.md"
        with replacing(path) as hidden:
            hidden.write_text(text.markdown(), "utf-8")
        yield f"- [table {name}](tables/{path.name})"


def _without_place(why: object, workspace: Workspace) -> str:
    """Return a message with OUT in place of the output folder's path."""
    text = one_line(why)
    for place in (workspace.out.resolve(), workspace.out):
        text = text.replace(str(place), "OUT")
    return text


def _row(cells: Sequence[str]) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
