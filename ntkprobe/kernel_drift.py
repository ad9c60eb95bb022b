"""The drift of a kernel: one minus its cosine with an earlier one, whole and by pair of groups."""

from collections.abc import Collection, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from .errors import UserError

_AGAIN = (
    "measure into another folder with"
    " `ntkprobe measure --only kernel --top-k-at first --keep-blocks`"
)


def drift_rows(first: np.ndarray, now: np.ndarray, groups: Sequence[str]) -> pd.DataFrame:
    """Return the drift of one kernel from another.

    Args:
        first: K_0, `[n, k, n, k]`.
        now: K_t, of the same prompts and tokens.
        groups: of the n prompts.

    Returns:
        `observed_group, updated_group, drift, pairs`: the whole kernel, whose groups are missing,
        then every ordered pair of groups, in the order of their first prompts.
    """
    rows: list[tuple[str | None, str | None, float, int]] = [
        (None, None, cosine_distance(first, now), len(groups) ** 2)
    ]
    members = {name: np.flatnonzero(np.array(groups) == name) for name in dict.fromkeys(groups)}
    for observed, updated in product(members, members):
        a, b = members[observed], members[updated]
        part = cosine_distance(first[a][:, :, b], now[a][:, :, b])
        rows.append((observed, updated, part, len(a) * len(b)))
    return pd.DataFrame(rows, columns=["observed_group", "updated_group", "drift", "pairs"])


def cosine_distance(first: np.ndarray, now: np.ndarray) -> float:
    """Return 1 − ⟨K_t, K_0⟩_F / (‖K_t‖_F ‖K_0‖_F); NaN where one of them is 0.

    As ½ ‖K_t / ‖K_t‖ − K_0 / ‖K_0‖‖², which keeps all digits for a small drift.

    Args:
        first: K_0.
        now: K_t, of the same shape.

    Returns:
        From 0, the same direction, to 2, the opposite one.
    """
    a, b = (k.astype(float).ravel() for k in (first, now))
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    if not all(lengths):
        return float("nan")
    return float(np.square(b / lengths[1] - a / lengths[0]).sum() / 2)


def require_fixed_tokens(
    folder: Path, steps: Sequence[int], kept: Collection[int], tokens: pd.DataFrame
) -> None:
    """Raise where there is no K of every step over the same tokens.

    Args:
        folder: for the message.
        steps: at which the kernel was measured.
        kept: at which its blocks were kept.
        tokens: `step, prompt, rank, token`.

    Raises:
        UserError: saying how to measure it.
    """
    bare = [step for step in steps if step not in kept]
    if bare or not steps:
        at = f" at step {bare[0]}" if kept else ""
        raise UserError(f"{folder} has no blocks of the kernel{at}: {_AGAIN}")
    wide = tokens.pivot(index=["prompt", "rank"], columns="step", values="token")
    for step in steps[1:]:
        if not wide[step].equals(wide[steps[0]].rename(step)):
            raise UserError(
                f"{folder} has other tokens at step {step} than at step {steps[0]}, so that their "
                f"kernels cannot be compared: {_AGAIN}"
            )
