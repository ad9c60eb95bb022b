"""A folder of measurements with a lone prompt, with strangers' files, or with a torn table."""

import os
import shutil

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from measured_runs import STEPS, write_run

from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.trajectory import Trajectory
from ntkprobe.watcher.stored_tables import StoredTables


@pytest.fixture
def folder(tmp_path):
    yield write_run(tmp_path / "stl-ntk")
    plt.close("all")


def test_a_run_of_one_prompt_shows_itself_without_similarities(folder):
    assert Trajectory(folder)._repr_html_().count("<table") == 2
    for file in (folder / "kernel").iterdir():
        table = pd.read_parquet(file)
        table[(table["observed"] == 0) & (table["updated"] == 0)].to_parquet(file)
    shown = Trajectory(folder)._repr_html_()
    assert shown.count("<table") == 1 and "Mean refusal probability" in shown
    with pytest.raises(UserError, match="no pair of different prompts"):
        Trajectory(folder).plot()


def test_steps_that_were_not_measured_have_nothing_to_show(folder):
    run = Trajectory(folder, steps=[3])
    assert "no steps yet" in run._repr_html_()
    for what in (None, "kernel", "refusal"):
        with pytest.raises(UserError, match="was measured in"):
            run.plot(what=what)


@pytest.mark.parametrize(
    "name", ["step-00000001 (1)", "step-00000001.sync-conflict-1", "step-1", "step-last"]
)
def test_copies_that_another_program_makes_are_no_steps(folder, name):
    before = Trajectory(folder).group_means(resamples=0)
    for kind in ("kernel", "refusal"):
        shutil.copy(folder / kind / "step-00000001.parquet", folder / kind / f"{name}.parquet")
    run = Trajectory(folder)
    assert run.steps == list(STEPS) == sorted(StoredTables.steps_in(folder))
    pd.testing.assert_frame_equal(run.group_means(resamples=0), before)
    assert len(run.refusal()) == 2 * len(run.prompts) * len(STEPS)


@pytest.mark.parametrize("name", ["prompts", "updated"])
def test_a_torn_table_of_the_run_is_named_in_one_line(folder, name, capsys):
    file = folder / f"{name}.parquet"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(UserError, match=f"{name}.parquet is not whole: remove it"):
        Trajectory(folder).influence()
    assert main(["flips", str(folder)]) == 2
    said = capsys.readouterr().err.strip()
    assert f"{name}.parquet is not whole" in said and "\n" not in said
