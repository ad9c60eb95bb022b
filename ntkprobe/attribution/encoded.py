"""The pairs of a run and the prompts to explain, as tokens of the run's own tokenizer."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..checkpoints import load_tokenizer
from ..errors import UserError
from ..prompts.prompt_set import PromptSet
from ..training.data import Pair
from ..watcher.scan import ScannedCheckpoint
from .observed import Observed, observe
from .settings import AttributionSettings
from .training_run import OpenedRun, TrainedPair, TrainingRun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Encoded:
    """Pairs and prompts as tokens of one tokenizer.

    Attributes:
        pairs: what was trained on.
        observed: what is explained.
        remarks: what a reader should know about the prompts.
        tokenizer: the run's.
    """

    pairs: list[TrainedPair]
    observed: Observed
    remarks: tuple[str, ...]
    tokenizer: "PreTrainedTokenizerBase"

    @classmethod
    def of(
        cls,
        run: TrainingRun,
        opened: OpenedRun,
        first: ScannedCheckpoint,
        prompts: PromptSet,
        how: AttributionSettings,
    ) -> "Encoded":
        """Encode everything with the tokenizer of a run.

        Args:
            run: the run.
            opened: loads its models.
            first: a checkpoint of it.
            prompts: those that are explained.
            how: the settings.

        Returns:
            Pairs and prompts.
        """
        if first.verdict.kind == "adapter":
            opened.models.learn_base(first.checkpoint.path)
        places = (first.checkpoint.path, run.folder / "final")
        own = next((p for p in places if (p / "tokenizer_config.json").is_file()), None)
        tokenizer = load_tokenizer(own) if own else opened.models.tokenizer()
        template = run.template(tokenizer)
        observed = observe(prompts, tokenizer, template, run.config, how)
        remarks = tuple(
            f"prompt {row} ({prompts[row].text!r}) is in the training set itself"
            for row in run.trained_on([prompt.text for prompt in prompts])
        )
        if run.config.system:
            remarks += ("the prompts are explained with the system message of the training",)
        return cls(run.encoded(tokenizer), observed, remarks, tokenizer)

    def of_candidates(self, pairs: Sequence[Pair], run: TrainingRun) -> "Encoded":
        """Return the same with other pairs, as the run would have trained on them.

        Args:
            pairs: as texts; those without room are left out.
            run: the run.

        Raises:
            UserError: if none is left.
        """
        found = run.encode([("", pair) for pair in pairs], self.tokenizer)
        if not found:
            raise UserError("no candidate has a prompt and an answer that fit into the length")
        return replace(self, pairs=found)

    @property
    def pairs_digest(self) -> str:
        """SHA-256 of all pairs' tokens and labels."""
        return _digest([[pair.input_ids, pair.labels] for pair in self.pairs])

    @property
    def observed_digest(self) -> str:
        """SHA-256 of all that is observed."""
        seen = self.observed
        ids, labels = ([row.tolist() for row in rows] for rows in (seen.input_ids, seen.labels))
        return _digest([ids, labels, seen.phrases, seen.tokens, seen.target])

    def frame(self) -> pd.DataFrame:
        """Return the pairs as a table."""
        rows = [
            (pair.number, pair.source, pair.pair.prompt, pair.pair.response, pair.learnt)
            for pair in self.pairs
        ]
        return pd.DataFrame(rows, columns=["pair", "source", "prompt", "response", "tokens"])


def _digest(value: Any) -> str:
    """Return the SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
