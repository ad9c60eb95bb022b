"""One model's kernel between prompts, as raw Frobenius norms."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor, nn

from .. import estimators, kernel, plugins
from ..errors import MeasurementWarning, UserError, count
from ..jupyter import paragraph, table
from ..kernel import Estimator
from ..models.parameters import ParameterSelection, parse_selections, remarks
from ..models.validation import check_loaded
from ..prompts.prompt_set import PromptSet
from ..prompts.templates import Template
from .encoding import Encoded, Texts, as_encoded, evaluating
from .readouts import Readout, Tokens, read_out, rows_and_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class KernelMeasurement:
    """The kernel between n prompts.

    Attributes:
        prompts: what was measured on; the order of rows and columns.
        norms: ‖K(x′,x)‖_F, `[n, n]` float64, rows observed x′, columns updated x.
        tokens: the vocabulary ids of each prompt's block, `[n, k]`; None if all logits were read.
        parts: with `by="layer"`: `observed, updated, layer, part, norm, share`.
        blocks: with `keep_blocks`: K, `[n, k, n, k]` float32.
        errors: with `random_probes` or the estimator `sketch`: the standard errors of the norms.
        texts: what `tokens` say, k for each prompt; None without tokens or a tokenizer.
        selections: with `selections`: the kernel over each of them, from the same pass.
        settings: everything that the numbers depend on.
    """

    prompts: PromptSet
    norms: Tensor
    tokens: Tensor | None
    parts: pd.DataFrame | None = None
    blocks: Tensor | None = None
    errors: Tensor | None = None
    texts: list[list[str]] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    selections: "dict[str, KernelMeasurement]" = field(default_factory=dict)

    def similarity(self, symmetric: bool = False) -> Tensor:
        """Return the normalised kernel.

        Args:
            symmetric: divide by the geometric mean of both prompts' own norms.

        Returns:
            `[n, n]`; by default the paper's, each row over its diagonal entry, so not symmetric.
        """
        return (kernel.symmetric_similarity if symmetric else kernel.similarity)(self.norms)

    def group_means(self, *, symmetric: bool = False, self_pairs: bool = False) -> pd.DataFrame:
        """Return the mean similarity between groups.

        Args:
            symmetric: of the symmetric similarity.
            self_pairs: whether a prompt's similarity with itself, which is 1, counts.

        Returns:
            `observed_group, updated_group, similarity`, a row per ordered pair.
        """
        groups = [prompt.group for prompt in self.prompts]
        means = kernel.group_means(self.similarity(symmetric), groups, self_pairs)
        columns = ["observed_group", "updated_group", "similarity"]
        return pd.DataFrame([(*pair, mean) for pair, mean in means.items()], columns=columns)

    def frame(self) -> pd.DataFrame:
        """Return one row per ordered pair: the columns of `Trajectory.kernel` without `step`."""
        n = len(self.prompts)
        observed, updated = (t.reshape(-1).numpy() for t in rows_and_columns(n))
        groups = pd.Series([prompt.group for prompt in self.prompts])
        errors = {} if self.errors is None else {"norm_error": self.errors.reshape(-1).numpy()}
        return pd.DataFrame(
            {
                "observed": observed,
                "updated": updated,
                "observed_group": groups[observed].to_numpy(),
                "updated_group": groups[updated].to_numpy(),
                "norm": self.norms.reshape(-1).numpy(),
                **errors,
                "similarity": self.similarity().reshape(-1).numpy(),
                "symmetric_similarity": self.similarity(symmetric=True).reshape(-1).numpy(),
            }
        )

    def token_frame(self) -> pd.DataFrame:
        """Return which tokens each block is made of: the columns of `Trajectory.tokens`, no `step`.

        Returns:
            `prompt, rank, token, text`, a row per token; none where all logits were read.
        """
        ids = [] if self.tokens is None else self.tokens.tolist()
        texts: Sequence[Sequence[str | None]] = self.texts or [[None] * len(block) for block in ids]
        rows = [
            (prompt, rank, token, text)
            for prompt, pairs in enumerate(map(zip, ids, texts))
            for rank, (token, text) in enumerate(pairs)
        ]
        return pd.DataFrame(rows, columns=["prompt", "rank", "token", "text"])

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Return the Axes with the paper's similarity of all pairs as a heat map."""
        from .drawing import draw_matrix

        return draw_matrix(self.similarity().numpy(), self.prompts, ax)

    def __repr__(self) -> str:
        return f"KernelMeasurement({self.prompts.describe()})"

    def _repr_html_(self) -> str:
        means = self.group_means().pivot(
            index="observed_group", columns="updated_group", values="similarity"
        )
        what = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return (
            paragraph(f"Kernel between {self.prompts.describe()}: {what}")
            + paragraph("Similarity ‖K(x′,x)‖ / ‖K(x′,x′)‖, means over pairs of prompts")
            + table(means)
            + paragraph("The most similar pairs of different groups")
            + table(self._nearest_across(), index=False)
        )

    def _nearest_across(self, rows: int = 5) -> pd.DataFrame:
        """Return the texts of the pairs across groups that are most similar."""
        pairs = self.frame().query("observed_group != updated_group")
        nearest = pairs.nlargest(rows, "similarity")
        texts = pd.Series([prompt.text for prompt in self.prompts])
        columns = {
            "observed x′": nearest["observed"].map(texts),
            "updated x": nearest["updated"].map(texts),
            "similarity": nearest["similarity"],
        }
        if self.texts is not None:
            said = pd.Series([" · ".join(_shown(text) for text in row[:5]) for row in self.texts])
            columns["tokens read at x′"] = nearest["observed"].map(said)
            columns["at x"] = nearest["updated"].map(said)
        return pd.DataFrame(columns)


