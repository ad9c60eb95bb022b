"""The page's numbers are the folders'."""

import numpy as np
import pandas as pd
import pytest
from evaluated import evaluate
from measured_runs import GROUPS, STEPS, write_run
from report_pages import unpacked

from ntkprobe.report import make_report
from ntkprobe.report.contents import map_order
from ntkprobe.report.packing import Scaled, pack


@pytest.fixture(scope="module")
def tree(place):
    return unpacked(make_report([place, place / "evals"]).html)


@pytest.fixture(scope="module")
def stl(tree):
    return tree["sets"][0]["runs"][0]


def test_runs_on_the_same_prompts_are_together_the_refined_one_last(tree):
    assert [[run["name"] for run in one["runs"]] for one in tree["sets"]] == [["stl", "dcr-stl"]]
    assert [run["label"] for run in tree["sets"][0]["runs"]] == ["STL", "DCR → STL"]


def test_every_similarity_is_the_trajectorys(stl, run):
    kernel = stl["kernel"]
    assert kernel["steps"] == list(STEPS) and len(kernel["prompts"]) == 15
    for row in run.kernel().sample(50, random_state=0).itertuples():
        at = kernel["prompts"].index(row.observed), kernel["prompts"].index(row.updated)
        step = kernel["steps"].index(row.step)
        assert kernel["similarity"][step, *at] == np.float32(row.similarity)


def test_every_probability_and_verdict_is_the_trajectorys(stl, run):
    rows = run.refusal().query("reduction == 'literal'")
    steps = {step: place for place, step in enumerate(stl["refusal"]["steps"])}
    for row in rows.itertuples():
        at = steps[row.step], row.prompt
        assert stl["refusal"]["probability"][at] == np.float32(row.probability)
        assert stl["refusal"]["refuses"][at] == row.refuses


def test_means_are_those_of_the_trajectory_with_their_intervals(stl, run):
    shown = pd.DataFrame(stl["kernel"]["means"])
    pd.testing.assert_frame_equal(shown, run.group_means(), check_dtype=False)
    probabilities = pd.DataFrame(stl["refusal"]["probabilities"])
    means = run.refusal_means().query("reduction == 'literal'").set_index(["step", "group"])
    for row in probabilities.itertuples():
        assert row.value == pytest.approx(means.loc[(row.step, row.group), "probability"])
        assert row.low <= row.value <= row.high
    for row in pd.DataFrame(stl["refusal"]["rates"]).itertuples():
        assert row.value == pytest.approx(means.loc[row.step, row.group].iloc[3])
        assert row.low <= row.value <= row.high


def test_layers_sum_to_the_similarity_and_their_means_are_over_different_prompts(stl, run):
    found, kernel = stl["layers"], stl["kernel"]
    largest = np.nanmax(np.abs(found["pairs_by_place"]))
    sums = found["pairs_by_place"].sum(axis=1)
    np.testing.assert_allclose(sums, kernel["similarity"], atol=largest / 16000)
    keys = ["step", "observed", "updated"]
    rows = run.parts().merge(run.kernel().drop(columns="norm"), on=keys)
    rows = rows[rows["observed"] != rows["updated"]]
    rows["place"] = rows["layer"].astype("string").fillna(rows["part"])
    rows["contribution"] = rows["share"] * rows["similarity"]
    by = ["step", "place", "part", "observed_group", "updated_group"]
    for at, mean in rows.groupby(by)["contribution"].mean().items():
        place = found["steps"].index(at[0]), found["parts"].index([at[1], at[2]])
        ends = (found["names"].index(name) for name in at[3:])
        assert found["groups"][*place, *ends] == pytest.approx(mean, rel=1e-6)


