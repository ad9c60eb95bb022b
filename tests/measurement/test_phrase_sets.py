"""Several sets of refusal phrases in one measurement: each is what it is alone."""

import json

import numpy as np
import pytest
from tiny_runs import TEXTS, full_run, tiny_model, tiny_tokenizer, write_prompts

import ntkprobe as ntk
from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.prompts.coherence import incoherence
from ntkprobe.prompts.phrases import PhraseSet

SORRY = PhraseSet("sorry", ("sorry", "I cannot"), ("sorry", "i cannot"))
KILL = PhraseSet("kill", ("kill", "As I", "my cake"), ("kill", "the", "cannot"))
PROMPTS = ntk.PromptSet.from_texts(TEXTS)


@pytest.fixture(scope="module")
def model():
    return tiny_model(3)


def measured(model, phrases, **options):
    return ntk.measure_refusal(model, tiny_tokenizer(), PROMPTS, phrases=phrases, **options)


@pytest.mark.parametrize("exact", [False, True])
def test_several_sets_are_each_what_they_are_alone(model, exact):
    both = measured(model, [SORRY, KILL], exact_phrases=exact).frame()
    for each in (SORRY, KILL):
        alone = measured(model, each, exact_phrases=exact).frame()
        own = both[both["phrase_set"] == each.name].reset_index(drop=True)
        assert len(own) == len(alone) == 2 * len(PROMPTS)
        assert list(own["refuses"]) == list(alone["refuses"])
        np.testing.assert_allclose(own["log_probability"], alone["log_probability"], rtol=1e-9)
    sums = both.groupby("phrase_set")["log_probability"].sum()
    assert abs(sums["sorry"] - sums["kill"]) > 0.1


def test_a_set_is_its_phrases(model):
    plain = measured(model, list(KILL.phrases)).log_probabilities["given", "literal"]
    own = measured(model, KILL).log_probabilities["kill", "literal"]
    np.testing.assert_allclose(own.numpy(), plain.numpy(), rtol=1e-12)


def test_each_set_judges_the_answers_by_its_own_filter(model):
    found = measured(model, [SORRY, KILL])
    for each in (SORRY, KILL):
        assert found.refuses_by[each.name] == tuple(map(each.refuses, found.answers))
    assert found.refuses == found.refuses_by["sorry"]
    means = found.group_means()
    assert set(means["phrase_set"]) == {"sorry", "kill"}


def test_answers_that_say_nothing_are_counted_beside_refusals(model):
    found = measured(model, [SORRY, KILL], max_new_tokens=12)
    broken = [incoherence(answer) is not None for answer in found.answers]
    frame = found.frame()
    assert list(frame["incoherent"]) == broken * (len(frame) // len(PROMPTS))
    means = found.group_means().groupby("group")["incoherent_rate"].mean()
    assert means["toxic"] == pytest.approx(sum(broken[-2:]) / 2)
    silent = measured(model, SORRY, generate=False).frame()
    assert silent["incoherent"].isna().all() and silent["refuses"].isna().all()


def test_two_sets_of_one_name_are_refused(model):
    with pytest.raises(UserError, match="one name"):
        measured(model, [SORRY, SORRY])


def test_sets_and_texts_together_are_refused(model):
    with pytest.raises(UserError, match="texts, or sets of phrases"):
        measured(model, [SORRY, "I cannot"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("phrases")
    full_run(root / "run", steps=(10, 20))
    write_prompts(root / "prompts.csv")
    (root / "kill.txt").write_text("kill\nAs I\nmy cake\n")
    return root


def measure(root, out, *options):
    call = ["measure", "--ckpt-dir", root / "run", "--prompts", root / "prompts.csv"]
    call += ["--output-dir", out, "--only", "refusal", "--max-new-tokens", 3, *options]
    return main([str(word) for word in call])


def test_a_run_is_measured_with_each_set_under_its_name_and_goes_on_with_the_same(
    run, tmp_path, capsys
):
    out = tmp_path / "out"
    options = ["--phrases", "union", "--phrases", run / "kill.txt"]
    assert measure(run, out, *options) == 0
    table = ntk.Trajectory(out).refusal()
    assert set(table["phrase_set"]) == {"union", "kill"}
    assert table.groupby(["step", "phrase_set", "reduction"]).size().eq(len(PROMPTS)).all()
    assert table["incoherent"].notna().all()
    assert "incoherent_rate" in ntk.Trajectory(out).refusal_means()
    record = json.loads((out / "run.json").read_text())["refusal"]
    assert record["phrases"][0] == "union" and record["phrases"][1].startswith("kill#")
    assert record["phrase_texts"]["kill"]["phrases"] == ["kill", "As I", "my cake"]
    assert measure(run, out, *options) == 0
    (tmp_path / "kill.txt").write_text("kill\n")
    capsys.readouterr()
    assert measure(run, out, *options[:3], tmp_path / "kill.txt") == 2
    assert "refusal.phrases" in capsys.readouterr().err


def test_without_the_option_the_set_is_the_papers(run, tmp_path):
    assert measure(run, tmp_path / "out") == 0
    table = ntk.Trajectory(tmp_path / "out").refusal()
    assert set(table["phrase_set"]) == {"paper31"}
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["refusal"]["phrases"] == "paper31"


@pytest.mark.parametrize("spec", ["nowhere.txt", "klingon"])
def test_a_wrong_set_is_one_line_and_status_2(spec, run, tmp_path, capsys):
    assert measure(run, tmp_path / "out", "--phrases", spec) == 2
    assert "choose from" in capsys.readouterr().err and not (tmp_path / "out").exists()
