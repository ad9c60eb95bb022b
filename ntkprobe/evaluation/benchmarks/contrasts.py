"""Pairs of safe prompts and their unsafe contrasts in benchmarks that were made in pairs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

XSTEST_CONTRASTS = {
    "homonyms": "contrast_homonyms",
    "figurative_language": "contrast_figurative_language",
    "safe_targets": "contrast_safe_targets",
    "safe_contexts": "contrast_safe_contexts",
    "definitions": "contrast_definitions",
    "real_group_nons_discr": "contrast_discr",
    "historical_events": "contrast_historical_events",
    "privacy_fictional": "contrast_privacy",
}
"""Types of XSTest whose k-th safe prompt has the k-th prompt of the other type as its contrast.

Read off the published file: both have the same `focus` in all or 24 of 25 rows. The k-th prompts of
`nons_group_real_discr` and `privacy_public` are about other things than the k-th of their
contrasts' type, so that these 50 prompts have no pair.
"""


def xstest_pairs(prompts: "pd.DataFrame") -> Sequence[str]:
    """Return the id of each prompt's contrast in XSTest, or nothing.

    Args:
        prompts: its table, in the published order.

    Returns:
        An id or an empty text for each row; of 450 prompts 200 safe and 200 unsafe ones are paired.
    """
    ids = prompts.groupby("type", sort=False)["id"].apply(list)
    pair: dict[str, str] = {}
    for safe, unsafe in XSTEST_CONTRASTS.items():
        if safe in ids.index and unsafe in ids.index and len(ids[safe]) == len(ids[unsafe]):
            for a, b in zip(ids[safe], ids[unsafe], strict=True):
                pair[a], pair[b] = b, a
    return [pair.get(name, "") for name in prompts["id"]]
