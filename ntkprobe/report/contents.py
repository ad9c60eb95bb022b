"""The contents of a page as one tree: sets of prompts with their runs, and evaluations.

On the axes of the map, prompts are ordered by group, and similar prompts are side by side.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..figures.measured_tables import missing_message
from ..plots.style import group_style, in_order, run_label
from ..trajectory import Trajectory
from .cautions import cautions, evaluation_cautions, settings_table
from .evaluated import answers_to, refused_safe_prompts, tables_of
from .folders import Sources
from .layers import PAIR_BUDGET, layers_of
from .measured import kernel_of, pushes_of, refusal_of, tokens_of

# Light companions of the groups' colours (Paul Tol's medium-contrast set), for a dark page.
DARK = {"normal": "#6699CC", "seemingly_toxic": "#EECC66", "toxic": "#EE99AA"}
SHAPES = {"s": "square", "o": "circle", "^": "triangle-up", "D": "diamond"}


def contents_of(sources: Sources) -> dict[str, Any]:
    """Return the contents of a page.

    Args:
        sources: runs and evaluations.

    Returns:
        `sets`, one for each set of prompts that runs were measured on, and `evaluations`.
    """
    by_prompts: dict[tuple, dict[str, Trajectory]] = {}
    for name, run in sources.runs.items():
        table = run.prompts
        asked = tuple(zip(table["group"], table["text"], strict=True))
        # One axis holds steps, or epochs, or the same stages.
        key = asked, tuple(run.stage_names.values()), run.step_unit
        by_prompts.setdefault(key, {})[name] = run
    budget = PAIR_BUDGET // max(1, len(sources.runs))
    sets = [_set(runs, sources, budget) for runs in by_prompts.values()]
    return {"sets": sets, "evaluations": _evaluations(sources)}


def _set(runs: dict[str, Trajectory], sources: Sources, budget: int) -> dict[str, Any]:
    """Return runs that were measured on the same prompts."""
    table = next(iter(runs.values())).prompts
    groups, texts = table["group"].tolist(), table["text"].tolist()
    made = [_run(name, run, budget) for name, run in runs.items()]
    return {
        "prompts": {"text": texts, "group": groups, "tokens": table["n_tokens"].tolist()},
        "groups": [_group(name) for name in in_order(groups)],
        "stages": list(next(iter(runs.values())).stage_names.values()) or None,
        "unit": next(iter(runs.values())).step_unit,
        "runs": made,
        "settings": settings_table(runs),
        "cautions": [*_on_phrases(made), *cautions(runs)],
        "answers": answers_to(sources.evaluations, texts),
        "no_answers": _evaluate_command(runs),
    }


def _on_phrases(made: list[dict[str, Any]]) -> list[str]:
    """Return a caution for each run whose P(refuse) is not the paper's sum of its 31 phrases."""
    read = {one["name"]: one["refusal"] for one in made if one["refusal"]}
    kinds = {name: (one["phrase_set"], one["reduction"]) for name, one in read.items()}
    return [
        f"{name}: P(refuse) is of the phrases {phrases} ({reduction}), not the paper's sum of its "
        "31."
        for name, (phrases, reduction) in kinds.items()
        if (phrases, reduction) != ("paper31", "literal")
    ]


def _group(name: str) -> dict[str, str]:
    """Return the style of a group, as in the figures."""
    style = group_style(name)
    return {
        "name": name,
        "label": style.label.replace("\\$", "$"),
        "short": style.short.replace("\\$", "$"),
        "colour": style.colour,
        "text": style.text,
        "dark": DARK.get(name, "#BBBBBB"),
        "shape": SHAPES[style.marker],
    }


def _run(name: str, run: Trajectory, budget: int) -> dict[str, Any]:
    """Return one run; what was not measured is None, and `missing` has the command for it."""
    kernel = kernel_of(run)
    groups = run.prompts.set_index("prompt")["group"]
    found = {
        "kernel": kernel,
        "refusal": refusal_of(run),
        "layers": kernel and layers_of(run, kernel, budget),
        "tokens": kernel and tokens_of(run, kernel["prompts"]),
        "pushes": pushes_of(run),
    }
    if kernel:
        members = groups.loc[kernel["prompts"]].tolist()
        kernel["order"] = map_order(kernel["similarity"][0], members)
    return {
        "name": name,
        "label": run_label(name).replace("\\$", "$"),
        "folder": run.folder.name,
        "steps": run.steps,
        "missing": _missing(run, found),
        **found,
    }


def _missing(run: Trajectory, found: Mapping[str, Any]) -> dict[str, str]:
    """Return for each table that a run lacks a line with the command that makes it."""
    wanted = {
        "kernel": ("kernel", "--only kernel", "NEW"),
        "refusal": ("refusal probabilities", "--only refusal", run.folder),
        "layers": ("kernel by layer", "--by layer --only kernel", "NEW"),
        "tokens": ("tokens of its blocks", "--only kernel", "NEW"),
        "pushes": ("influence", "--influence refusal", run.folder),
    }
    lines = {key: missing_message(run, *how) for key, how in wanted.items() if not found[key]}
    if found["refusal"] and found["refusal"]["rates"] is None:
        lines["rates"] = missing_message(run, "answers to judge", "--only refusal", "NEW")
    return lines


def _evaluate_command(runs: Mapping[str, Trajectory]) -> str:
    """Return what to do for answers of these runs' models."""
    name, run = next(iter(runs.items()))
    model = run.settings.get("ckpt_dir") or "RUN"
    return (
        f"no answers were kept to these prompts: `ntkprobe evaluate --model {model}/final "
        f"--benchmark prompts.csv --output-dir EVAL/{name}`, then `ntkprobe report OUT "
        f"EVAL/{name}`"
    )


def _evaluations(sources: Sources) -> dict[str, Any]:
    """Return the tables of all evaluations."""
    return {
        "names": list(sources.evaluations),
        "tables": tables_of(sources.evaluations),
        "refused": refused_safe_prompts(sources.evaluations),
        "cautions": evaluation_cautions(sources),
    }


LARGEST = 400
"""Prompts of one group that are ordered by similarity; more keep their own order."""


def map_order(similarity: np.ndarray, groups: list[str]) -> list[int]:
    """Return the positions of the prompts in the order of the map's axes.

    Args:
        similarity: `[n, n]` at one step, observed by updated; NaN where missing.
        groups: of the prompts.

    Returns:
        Every position once: groups as in the figures, prompts of a group as the leaves of a tree of
        average linkage, turned so that neighbours are similar.
    """
    both = np.nan_to_num((similarity + similarity.T) / 2)
    order: list[int] = []
    for group in in_order(groups):
        members = [place for place, name in enumerate(groups) if name == group]
        order += [members[leaf] for leaf in _leaves(both[np.ix_(members, members)])]
    return order


def _leaves(similarity: np.ndarray) -> list[int]:
    """Return the positions of one group's prompts, similar ones adjacent."""
    count = len(similarity)
    if not 2 < count <= LARGEST:
        return list(range(count))
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distance = similarity.max() - similarity
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return [int(leaf) for leaf in leaves_list(tree)]
