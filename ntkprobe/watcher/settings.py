"""Everything that changes a number: kept in `run.json`, and compared before anything is added."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .. import estimators, mitigations, plugins
from ..checkpoints import LoadSettings
from ..errors import UserError
from ..measurement.influence import LOSSES, answered
from ..models.parameters import ParameterSelection
from ..prompts.prompt_set import PromptSet
from ..provenance import insist_on_agreement
from ..provenance import versions as versions

SCHEMA_VERSION = 1
COMPARED = ("prompts", "model", "kernel", "refusal", "activations", "influence")


@dataclass(frozen=True, kw_only=True)
class KernelSettings:
    """How the kernel is measured.

    Attributes:
        estimator: a module's name in `ntkprobe.estimators`.
        parameters: in the grammar of `ParameterSelection`.
        by: `layer` keeps the share of every layer and part.
        top_k: size of the block.
        top_k_at: `each` checkpoint's own top tokens (as we read the paper), or the `first` one's.
        tokens: the block's tokens instead, as ids or texts.
        full_vocabulary: read every logit instead.
        random_probes: estimate that from so many random weightings.
        keep_blocks: whether to keep the blocks.
        per_group: prompts of each group at most; None for all.
        seed: of their choice.
    """

    estimator: str = "gram"
    parameters: str = "all"
    by: str | None = None
    top_k: int = 10
    top_k_at: str = "each"
    tokens: tuple[int | str, ...] | None = None
    full_vocabulary: bool = False
    random_probes: int | None = None
    keep_blocks: bool = False
    per_group: int | None = 25
    seed: int = 0

    def record(self) -> dict[str, Any]:
        """Return the settings, with those of the estimator written out."""
        return {**asdict(self), "method": repr(plugins.load(estimators, self.estimator)())}

    def __post_init__(self) -> None:
        if self.top_k_at not in ("each", "first"):
            raise UserError(f"no --top-k-at {self.top_k_at!r}: choose each or first")
        if self.by not in (None, "layer"):
            raise UserError(f"no --by {self.by!r}: the only one is layer")
        if self.top_k < 1:
            raise UserError(f"--top-k {self.top_k}: give 1 or more")
        if self.random_probes is not None and self.random_probes < 3:
            raise UserError(f"--random-probes {self.random_probes}: give 3 or more")
        chosen = [self.tokens is not None, self.full_vocabulary, self.random_probes is not None]
        if sum(chosen) > 1:
            raise UserError("choose one of --tokens, --full-vocabulary and --random-probes")
        if (self.full_vocabulary or self.random_probes) and (self.by or self.keep_blocks):
            raise UserError("--by and --keep-blocks go with top tokens, not with all logits")


@dataclass(frozen=True, kw_only=True)
class RefusalSettings:
    """How the refusal probability is measured.

    Attributes:
        phrases: the name of a phrase set.
        apostrophes: `ascii`, `curly` or `both`.
        generate: whether the model answers, for the refusal rate.
        max_new_tokens: of an answer.
        exact_phrases: run every phrase to its end, also those that cannot change log P_refuse by
            more than `refusal.TOLERANCE`.
    """

    phrases: str = "paper31"
    apostrophes: str = "ascii"
    generate: bool = True
    max_new_tokens: int = 32
    exact_phrases: bool = False


@dataclass(frozen=True, kw_only=True)
class ActivationSettings:
    """Which activations are kept.

    Attributes:
        layers: numbers of decoder blocks, counted from 1, or `all`.
    """

    layers: tuple[int, ...] | str = "all"

    def __post_init__(self) -> None:
        numbers = (1,) if self.layers == "all" else self.layers
        if isinstance(numbers, str) or not numbers or min(numbers) < 1:
            raise UserError(f"no --layers {self.layers!r}: give all, or numbers from 1, as in 1,3")

    @classmethod
    def parse(cls, spec: str) -> "ActivationSettings":
        """Return the settings of `all`, or of numbers joined by commas.

        Args:
            spec: such as `1,3,5`.

        Returns:
            The settings; what is neither is a `UserError`.
        """
        terms = spec.replace(" ", "").split(",")
        if not all(term.isdecimal() for term in terms):
            return cls(layers=spec)
        return cls(layers=tuple(sorted({int(term) for term in terms})))


@dataclass(frozen=True, kw_only=True)
class InfluenceSettings:
    """Which pairs' influence on which answers is measured, and how.

    Attributes:
        updated: the pairs that are learnt: prompts with the answer as `response`.
        target: what changes: `refusal`, log P_refuse.
        loss: one of `influences.LOSSES`.
        parameters: what a step moves; `auto` is `lora` for adapters, else `all`.
        phrases: the name of a phrase set.
        apostrophes: `ascii`, `curly` or `both`.
        per_group: observed prompts and updated pairs of each group at most; None for all.
        seed: of their choice.
    """

    updated: PromptSet
    target: str = "refusal"
    loss: str = "sum"
    parameters: str = "auto"
    phrases: str = "paper31"
    apostrophes: str = "ascii"
    per_group: int | None = 25
    seed: int = 0

    def __post_init__(self) -> None:
        answered(self.updated)
        if self.target != "refusal":
            raise UserError(f"no --influence {self.target!r}: the only one is refusal")
        if self.loss not in LOSSES:
            raise UserError(f"no --influence-loss {self.loss!r}: choose from {list(LOSSES)}")
        if self.parameters != "auto":
            ParameterSelection.parse(self.parameters)

    @property
    def needs_adapter(self) -> bool:
        """Whether it is about an adapter's own parameters, where there is one."""
        return self.parameters == "auto" or (
            "lora" in ParameterSelection.parse(self.parameters).terms
        )

    def sample(self) -> PromptSet:
        """Return the pairs that are measured."""
        return self.updated.sample(self.per_group, self.seed)

    def record(self) -> dict[str, Any]:
        """Return the settings, the pairs by their digest."""
        names = [each.name for each in fields(self) if each.name != "updated"]
        pairs = {"digest": self.updated.digest, "count": len(self.updated)}
        return {**{name: getattr(self, name) for name in names}, "updated": pairs}


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """How every checkpoint of a run is measured.

    Attributes:
        kernel: None to leave the kernel out.
        refusal: None to leave refusals out.
        activations: None to leave activations out.
        influence: None to leave the influence of updated pairs out.
        template: how prompts become tokens.
        max_length: longer prompts lose the end of their text.
        load: how models are loaded.
        batch_size: prompts at a time, which changes no number; None to find out.
        verify: compare the estimator with plain backward passes on the first model of a run, and
            the base, the first and the last checkpoint with their files loaded anew.
        mitigation: the folder of a fitted mitigation, in force while a model is measured.
    """

    kernel: KernelSettings | None = field(default_factory=KernelSettings)
    refusal: RefusalSettings | None = field(default_factory=RefusalSettings)
    activations: ActivationSettings | None = None
    influence: InfluenceSettings | None = None
    template: str = "auto"
    max_length: int | None = None
    load: LoadSettings = field(default_factory=LoadSettings)
    batch_size: int | None = None
    verify: bool = True
    mitigation: Path | None = None

    def __post_init__(self) -> None:
        if self.mitigation is None or not (self.kernel or self.activations or self.influence):
            return
        if mitigations.load(self.mitigation).kind == "decoding":
            raise UserError(
                f"{self.mitigation} is a decoding method, which has refusal probabilities but no "
                "kernel, activations or influence of its own: measure it with --only refusal"
            )

    def record(
        self, prompts: Mapping[str, Any], base: tuple[str, str] | None = None
    ) -> dict[str, Any]:
        """Return the part of `run.json` that is compared.

        Args:
            prompts: digests and template, as far as they are known.
            base: name and identity of the model of step 0, or below the adapters, if known.
        """
        name, identity = base or (None, None)
        return {
            "prompts": {**prompts, "max_length": self.max_length},
            "model": {
                "base": name,
                "base_identity": identity,
                "dtype": self.load.dtype,
                "attn_implementation": self.load.attn_implementation,
                "mitigation": mitigations.digest(self.mitigation) if self.mitigation else None,
            },
            "kernel": self.kernel.record() if self.kernel else None,
            "refusal": asdict(self.refusal) if self.refusal else None,
            "activations": asdict(self.activations) if self.activations else None,
            "influence": self.influence.record() if self.influence else None,
        }


def insist_on_equal(folder: object, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise if a setting of `new` contradicts `old`; what only one of them has is no contradiction.

    Args:
        folder: for the message.
        old: what a folder's `run.json` says.
        new: what is asked for now.

    Raises:
        UserError: naming the first such setting with both values.
    """  # ruff: ignore[docstring-extraneous-exception]
    # What was measured before there were mitigations was measured without one.
    before: dict[str, Any] = {"model.mitigation": None} if old.get("model") else {}
    before |= _leaves({key: old.get(key) for key in COMPARED})
    insist_on_agreement(
        folder, "measured", before, _leaves({key: new.get(key) for key in COMPARED})
    )


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting that counts, with its dotted name; a section that is absent has none."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{prefix}{key}.")
        elif (
            prefix
            and key not in ("base", "method")
            and not (item is None and key == "base_identity")
        ):
            yield f"{prefix}{key}", list(item) if isinstance(item, tuple) else item
