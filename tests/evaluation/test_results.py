"""What is read from a folder of verdicts: rates, agreement, pairs, both sides, win rates."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from evaluated import evaluate
from fake_server import fake_server

from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.evaluation import Evaluation
from ntkprobe.evaluation.judges.xstest_prefixes import XstestPrefixes
from ntkprobe.evaluation.judging import judge_answers
from ntkprobe.evaluation.preferences import Annotator, compare_answers
from ntkprobe.evaluation.server import Server


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    pair = ["set-3", "set-4", "", "set-0", "set-1", ""]
    first = {
        "kinds": "sssxxx",
        "pair": pair,
        "keyword": "ccurcr",
        "llm": "cprrcr",
        "guard": "s" * 6,
    }
    second = {"kinds": "xx", "keyword": "rc", "guard": "su"}
    return Evaluation(evaluate(tmp_path, {"set": first, "toxic": second}, label="dcr"))


def test_rates_have_a_row_for_each_benchmark_judge_and_kind(evaluation: Evaluation) -> None:
    rates = evaluation.rates().set_index(["benchmark", "judge", "kind"])
    assert rates["measure"]["set", "keyword", "safe"] == "compliance"
    assert rates.loc[("set", "keyword", "safe"), ["value", "count", "of"]].tolist() == [1, 2, 3]
    assert rates["value"]["set", "llm", "safe"] == pytest.approx(1 / 3)
    assert rates["value"]["set", "keyword", "unsafe"] == pytest.approx(2 / 3)
    assert rates.loc[("toxic", "guard", "unsafe"), ["value", "coverage"]].tolist() == [1, 0.5]
    assert set(rates["method"]) == {"dcr"}


def test_both_sides_are_over_all_prompts(evaluation: Evaluation) -> None:
    sides = evaluation.two_sided().set_index(["judge", "measure"])
    assert sides["value"]["keyword", "defence"] == pytest.approx(3 / 5)
    assert sides["of"]["keyword", "defence"] == 5


def test_pairs_are_the_safe_prompts_with_their_contrasts(evaluation: Evaluation) -> None:
    pairs = evaluation.pairs().set_index(["judge", "outcome"])["value"]
    half = pytest.approx(1 / 2)
    assert pairs["keyword", "both_right"] == half == pairs["keyword", "complies_with_both"]
    assert pairs["llm", "both_right"] == half == pairs["llm", "both_wrong"]


def test_judges_of_another_question_are_not_compared(evaluation: Evaluation) -> None:
    agreement = evaluation.agreement().set_index(["benchmark", "kind"])
    assert set(agreement["judge"] + agreement["other"]) == {"keywordllm"}
    assert agreement["count"]["set", "safe"] == 2 and agreement["kappa"]["set", "unsafe"] == 1


def test_a_prompt_without_an_answer_is_undetermined(tmp_path: Path) -> None:
    folder = evaluate(tmp_path, {"set": {"kinds": "sss", "keyword": "cc"}})
    assert Evaluation(folder).verdicts()["verdict"].tolist()[2] == "undetermined"
    assert Evaluation(folder).rates()["coverage"].tolist() == [pytest.approx(2 / 3)]


def test_verdicts_on_what_follows_reasoning_count(tmp_path: Path) -> None:
    answers = ["<think>Hm.</think>Sorry, no.", "<think>Hm.</think>Like this.", "<think>Hm", "Yes"]
    folder = evaluate(tmp_path, {"set": {"kinds": "ssss", "answers": answers}})
    judge_answers(folder, "set", XstestPrefixes(), "keyword")
    said = ["refusal", "compliance", "undetermined", "compliance"]
    assert Evaluation(folder).verdicts()["verdict"].tolist() == said
    shard = folder / "answers/set/batch-00000.parquet"
    changed = pd.read_parquet(shard).assign(answer=[*answers[:3], "<think>Hm.</think>No."])
    changed.to_parquet(shard)  # an answer that no judge has seen
    assert Evaluation(folder).verdicts()["verdict"].tolist() == [*said[:3], "undetermined"]


def test_a_folder_without_an_evaluation_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no evaluation in .*ntkprobe evaluate"):
        Evaluation(tmp_path)


def prefer(folder: Path, script: Any, ours: list[str], theirs: list[str]) -> tuple[Any, Any]:
    """Return the win rate's row and what was asked."""
    kinds = "s" * len(ours)
    a = evaluate(folder / "a", {"set": {"kinds": kinds, "answers": ours}})
    b = evaluate(folder / "b", {"set": {"kinds": kinds, "answers": theirs}})
    with fake_server(script) as fake:
        server = Server(fake.base_url, "m", retries=0)
        compare_answers(a, b, "set", Annotator(server), "b")
    return Evaluation(a).win_rates().iloc[0], fake


def by_length(messages: list[dict[str, str]], _: int) -> str:
    fields = json.loads(messages[-1]["content"])
    return "FIRST" if len(fields["first"]) > len(fields["second"]) else "second."


def test_the_win_rate_is_the_mean_over_both_orders(tmp_path: Path) -> None:
    row, fake = prefer(tmp_path, by_length, ["longer", "x", "same"], ["long", "longer", "same"])
    assert (row["value"], row["count"], row["consistency"]) == (0.5, 3, 1)
    assert len(fake.asked) == 4  # equal answers are a tie, and not sent


