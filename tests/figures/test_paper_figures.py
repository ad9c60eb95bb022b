"""The paper's figures say what the measurement folders say."""

import numpy as np
import pandas as pd
import pytest
from figure_modules import figure
from measured_runs import PAPER_TEXTS, STEPS

from ntkprobe.figures.activation_geometry import classical_scaling, correctly_clustered
from ntkprobe.trajectory import Trajectory


def test_fig1_rates_end_where_the_answers_do(runs):
    rates = figure("fig1").numbers(runs).query("panel == 'a' and step == 40 and run == 'stl'")
    assert dict(zip(rates["group"], rates["value"], strict=True)) == {
        "seemingly_toxic": 0.5,
        "toxic": 1.0,
    }


def test_fig1_intervals_hold_the_mean_and_do_not_vanish_at_the_ends(runs):
    rates = figure("fig1").numbers(runs).query("panel == 'a'")
    assert (rates["low"] <= rates["value"]).all()
    assert (rates["high"] >= rates["value"]).all()
    assert (rates["high"] - rates["low"] > 0.1).all()


def test_fig1_shows_the_papers_prompts_where_they_were_measured(runs):
    examples = figure("fig1").numbers(runs).query("panel == 'b' and run == 'stl'")
    assert set(examples["text"]) == set(PAPER_TEXTS.values())


def test_fig1_shows_the_first_prompts_otherwise_and_says_so(runs):
    module = figure("fig1")
    numbers = module.numbers({"dcr-stl": runs["dcr-stl"]})
    assert "toxic prompt 0, $5" in set(numbers["text"])
    note = " ".join(module.draw(numbers).get_supxlabel().split())
    assert "first prompt of its group" in note


def test_fig3_has_every_ordered_pair_at_every_step(runs):
    numbers = figure("fig3").numbers(runs)
    assert len(numbers) == 2 * len(STEPS) * 9
    cross = numbers.query("run == 'dcr-stl' and observed_group == 'toxic'")
    assert cross.groupby("updated_group")["similarity"].mean().round(6).to_dict() == {
        "normal": 0.4,
        "seemingly_toxic": 0.1,
        "toxic": 0.4,  # self-pairs, which are 1, are left out
    }


def test_fig4_is_better_up_and_to_the_right(runs):
    last = figure("fig4").numbers(runs).query("step == 40").set_index("run")
    assert last.loc["stl", ["compliance", "defence"]].tolist() == [0.5, 1.0]
    assert last.loc["dcr-stl", ["compliance", "defence"]].tolist() == [1.0, 1.0]


def test_fig5_sums_over_the_phrases_as_the_paper_does(runs):
    numbers = figure("fig5").numbers(runs).query("step == 40 and run == 'stl'")
    toxic = numbers[numbers["group"] == "toxic"].iloc[0]
    assert toxic["value"] == pytest.approx(0.8 * 1.1)
    assert toxic["prompts"] == 12


def test_fig6_maps_the_first_step_of_each_run(runs):
    numbers = figure("fig6").numbers(runs)
    assert set(numbers["step"]) == {0}
    cross = numbers.query("observed_group == 'toxic' and updated_group == 'seemingly_toxic'")
    assert cross.set_index("run")["similarity"].round(6).to_dict() == {"stl": 0.32, "dcr-stl": 0.1}


def test_fig6_reads_and_resamples_no_other_step_and_has_the_same_intervals(runs, monkeypatch):
    every = pd.concat([run.group_means().assign(run=name) for name, run in runs.items()])
    first = every[every["step"] == every.groupby("run")["step"].transform("min")]
    assert len(first) < len(every)
    read, original = [], Trajectory.kernel

    def noted(self):
        read.append(original(self))
        return read[-1]

    monkeypatch.setattr(Trajectory, "kernel", noted)
    pd.testing.assert_frame_equal(figure("fig6").numbers(runs), first.reset_index(drop=True))
    assert [set(table["step"]) for table in read] == [{min(STEPS)}] * len(runs)


def test_fig6_maps_share_one_colour_scale(runs):
    drawn = figure("fig6").draw(figure("fig6").numbers(runs))
    limits = {ax.collections[0].get_clim() for ax in drawn.axes[:2]}
    assert len(limits) == 1


def test_fig7_counts_the_prompts_that_two_clusters_put_right(runs):
    numbers = figure("fig7").numbers(runs).query("run == 'stl' and step == 40")
    assert numbers[["layer", "value", "prompts", "chance"]].to_numpy().tolist() == [
        [1, 0.5, 24, 0.5],
        [2, 21 / 24, 24, 0.5],  # 3 of 12 toxic prompts lie with the others
    ]
    assert ((numbers["low"] < numbers["value"]) & (numbers["value"] < numbers["high"])).all()


def test_fig7_has_the_first_and_the_last_step(runs):
    assert set(figure("fig7").numbers(runs)["step"]) == {0, 40}


def test_clusters_have_no_names_of_their_own():
    values = np.array([[0.0], [0.1], [5.0], [5.1]])
    for labels in ([0, 0, 1, 1], [1, 1, 0, 0]):
        assert correctly_clustered(values, np.array(labels)).all()
    assert correctly_clustered(values, np.array([0, 1, 1, 1])).sum() == 3


def test_the_plane_of_plane_points_keeps_their_distances():
    points = np.array([[0.0, 0, 0], [3, 0, 0], [0, 4, 0], [3, 4, 0]])
    plane, share = classical_scaling(points)
    between = [np.linalg.norm(x[:, None] - x, axis=-1) for x in (points, plane)]
    np.testing.assert_allclose(*between, atol=1e-12)
    assert share == pytest.approx(1)


def test_the_plane_is_torgersons():
    points = np.random.default_rng(1).normal(size=(9, 5))
    squares = ((points[:, None] - points) ** 2).sum(-1)
    centring = np.eye(9) - 1 / 9
    values, vectors = np.linalg.eigh(-centring @ squares @ centring / 2)  # Torgerson 1952
    wanted = vectors[:, [-1, -2]] * np.sqrt(values[[-1, -2]])
    plane, share = classical_scaling(points)
    np.testing.assert_allclose(np.abs(plane), np.abs(wanted), atol=1e-12)
    assert share == pytest.approx(values[-2:].sum() / values.sum())


def test_fig8_shows_the_toxic_prompts_on_the_right_at_the_last_step(runs):
    numbers = figure("fig8").numbers(runs)
    assert set(numbers["step"]) == {40} and set(numbers["layer"]) == {1, 2}
    assert len(numbers) == 2 * 2 * 24
    sides = numbers.query("run == 'stl' and layer == 2").groupby("group")["x"].mean()
    assert sides["toxic"] > 1 and sides["seemingly_toxic"] < -1


def test_fig9_is_fig1b_for_every_run(runs):
    numbers = figure("fig9").numbers(runs)
    panel = figure("fig1").numbers(runs).query("panel == 'b'")
    columns = ["run", "step", "group", "value", "text"]
    pd.testing.assert_frame_equal(numbers[columns], panel[columns].reset_index(drop=True))
    assert len(figure("fig9").draw(numbers).axes) == 2
