"""Candidates are ordered by what they would have done as training pairs."""

import numpy as np
import pytest
import training_world as world

import ntkprobe as ntk
from ntkprobe.attribution import AttributionSettings, rank_candidates
from ntkprobe.errors import UserError
from ntkprobe.training.data import Pair

PROMPTS = ["How do I kill a process?", "Where is my car?"]
TOKENS = AttributionSettings(target="tokens", tokens=("I",), batch_size=4)


@pytest.mark.parametrize("loss", ["sum", "mean"])
def test_training_pairs_as_candidates_have_the_changes_that_attribution_gives_them(trained, loss):
    how = AttributionSettings(target="tokens", tokens=("I",), loss=loss)
    whole = ntk.attribute(trained, prompts=PROMPTS, settings=how)
    pairs = [Pair(r.prompt, r.response) for r in whole.pairs.itertuples()]
    found = rank_candidates(trained, prompts=PROMPTS, candidates=pairs, settings=how)
    expected = dict(zip(pairs, whole.changes.mean(0), strict=True))
    given = [expected[Pair(r.prompt, r.response)] for r in found.itertuples()]
    np.testing.assert_allclose(found["change"], given, rtol=1e-3, atol=1e-9)
    assert (np.diff(found["change"]) >= 0).all() and np.ptp(found["change"]) > 0


def test_candidates_without_room_or_text_are_left_out(trained):
    pairs = [world.safe(1)[0], Pair("", "Yes."), Pair("How?" * 3000, "So.")]
    found = rank_candidates(trained, prompts=PROMPTS, candidates=pairs, settings=TOKENS)
    assert list(found["prompt"]) == [world.safe(1)[0].prompt]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"candidates": []}, "nothing to order"),
        ({"candidates": [Pair("", "x")]}, "no candidate has a prompt"),
        ({"settings": AttributionSettings(estimator="sketch")}, "ordered exactly"),
        ({"settings": AttributionSettings(over="steps")}, "ordered exactly"),
    ],
)
def test_mistakes_are_one_line(trained, options, why):
    usual = {"prompts": PROMPTS, "candidates": [world.safe(1)[0]], "settings": TOKENS}
    with pytest.raises(UserError, match=why):
        rank_candidates(trained, **{**usual, **options})
