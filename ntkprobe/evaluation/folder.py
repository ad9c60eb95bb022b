"""The folder of one evaluation: settings, prompts, and answers in batches, written atomically.

E/run.json                          settings, versions, model, label
E/prompts/NAME.parquet              id, prompt, kind, type, pair
E/answers/NAME/batch-00000.parquet  id, answer, n_tokens, ended, seconds
E/verdicts/NAME/JUDGE.parquet       see `judging`
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import UserError
from ..places import require_outside
from ..storage import (
    SCHEMA_VERSION,
    read_record,
    read_table,
    replacing,
    versions,
    write_json,
    write_table,
)
from .answers import Completion
from .benchmarks import BenchmarkPrompts
from .settings import require_same_record

ANSWER_TYPES = {
    "id": "object",
    "answer": "object",
    "n_tokens": "Int64",
    "ended": "boolean",
    "seconds": "float64",
}


def require_outside_models(models: Iterable[Path], output_dir: Path) -> None:
    """Raise if a folder to write to lies inside one that a model is in.

    Args:
        models: folders of models, adapters and mitigations, which are only read.
        output_dir: the folder to write to.

    Raises:
        UserError: naming both.
    """  # ruff: ignore[docstring-extraneous-exception]
    for place in filter(Path.is_dir, models):  # another is a name on the hub
        require_outside(output_dir, place, what=f"the model {place}")


class EvaluationFolder:
    """`--output-dir`.

    Args:
        path: of the folder; it is created.

    Raises:
        UserError: if it cannot be written to, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            with replacing(path / ".writable") as probe:
                probe.touch()
            (path / ".writable").unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {path}: {error.strerror or error}") from error
        if self.record and "benchmarks" not in self.record:
            raise UserError(f"{path} is no evaluation's folder: give another --output-dir")

    @property
    def record(self) -> dict[str, Any]:
        """The contents of `run.json`; empty where there is none.

        Raises:
            UserError: if it cannot be read, or a newer version wrote it.
        """  # ruff: ignore[docstring-extraneous-exception]
        return read_record(self.path / "run.json", "give another --output-dir")

    def adopt(self, record: dict[str, Any], **about: Any) -> None:
        """Write the settings to `run.json`; raise if they contradict it.

        Args:
            record: `model`, `answers` and `benchmarks`; benchmarks are added to those there.
            about: entries that are not compared, such as the label.
        """
        old = self.record
        require_same_record(self.path, old, record)
        require_same_record(self.path, {"model": self._abilities_model}, {"model": record["model"]})
        merged = {
            "schema_version": SCHEMA_VERSION,
            "versions": old.get("versions") or versions(),
            **{**old, **about},
            **record,
            "benchmarks": {**old.get("benchmarks", {}), **record["benchmarks"]},
        }
        if merged != old:
            write_json(self.path / "run.json", merged)

    def write_questions(self, questions: BenchmarkPrompts) -> None:
        """Write the prompts of a benchmark."""
        write_table(self.path / "prompts" / f"{questions.name}.parquet", questions.table)

    def answered(self, name: str) -> set[str]:
        """Return the ids of the prompts that have an answer."""
        shards = self._shards(name)
        return {str(i) for shard in shards for i in read_table(shard, ["id"])["id"]}

    def write_batch(self, name: str, answers: Sequence[Completion]) -> None:
        """Write some answers as one new shard.

        Args:
            name: the benchmark.
            answers: one or more.
        """
        numbers = [int(shard.stem.removeprefix("batch-")) for shard in self._shards(name)]
        path = self.path / "answers" / name / f"batch-{max(numbers, default=-1) + 1:05d}.parquet"
        table = pd.DataFrame([vars(answer) for answer in answers], columns=list(ANSWER_TYPES))
        write_table(path, table.astype(ANSWER_TYPES))

    def _shards(self, name: str) -> list[Path]:
        """Return the shards of a benchmark, in order."""
        return sorted((self.path / "answers" / name).glob("batch-*.parquet"))

    @property
    def _abilities_model(self) -> dict[str, Any] | None:
        """The model that `abilities.json` is about; None without one."""
        try:
            return read_record(self.path / "abilities.json", "remove it").get("model")
        except UserError:  # damaged, and about to be measured again
            return None

    def clear(self, model: dict[str, Any]) -> None:
        """Delete the files of an evaluation, and no others.

        Args:
            model: the record of the model that is evaluated next; the abilities of it stay.
        """
        for name in ("prompts", "answers", "verdicts", "preferences"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        (self.path / "run.json").unlink(missing_ok=True)
        try:
            require_same_record(self.path, {"model": self._abilities_model}, {"model": model})
        except UserError:
            (self.path / "abilities.json").unlink()
