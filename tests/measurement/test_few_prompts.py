"""Few prompts, groups or steps: each figure and table shows what it can, or says what would do."""

import shutil
import warnings
from importlib import import_module

import pandas as pd
import pytest
from evaluated import evaluate
from matplotlib import pyplot as plt
from measured_runs import STEPS, write_run

import ntkprobe as ntk
from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.figures import draw_figures, figure_names, find_runs
from ntkprobe.tables import make_table, table_names

BOTH_TOXIC_LOOKING = {"fig4", "fig7", "fig8", "layers", "neighbours"}
OF_PAIRS = {"fig3", "fig6", "pairs"}
OF_CLASSES = {"directions", "positions"}
# Which prompts are left of each group, and what can then not be drawn.
FEW = {
    "seemingly toxic only": ({"seemingly_toxic": 3}, BOTH_TOXIC_LOOKING | OF_CLASSES),
    "normal only": ({"normal": 3}, BOTH_TOXIC_LOOKING | OF_CLASSES | {"why"}),
    "no toxic": ({"normal": 2, "seemingly_toxic": 2}, BOTH_TOXIC_LOOKING | OF_CLASSES),
    "no seemingly toxic": ({"normal": 2, "toxic": 2}, BOTH_TOXIC_LOOKING | {"why"}),
    "one prompt": (
        {"seemingly_toxic": 1},
        BOTH_TOXIC_LOOKING | OF_PAIRS | OF_CLASSES | {"drift"},
    ),
    "one of both": ({"seemingly_toxic": 1, "toxic": 1}, OF_CLASSES | {"drift"}),
    "one step": ({"normal": 2, "seemingly_toxic": 2, "toxic": 2}, {"drift"}),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("whole") / "stl-ntk")


def shortened(whole, folder, counts, steps):
    """Keep so many prompts of each group, and these steps, of a measured run."""
    shutil.copytree(whole, folder)
    prompts = pd.read_parquet(folder / "prompts.parquet")
    rank = prompts.groupby("group").cumcount()
    prompts = prompts[rank < prompts["group"].map(counts).fillna(0)]
    prompts.to_parquet(folder / "prompts.parquet", index=False)
    for file in folder.glob("*/step-*"):
        if int(file.stem.removeprefix("step-")) not in steps:
            file.unlink()
        elif file.suffix == ".parquet":
            table = pd.read_parquet(file)
            for column in {"prompt", "observed", "updated"} & set(table):
                if column != "updated" or file.parent.name in ("kernel", "parts"):
                    table = table[table[column].isin(prompts["prompt"]) | table[column].isna()]
            table.to_parquet(file, index=False)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_each_figure_is_drawn_or_said_to_need_more(name, whole, tmp_path):
    counts, lacking = FEW[name]
    steps = STEPS[:1] if name == "one step" else STEPS[:2]
    run = shortened(whole, tmp_path / "few-ntk", counts, steps)
    drawn, told = set(), {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in figure_names():
            module = import_module(f"ntkprobe.figures.{figure}")
            try:
                module.draw(module.numbers(find_runs([run])))
                drawn.add(figure)
            except UserError as error:
                told[figure] = str(error)
    assert set(told) == lacking and drawn == set(figure_names()) - lacking
    assert all("--prompts" in line and "\n" not in line for line in told.values())


def test_a_figure_that_fails_costs_no_other_and_shows_in_the_status(
    whole, tmp_path, monkeypatch, capsys
):
    def broken(runs):
        raise KeyError("group")

    monkeypatch.setattr("ntkprobe.figures.fig3.numbers", broken)
    drawn = draw_figures(find_runs([whole]), tmp_path / "one", ["fig3", "fig5"])
    assert {path.stem for path in drawn.files} == {"fig5"} and "KeyError" in drawn.broken["fig3"]
    call = ["figures", str(whole), "--output-dir", str(tmp_path / "two"), "--only", "fig3"]
    assert main([*call, "--only", "fig5"]) == 1
    assert "fig3 not drawn: KeyError" in capsys.readouterr().err


def test_a_trajectory_of_one_prompt_plots_refusals_and_says_why_no_similarities(whole, tmp_path):
    run = shortened(whole, tmp_path / "one-ntk", {"toxic": 1}, STEPS[:2])
    with pytest.raises(UserError, match="no pair of different prompts"):
        ntk.Trajectory(run).plot(what="kernel")
    ntk.Trajectory(run).plot(what="refusal")
    ntk.Trajectory(whole).plot(what="kernel")
    plt.close("all")


def test_a_line_of_one_step_is_seen(whole, tmp_path):
    run = shortened(whole, tmp_path / "step-ntk", {"toxic": 2, "normal": 2}, STEPS[:1])
    lines = ntk.Trajectory(run).plot(what="kernel").lines
    assert lines and all(line.get_marker() != "None" for line in lines)
    longer = ntk.Trajectory(whole).plot(what="kernel").lines
    assert all(line.get_marker() == "None" for line in longer)
    plt.close("all")


@pytest.mark.parametrize("kind", ["s", "x"])
def test_each_table_is_made_of_one_side_or_says_what_it_needs(kind, tmp_path):
    folder = evaluate(
        tmp_path / "model-eval", {"mine": {"kinds": kind * 2, "xstest_prefixes": "rc"}}
    )
    for name in table_names():
        try:
            make_table([folder], name)
        except UserError as error:
            assert "\n" not in str(error)
