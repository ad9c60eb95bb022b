"""From folders to pictures: runs are found and named, figures redrawn; what is missing is named."""

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
from figure_modules import figure
from measured_runs import write_run

from ntkprobe.errors import UserError
from ntkprobe.figures import draw_figures, figure_names, find_runs
from ntkprobe.plots import style

# Runs


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


# Pictures

REGENERATE = Path(__file__).parents[2] / "figures" / "regenerate.py"


def test_a_figure_is_the_same_from_the_stored_numbers_of_each_run_as_from_the_runs(runs, tmp_path):
    names = ("fig7", "fig8")
    draw_figures(runs, tmp_path / "runs", names, compare="paper")
    tables = {}
    for name in names:
        for run in runs:
            figure(name).numbers({run: runs[run]}).to_parquet(tmp_path / f"{name}-{run}.parquet")
        stored = [pd.read_parquet(tmp_path / f"{name}-{run}.parquet") for run in runs]
        tables[name] = pd.concat(stored, ignore_index=True)
    draw_figures({}, tmp_path / "tables", names, compare="paper", tables=tables)
    files = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "runs" / file).read_bytes() == (tmp_path / "tables" / file).read_bytes()
    other = tables["fig7"].assign(value=tables["fig7"]["value"] / 2)
    draw_figures({}, tmp_path / "other", ["fig7"], compare="paper", tables={"fig7": other})
    drawn = [(tmp_path / place / "fig7.png").read_bytes() for place in ("tables", "other")]
    assert drawn[0] != drawn[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", figure_names())
def test_a_figure_redraws_from_its_own_csv(name, runs, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not draw_figures(runs, tmp_path, [name]).missing
        module, saved = figure(name), pd.read_csv(tmp_path / f"{name}.csv")
        module.draw(saved).savefig(tmp_path / "again.png")
    assert (tmp_path / f"{name}.png").read_bytes() == (tmp_path / "again.png").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", figure_names())
def test_one_run_and_three_runs_fit_the_page(name, runs):
    numbers = figure(name).numbers(runs)
    one = numbers[numbers["run"] == "stl"].assign(run="mine")
    for table in (one, pd.concat([numbers, one], ignore_index=True)):
        assert figure(name).draw(table).get_figwidth() <= style.PAGE


@pytest.mark.slow
def test_redrawing_loads_no_torch(folder, tmp_path):
    code = (
        "import runpy, sys; out = ['--runs', sys.argv[1], '--output-dir', sys.argv[2]]\n"
        "sys.argv[1:] = [*out, '--only', 'fig6', 'fig7']\n"
        f"try: runpy.run_path({str(REGENERATE)!r}, run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'ntkprobe.figures.fig6' in sys.modules\n"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fig6.pdf").stat().st_size > 1000


# What is missing or wrong


def test_what_is_missing_is_named_with_its_command_and_the_rest_is_drawn(tmp_path):
    run = write_run(tmp_path / "stl-ntk")
    for file in (run / "kernel").iterdir():
        file.unlink()
    drawn = draw_figures(find_runs([run]), tmp_path / "figures", ["fig3", "fig5"])
    assert drawn.missing["fig3"].endswith("--only kernel --output-dir NEW`")
    assert {path.stem for path in drawn.files} == {"fig5"}


def test_activations_that_are_missing_go_into_the_same_folder(tmp_path):
    run = write_run(tmp_path / "stl-ntk")
    shutil.rmtree(run / "activations")
    drawn = draw_figures(find_runs([run]), tmp_path / "figures", ["fig7", "fig8"])
    assert set(drawn.missing) == {"fig7", "fig8"}
    assert f"--only activations --output-dir {run}`" in drawn.missing["fig7"]


def test_influence_that_is_missing_goes_into_the_same_folder(tmp_path):
    run = write_run(tmp_path / "stl-ntk")
    shutil.rmtree(run / "influence")
    drawn = draw_figures(find_runs([run]), tmp_path / "figures", ["influence", "why"])
    assert set(drawn.missing) == {"influence", "why"}
    assert f"--influence refusal --output-dir {run}`" in drawn.missing["why"]


def test_directions_of_a_run_without_activations_says_what_makes_them(folder, tmp_path):
    shutil.copytree(folder / "stl-ntk", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "activations")
    with pytest.raises(UserError, match="--only activations"):
        figure("directions").numbers(find_runs([tmp_path / "out"]))


def test_rates_need_answers_and_say_so(tmp_path):
    run = write_run(tmp_path / "stl-ntk", answers=False)
    drawn = draw_figures(find_runs([run]), tmp_path / "figures", ["fig1", "fig4"])
    assert "--no-generate" in drawn.missing["fig4"]


def test_an_unknown_figure_is_answered_with_the_choice(runs, tmp_path):
    with pytest.raises(UserError, match=r"no figure 'fig99': choose from directions, drift, fig1"):
        draw_figures(runs, tmp_path, ["fig99"])


def test_an_unwritable_folder_is_one_clear_line(runs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        draw_figures(runs, tmp_path / "file" / "figures", ["fig6"])
