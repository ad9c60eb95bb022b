"""`influence`: one backward pass per updated pair, then one pass over the observed prompts."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import UserError, require
from ...kernel import last_logits
from ...models.generation import length_batches, require_measurable, require_vocabulary
from ...models.memory import free_bytes
from ...models.parameters import ParameterSelection
from ...models.validation import finite
from ...progress import progress as long_stage
from ...prompts.phrases import phrase_set
from ...prompts.templates import RAW, Template
from ...refusal import chosen_reductions, phrase_ids
from ...refusal.probability import LARGEST
from ..encoding import evaluating
from .examples import Example, encode_examples, encode_observed, require_room
from .observations import LogProbabilities, Observation, Refusals, a_norms
from .result import Influence
from .updates import Direction, Update, update, weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODES = ("auto", "forward", "reverse")
GRADIENT_SHARE = 0.3
"""Of the free memory, the most for gradients of updated pairs, which are multiplied together."""
_PREDICTION_BYTES = 1 << 33
"""The most memory for predictions."""


def influence(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase | None",
    *,
    observed: Any,
    updated: Any,
    loss: str = "sum",
    tokens: str | Sequence[int] | Tensor | None = "all",
    phrases: str | Sequence[Any] | None = "paper31",
    apostrophes: str = "ascii",
    reductions: str | Sequence[str] = ("literal",),
    parameters: str | ParameterSelection = "auto",
    template: str | Template = "auto",
    max_length: int | None = None,
    batch_size: int = 32,
    mode: str = "auto",
    progress: bool = False,
) -> Influence:
    """Predict what a step of gradient descent on each pair does to each observed prompt (Eq. 2).

    Args:
        model: any causal language model, in memory.
        tokenizer: its tokenizer; None where everything is given as token ids.
        observed: the prompts x′: a `PromptSet`, texts, or rows of token ids.
        updated: the pairs (x, y): `(prompt, answer)`, prompts with a `response`, or pairs of ids.
        loss: `sum` over the answer's tokens (an example's term in a batch's loss), their `mean`, or
            the `first_token` only, as in the paper.
        tokens: the tokens whose log-probabilities are predicted: `all`, vocabulary ids, or None.
        phrases: the refusal phrases whose probability is predicted: a set's name, texts, token ids,
            or None. Names and texts need a tokenizer; without one they are left out.
        apostrophes: `ascii`, `curly` or `both`, for a named set.
        reductions: how phrases are summed, `literal`, `prefix_free`, or both.
        parameters: which parameters the step moves; `auto` is `lora` with an adapter, else `all`.
        template: how prompts become tokens.
        max_length: longer observed prompts lose the end of their text.
        batch_size: observed prompts in one forward pass; it changes no result.
        mode: how log P_refuse is differentiated: `forward`, a pass over all observed prompts for
            each pair; `reverse`, a pass for each observed prompt and group of pairs; `auto`,
            `reverse` where the gradients of several pairs fit into 0.3 of the free memory together.
        progress: show a bar on stderr.

    Returns:
        The predicted changes per unit step.
    """
    require(mode in MODES, f"no mode {mode!r}: choose from {list(MODES)}")
    weights(1, loss)  # refuses a wrong name before anything is computed
    encoded, ids = encode_observed(tokenizer, observed, template, max_length)
    pairs, examples = encode_examples(tokenizer, updated, encoded.template if encoded else None)
    ends = refusal_phrases(tokenizer, phrases, apostrophes, encoded.template if encoded else RAW)
    require(tokens is not None or ends, "nothing to predict: give tokens=, phrases=, or both")
    selected_reductions = chosen_reductions(reductions) if ends else ()
    selection = trained_parameters(model) if parameters == "auto" else parameters
    with evaluating(model):
        new_tokens = max(map(len, ends), default=1) - 1
        require_measurable(model, ids, new_tokens, gradients=True)
        require_room(model, examples)
        chosen = ParameterSelection.parse(selection).parameters(model)
        token_ids = vocabulary_ids(model, tokens)
        prediction = _Prediction(model, chosen, ids, batch_size, mode)
        if tokens is not None:
            prediction.predict_tokens(len(examples), token_ids)
        if ends:
            prediction.predict_refusals(ends, selected_reductions)
        total = len(examples) * len(ids) * ((tokens is not None) + bool(ends))
        with long_stage(total=total, desc="influence", unit="product", disable=not progress) as bar:
            prediction.done = bar.update
            for some in prediction.batches(examples):
                prediction.add([update(model, each, chosen, loss) for each in some])
        found = prediction.fields()
    settings = {
        "loss": loss,
        "parameters": str(selection),
        "phrases": phrases if isinstance(phrases, str) else "given",
        **(encoded.record if encoded else {"template": None}),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    return Influence(
        observed=encoded.prompts if encoded else None,
        updated=pairs,
        tokens=token_ids,
        settings=settings,
        **found,
    )


def trained_parameters(model: nn.Module) -> str:
    """Return the selection of what training moves: `lora` with an adapter, else `all`."""
    return "lora" if getattr(model, "peft_config", None) else "all"


class _Prediction:
    """The passes over the observed prompts, and their predictions so far."""

    def __init__(
        self,
        model: nn.Module,
        chosen: dict[str, nn.Parameter],
        ids: list[Tensor],
        batch_size: int,
        mode: str,
    ) -> None:
        self.model, self.chosen, self.ids = model, chosen, ids
        self.batch_size, self.mode = batch_size, mode
        self.done: Callable[[int], Any] = lambda products: None
        self._tokens: LogProbabilities | None = None
        self._refusals: Refusals | None = None
        self._updates: list[tuple[float, float, float]] = []
        self._a_norms: Tensor | None = None
        self._of_tokens: list[Tensor] = []
        self._of_refusals: list[Tensor] = []

    def predict_tokens(self, pairs: int, token_ids: Tensor | None) -> None:
        """Predict log-probabilities, of all tokens or of `token_ids`."""
        size = self._vocabulary if token_ids is None else len(token_ids)
        room = 8 * pairs * len(self.ids) * size
        require(
            room <= _PREDICTION_BYTES,
            f"{pairs} × {len(self.ids)} × {size} log-probabilities take {room / 2**30:.0f} GiB:"
            " give tokens= fewer ids, or None",
        )
        self._tokens = LogProbabilities(self.model, self.chosen, token_ids)

    def predict_refusals(self, ends: list[tuple[int, ...]], reductions: Sequence[str]) -> None:
        """Predict log P_refuse."""
        longest = max(self.ids, key=len)
        self._refusals = Refusals(self.model, self.chosen, ends, reductions, longest)

    def batches(self, examples: list[Example]) -> Iterator[list[Example]]:
        """Yield the pairs in groups whose gradients fit into memory together."""
        bytes_each = sum(p.numel() * max(4, p.element_size()) for p in self.chosen.values())
        free = GRADIENT_SHARE * free_bytes(next(iter(self.chosen.values())).device)
        alone = self.mode == "forward" or self._refusals is None  # no pass is shared by several
        most = 1 if alone else max(1, int(free / bytes_each))
        size = -(-len(examples) // -(-len(examples) // most))  # groups of about the same size
        for start in range(0, len(examples), size):
            yield examples[start : start + size]

    def add(self, updates: list[Update]) -> None:
        """Predict the changes by some updates, and append them."""
        self._updates += [(each.loss, each.g_norm, each.gradient_norm) for each in updates]
        if self._tokens is not None:
            for each in updates:
                logits, changes = self._forward(self._tokens, each.gradient)
                finite(logits, range(len(self.ids)))
                self._of_tokens.append(changes)
                self._a_norms = a_norms(logits) if self._a_norms is None else self._a_norms
        if self._refusals is not None:
            reverse = self.mode == "reverse" or (self.mode == "auto" and len(updates) > 1)
            if reverse:
                self._of_refusals += self._reverse(self._refusals, [u.gradient for u in updates])
            else:
                self._of_refusals += [self._forward(self._refusals, u.gradient)[1] for u in updates]

    def fields(self) -> dict[str, Any]:
        """Return the predictions, as fields of an `Influence`."""
        norms = self._a_norms
        if norms is None:
            norms = a_norms(_last_logits(self.model, self.ids, self.batch_size))
        losses, g_norm, gradient_norm = torch.tensor(self._updates, dtype=torch.float64).T
        refusals: dict[str, Tensor] = {}
        if self._refusals is not None:
            stacked = torch.stack(self._of_refusals)
            refusals = dict(zip(self._refusals.reductions, stacked.unbind(-1), strict=True))
        return {
            "log_probability": torch.stack(self._of_tokens) if self._of_tokens else None,
            "refusals": refusals,
            "losses": losses,
            "a_norm": norms,
            "g_norm": g_norm,
            "gradient_norm": gradient_norm,
        }

    def _forward(self, observation: Observation, gradient: Direction) -> tuple[Tensor, Tensor]:
        """Return the observed values and −J(x′) times a gradient, by forward mode, by prompt."""
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for rows in length_batches(self.ids, self._batch_size(observation)):
            values, changes = observation.directional_derivative(
                [self.ids[row] for row in rows], gradient
            )
            found |= dict(zip(rows, zip(values, -changes, strict=True), strict=True))
            self.done(len(rows))
        both = [found[row] for row in range(len(self.ids))]
        return torch.stack([z for z, _ in both]), torch.stack([change for _, change in both])

    def _reverse(self, observation: Observation, gradients: list[Direction]) -> list[Tensor]:
        """Return −J(x′) times several gradients, by a backward pass per observed prompt."""
        held = {
            name: torch.stack([each.pop(name).flatten() for each in gradients])
            for name in self.chosen
        }
        rows = []
        for prompt in self.ids:
            rows.append(observation.vjp_products(prompt, held))
            self.done(len(gradients))
        return list(-torch.stack(rows, 1))

    def _batch_size(self, observation: Observation) -> int:
        if not isinstance(observation, Refusals):
            return self.batch_size
        nodes = sum(map(len, observation.phrase_ids))
        return max(1, min(self.batch_size, LARGEST // (nodes * self._vocabulary)))

    @property
    def _vocabulary(self) -> int:
        model: Any = self.model
        return int(model.get_input_embeddings().weight.shape[0])


def refusal_phrases(
    tokenizer: Any, phrases: str | Sequence[Any] | None, apostrophes: str, template: Template
) -> list[tuple[int, ...]]:
    """Return the token ids of the refusal phrases, possibly none.

    Raises:
        UserError: for texts without a tokenizer.
    """
    if phrases is None or (tokenizer is None and phrases == "paper31"):
        return []
    texts = phrase_set(phrases, apostrophes=apostrophes) if isinstance(phrases, str) else phrases
    if tokenizer is None:
        if any(isinstance(each, str) for each in texts):
            raise UserError("phrases are texts: give them as token ids, or give the tokenizer")
        return [tuple(map(int, ids)) for ids in texts]
    return phrase_ids(tokenizer, list(texts), template)


def vocabulary_ids(model: Any, tokens: str | Sequence[int] | Tensor | None) -> Tensor | None:
    """Return the chosen vocabulary ids; None for all of them, or for no prediction of tokens.

    Raises:
        UserError: if they are not ids of the model's vocabulary.
    """
    if tokens is None or (isinstance(tokens, str) and tokens == "all"):
        return None
    if isinstance(tokens, str):
        raise UserError(f"tokens={tokens!r}: give 'all', vocabulary ids, or None")
    ids = torch.as_tensor(tokens, dtype=torch.long)
    require(ids.ndim == 1 and len(ids), "tokens= takes one list of vocabulary ids")
    require_vocabulary(model, ids, "tokens=")
    return ids


@torch.no_grad()
def _last_logits(model: nn.Module, ids: list[Tensor], batch_size: int) -> Tensor:
    """Return z of every prompt, `[observed, vocab]`."""
    found: list[Tensor] = [torch.empty(0)] * len(ids)
    for rows in length_batches(ids, batch_size):
        logits = finite(last_logits(model, [ids[row] for row in rows]), rows)
        for row, z in zip(rows, logits, strict=True):
            found[row] = z.cpu()
    return torch.stack(found)
