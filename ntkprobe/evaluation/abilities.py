"""General ability measured by lm-evaluation-harness: the cost of a remedy for over-refusal.

E/abilities.json    label, model, settings, versions, and for each task its metrics; a task is
                    written as soon as it is done: a stopped run can be continued
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import UserError, one_line
from ..statistics import RESAMPLES
from ..storage import read_record, versions, write_json
from .folder import require_outside_models
from .models import EvaluatedModel
from .settings import AbilitySettings, AnswerSettings, require_same_record

TASKS = ("mmlu", "arc_easy", "arc_challenge", "openbookqa", "piqa")
"""The paper's five; MMLU scores letters, the others the text of an answer."""


def measure_abilities(
    subject: EvaluatedModel,
    folder: Path,
    tasks: Sequence[str] = TASKS,
    *,
    settings: AbilitySettings | None = None,
    label: str | None = None,
    include_path: Path | None = None,
    batch_size: int = 8,
) -> dict[str, list[dict[str, Any]]]:
    """Measure a model on tasks by lm-evaluation-harness; tasks in the file are not repeated.

    Args:
        subject: the model, with its adapter and its mitigation.
        folder: an evaluation, or a new folder.
        tasks: names of tasks, the paper's unless given.
        settings: how they are measured.
        label: what the model is called in tables.
        include_path: a folder with tasks of one's own, as YAML.
        batch_size: questions at a time; with a mitigation it is one.

    Returns:
        For each task its metrics: `metric, value, stderr, n`.

    Raises:
        UserError: without lm-evaluation-harness, for an unknown task, or one whose data cannot be
            had, or if the folder is about another model or other settings, or in a model's.
    """
    require_outside_models(subject.places, folder)
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-evaluation-harness is missing: pip install 'ntkprobe[lmeval]'")
    path = folder / "abilities.json"
    how = asdict(settings or AbilitySettings())
    record = _adopted(path, subject.record(), how)
    record["label"] = label or record.get("label") or subject.label
    missing = [task for task in tasks if task not in record["tasks"]]
    if missing:
        manager = _manager(missing, include_path)
        with subject.in_memory(AnswerSettings(), None) as local:
            from ..models.batching import forgetting_lengths
            from .harness import harness_model

            model = harness_model(
                local.model,
                local.tokenizer,
                local.processors,
                mitigated=subject.mitigation is not None,
                batch_size=batch_size,
            )
            with forgetting_lengths(local.model):
                for task in missing:
                    record["tasks"][task] = _measured(model, task, manager, how)
                    write_json(path, record)
    return {task: record["tasks"][task] for task in tasks}


def _adopted(path: Path, model: Mapping[str, Any], how: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record in the file, or a new one; raise if its model or settings differ."""
    now = {"model": dict(model), "answers": dict(how)}
    evaluation = read_record(path.with_name("run.json"), "give another --output-dir")
    require_same_record(path.parent, {"model": evaluation.get("model")}, {"model": model})
    old = read_record(path, "remove it")
    require_same_record(path.parent, old, now)
    return {"versions": versions(), "tasks": {}, "label": evaluation.get("label"), **old, **now}


def _manager(tasks: Sequence[str], include_path: Path | None) -> Any:
    """Return the harness's task manager.

    Raises:
        UserError: if one of them is not found.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise UserError(f"no folder {include_path}: give one with tasks as YAML")
    own = None if include_path is None else str(include_path)
    if own is not None:  # the harness's own tasks are thousands of files to look through
        manager = TaskManager(include_path=own, include_defaults=False)
        if set(tasks) <= set(manager.all_tasks):
            return manager
    manager = TaskManager(include_path=own)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise UserError(
            f"lm-evaluation-harness has no task {unknown[0]!r}: the paper's are "
            f"{', '.join(TASKS)}; `lm_eval ls tasks` lists all, --include-path adds your own"
        )
    return manager


def _measured(model: Any, task: str, manager: Any, how: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the metrics of one task.

    Raises:
        UserError: if its data cannot be had.
    """
    from lm_eval import simple_evaluate

    try:
        results = simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=manager,
            num_fewshot=how["num_fewshot"],
            limit=how["limit"],
            apply_chat_template=how["chat_template"],
            log_samples=False,
            bootstrap_iters=RESAMPLES,  # of a mean, such as an accuracy, the error is a formula
            random_seed=None,  # the process's generators are not ours
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    except OSError as error:
        why = one_line(error)[:200]
        raise UserError(f"the data of task {task!r} cannot be had: {why}") from error
    return list(_metrics(task, results))


def _metrics(task: str, results: Any) -> list[dict[str, Any]]:
    """Return the metrics of a task, or of a group of tasks, from the harness's results."""
    own = results.get("groups", {}).get(task) or results["results"][task]
    parts = results.get("group_subtasks", {}).get(task) or [task]
    counts = results.get("n-samples", {})
    n = sum(counts[name]["effective"] for name in _leaves(parts, results) if name in counts)
    rows = []
    for key, value in own.items():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = own.get(f"{metric}_stderr,{kind}")
            number = float(error) if isinstance(error, int | float) else None
            rows.append({"metric": metric, "value": float(value), "stderr": number, "n": n})
    return rows


def _leaves(names: Sequence[str], results: Any) -> list[str]:
    """Return the tasks in a group, also those of the groups in it."""
    inside = results.get("group_subtasks", {})
    return [
        leaf
        for name in names
        for leaf in (_leaves(inside[name], results) if inside.get(name) else [name])
    ]
