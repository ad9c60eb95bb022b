"""Notes on rows of a table that do not compare: of other prompts, judges, settings or templates."""

from collections.abc import Iterator, Mapping

from ..evaluation import Evaluation

_HOW = ("max_new_tokens", "temperature", "max_length")
"""Settings of answers that every row of a table should share."""


def comparability(runs: Mapping[str, Evaluation]) -> tuple[str, ...]:
    """Return what else than the models differs between evaluations.

    Args:
        runs: evaluations by the names of their rows.

    Returns:
        A line for each difference.
    """
    return (
        *_prompts_differ(runs),
        *_judges_differ(runs),
        *_answers_differ(runs),
        *templates_differ(runs),
    )


def templates_differ(runs: Mapping[str, Evaluation]) -> tuple[str, ...]:
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


def _prompts_differ(runs: Mapping[str, Evaluation]) -> Iterator[str]:
    """Yield a line for each benchmark that is not the same prompts in all runs that have it."""
    digests: dict[str, dict[str, str]] = {}
    for row, run in runs.items():
        for name, about in (run.settings.get("benchmarks") or {}).items():
            if about.get("digest"):
                digests.setdefault(name, {})[row] = about["digest"]
    for name, found in digests.items():
        if len(set(found.values())) > 1:
            yield f"Prompts of {name} are not the same in {', '.join(found)}: do not compare them."


def _judges_differ(runs: Mapping[str, Evaluation]) -> Iterator[str]:
    """Yield a line for each setting in which judges of one label differ."""
    said = [
        (label, row, identity)
        for row, run in runs.items()
        for (_, label), identity in run.judges.items()
        if identity  # an old file says nothing of its judge
    ]
    for label in dict.fromkeys(label for label, _, _ in said):
        own = [(row, identity) for name, row, identity in said if name == label]
        for key in dict.fromkeys(key for _, identity in own for key in identity):
            values = [
                (row, str(i.get(key, "default"))) for row, i in own if key != "judge" or key in i
            ]
            if len({value for _, value in values}) > 1:
                each = ", ".join(f"{row} {value}" for row, value in dict.fromkeys(values))
                yield f"The judge {label} is not the same: {key} differs ({each})."


def _answers_differ(runs: Mapping[str, Evaluation]) -> Iterator[str]:
    """Yield a line for each setting of the answers that is not the same in all runs."""
    asked = {row: run.settings.get("answers") or {} for row, run in runs.items() if run.benchmarks}
    for key in _HOW:
        found = {row: answers[key] for row, answers in asked.items() if key in answers}
        if len(set(map(str, found.values()))) > 1:
            each = ", ".join(f"{row} {value}" for row, value in found.items())
            yield f"Answers differ in {key} ({each})."
