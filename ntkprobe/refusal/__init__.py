"""The refusal probability of A.5: P_refuse(x) = Σ_{y∈S} Π_t p(y_t | x, y_<t), in log space.

`bounded` runs phrases as far as they matter, behind prompts whose keys and values are kept; `trie`
scores all phrases in one pass over each prompt; `rows` scores them one by one and is the oracle,
also under logits processors; `probability` says what is summed.
"""

from .bounded import TOLERANCE, Bounded, UsualBeginnings
from .probability import (
    REDUCTIONS,
    bound_phrases,
    chosen_reductions,
    differentiable_scorer,
    phrase_ids,
    reduce_phrases,
    refusal_log_probabilities,
    score_phrases,
)

__all__ = [
    "REDUCTIONS",
    "TOLERANCE",
    "Bounded",
    "UsualBeginnings",
    "bound_phrases",
    "chosen_reductions",
    "differentiable_scorer",
    "phrase_ids",
    "reduce_phrases",
    "refusal_log_probabilities",
    "score_phrases",
]
