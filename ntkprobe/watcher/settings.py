"""Everything that changes a number: recorded in `run.json`, and compared before anything is added.

Loads no torch, since the options of `ntkprobe measure` are made of these classes.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from operator import not_
from pathlib import Path
from typing import Annotated, Any

from .. import estimators, mitigations, plugins
from ..errors import UserError
from ..prompts.phrases import PHRASE_SETS, REFUSAL_PREFIXES, PhraseSet, read_phrase_sets
from ..prompts.unicode_text import flaw_within
from ..settings import (
    BATCH_SIZE,
    NO_OPTION,
    Flag,
    LoadSettings,
    leaves,
    require_same_settings,
)
from .influence_settings import InfluenceSettings

NOT_COMPARED = ("base", "method", "phrase_texts")
"""Entries of `run.json` that say again, in other words, what others do."""
COMPARED = ("prompts", "model", "kernel", "refusal", "activations", "directions", "influence")
KERNEL, REFUSAL, ACTIVATIONS = "Kernel", "Refusals", "Activations"
ENCODING, OUTPUT = "Prompts", "Progress and checks"
"""Headings of the options in `ntkprobe measure --help`."""


def read_tokens(path: Path | None) -> tuple[int | str, ...] | None:
    """Return the tokens in a JSON list of vocabulary ids or of texts.

    Args:
        path: the file; None for none.

    Raises:
        UserError: if the file holds no such list.
    """
    if path is None:
        return None
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--tokens {path} cannot be read as JSON: {error}") from error
    if not isinstance(values, list) or not values or {type(v) for v in values} - {int, str}:
        raise UserError(f'--tokens {path}: give a list of ids or texts, such as ["I", "Sure"]')
    if flaw := flaw_within(values):
        raise UserError(f"--tokens {path} {flaw}")
    return tuple(values)


def _all_if_zero(number: int) -> int | None:
    """Return a number of prompts; None, which stands for all, for 0."""
    return number or None


@dataclass(frozen=True, kw_only=True)
class KernelSettings:
    """How the kernel is measured.

    Attributes:
        estimator: `gram`, `finite_difference`, `forward_mode`, `dense`, `sketch`, or another
            module of `ntkprobe.estimators`.
        parameters: those that the kernel is over: `all`, `lora`, `embed`, `below:L`, `last:N`,
            `norm`, `head`, `re:PATTERN`, joined by `+`.
        by: `layer` also keeps each layer's and part's share of the kernel.
        top_k: size of a prompt's block: its most probable next tokens.
        top_k_at: use the top tokens of `each` checkpoint (as we read the paper), or of the `first`.
        tokens: a JSON list of token ids or texts, used instead of the most probable tokens.
        full_vocabulary: read every logit, exactly, instead of a block.
        random_probes: estimate the norm over all logits from R random weightings of them.
        keep_blocks: keep the blocks of the kernel, not only their norms.
        per_group: at most so many prompts of each group in the kernel; 0 for all.
        seed: seed of the random choice of prompts.
    """

    estimator: Annotated[str, Flag(panel=KERNEL)] = "gram"
    parameters: Annotated[str, Flag(panel=KERNEL)] = "all"
    by: Annotated[str | None, Flag(panel=KERNEL, metavar="layer")] = None
    top_k: Annotated[int, Flag(panel=KERNEL)] = 10
    top_k_at: Annotated[str, Flag(panel=KERNEL, metavar="each|first")] = "each"
    tokens: Annotated[
        tuple[int | str, ...] | None,
        Flag(panel=KERNEL, metavar="FILE", typed=Path | None, convert=read_tokens),
    ] = None
    full_vocabulary: Annotated[bool, Flag(panel=KERNEL)] = False
    random_probes: Annotated[int | None, Flag(panel=KERNEL, metavar="R")] = None
    keep_blocks: Annotated[bool, Flag(panel=KERNEL)] = False
    per_group: Annotated[int | None, Flag(panel=KERNEL, typed=int, convert=_all_if_zero)] = 25
    seed: Annotated[int, Flag(panel=KERNEL)] = 0

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


def _phrase_sets(specs: list[str] | None) -> str | tuple[PhraseSet, ...]:
    """Return the sets of `--phrases`; one that is no file by its name."""
    asked = list(specs or ["paper31"])
    found = read_phrase_sets(asked)
    return asked[0] if asked == [found[0].name] and asked[0] in PHRASE_SETS else found


@dataclass(frozen=True, kw_only=True)
class RefusalSettings:
    """How the refusal probability is measured.

    Attributes:
        phrases: refusal phrases: `paper31`, `xstest21`, `union`, or a FILE of them, such as
            another language's; may be repeated.
        apostrophes: `ascii`, `curly` or `both`, for sets that are no files.
        generate: let the model answer, for the refusal rate.
        max_new_tokens: at most so many tokens in an answer.
        exact_phrases: run every phrase to its end, also those that cannot change log P_refuse by
            more than `refusal.TOLERANCE`.
    """

    phrases: Annotated[
        str | tuple[PhraseSet, ...],
        Flag(
            panel=REFUSAL,
            metavar="[NAME=]FILE",
            typed=list[str] | None,
            default=["paper31"],
            convert=_phrase_sets,
        ),
    ] = "paper31"
    apostrophes: Annotated[str, NO_OPTION] = "ascii"
    generate: Annotated[
        bool,
        Flag(
            panel=REFUSAL,
            name="no_generate",
            typed=bool,
            default=False,
            convert=not_,
            help="Do not generate answers; there is then no refusal rate.",
        ),
    ] = True
    max_new_tokens: Annotated[int, Flag(panel=REFUSAL)] = 32
    exact_phrases: Annotated[
        bool,
        Flag(panel=REFUSAL, help="Also run phrases that change log P(refuse) by < 1e-4."),
    ] = False

    @property
    def phrase_sets(self) -> tuple[PhraseSet, ...]:
        """The sets of phrases, each measured under its name."""
        if isinstance(self.phrases, str):
            return (PhraseSet.named(self.phrases, apostrophes=self.apostrophes),)
        return self.phrases

    @property
    def first_phrases(self) -> str | tuple[str, ...]:
        """The first set's name, or where it is from a file its phrases."""
        return self.phrases if isinstance(self.phrases, str) else self.phrases[0].phrases

    def record(self) -> dict[str, Any]:
        """Return the settings; sets that are no names by label, with what the files held."""
        record = {each.name: getattr(self, each.name) for each in fields(self)}
        if isinstance(self.phrases, str):
            return record
        texts = {each.name: asdict(each) for each in self.phrases}
        return {**record, "phrases": [each.label for each in self.phrases], "phrase_texts": texts}


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
class DirectionSettings:
    """Which activations are kept at the named positions, and how prompts are answered.

    Attributes:
        layers: as for `ActivationSettings`.
        max_new_tokens: of the answer by which a prompt counts as refused.
        phrases: whose filter says so; None for the first set that refusals are measured with.
    """

    layers: tuple[int, ...] | str = "all"
    max_new_tokens: int = RefusalSettings.max_new_tokens
    phrases: PhraseSet | None = None


