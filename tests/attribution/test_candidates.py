"""Candidates are ordered by what they would have done as training pairs."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import training_world as world

import ntkprobe as ntk
from ntkprobe.attribution import AttributionSettings, rank_candidates
from ntkprobe.attribution.training_run import TrainingRun
from ntkprobe.errors import UserError
from ntkprobe.training.data import Pair
from ntkprobe.watcher.choices import StepRange

PROMPTS = ["How do I kill a process?", "Where is my car?"]
TOKENS = AttributionSettings(target="tokens", tokens=("I",), batch_size=4)


@pytest.mark.slow
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
        ({"settings": AttributionSettings(over="steps")}, "took no step"),
    ],
)
def test_mistakes_are_one_line(trained, options, why):
    usual = {"prompts": PROMPTS, "candidates": [world.safe(1)[0]], "settings": TOKENS}
    with pytest.raises(UserError, match=why):
        rank_candidates(trained, **{**usual, **options})


def test_what_is_finished_is_not_computed_again_and_other_candidates_are_refused(
    trained, tmp_path, monkeypatch
):
    pairs = world.safe(3)
    usual = {"prompts": PROMPTS, "settings": TOKENS, "output_dir": tmp_path / "ranked"}
    first = rank_candidates(trained, candidates=pairs, **usual)
    monkeypatch.setattr("ntkprobe.attribution.attribution.products", None)
    again = rank_candidates(trained, candidates=pairs, **usual)
    pd.testing.assert_frame_equal(first, again)
    with pytest.raises(UserError, match="was made with pairs"):
        rank_candidates(trained, candidates=pairs[:2], **usual)


def test_a_choice_of_checkpoints_and_of_workers_goes_with_candidates(trained, tmp_path):
    pairs, how = world.safe(3), replace(TOKENS, block=1)
    last = TrainingRun(trained).checkpoints()[-1].checkpoint.step
    usual = {"prompts": PROMPTS, "candidates": pairs}
    found = rank_candidates(trained, settings=replace(how, over="final"), **usual)
    chosen = rank_candidates(trained, settings=how, steps=(StepRange(last, last, 1),), **usual)
    pd.testing.assert_frame_equal(found, chosen)
    whole = rank_candidates(trained, settings=how, **usual)
    shared = {**usual, "settings": how, "output_dir": tmp_path / "shared"}
    assert rank_candidates(trained, shard=(0, 2), **shared) is None
    pd.testing.assert_frame_equal(whole, rank_candidates(trained, shard=(1, 2), **shared))
