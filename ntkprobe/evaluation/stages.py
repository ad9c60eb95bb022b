"""Evaluate named models, each into a folder of its own within one: E/NAME, and their order.

E/stages.json                       stages: their names, in order
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import UserError, one_line
from ..settings import LoadSettings
from ..stages import Stage, require_distinct
from ..storage import write_json
from .folder import require_outside_models
from .models import EvaluatedModel
from .outcome import Outcome
from .results import STAGES
from .run import evaluate
from .settings import AnswerSettings


@dataclass
class StagesOutcome:
    """What became of some named models.

    Attributes:
        folder: that holds their evaluations.
        done: what was answered and judged, by name.
        failed: why a stage could not be evaluated, by name.
    """

    folder: Path
    done: dict[str, Outcome] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """0, or 1 where a stage, an answer or a verdict is missing."""
        return 1 if self.failed or any(one.status for one in self.done.values()) else 0

    def lines(self) -> list[str]:
        """Return a line for each rate and each failure."""
        rates = [f"{name}: {line}" for name, one in self.done.items() for line in one.lines()]
        return [*rates, *(f"{name} failed: {why}" for name, why in self.failed.items())]

    def closing_line(self) -> str:
        """Return one line: what was done, and the next command."""
        new = sum(one.new for one in self.done.values())
        failed = f", {len(self.failed)} failed" if self.failed else ""
        count = f"{len(self.done)} stage{'' if len(self.done) == 1 else 's'} in {self.folder}"
        missing = [one.closing_line() for one in self.done.values() if one.status]
        if missing:
            return f"{count}{failed}; {missing[0]}"
        return f"{count}, {new} new answers{failed}; next: ntkprobe table {self.folder}"


def evaluate_stages(
    stages: Sequence[Stage],
    benchmarks: Sequence[Any],
    output_dir: Path,
    *,
    model: str | None = None,
    load: LoadSettings | None = None,
    settings: AnswerSettings | None = None,
    **how: Any,
) -> StagesOutcome:
    """Answer benchmarks with each of some named models, and judge the answers.

    Args:
        stages: in order; the folder of each is `output_dir/NAME`.
        benchmarks: the prompts.
        output_dir: the folder of all.
        model: the model below adapters that name none here.
        load: how models are loaded.
        settings: how they answer; templates are those of the stages.
        how: further arguments of `evaluate`, such as `judges`.

    Returns:
        What became of each; one that cannot be evaluated does not keep the others from it.

    Raises:
        UserError: if none could be, or the folder has other stages.
    """
    require_distinct(stages)
    names = [stage.name for stage in stages]
    models = [one.model for one in stages] + ([] if model is None else [model])
    require_outside_models(map(Path, models), output_dir)
    _settle(output_dir, names, overwrite=bool(how.get("overwrite")))
    outcome = StagesOutcome(output_dir)
    for stage in stages:
        print(one_line(f"{stage.name}: {stage.model}"), file=sys.stderr)
        try:
            subject = _subject(stage, model, load or LoadSettings())
            template = _template(stage, subject)
            answers = replace(settings or AnswerSettings(), template=template)
            outcome.done[stage.name] = evaluate(
                subject,
                benchmarks,
                output_dir / stage.name,
                settings=answers,
                label=stage.name,
                **how,
            )
        except Exception as error:  # whatever is wrong with one stage, the others are evaluated
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            outcome.failed[stage.name] = one_line(f"{kind}{error}")
    if not outcome.done:
        raise UserError(f"no stage could be evaluated: {next(iter(outcome.failed.values()))}")
    return outcome


def _settle(folder: Path, names: list[str], *, overwrite: bool) -> None:
    """Write the order of the stages, which may go on at the end.

    Raises:
        UserError: if the folder has other stages, or cannot be written to.
    """
    path = folder / STAGES
    try:
        before = [] if overwrite else json.loads(path.read_text())["stages"]
    except FileNotFoundError:
        before = []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): give another --output-dir") from error
    shared = min(len(before), len(names))
    if before[:shared] != names[:shared]:
        raise UserError(
            f"{folder} has the stages {', '.join(map(str, before))}, now they are "
            f"{', '.join(names)}: a further stage goes behind them; for others give another "
            "--output-dir, or --overwrite"
        )
    try:
        write_json(path, {"stages": [*names, *before[shared:]]})
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error


def _subject(stage: Stage, model: str | None, load: LoadSettings) -> EvaluatedModel:
    adapter = stage.adapter
    if adapter is None:
        return EvaluatedModel.named(stage.model, None, None, load)
    return EvaluatedModel.named(model, adapter, None, load)


def _template(stage: Stage, subject: EvaluatedModel) -> str:
    """Return the template of a stage: without a chat template a plain frame, which is said."""
    if stage.template != "auto":
        return stage.template
    if subject.tokenizer.chat_template:
        return "chat"
    print(
        f"{stage.name} has no chat template: its prompts get a plain frame (User: …, Assistant:); "
        f"--template {stage.name}=FILE gives another",
        file=sys.stderr,
    )
    return "plain"
