"""What is attributed, over what, and how."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ..checkpoints import LoadSettings
from ..errors import UserError, count
from ..measurement.influence import LOSSES
from ..models.parameters import ParameterSelection
from ..models.projections import ProjectionSettings

TARGETS = ("refusal", "refusal_prefix_free", "tokens", "response")
OVER = ("checkpoints", "final", "steps")
ESTIMATORS = ("exact", "sketch")


@dataclass(frozen=True, kw_only=True)
class AttributionSettings:
    """Settings of an attribution.

    Attributes:
        target: what changes: log P of `refusal` (or `refusal_prefix_free`), log π of the first
            token being one of `tokens`, or log π of the prompt's `response`.
        tokens: vocabulary ids or texts, for the target `tokens`.
        over: the sum over `checkpoints` with the learning rates of the steps around each (TracIn),
            the `final` checkpoint alone, or the optimiser's recorded `steps`.
        estimator: `exact`, or a `sketch`, from random projections with a standard error.
        loss: of a pair, `sum` over its answer's tokens, as a batch adds them up, or their `mean`.
        parameters: which move; `auto` is `lora` with an adapter, else `all`.
        projection: sizes of the sketch.
        batch_size: pairs in one pass, which changes no number.
        block: pairs in one file; a stopped run repeats one block at most.
        load: how models are loaded.
    """

    target: str = "refusal"
    tokens: tuple[int | str, ...] = ()
    over: str = "checkpoints"
    estimator: str = "exact"
    loss: str = "sum"
    parameters: str = "auto"
    projection: ProjectionSettings = field(default_factory=lambda: ProjectionSettings(side=4))
    batch_size: int = 16
    block: int = 256
    load: LoadSettings = field(default_factory=lambda: LoadSettings(attn_implementation="sdpa"))

    def __post_init__(self) -> None:
        """Refuse what is none of the choices.

        Raises:
            UserError: naming them.
        """
        for name, allowed in (("target", TARGETS), ("over", OVER), ("estimator", ESTIMATORS)):
            if getattr(self, name) not in allowed:
                raise UserError(f"no {name} {getattr(self, name)!r}: choose from {list(allowed)}")
        losses = [loss for loss in LOSSES if loss != "first_token"]
        if self.loss not in losses:
            raise UserError(f"no loss {self.loss!r}: choose from {losses}")
        if (self.target == "tokens") != bool(self.tokens):
            raise UserError("the target 'tokens' goes with tokens: give both, or neither")
        if self.over == "steps" and self.estimator != "exact":
            raise UserError("the sum over recorded steps is exact: leave out the sketch")
        if self.over == "steps" and (self.loss, self.parameters) != ("sum", "auto"):
            raise UserError(
                "the sum over recorded steps is of what the optimiser did: leave out loss and "
                "parameters"
            )
        if self.parameters != "auto":
            ParameterSelection.parse(self.parameters)
        count("batch_size", self.batch_size)
        count("block", self.block)

    def record(self) -> dict[str, Any]:
        """Return every setting that a number depends on."""
        kept = asdict(self)
        for name in ("batch_size", "load", "projection"):
            del kept[name]
        sketched = {"projection": asdict(self.projection)} if self.estimator == "sketch" else {}
        return {**kept, "tokens": list(self.tokens), "dtype": self.load.dtype, **sketched}