def _activations(spec: str | None) -> ActivationSettings | None:
    """Return the settings of `--layers`, if it is given."""
    return None if spec is None else ActivationSettings.parse(spec)


def _resolved(path: Path | None) -> Path | None:
    """Return a path that holds in any working directory."""
    return None if path is None else path.resolve()


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """How every checkpoint of a run is measured.

    Attributes:
        kernel: None to leave the kernel out.
        refusal: None to leave refusals out.
        activations: keep the activations of these decoder blocks as well.
        directions: None to leave the activations at named positions out.
        influence: None to leave the influence of updated pairs out.
        template: `auto` (chat where the tokenizer has one), `chat`, `raw`, or a Jinja file.
        max_length: at most so many tokens in a prompt; a longer one loses the end of its text.
        load: how models are loaded.
        batch_size: prompts at a time, which changes no number; `auto` (None) halves it when memory
            runs out.
        verify: compare the estimator with plain backward passes on the first model of a run, and
            the base, the first and the last checkpoint with their files loaded anew.
        mitigation: a folder of `ntkprobe mitigate fit`, in force while a model is measured.
    """

    kernel: KernelSettings | None = field(default_factory=KernelSettings)
    refusal: RefusalSettings | None = field(default_factory=RefusalSettings)
    activations: Annotated[
        ActivationSettings | None,
        Flag(
            panel=ACTIVATIONS,
            name="layers",
            metavar="1,3,5|all",
            typed=str | None,
            convert=_activations,
        ),
    ] = None
    directions: Annotated[DirectionSettings | None, NO_OPTION] = None
    influence: Annotated[InfluenceSettings | None, NO_OPTION] = None
    template: Annotated[str, NO_OPTION] = "auto"
    max_length: Annotated[int | None, Flag(panel=ENCODING)] = None
    load: LoadSettings = field(default_factory=LoadSettings)
    batch_size: Annotated[int | None, BATCH_SIZE] = None
    verify: Annotated[bool, Flag(panel=OUTPUT)] = True
    mitigation: Annotated[Path | None, Flag(metavar="M", convert=_resolved)] = None

    def check(self) -> None:
        """Do nothing if these settings make sense together; called where a measurement begins.

        Raises:
            UserError: for unknown parameters, or what a decoding method does not have.
        """
        from ..models.parameters import ParameterSelection

        if self.kernel is not None:
            ParameterSelection.parse(self.kernel.parameters)
        inner = (self.kernel, self.activations, self.directions, self.influence)
        if self.mitigation is None or not any(inner):
            return
        if mitigations.load(self.mitigation).kind == "decoding":
            raise UserError(
                f"{self.mitigation} is a decoding method, which has refusal probabilities but no "
                "kernel, activations, directions or influence of its own: measure it with --only "
                "refusal"
            )

    @property
    def filter_of_directions(self) -> PhraseSet:
        """The phrases whose filter decides which prompts count as refused for directions."""
        given = self.directions.phrases if self.directions else None
        return given or (self.refusal or RefusalSettings()).phrase_sets[0]

    def _directions_record(self) -> dict[str, Any] | None:
        if self.directions is None:
            return None
        how, given = self.directions, self.filter_of_directions
        name = "xstest" if given.prefixes == REFUSAL_PREFIXES else given.label
        return {"layers": how.layers, "max_new_tokens": how.max_new_tokens, "filter": name}

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
            "refusal": self.refusal.record() if self.refusal else None,
            "activations": asdict(self.activations) if self.activations else None,
            "directions": self._directions_record(),
            "influence": self.influence.record() if self.influence else None,
        }


def require_same(folder: object, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise if a setting of `new` contradicts `old`; what only one of them has is no contradiction.

    Args:
        folder: for the message.
        old: what a folder's `run.json` says.
        new: what is asked for now.

    Raises:
        UserError: naming the first such setting with both values.
    """
    if old and bool(old.get("stages")) != bool(new.get("stages")):
        kinds = ("the steps of one run", "named stages")
        before_is, now_is = (kinds[bool(record.get("stages"))] for record in (old, new))
        raise UserError(
            f"{folder} holds {before_is}, and these are {now_is}: give another --output-dir, or "
            "--overwrite"
        )
    before, now = (
        {
            name: value
            for name, value in leaves({key: record.get(key) for key in COMPARED}, NOT_COMPARED)
            if value is not None or name != "model.base_identity"
        }
        for record in (old, new)
    )
    if old.get("model"):  # what was measured before there were mitigations had none
        before.setdefault("model.mitigation", None)
    if old.get("influence"):  # nor were pairs learnt with a run's own system message
        before.setdefault("influence.system", None)
    require_same_settings(folder, "measured", before, now)
