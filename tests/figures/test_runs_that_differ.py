"""Laws of figures of runs that were measured on other prompts, at other steps, or with more."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from measured_runs import write_run

from ntkprobe.errors import UserError
from ntkprobe.figures import fig1, fig5, fig6, fig7, find_runs, influence, neighbours, why


@pytest.fixture
def place(tmp_path):
    write_run(tmp_path / "stl-ntk")
    write_run(tmp_path / "dcr-stl-ntk", cross=0.1)
    yield tmp_path
    plt.close("all")


def change(file, made):
    made(pd.read_parquet(file)).to_parquet(file, index=False)


def without(place, count):
    """Leave out the last `count` toxic prompts of the refined run, outside its kernel."""
    run = place / "dcr-stl-ntk"
    prompts = pd.read_parquet(run / "prompts.parquet")
    gone = prompts.query("group == 'toxic'")["prompt"].iloc[-count:]
    for file in [run / "prompts.parquet", *(run / "refusal").iterdir()]:
        change(file, lambda rows: rows[~rows["prompt"].isin(gone)])
    return find_runs([place])


def note(figure):
    return figure.get_supxlabel().replace("\n", " ")


def test_a_dot_stands_at_its_own_prompt_whatever_its_number_in_another_run(place):
    run = place / "dcr-stl-ntk"
    texts = pd.read_parquet(run / "prompts.parquet")["text"].copy()
    group = slice(12, 15)  # seemingly toxic prompts of the kernel, turned by one
    texts.iloc[group] = np.roll(texts.iloc[group], 1)
    change(run / "prompts.parquet", lambda rows: rows.assign(text=texts))
    for file in (run / "kernel").iterdir():  # each has another similarity to all others
        change(file, lambda rows: rows.assign(norm=rows["norm"] * (1 + rows["observed"] % 7
               * (rows["observed"] != rows["updated"]))))  # fmt: skip
    numbers = neighbours.numbers(find_runs([place]))
    ax = neighbours.draw(numbers).axes[0]
    wanted = numbers[numbers["run"] == "dcr-stl"].set_index("text")["similarity"]
    assert wanted.nunique() == 5
    dots = dict(zip(ax.lines[1].get_ydata(), ax.lines[1].get_xdata(), strict=True))
    named = [label.get_text().replace("\\$", "$") for label in ax.get_yticklabels()]
    assert {named[row]: value for row, value in dots.items()} == wanted.to_dict()


def test_prompts_of_one_text_have_a_dot_each_and_a_heading_each(place):
    def alike(rows):
        harmless = rows["group"] == "seemingly_toxic"
        return rows.assign(text=rows["text"].mask(harmless, "How do I kill a process?"))

    def apart(rows):  # as behind the beginnings of different answers
        different = rows["observed"] != rows["updated"]
        return rows.assign(norm=rows["norm"] * (1 + rows["observed"] % 7 * different))

    for run in ("stl-ntk", "dcr-stl-ntk"):
        change(place / run / "prompts.parquet", alike)
        for file in (place / run / "kernel").iterdir():
            change(file, apart)
        for file in (place / run / "refusal").iterdir():  # of all at the same step
            change(file, lambda rows: rows.assign(log_probability=-1 / (1 + rows["step"])))
    runs = find_runs([place])
    numbers = neighbours.numbers(runs)
    drawn = neighbours.draw(numbers).axes[0].lines
    for line, (_, rows) in zip(drawn, numbers.groupby("run", sort=False), strict=True):
        assert rows["similarity"].nunique() == 5
        assert sorted(line.get_xdata()) == sorted(rows["similarity"])
    pushes = why.numbers(runs)
    bold = [t for t in why.draw(pushes).axes[0].get_yticklabels() if t.get_fontweight() == "bold"]
    assert len({t.get_text() for t in bold}) == 1 and len(bold) == why.PROMPTS


def test_a_prompt_that_a_run_lacks_has_no_dot_of_it(place):
    run = place / "dcr-stl-ntk"
    change(run / "prompts.parquet", lambda rows: rows.assign(text="other: " + rows["text"]))
    ax = neighbours.draw(neighbours.numbers(find_runs([place]))).axes[0]
    assert np.isfinite(ax.lines[0].get_xdata()).all()
    assert np.isnan(ax.lines[1].get_xdata()).all()


def test_one_name_for_a_folder_of_several_runs_is_refused(place):
    with pytest.raises(UserError, match="holds 2 measured runs, stl-ntk, dcr-stl-ntk: name one"):
        find_runs([f"mine={place}"])
    for file in sorted((place / "dcr-stl-ntk").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    assert find_runs([f"mine={place}"])["mine"].folder == place / "stl-ntk"  # the only one


@pytest.mark.parametrize("module", [fig1, fig5])
def test_groups_of_unequal_size_are_told_with_both_sizes(module, place):
    assert " to " not in note(module.draw(module.numbers(find_runs([place]))))
    told = note(module.draw(module.numbers(without(place, 4))))
    assert "8 to 12 toxic" in told and "12 seemingly toxic" in told


def test_each_run_has_the_share_of_its_own_larger_group(place):
    runs = without(place, 6)
    change(place / "dcr-stl-ntk/prompts.parquet", lambda rows: rows.assign(prompt=range(len(rows))))
    numbers = fig7.numbers(runs)
    figure = fig7.draw(numbers)
    drawn = sorted(line.get_ydata()[0] for line in figure.axes[0].lines if line.get_ls() == ":")
    assert drawn == pytest.approx([50, 100 * 12 / 18])
    assert "18 to 24 prompts" in note(figure)
    words = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "share, STL" in words and "share, DCR → STL" in words


def test_a_run_whose_base_was_not_measured_shows_no_base_model(place):
    for file in (place / "stl-ntk/kernel").glob("step-00000000*"):
        file.unlink()
    numbers = fig6.with_paper_values(fig6.numbers(find_runs([place])))
    titles = " ".join(ax.get_title(loc="left") for ax in fig6.draw(numbers).axes)
    assert "STL, step 1" in titles and "base model" not in titles
    assert "after DCR, step 0" in titles
    assert numbers["paper"].isna().all()


def test_the_pair_learnt_on_a_prompt_has_no_part_in_the_mean_influence_on_it(place):
    runs = find_runs([place])
    before = influence.numbers(runs).query("run == 'stl' and step == 0").set_index("observed_group")
    own = runs["stl"].prompts.query("group == 'toxic' and in_kernel").iloc[0]
    texts = ["toxic lesson 0", "toxic lesson 1", "toxic lesson 2", own["text"]]
    change(place / "stl-ntk/updated.parquet", lambda rows: rows.assign(text=texts))
    after = influence.numbers(runs).query("run == 'stl' and step == 0").set_index("observed_group")
    itself = (3 - 1) * (own["prompt"] + 1)
    wanted = (20 * before.loc["toxic", "change"] - itself) / 19
    assert after.loc["toxic", "change"] == pytest.approx(wanted)
    assert after["pairs"].to_dict() == {"normal": 20, "seemingly_toxic": 20, "toxic": 19}
    assert after.loc["normal", "change"] == before.loc["normal", "change"]


def test_why_reads_one_set_of_phrases_of_several(place):
    before = why.numbers(find_runs([place]))
    for run in ("stl-ntk", "dcr-stl-ntk"):
        for file in (place / run / "refusal").iterdir():
            change(
                file,
                lambda rows: pd.concat(
                    [rows.assign(phrase_set="german", log_probability=-9.0), rows]
                ),
            )
    pd.testing.assert_frame_equal(why.numbers(find_runs([place])), before)
