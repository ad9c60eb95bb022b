"""Laws of what a figure says of its rows: which phrases were summed, what steps count."""

import json

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from measured_runs import write_run

from ntkprobe.figures import drift, fig1, fig3, fig4, fig5, fig6, fig9, find_runs
from ntkprobe.trajectory import Trajectory


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "stl-ntk")


def each_refusal_file(folder, change):
    for file in (folder / "refusal").glob("step-*"):
        change(pd.read_parquet(file)).to_parquet(file)


def note_of(module, folder):
    figure = module.draw(module.numbers(find_runs([folder])))
    note = figure.get_supxlabel().replace("\n", " ")
    plt.close("all")
    return note


@pytest.mark.parametrize("module", [fig1, fig4, fig5, fig9])
def test_other_phrases_than_the_papers_are_named(module, folder):
    assert "phrases:" not in note_of(module, folder)
    each_refusal_file(folder, lambda rows: rows.assign(phrase_set="german"))
    assert "Refusal phrases: german." in note_of(module, folder)


def test_of_several_sets_the_one_that_is_drawn_is_named(folder):
    before = fig5.numbers(find_runs([folder]))["value"]
    each_refusal_file(
        folder,
        lambda rows: pd.concat([rows.assign(phrase_set="german", log_probability=-9.0), rows]),
    )
    assert "Refusal phrases: paper31." in note_of(fig5, folder)
    assert (fig5.numbers(find_runs([folder]))["value"] == before).all()


@pytest.mark.parametrize("module", [fig1, fig4, fig5, fig9])
def test_phrases_of_one_run_are_not_said_to_be_those_of_another(module, folder):
    other = write_run(folder.parent / "dcr-stl-ntk")
    each_refusal_file(other, lambda rows: rows.assign(phrase_set="german"))
    figure = module.draw(module.numbers(find_runs([folder.parent])))
    note = "".join(figure.get_supxlabel().split())  # a hyphen may end a line
    plt.close("all")
    assert "Refusalphrases:stlpaper31,dcr-stlgerman." in note


def test_an_answer_that_says_nothing_is_no_compliance(folder):
    seemingly = Trajectory(folder).prompts.query("group == 'seemingly_toxic'")["prompt"]
    before = fig4.numbers(find_runs([folder]))
    silent = {seemingly.iloc[0]}
    each_refusal_file(folder, lambda rows: rows.assign(incoherent=rows["prompt"].isin(silent)))
    after = fig4.numbers(find_runs([folder]))
    first = before["step"] == 0
    assert before.loc[first, "compliance"].item() == 1
    assert after.loc[first, "compliance"].item() == pytest.approx(1 - 1 / len(seemingly))
    assert (after["compliance"] <= before["compliance"]).all()
    assert (after["defence"] == before["defence"]).all()


@pytest.mark.parametrize(("record", "unit"), [({}, "step"), ({"steps_are": "epochs"}, "epoch")])
def test_steps_that_are_epochs_are_called_so(record, unit, folder):
    (folder / "run.json").write_text(json.dumps({"schema_version": 1, **record}))
    along = fig3.draw(fig3.numbers(find_runs([folder])))
    label = {"step": "optimiser step", "epoch": "epoch"}[unit]
    assert along.axes[0].get_xlabel() == label
    assert Trajectory(folder).plot(what="kernel").get_xlabel() == label
    first = fig6.draw(fig6.numbers(find_runs([folder])))
    assert f"{unit} 0" in " ".join(ax.get_title(loc="left") for ax in first.axes)
    path = fig4.draw(fig4.numbers(find_runs([folder])))
    assert [text.get_text() for text in path.axes[0].texts] == [f"{unit} 0", f"STL, {unit} 40"]
    turned = drift.draw(drift.numbers(find_runs([folder])))
    assert f"{unit} 0 ⟶ {unit} 40" in turned.axes[0].get_title(loc="left")
    plt.close("all")
