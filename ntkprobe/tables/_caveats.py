"""What a reader must know of a table: prompts trained on or not asked, files of other length."""

from collections.abc import Iterable

from ..evaluation import Evaluation
from ._columns import Column


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
    """Return a note on each benchmark of which only a part was asked, or whose file is another.

    Args:
        runs: evaluations by name.
        columns: of the table.

    Returns:
        Lines.
    """
    names = dict.fromkeys(name for column in columns for name in column.benchmarks)
    notes = []
    for name in names:
        for row, run in runs.items():
            about = (run.settings.get("benchmarks") or {}).get(name) or {}
            asked, whole = about.get("prompts", 0), about.get("of", 0)
            found, published = about.get("found"), about.get("published")
            if asked < whole:
                notes.append(f"{name}: {row} was asked {asked} of {whole} prompts.")
            if published is not None and found != published:
                notes.append(
                    f"{name}: the file that {row} was asked has {found} rows, the published one "
                    f"{published}."
                )
    return tuple(notes)
