"""Notes under a table: prompts trained on or not asked, files of another length."""

from collections.abc import Iterable

from ..evaluation import Evaluation
from .columns import Column


def in_distribution(
    runs: dict[str, Evaluation], columns: Iterable[Column]
) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return which columns hold prompts that a run was trained on, and a note about each.

    Args:
        runs: evaluations by name.
        columns: of the table.

    Returns:
        Titles, and lines.
    """
    titles, notes = [], []
    for column in columns:
        for name, run in runs.items():
            seen = [run.overlap.get(set_, {}) for set_ in column.benchmarks]
            count = sum(about.get("kinds", {}).get(column.kind, 0) for about in seen)
            if count:
                titles.append(column.title)
                notes.append(
                    f"† in-distribution: {name} was trained on {count} of the prompts of "
                    f"{column.title}."
                )
    return frozenset(titles), tuple(notes)


def not_whole(runs: dict[str, Evaluation], columns: Iterable[Column]) -> tuple[str, ...]:
    """Return notes on sets of which only a part was asked, or whose file is another.

    Args:
        runs: evaluations by name.
        columns: of the table.

    Returns:
        A line for each run and each kind of note.
    """
    shown = list(columns)
    names = list(dict.fromkeys(name for column in shown for name in column.benchmarks))
    notes = []
    for row, run in runs.items():
        asked = {name: (run.settings.get("benchmarks") or {}).get(name) or {} for name in names}
        for words, parts in (
            ("asked in part", list(map(_part, asked.items()))),
            ("other files than the published ones", list(map(_other_file, asked.items()))),
            ("not asked all sets of a column", [_without(column, run) for column in shown]),
        ):
            if any(parts):
                notes.append(f"{row}, {words}: {'; '.join(filter(None, parts))}.")
    return tuple(notes)


def templates_differ(runs: dict[str, Evaluation]) -> tuple[str, ...]:
    """Return a note on models that were asked in different templates; none where all had one.

    Args:
        runs: evaluations by name; of a model behind a server the template is not known.

    Returns:
        A line at most.
    """
    known = {
        row: str(template)
        for row, run in runs.items()
        if (template := (run.settings.get("answers") or {}).get("resolved_template"))
    }
    if len(set(known.values())) < 2:
        return ()
    each = ", ".join(f"{row} {template}" for row, template in known.items())
    return (
        f"Templates differ ({each}): between such rows a difference mixes the template with "
        "training.",
    )


def _part(about: tuple[str, dict]) -> str:
    """Return how many prompts of a benchmark were asked; empty for all."""
    name, record = about
    asked, whole = record.get("prompts", 0), record.get("of", 0)
    return f"{name} {asked} of {whole} prompts" if asked < whole else ""


def _other_file(about: tuple[str, dict]) -> str:
    """Return how many rows a file has, if the published one has another number."""
    name, record = about
    found, published = record.get("found"), record.get("published")
    return "" if published in (None, found) else f"{name} {found} rows, published {published}"


def _without(column: Column, run: Evaluation) -> str:
    """Return which of the sets that a column has together are missing, if only some are."""
    there = [name for name in column.benchmarks if name in run.benchmarks]
    missing = [name for name in column.benchmarks if name not in there]
    return f"{column.title} without {', '.join(missing)}" if there and missing else ""
