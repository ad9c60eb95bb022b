"""Prompts that two data sets share: of two stages of training, or of training and test."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import UserError
from .data import overlaps, read_texts
from .runs import DATA, SETTINGS, Run


def check_overlaps(run: Run, sets: Mapping[str, Iterable[str]], *, strict: bool) -> None:
    """Report prompts that two data sets share.

    Args:
        run: in whose report they are recorded.
        sets: the prompts of each set by its name.
        strict: raise if there are any.

    Raises:
        UserError: if there are any and `strict` is set.
    """
    found = overlaps(sets)
    lines = [
        f"{len(texts)} prompts are in {names}, such as {texts[0][:80]!r}"
        for names, texts in found.items()
    ]
    if lines and strict:
        raise UserError("; ".join(lines) + " (--strict)")
    for line in lines:
        run.note(line)
    run.report["overlaps"] = {names: len(texts) for names, texts in found.items()}


def prompts_of_stage_before(model: str) -> dict[str, list[str]]:
    """Return the training prompts of the run whose folder holds a model.

    Args:
        model: such as `RUN/dcr/final`.

    Returns:
        The prompts by the name of that stage; empty where none are recorded, as beside a model that
        is no run's.
    """
    run = Path(model).resolve().parent
    if not ((run / DATA).is_file() and (run / SETTINGS).is_file()):
        return {}
    return {f"{run.name} (the stage before)": read_texts(run / DATA)}
