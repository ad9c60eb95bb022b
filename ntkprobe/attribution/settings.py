"""What is attributed, over what, and how.

Loads no torch, since the options of `ntkprobe why` are made of these settings.
"""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from ..errors import UserError, count
from ..models.projection_settings import ProjectionSettings
from ..settings import LOADING, NO_OPTION, Flag, LoadSettings

TARGETS = ("refusal", "refusal_prefix_free", "tokens", "response")
OVER = ("checkpoints", "final", "steps")
ESTIMATORS = ("exact", "sketch")
LOSSES = ("sum", "mean")  # those of `measurement.influence` that are of a whole answer
ATTRIBUTION = "Attribution"
"""Heading of the options in `ntkprobe why --help`."""


def _typed_tokens(texts: list[str] | None) -> tuple[str, ...]:
    """Return the tokens of `--token`."""
    return tuple(texts or ())


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
        parameters: those that training moves; `auto` is `lora` with an adapter, else `all`.
        projection: sizes of the sketch.
        batch_size: pairs in one pass, which changes no number.
        block: pairs in one file; a stopped run repeats one block at most.
        load: how models are loaded.
    """

    target: Annotated[str, Flag(panel=ATTRIBUTION)] = "refusal"
    tokens: Annotated[
        tuple[int | str, ...],
        Flag(
            panel=ATTRIBUTION,
            name="token",
            metavar="TEXT",
            typed=list[str] | None,
            convert=_typed_tokens,
            help="With --target tokens: a token; may be repeated.",
        ),
    ] = ()
    over: Annotated[str, Flag(panel=ATTRIBUTION)] = "checkpoints"
    estimator: Annotated[str, Flag(panel=ATTRIBUTION)] = "exact"
    loss: Annotated[str, Flag(panel=ATTRIBUTION)] = "sum"
    parameters: Annotated[str, Flag(panel=ATTRIBUTION)] = "auto"
    projection: Annotated[ProjectionSettings, Flag(only=("side", "parts"))] = field(
        default_factory=lambda: ProjectionSettings(side=4)
    )
    batch_size: Annotated[int, Flag(panel=LOADING)] = 16
    block: Annotated[int, NO_OPTION] = 256
    load: Annotated[LoadSettings, Flag(only=("dtype", "device"))] = field(
        default_factory=lambda: LoadSettings(attn_implementation="sdpa")
    )

    def __post_init__(self) -> None:
        """Refuse what is none of the choices.

        Raises:
            UserError: naming them.
        """
        choices = {"target": TARGETS, "over": OVER, "estimator": ESTIMATORS, "loss": LOSSES}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"no {name} {getattr(self, name)!r}: choose from {list(allowed)}")
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
            from ..models.parameters import ParameterSelection

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
