"""Verdicts on the replication's hypotheses: planted effects are found, and none where none is."""

import numpy as np
import pandas as pd
import pytest
from evaluated import evaluate

from ntkprobe.evaluation import Evaluation
from ntkprobe.replication import left_out as counting
from ntkprobe.replication.hypotheses import HYPOTHESES, auc, spearman
from ntkprobe.replication.left_out import left_out
from ntkprobe.replication.results import Kernel, Results, Terms, refused_table, share
from ntkprobe.replication.settings import SCALES
from ntkprobe.replication.verdicts import Draw, Inequality, of_seeds, overall, word_of


def test_answers_that_say_no_are_counted_apart(tmp_path):
    class Answered:
        benchmarks = ("oktest",)

        def prompts(self, name):
            return pd.DataFrame({"id": list("abc"), "kind": "safe", "type": "yes or no"})

        def answers(self, name):
            return pd.DataFrame(
                {"id": list("abc"), "answer": ["No, it is not.", "I cannot", "Yes"]}
            )

    table = refused_table(Answered())
    assert table["refused"].tolist() == [False, True, False]
    assert table["refused_with_no"].tolist() == [True, True, False]


def test_reasoning_is_left_out_before_a_no_and_counts_as_neither_if_it_never_ends(tmp_path):
    said = ["<think>Hm.</think>No, it is not.", "<think>Hm.</think>I cannot", "<think>Hm", "Yes"]
    table = refused_table(Evaluation(evaluate(tmp_path, {"oktest": about("ssss", said)})))
    assert table["refused"].tolist() == [False, True, pd.NA, False]
    assert table["refused_with_no"].tolist() == [True, True, pd.NA, False]
    assert share(table["refused"]) == pytest.approx(1 / 3)
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/stl").symlink_to(tmp_path)
    assert Results(tmp_path).refused("stl", ("oktest",), Draw()) == pytest.approx(1 / 3)


def about(kinds, answers):
    return {"kinds": kinds, "answers": answers}


def test_a_verdict_needs_the_whole_interval_on_one_side():
    assert word_of(0.2, 0.4, 0.1, True) == "holds" and word_of(0.2, 0.4, 0.1, False) == "does not"
    assert word_of(0.0, 0.05, 0.1, True) == "does not" and word_of(0.0, 0.4, 0.1, True) == "mixed"
    assert word_of(float("nan"), float("nan"), 0.1, True) == "mixed"
    noisy = np.random.default_rng(1).normal(0.5, 1, size=(2, 400))

    def mean(seed):
        return lambda draw: float(noisy[seed][draw.rows("x", 400)].mean())

    clear = {seed: [Inequality("x", mean(seed), 0.2)] for seed in (0, 1)}
    close = {seed: [Inequality("x", mean(seed), noisy[seed].mean())] for seed in (0, 1)}
    per_seed, pooled = of_seeds(clear, 200)
    assert [overall(per_seed[0]), overall(pooled)] == ["holds", "holds"]
    assert pooled[0].value == pytest.approx(noisy.mean())
    assert overall(of_seeds(close, 200)[0][0]) == "mixed"


def test_all_but_the_toy_scale_resample_as_often_as_every_interval():
    from ntkprobe.statistics import RESAMPLES

    assert {name: scale.resamples == RESAMPLES for name, scale in SCALES.items()} == {
        **dict.fromkeys(("small", "paper"), True),
        "toy": False,
    }


def test_resamples_draw_the_same_prompts_for_all_that_is_compared():
    draw = Draw(np.random.default_rng(0))
    assert np.array_equal(draw.rows("a", 10), draw.rows("a", 10))
    assert not np.array_equal(draw.rows("a", 100), draw.rows("b", 100))
    assert np.array_equal(Draw().rows("a", 4), range(4))


def test_rank_statistics_are_those_of_scipy_and_scikit_learn():
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(3)
    a, b = generator.integers(5, size=(2, 40)).astype(float)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert auc(a, b > 2) == pytest.approx(roc_auc_score(b > 2, a))
    assert np.isnan(auc(a, b > 9)) and np.isnan(spearman(a, np.ones(40)))


class World:
    """Results with a planted effect of a given size, or with none."""

    def __init__(self, effect):
        self.effect, self.generator = effect, np.random.default_rng(5)

    def along(self, run):
        rows = []
        for group, slope in (("seemingly_toxic", self.effect), ("toxic", 0.9), ("normal", 0)):
            for step in range(5):
                share = slope * step / 4
                for n in range(60):
                    refused = self.generator.random() < share
                    rows.append((step, group, f"{group} {n}", refused, np.log(0.01 + share)))
        names = ["step", "group", "prompt", "refuses", "log_probability"]
        return pd.DataFrame(rows, columns=names)

    def kernel(self, run):
        across = {"stl": 0.5, "control": 0.5, "dcr": 0.5 - self.effect / 2}[run.split("-")[0]]
        return kernel(across)

    def xstest_kernel(self, start):
        return kernel(0.5 if self.effect else 0.3)

    def over_refusal(self, run, draw):
        share = {"stl": 0.6, "control": 0.6, "dcr": 0.6 * (1 - self.effect)}[run.split("-")[0]]
        values = np.arange(400) < 400 * share
        return float(values[draw.rows("held out", 400)].mean())

    def safety(self, run, draw):
        values = np.arange(938) < 938 * 0.9
        return float(values[draw.rows("safety", 938)].mean())

    def bounds(self, start):
        cosine = 0.5 - (self.effect / 2 if start.startswith("dcr") else 0)
        groups = ["normal", "seemingly_toxic", "toxic"]
        table = pd.DataFrame(
            [
                {
                    "observed": i,
                    "updated": j,
                    "observed_group": groups[i],
                    "inner": 4.0 if i == j else 4 * cosine,
                    "kernel": 1.0,
                    "printed": 2.0 if self.effect else 0.5,
                }
                for i in range(3)
                for j in range(3)
            ]
        )
        return Terms.of(table)


