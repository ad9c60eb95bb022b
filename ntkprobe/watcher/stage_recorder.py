"""Named models into one folder: as `Recorder`, with a tokenizer and a template for each."""

from collections.abc import Sequence

from ..stages import Record, united
from .recorder import Recorder
from .settings import require_same
from .stage_preparation import PreparedStage


class StageRecorder(Recorder):
    """Measures stages on one set of prompts, into one folder; arguments as `Recorder`'s."""

    _now: PreparedStage | None = None

    def check(self) -> None:
        """Raise if the folder holds something else, as far as this is known without a tokenizer."""
        self._require_same([])

    def _require_same(self, stages: Sequence[Record]) -> list[dict]:
        old = self.folder.record
        prompts = {"digest": self.prompts.digest, "count": len(self.prompts)}
        record = {**self.settings.record(prompts), "stages": stages or [{}]}
        require_same(self.folder.path, old, record)
        return united(self.folder.path, old.get("stages", []), stages)

    def settle(self, stages: Sequence[PreparedStage]) -> None:
        """Settle with the folder what is measured.

        Args:
            stages: all of them, one of which at least can be measured.
        """
        found = self._require_same([one.record for one in stages])
        encoded = [one.encoded for one in stages if one.encoded is not None]
        days = [each.template.day for each in encoded if each.template.day]
        prompts = {
            "digest": self.prompts.digest,
            "count": len(self.prompts),
            **({"template_date": days[0]} if days else {}),
        }
        self.folder.adopt({**self.settings.record(prompts), "stages": found}, self.about)
        self.folder.write_prompts(encoded[0], set(self.rows))
        if self.settings.influence is not None:
            self.folder.write_updated(self.settings.influence.sample())

    def take_up(self, stage: PreparedStage) -> None:
        """Measure this stage from now on.

        Args:
            stage: one that can be measured.
        """
        before = self._now.record["architecture"] if self._now else None
        if stage.record["architecture"] != before:  # the estimator is verified on each kind
            self._verified = self._covered = self._remarked = False
        self._now = stage
        self._tokenizer, self._encoded = stage.tokenizer, stage.encoded

    def named(self, step: int) -> str:
        """Return what a stage is called in messages."""
        now = self._now
        return now.stage.name if now is not None and now.step == step else super().named(step)

    def missing(self, step: int, identity: str) -> list[str]:
        """Return which of `folder.MEASURED` this stage still lacks and can have."""
        kinds = super().missing(step, identity)
        other = self._now is not None and self._now.other_vocabulary
        return [kind for kind in kinds if not (other and kind == "kernel")]
