"""Cautions about the numbers of measured runs, and the table of their settings."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import pandas as pd

from ..prompts.prompt_set import PromptSet
from ..settings import leaves
from ..stages import differences
from ..tiny import measure_path
from ..trajectory import Trajectory
from .folders import Sources

_SHOWN = ("ckpt_dir", "model", "prompts", "kernel", "refusal", "activations", "influence")
_APPROXIMATE = ("finite_difference",)
_DIFFERENT_NUMBERS = ("kernel.", "refusal.", "prompts.template", "prompts.max_length")


def settings_table(runs: Mapping[str, Trajectory]) -> list[dict[str, Any]]:
    """Return every setting of the runs: `name`, `values` (a text a run) and whether they differ."""
    found = {
        name: {key: str(value) for key, value in leaves(_shown_settings(run)) if value is not None}
        for name, run in runs.items()
    }
    names = dict.fromkeys(key for one in found.values() for key in one)
    rows = []
    for key in names:
        values = [found[name].get(key, "") for name in runs]
        rows.append({"name": key, "values": values, "differs": len(set(values)) > 1})
    return rows


def _shown_settings(run: Trajectory) -> dict[str, Any]:
    settings = run.settings
    versions = settings.get("versions") or {}
    shown = {key: settings[key] for key in _SHOWN if settings.get(key) is not None}
    shown["stages"] = {one["name"]: one for one in settings.get("stages") or []}
    return {**shown, "versions": versions, "mitigation": settings.get("mitigation") or {}}


def cautions(runs: Mapping[str, Trajectory]) -> list[str]:
    """Return what limits the numbers of runs on the same prompts, a sentence or two each."""
    settings = {name: run.settings for name, run in runs.items()}
    found = [
        *_about_world(runs),
        *_about_differences(settings_table(runs)),
        *_about_templates(settings.values()),
        *_about_estimators(settings),
        *_about_tokens(settings.values()),
        *_about_training(runs),
        *_about_stages(settings.values()),
    ]
    return [
        *found,
        "Intervals are over prompts, at 95 %. None of them covers another seed of training: that "
        "takes several runs.",
        "A similarity is evidence, not a verdict: it forgets signs and directions, and a low one "
        "can go with over-refusal.",
    ]


def _about_world(runs: Mapping[str, Trajectory]) -> Iterator[str]:
    """Yield a caution if the prompts are the embedded ones."""
    texts = set(next(iter(runs.values())).prompts["text"])
    if texts <= {prompt.text for prompt in PromptSet.from_file(measure_path())}:
        yield (
            "These prompts belong to a constructed world with a model of about a million "
            "parameters: the numbers show the instrument at work and replicate nothing on real "
            "models."
        )


def _about_differences(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield a caution if the runs were measured differently."""
    names = [r["name"] for r in rows if r["differs"] and r["name"].startswith(_DIFFERENT_NUMBERS)]
    if names:
        yield (
            f"The runs were measured with different settings ({', '.join(names)}): their numbers "
            "do not compare."
        )


def _about_templates(runs: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a caution on the templates of the prompts."""
    named = [
        template
        for one in runs
        for template in (
            (one.get("prompts") or {}).get("template"),
            *(stage.get("template") for stage in one.get("stages") or []),
        )
    ]
    for template in dict.fromkeys(named):
        if template == "raw":
            yield (
                "Prompts were given raw, without a chat template: a chat model that is used with "
                "one may answer otherwise."
            )
        elif template:
            yield (
                f"Prompts were wrapped in a template ({template}); similarity and P(refuse) belong "
                "to its last position and change with it."
            )


def _about_stages(runs: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield cautions about stages between which more than training differs."""
    for one in runs:
        stages = [stage for stage in one.get("stages") or [] if "tokens" in stage]
        for before, now in pairwise(stages):
            yield from (f"{line}." for line in differences(before, now))
        for stage in stages:
            if not stage["same_vocabulary"]:
                yield f"{stage['name']} has another vocabulary: its kernel was not measured."


def _about_estimators(runs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield cautions about kernels that are estimates, or not of all parameters."""
    for name, settings in runs.items():
        kernel = settings.get("kernel") or {}
        if kernel.get("estimator") in _APPROXIMATE:
            yield f"{name}: the kernel is approximated by {kernel['estimator']}."
        if kernel.get("random_probes"):
            yield f"{name}: norms are estimated from {kernel['random_probes']} random probes."
        if kernel.get("parameters", "all") != "all":
            yield f"{name}: the kernel is over the parameters {kernel['parameters']} only."


def _about_tokens(runs: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a caution if every checkpoint was measured at other tokens."""
    kernels = [one.get("kernel") or {} for one in runs]
    if any(kernel.get("top_k_at") == "each" and not kernel.get("tokens") for kernel in kernels):
        yield (
            "Each checkpoint is measured at its own most probable tokens, as in the paper: a "
            "similarity may change along a run because the tokens did."
        )


def _about_training(runs: Mapping[str, Trajectory]) -> Iterator[str]:
    """Yield a caution where measured prompts were trained on, as far as that is known."""
    for name, run in runs.items():
        known = run.settings.get("trained_on") or {}
        if known.get("prompts"):
            yield f"{name}: {known['prompts']} of {known['of']} measured prompts were trained on."
        elif not known and (run.folder / "updated.parquet").is_file():
            count = run.prompts["text"].isin(run.updated["text"]).sum()
            if count:
                yield (
                    f"{name}: {count} measured prompts are among the training pairs whose influence"
                    " was measured; more may have been trained on."
                )


def evaluation_cautions(sources: Sources) -> list[str]:
    """Return what is known of prompts that an evaluated model was trained on."""
    return [
        f"{name} was trained on {about['prompts']} of the prompts of {benchmark}."
        for name, run in sources.evaluations.items()
        for benchmark, about in run.overlap.items()
    ]


def counts_by_group(prompts: pd.DataFrame) -> dict[str, int]:
    """Return how many prompts each group has."""
    return {str(k): int(v) for k, v in prompts["group"].value_counts(sort=False).items()}