def test_pushes_are_the_strongest_of_the_trajectory_with_their_texts(stl, run):
    pushes = stl["pushes"]
    rows = run.influence().query("step == 5 and observed == 12").sort_values("change")
    at = pushes["steps"].index(5), pushes["prompts"].index(12)
    kept = pushes["change"][at][np.isfinite(pushes["change"][at])]
    assert kept.tolist() == [np.float32(x) for x in rows["change"][::-1]]
    texts = [pushes["pairs"]["text"][which] for which in pushes["which"][at] if which >= 0]
    assert texts == run.updated.set_index("updated")["text"].loc[rows["updated"][::-1]].tolist()


def test_the_map_is_ordered_by_group_and_like_prompts_stand_together(stl):
    groups = [GROUPS[prompt // 12] for prompt in stl["kernel"]["prompts"]]
    shown = [groups[position] for position in stl["kernel"]["order"]]
    assert shown == ["seemingly_toxic"] * 5 + ["toxic"] * 5 + ["normal"] * 5
    alike = np.eye(4) + np.array([[0, 0, 0.9, 0], [0, 0, 0, 0.9], [0.9, 0, 0, 0], [0, 0.9, 0, 0]])
    order = map_order(alike, ["toxic"] * 4)
    assert abs(order.index(0) - order.index(2)) == 1 == abs(order.index(1) - order.index(3))


def test_refused_safe_prompts_come_with_answers_and_all_verdicts(tree):
    refused = tree["evaluations"]["refused"]
    assert refused["prompt"] == ["Ask own-0?"] and refused["answer"] == ["own-0"]
    assert refused["verdicts"] == ["other: refusal, xstest_prefixes: refusal"]
    tables = {table["name"] for table in tree["evaluations"]["tables"]}
    assert tables == {"1", "5", "agreement"}


def test_answers_are_found_by_the_texts_of_measured_prompts(tmp_path):
    write_run(tmp_path / "a-ntk")
    folder = evaluate(tmp_path / "e", {"own": {"kinds": "s", "xstest_prefixes": "r"}})
    asked = pd.read_parquet(folder / "prompts/own.parquet").assign(prompt="toxic prompt 2, $5")
    asked.to_parquet(folder / "prompts/own.parquet")
    answers = unpacked(make_report([tmp_path / "a-ntk", folder]).html)["sets"][0]["answers"]
    assert answers["prompt"] == [26] and answers["answer"] == ["own-0"]
    assert answers["verdicts"] == ["xstest_prefixes: refusal"]


def test_packed_numbers_come_back_and_missing_ones_stay_missing():
    values = np.array([[1.5, np.nan], [-3, 0.25]], "<f4")
    numbers = np.arange(6, dtype="<i4").reshape(2, 3)
    packed = pack({"a": values, "b": [Scaled(values)], "c": numbers, "d": float("nan")})
    blocks = "".join(f'<script id="{k}">{text}</script>' for k, text in packed.blocks.items())
    tree = unpacked(f'{blocks}<script id="index">{packed.index}</script>')
    np.testing.assert_array_equal(tree["a"], values)
    np.testing.assert_allclose(tree["b"][0], values, atol=3 / 32767 / 2 * 1.001)
    np.testing.assert_array_equal(tree["c"], numbers)
    assert tree["d"] is None


def test_runs_on_other_prompts_are_shown_apart(tmp_path):
    write_run(tmp_path / "a-ntk")
    write_run(tmp_path / "b-ntk", texts={"toxic": "another question ?"})
    sets = unpacked(make_report([tmp_path]).html)["sets"]
    assert [[run["name"] for run in one["runs"]] for one in sets] == [["a"], ["b"]]


def test_pairs_by_layer_are_kept_of_fewer_steps_where_there_are_too_many(place, monkeypatch):
    monkeypatch.setattr("ntkprobe.report.contents.PAIR_BUDGET", 2 * 3 * 2 * 15**2)
    found = unpacked(make_report([place]).html)["sets"][0]["runs"][0]["layers"]
    assert found["pair_steps"] == [0, 5, 40] and found["steps"] == list(STEPS)