def measure_kernel(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Texts | Encoded,
    *,
    estimator: str | Estimator = "gram",
    parameters: str | ParameterSelection = "all",
    selections: Sequence[str | ParameterSelection] = (),
    top_k: int = 10,
    tokens: Tokens | None = None,
    full_vocabulary: bool = False,
    random_probes: int | None = None,
    template: str | Template = "auto",
    max_length: int | None = None,
    by: str | None = None,
    keep_blocks: bool = False,
    batch_size: int | None = None,
) -> KernelMeasurement:
    """Measure the eNTK between all ordered pairs of prompts (A.6).

    Args:
        model: any causal language model; in memory, in one process. One in training mode is held
            in evaluation mode meanwhile, without dropout (an estimator called itself refuses it).
        tokenizer: its tokenizer.
        prompts: what to measure on; all pairs cost memory and time with the square of their number.
        estimator: `gram`, `finite_difference`, `forward_mode`, `dense`, `sketch`, or one with its
            settings.
        parameters: which parameters the kernel is over, in the grammar of `--parameters`.
        selections: measure over each of these as well, in the one pass that `gram` takes anyway:
            K is a sum over parameters.
        top_k: size of the block: each prompt's k most probable next tokens, by this model.
        tokens: the tokens of the blocks instead: `[k]` for all prompts, or `[n, k]`.
        full_vocabulary: read every logit, exactly, at as many backward passes as the model is wide.
        random_probes: estimate that from so many random weightings of all logits, with errors.
        template: how prompts become tokens.
        max_length: longer prompts lose the end of their text.
        by: `layer` keeps the share of every layer and part.
        keep_blocks: whether to keep the blocks, `n² k²` numbers.
        batch_size: prompts at a time, which changes no number; None leaves it to the estimator.

    Returns:
        The norms of all blocks, and what was asked for. What should be known about a selection on
        this model (tied ends, an adapter counted besides the base) is an
        `errors.MeasurementWarning`.

    Raises:
        UserError: if a name is unknown, or the model cannot be measured.
    """
    if by not in (None, "layer"):
        raise UserError(f"no split by {by!r}: the only one is 'layer'")
    check_loaded(model)
    encoded = as_encoded(tokenizer, prompts, template, max_length)
    readout = Readout(top_k, tokens, full_vocabulary, random_probes, batch_size)
    method = plugins.instance(estimators, estimator)
    sized = method
    if batch_size is not None:
        count("batch_size", batch_size)
        sized = with_settings(method, batch_size=batch_size)
    selection = ParameterSelection.parse(parameters)
    others = parse_selections(selections)
    for remark in remarks(model, [selection, *others]):
        warnings.warn(remark, MeasurementWarning, stacklevel=2)
    with evaluating(model):
        found, besides = read_out(
            model, encoded, sized, selection, readout, by=by, blocks=keep_blocks, others=others
        )
    settings = {
        "estimator": repr(method),
        "parameters": str(selection),
        "reads": readout.name,
        **encoded.record,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    texts = token_texts(tokenizer, found["tokens"])
    each = {
        written: KernelMeasurement(
            encoded.prompts, settings={**settings, "parameters": written}, texts=texts, **fields
        )
        for written, fields in besides.items()
    }
    return KernelMeasurement(
        encoded.prompts, settings=settings, texts=texts, selections=each, **found
    )


def token_texts(
    tokenizer: "PreTrainedTokenizerBase | None", tokens: Tensor | None
) -> list[list[str]] | None:
    """Return the texts of tokens, `[n, k]`; None without tokens or a tokenizer."""
    if tokens is None or tokenizer is None:
        return None
    return [[str(tokenizer.decode([token])) for token in row] for row in tokens.tolist()]


def _shown(text: str) -> str:
    """Return a token for a line of them: one of blanks alone can be seen."""
    return text.strip() or repr(text)


def with_settings(method: Estimator, **settings: Any) -> Estimator:
    """Return an estimator with other settings, of those that it has.

    Args:
        method: the estimator.
        settings: by name; such as `batch_size`, prompts in one pass.

    Returns:
        A copy; the same where it has none of them.
    """
    own = getattr(method, "__dataclass_fields__", {})
    known = {name: value for name, value in settings.items() if name in own}
    return replace(method, **known) if known else method  # type: ignore[type-var]
