"""Figures say what the measurement folders say; what is missing is named."""

import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from measured_runs import PAPER_TEXTS, STEPS, write_run

from ntkprobe.errors import UserError
from ntkprobe.figures import draw_figures, figure_names, find_runs

REGENERATE = Path(__file__).parents[1] / "figures" / "regenerate.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    write_run(place / "stl-ntk", texts=PAPER_TEXTS)
    write_run(place / "dcr-stl-ntk", cross=0.1, final=0.0)
    return place


@pytest.fixture(scope="module")
def runs(folder):
    return find_runs([folder])


def figure(name):
    return import_module(f"ntkprobe.figures.{name}")


def test_runs_are_named_like_their_folders_the_refined_ones_last(runs):
    assert list(runs) == ["stl", "dcr-stl"]


def test_a_run_can_be_given_a_name(folder):
    assert list(find_runs([f"mine={folder / 'stl-ntk'}"])) == ["mine"]


def test_two_runs_of_one_name_are_refused_with_the_way_out(folder):
    with pytest.raises(UserError, match="NAME=FOLDER"):
        find_runs([folder / "stl-ntk", folder])


def test_a_folder_without_measurements_is_named_with_the_command_that_makes_them(tmp_path):
    with pytest.raises(UserError, match=f"no measurements in {tmp_path}.*ntkprobe measure"):
        find_runs([tmp_path])


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
    assert "first prompt of its group" in module.draw(numbers).get_supxlabel()


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


def test_fig6_maps_share_one_colour_scale(runs):
    drawn = figure("fig6").draw(figure("fig6").numbers(runs))
    limits = {ax.collections[0].get_clim() for ax in drawn.axes[:2]}
    assert len(limits) == 1


def test_layers_add_up_to_the_mean_similarity(runs):
    sums = figure("layers").numbers(runs).groupby("run")["contribution"].sum()
    assert sums.round(6).to_dict() == {"stl": 0.32, "dcr-stl": 0.1}


def test_pairs_leave_out_a_prompt_with_itself(runs):
    numbers = figure("pairs").numbers(runs)
    assert len(numbers) == 2 * 15 * 14
    assert (numbers["observed"] != numbers["updated"]).all()


def test_neighbours_are_the_most_similar_toxic_prompts(runs):
    numbers = figure("neighbours").numbers(runs)
    assert len(numbers) == 2 * 5
    assert numbers["neighbour_text"].str.startswith("toxic").sum() >= 5
    assert numbers.query("run == 'stl'")["similarity"].max() == pytest.approx(0.32)


@pytest.mark.parametrize("name", figure_names())
def test_a_figure_redraws_from_its_own_csv(name, runs, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not draw_figures(runs, tmp_path, [name]).missing
        module, saved = figure(name), pd.read_csv(tmp_path / f"{name}.csv")
        module.draw(saved).savefig(tmp_path / "again.png")
    assert (tmp_path / f"{name}.png").read_bytes() == (tmp_path / "again.png").read_bytes()


@pytest.mark.parametrize("name", figure_names())
def test_every_figure_can_show_a_single_run(name, runs, tmp_path):
    drawn = draw_figures({"mine": runs["stl"]}, tmp_path, [name])
    assert [path.suffix for path in drawn.files] == [".png", ".pdf", ".csv"]


def test_what_is_missing_is_named_with_its_command_and_the_rest_is_drawn(tmp_path):
    run = write_run(tmp_path / "stl-ntk")
    for file in (run / "kernel").iterdir():
        file.unlink()
    drawn = draw_figures(find_runs([run]), tmp_path / "figures", ["fig3", "fig5"])
    assert drawn.missing["fig3"].endswith("--only kernel --output-dir NEW`")
    assert {path.stem for path in drawn.files} == {"fig5"}


def test_rates_need_answers_and_say_so(tmp_path):
    run = write_run(tmp_path / "stl-ntk", answers=False)
    drawn = draw_figures(find_runs([run]), tmp_path / "figures", ["fig1", "fig4"])
    assert "--no-generate" in drawn.missing["fig4"]


def test_an_unknown_figure_is_answered_with_the_choice(runs, tmp_path):
    with pytest.raises(UserError, match=r"no figure 'fig99': choose from fig1, fig3"):
        draw_figures(runs, tmp_path, ["fig99"])


def test_an_unwritable_folder_is_one_clear_line(runs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        draw_figures(runs, tmp_path / "file" / "figures", ["fig6"])


def test_redrawing_loads_no_torch(folder, tmp_path):
    code = (
        "import runpy, sys; sys.argv[1:] = ['--runs', sys.argv[1], '--output-dir', sys.argv[2]]\n"
        f"try: runpy.run_path({str(REGENERATE)!r}, run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'ntkprobe.figures.fig6' in sys.modules\n"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fig6.pdf").stat().st_size > 1000