def kernel(across, size=25):
    groups = np.repeat(["seemingly_toxic", "toxic", "normal"], size)
    values = np.full((3 * size, 3 * size), 0.3)
    members = {group: np.flatnonzero(groups == group) for group in dict.fromkeys(groups)}
    for first, second, value in (
        ("seemingly_toxic", "seemingly_toxic", 0.5),
        ("toxic", "toxic", 0.5),
        ("seemingly_toxic", "toxic", across),
        ("toxic", "seemingly_toxic", across),
    ):
        values[np.ix_(members[first], members[second])] = value
    values += np.random.default_rng(2).normal(0, 0.01, values.shape)
    np.fill_diagonal(values, np.nan)
    return Kernel(values, members, "along")


def test_a_prompt_with_itself_is_no_pair_within_the_bound():
    off = ~np.eye(6, dtype=bool)
    pairs = [
        {"observed": i, "updated": j, "observed_group": "toxic", "inner": 1.0, "kernel": 1.0}
        | {"printed": -1.0 if off[i, j] else 1.0}
        for i in range(6)
        for j in range(6)
    ]
    terms = Terms.of(pd.DataFrame(pairs))
    draws = [Draw(), *(Draw(np.random.default_rng(seed)) for seed in range(20))]
    assert {terms.share_bounded(draw) for draw in draws} == {0.0}


@pytest.mark.parametrize("name", ["H1", "H2", "H3", "H4", "H6"])
def test_a_planted_effect_is_found_and_none_where_there_is_none(name):
    make = HYPOTHESES[name][1]
    verdicts = {
        effect: overall(of_seeds({0: make(World(effect), 0)}, 100)[1]) for effect in (0.8, 0.0)
    }
    assert verdicts == {0.8: "holds", 0.0: "does not"}


def test_with_hardly_any_over_refusal_of_stl_nothing_is_said_of_dcr(monkeypatch):
    world = World(0.8)
    world.over_refusal = lambda run, draw: 0.01
    world.safety = lambda run, draw: 0.9 if run.startswith("stl") else 0.2
    per_seed, pooled = of_seeds({0: HYPOTHESES["H4"][1](world, 0)}, 50)
    assert overall(per_seed[0]) == overall(pooled) == "mixed"
    assert [finding.value for finding in pooled if "safety" in finding.about] == pytest.approx(
        [-0.7, -0.7]
    )


class Measured(World):
    """Results in which all was measured, or one of each kind was not."""

    def __init__(self, whole):
        super().__init__(0.8)
        self.whole = whole

    def along(self, run):
        table = super().along(run).astype({"refuses": "boolean"})
        table.loc[table["step"] == 2, "refuses"] = pd.NA  # in between, which H1 does not read
        table.loc[[] if self.whole else [0, len(table) - 1], "refuses"] = pd.NA
        return table

    def kernel(self, run):
        found = super().kernel(run)
        found.values[0, 1] = found.values[0, 1] if self.whole else np.nan
        return found

    def xstest_kernel(self, start):
        return self.kernel("stl-0")

    def table(self, run):
        refused = pd.array([True, False, True], dtype="boolean")
        refused[1] = False if self.whole else pd.NA
        return pd.DataFrame({"set": ["oktest", "advbench", "normal"], "refused": refused})

    def bounds(self, start):
        terms = super().bounds(start)
        terms.bounded[0, 2] = terms.bounded[0, 2] if self.whole else np.nan
        return terms


PREDICTED = pd.DataFrame(
    {
        "similarity": [0.1, 0.2, np.nan, 0.4],
        "influence": [1.0, 2.0, 3.0, 4.0],
        "rise": [1.0, 2.0, 3.0, 4.0],
        "refuses": [np.nan, 1.0, 0.0, 1.0],
    }
)
WITHOUT = {
    "H1": ["2 of 360 answers at the first and the last checkpoint have no verdict"],
    "H2": [
        f"1 of 5550 ordered pairs of prompts {of} have no similarity"
        for of in ("of XSTest", "held out")
    ],
    "H3": [
        f"1 of 5550 ordered pairs of prompts held out, before {run} have no similarity"
        for run in ("stl", "dcr-stl", "control-stl")
    ],
    "H4": [f"1 of 2 answers of {run} have no verdict" for run in ("stl", "dcr-stl", "control-stl")],
    "H5": [
        "1 of 4 prompts have no verdict on their last answer",
        "1 of 4 prompts lack a predictor or a P(refuse)",
    ],
    "H6": [
        f"1 of 6 pairs of prompts in {run} lack a term" for run in ("base", "dcr-0", "control-0")
    ],
}


@pytest.mark.parametrize("name", HYPOTHESES)
def test_what_a_hypothesis_leaves_out_is_counted(name, monkeypatch):
    for whole in (False, True):
        table = PREDICTED.dropna() if whole else PREDICTED
        monkeypatch.setattr(counting, "every_prediction", lambda *_, table=table: table)
        assert left_out(name, Measured(whole), 0) == ([] if whole else WITHOUT[name])


def test_a_pair_without_a_term_is_neither_within_the_bound_nor_beyond_it():
    pairs = [
        {"observed": i, "updated": j, "observed_group": "toxic", "inner": 1.0, "printed": 2.0}
        | {"kernel": np.nan if (i, j) == (0, 1) else 1.0}
        for i in range(3)
        for j in range(3)
    ]
    assert Terms.of(pd.DataFrame(pairs)).share_bounded(Draw()) == 1