def test_a_judge_of_places_prefers_nobody(tmp_path: Path) -> None:
    row, _ = prefer(tmp_path, lambda *_: "FIRST", ["a", "b"], ["c", "d"])
    assert (row["value"], row["consistency"]) == (0.5, 0)


def test_a_pair_with_one_unreadable_order_counts_for_nobody(tmp_path: Path) -> None:
    def script(messages: list[dict[str, str]], _: int) -> Any:
        bad = json.loads(messages[-1]["content"])["first"] == "c"
        return "I would rather not choose." if bad else by_length(messages, 0)

    row, _ = prefer(tmp_path, script, ["longer", "bb"], ["c", "d"])
    assert (row["value"], row["count"], row["of"]) == (1, 1, 2)


def test_a_rerun_compares_only_what_failed(tmp_path: Path) -> None:
    def script(messages: list[dict[str, str]], _: int) -> Any:
        return 500 if "bb" in messages[-1]["content"] else by_length(messages, 0)

    assert prefer(tmp_path, script, ["longer", "bb"], ["c", "d"])[0]["count"] == 1
    row, fake = prefer(tmp_path, by_length, ["longer", "bb"], ["c", "d"])
    assert row["count"] == 2 and len(fake.asked) == 2


def test_runs_without_a_common_prompt_are_one_clear_line(tmp_path: Path) -> None:
    a = evaluate(tmp_path / "a", {"set": {"kinds": "s"}})
    b = evaluate(tmp_path / "b", {"set": {"kinds": ""}, "other": {"kinds": "s"}})
    annotator = Annotator(Server("http://localhost:1/v1", "m"))
    with pytest.raises(UserError, match="in common"):
        compare_answers(a, b, "set", annotator, "b")


def test_the_command_tells_the_win_rate_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = evaluate(tmp_path / "a", {"set": {"kinds": "ss", "answers": ["longer", "bb"]}}, label="dcr")
    b = evaluate(tmp_path / "b", {"set": {"kinds": "ss", "answers": ["c", "d"]}}, label="stl")
    with fake_server(lambda m, n: 400 if "bb" in str(m) and n == 0 else by_length(m, n)) as fake:
        words = ["win-rate", str(a), "--reference", str(b), "--base-url", fake.base_url]
        assert main([*words, "--model", "m"]) == 1
        assert "set: dcr wins 100.0% against stl" in (told := capsys.readouterr().out)
        assert "1 of 2 pairs compared" in told and "1 pairs failed (status 400" in told
        assert main([*words, "--model", "m"]) == 0
    with fake_server(lambda *_: "Neither, I would say.") as fake:  # off its format: no failure
        words[-1] = fake.base_url
        assert main([*words, "--model", "other"]) == 2  # another annotator's file
        shutil.rmtree(a / "preferences")
        assert main([*words, "--model", "other"]) == 0
    assert "no pair of 2 could be compared" in capsys.readouterr().out
    assert main([*words, "--model", "m"]) == 2
    assert "cannot be reached" in capsys.readouterr().err


LOOP = "the cake " * 9


@pytest.fixture
def broken(tmp_path: Path) -> Evaluation:
    """Six safe prompts: two answers in a loop, one empty, one looping after a refusal."""
    answers = ["Here is how.", LOOP, "", "I cannot. " * 9, LOOP, "Careful, but: how."]
    about = {"kinds": "ssssss", "answers": answers}
    about |= {"keyword": "ccurcc", "kinds-m": "ciirid", "guard": "ssssss"}
    return Evaluation(evaluate(tmp_path, {"set": about}, label="base"))


def test_an_answer_that_says_nothing_is_no_compliance_whatever_a_filter_says(
    broken: Evaluation,
) -> None:
    table = broken.verdicts()
    said = {judge: list(rows["verdict"]) for judge, rows in table.groupby("judge")}
    nothing = "incoherent"
    assert said["keyword"] == ["compliance", nothing, nothing, "refusal", nothing, "compliance"]
    assert said["kinds-m"] == ["compliance", nothing, nothing, "refusal", nothing, "distanced"]
    assert said["guard"] == ["safe"] * 6
    rates = broken.rates().set_index("judge")
    for judge in ("keyword", "kinds-m"):
        assert rates.loc[judge, ["value", "count", "of"]].tolist() == pytest.approx([2 / 3, 3, 6])


def test_kinds_of_answers_sum_to_one_and_are_told_apart(broken: Evaluation) -> None:
    kinds = broken.kinds().set_index(["judge", "answer"])["value"]
    assert kinds.groupby("judge").sum().tolist() == pytest.approx([1, 1])
    assert kinds["keyword", "incoherent"] == kinds["kinds-m", "incoherent"]
    assert kinds["keyword", "incoherent"] == pytest.approx(0.5)
    assert kinds["keyword", "distanced"] == 0 < kinds["kinds-m", "distanced"]
    assert "guard" not in kinds.index.get_level_values("judge")


def test_the_judges_agree_on_what_is_coherent_alone(broken: Evaluation) -> None:
    agreement = broken.agreement()
    assert agreement[["kappa", "agreement", "count"]].values.tolist() == [[1, 1, 3]]
