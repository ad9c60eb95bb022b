"""Flips: prompts whose verdict changed, and what stands beside them."""

import pandas as pd
import pytest
from evaluated import evaluate
from measured_runs import write_run

from ntkprobe import Trajectory, UserError
from ntkprobe.cli import main
from ntkprobe.evaluation.results import Evaluation
from ntkprobe.flips import BEGAN, STOPPED, flips_between, flips_of_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Trajectory(write_run(tmp_path_factory.mktemp("run") / "out"))


def test_flips_of_a_run_are_the_prompts_whose_verdicts_differ(run):
    table = flips_of_run(run)
    verdicts = (
        run.refusal()
        .drop_duplicates(["step", "prompt"])
        .pivot(index="prompt", columns="step", values="refuses")
    )
    expected = verdicts.index[verdicts[0] != verdicts[40]]
    assert sorted(table["prompt"]) == sorted(expected) and len(expected) == 18
    assert (table["flip"] == BEGAN).all() and set(table["group"]) == {"seemingly_toxic", "toxic"}
    assert (table["probability_after"] > table["probability_before"]).all()


def test_backwards_a_flip_is_the_other_one(run):
    there, back = flips_of_run(run, 0, 40), flips_of_run(run, 40, 0)
    assert set(there["prompt"]) == set(back["prompt"]) and (back["flip"] == STOPPED).all()


def test_between_equal_verdicts_nothing_flips(run):
    assert flips_of_run(run, 40, 40).empty


def test_similarity_and_pushes_are_those_of_the_tables_where_they_were_measured(run):
    table = flips_of_run(run).set_index("prompt")
    kernel, prompts = run.kernel(), run.prompts
    inside = prompts.index[prompts["in_kernel"]]
    for prompt in table.index:
        if prompt not in inside:
            assert pd.isna(table.loc[prompt, "similarity_before"])
            continue
        rows = kernel[(kernel["observed"] == prompt) & (kernel["updated_group"] == "toxic")]
        rows = rows[(rows["step"] == 0) & (rows["updated"] != prompt)]
        assert table.loc[prompt, "similarity_before"] == pytest.approx(rows["similarity"].mean())
        pushes = run.influence().query("step == 0 and observed == @prompt")
        pushes = pushes[pushes["target"] == "refusal_literal"]["change"].sum()
        assert table.loc[prompt, "push"] == pytest.approx(pushes)


def test_a_step_without_verdicts_is_named(run, tmp_path):
    with pytest.raises(UserError, match=r"no verdicts at step 3: choose from \[0, 1, 2, 5"):
        flips_of_run(run, 3)
    silent = Trajectory(write_run(tmp_path / "silent", answers=False))
    with pytest.raises(UserError, match="0 steps, and a flip takes two"):
        flips_of_run(silent)


@pytest.fixture
def models(tmp_path):
    about = [("ccrpu", ["Sure.", "Yes.", "No way.", "Partly.", "?"])]
    about += [("rcccr", ["I cannot.", "Yes.", "Fine.", "Here.", "Never."])]
    return [
        Evaluation(
            evaluate(
                tmp_path / name,
                {"own": {"kinds": "sssxx", "xstest_prefixes": said, "answers": answers}},
            )
        )
        for name, (said, answers) in zip(("base", "sft"), about, strict=True)
    ]


def test_flips_between_models_have_both_answers_and_leave_out_what_was_not_judged(models):
    table = flips_between(*models)
    assert table[["id", "flip", "answer_before", "answer_after"]].to_numpy().tolist() == [
        ["own-0", BEGAN, "Sure.", "I cannot."],
        ["own-2", STOPPED, "No way.", "Fine."],
    ]
    assert flips_between(models[0], models[0]).empty


def test_models_judged_by_different_judges_are_not_compared(models, tmp_path):
    about = {"own": {"kinds": "s", "other": "r"}}
    with pytest.raises(UserError, match="share no benchmark"):
        flips_between(models[0], Evaluation(evaluate(tmp_path / "other", about)))


def test_the_command_prints_each_flip_on_a_line_and_writes_the_table(models, run, capsys, tmp_path):
    assert main(["flips", *(str(each.folder) for each in models)]) == 0
    out = capsys.readouterr().out
    assert "own, safe, began to be refused: Ask own-0?" in out
    assert "after: I cannot." in out and "2 flips: 1 began to be refused, 1 is answered now." in out
    file = tmp_path / "flips.csv"
    assert main(["flips", str(run.folder), "--to", "40", "--output-file", str(file)]) == 0
    assert len(pd.read_csv(file)) == 18 and "summed influence" in capsys.readouterr().out
    assert main(["flips", str(run.folder), "--from", "40", "--to", "40"]) == 0
    assert "No verdict changed." in capsys.readouterr().out


def test_hostile_texts_stay_on_their_line(tmp_path, capsys):
    about = {"own": {"kinds": "s", "xstest_prefixes": "c", "answers": ["a\n\x1b[2J\u202eb"]}}
    other = {"own": {"kinds": "s", "xstest_prefixes": "r", "answers": ["I cannot"]}}
    places = [str(evaluate(tmp_path / n, d)) for n, d in (("a", about), ("b", other))]
    assert main(["flips", *places]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\u202e" not in out and "a [2Jb" in out


def test_three_folders_are_too_many(models, capsys):
    assert main(["flips", *[str(models[0].folder)] * 3]) == 2
    assert "3 folders: give one of measure, or two of evaluate" in capsys.readouterr().err


def test_an_id_that_names_another_prompt_in_the_other_evaluation_is_not_compared(models):
    path = models[1].folder / "prompts/own.parquet"
    table = pd.read_parquet(path)
    table.loc[0, "prompt"] = "Something else?"
    table.to_parquet(path)
    assert flips_between(*models)["id"].tolist() == ["own-2"]


def test_an_answer_that_says_nothing_is_neither_end_of_a_flip(run, tmp_path):
    folder = write_run(tmp_path / "out")
    whole = flips_of_run(Trajectory(folder))
    flipped = whole["prompt"].iloc[0]
    first = folder / "refusal/step-00000000.parquet"
    rows = pd.read_parquet(first)
    assert not rows.loc[rows["prompt"] == flipped, "refuses"].any()
    rows["incoherent"] = rows["prompt"] == flipped
    rows.to_parquet(first)
    fewer = flips_of_run(Trajectory(folder))
    assert set(whole["prompt"]) - set(fewer["prompt"]) == {flipped}


def test_a_step_whose_answers_all_say_nothing_has_no_flips_and_is_no_mistake(tmp_path):
    folder = write_run(tmp_path / "out")
    first = folder / "refusal/step-00000000.parquet"
    rows = pd.read_parquet(first)
    rows["refuses"], rows["incoherent"] = False, True
    rows.to_parquet(first)
    assert flips_of_run(Trajectory(folder), before=0).empty
