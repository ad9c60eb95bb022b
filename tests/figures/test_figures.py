"""Figures say what the measurement folders say; what is missing is named."""

import shutil
import subprocess
import sys
import warnings
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from measured_runs import PAPER_TEXTS, STEPS, write_run

from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.figures import draw_figures, figure_names, find_runs
from ntkprobe.figures.activation_geometry import classical_scaling, correctly_clustered
from ntkprobe.figures.paper_numbers import paper_table
from ntkprobe.plots import style
from ntkprobe.trajectory import Trajectory

REGENERATE = Path(__file__).parents[2] / "figures" / "regenerate.py"


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


def test_activations_that_are_missing_go_into_the_same_folder(tmp_path):
    run = write_run(tmp_path / "stl-ntk")
    shutil.rmtree(run / "activations")
    drawn = draw_figures(find_runs([run]), tmp_path / "figures", ["fig7", "fig8"])
    assert set(drawn.missing) == {"fig7", "fig8"}
    assert f"--only activations --output-dir {run}`" in drawn.missing["fig7"]


# --- beside the paper ---


def test_fig6_prints_the_papers_numbers_beside_ours_where_it_has_some(runs, tmp_path):
    drawn = draw_figures(runs, tmp_path, ["fig6"], compare="paper")
    saved = pd.read_csv(tmp_path / "fig6.csv")
    pair = saved.query("observed_group == 'toxic' and updated_group == 'seemingly_toxic'")
    ours, papers = pair.set_index("run").loc["stl", ["similarity", "paper"]]
    assert (round(ours, 6), papers) == (0.32, 0.64)
    refined = saved.query("run == 'dcr-stl'")
    assert refined["paper"].isna().all()  # figure 6b has no numbers in the text
    assert len(drawn.compared["fig6"]) == 9 and "0.64" in drawn.comparison()
    module = figure("fig6")
    printed = {text.get_text() for text in module.draw(saved).axes[0].texts}
    assert "0.32\n(0.64)" in printed


def test_fig4_stands_beside_table_1_at_the_last_step(runs):
    module = figure("fig4")
    beside = module.with_paper_values(module.numbers(runs)).dropna().set_index("run")
    assert beside["step"].tolist() == [40, 40]
    assert beside["paper_compliance"].to_dict() == {"stl": 0.73, "dcr-stl": 0.98}
    assert beside["paper_safety"].to_dict() == {"stl": 0.72, "dcr-stl": 0.81}


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


def test_fig7_stands_beside_the_papers_bound_at_the_best_layer(runs):
    module = figure("fig7")
    beside = module.with_paper_values(module.numbers(runs)).dropna()
    assert beside[["layer", "step", "paper_bound"]].to_numpy().tolist() == [[2, 40, 0.76]] * 2


def test_other_runs_have_no_number_in_the_paper(runs):
    module = figure("fig4")
    beside = module.with_paper_values(module.numbers({"mine": runs["stl"]}))
    assert beside["paper_compliance"].isna().all()


def test_tables_hold_what_the_paper_prints():
    first = paper_table("table1").set_index(["model", "method"])
    assert len(first) == 15
    assert first.loc[("Llama-3-8B", "dcr"), ["or_bench", "piqa"]].tolist() == [0.85, 0.79]
    judged = paper_table("table5").query("method == 'dcr' and quantity == 'xstest'")
    assert judged["value"].tolist() == [0.98, 0.97, 0.96]
    # Tables 3 and 4 print 0.93 for what tables 1 and 5 give as 0.83.
    assert paper_table("table3")["or_bench"].tolist() == [0.80, 0.80, 0.93, 0.85]
    assert paper_table("table4")["or_bench"].tolist() == [0.76, 0.93, 0.80, 0.79]
    assert paper_table("table2")["minutes"].tolist() == [1, 18, 1, 21, 1, 24]


def test_tables_1_and_5_agree_where_they_print_the_same():
    keyword = paper_table("table5").query("judge in ('keyword', 'llama-guard-3-8b')")
    wide = keyword.pivot(index="method", columns="quantity", values="value")
    first = paper_table("table1").query("model == 'Qwen2.5-1.5B'").set_index("method")
    pd.testing.assert_frame_equal(wide, first.loc[wide.index, wide.columns], check_names=False)


def test_only_the_paper_can_be_compared_with(runs, tmp_path):
    with pytest.raises(UserError, match="'mine': the only choice is paper"):
        draw_figures(runs, tmp_path, ["fig6"], compare="mine")


def test_neither_dcr_nor_its_control_stands_beside_the_papers_base_model(runs):
    module = figure("fig6")
    numbers = module.numbers(runs)
    control = numbers[numbers["run"] == "stl"].assign(run="control-stl")
    told = module.with_paper_values(pd.concat([numbers, control]))
    assert told.groupby("run")["paper"].count().to_dict() == {
        "stl": 9,
        "dcr-stl": 0,
        "control-stl": 0,
    }


# --- ours ---


@pytest.mark.parametrize("layers", [4, 10, 11, 30, 81, 126])
def test_labels_of_many_layers_do_not_lie_on_another(layers):
    places = [*map(str, range(1, layers + 1)), "embed+head", "norm"]
    rows = [
        {"run": "stl", "step": 0, "place": place, "part": "mlp", "contribution": 0.1}
        | {"observed_group": observed, "updated_group": updated}
        for observed, updated in (("seemingly_toxic", "toxic"), ("toxic", "seemingly_toxic"))
        for place in places
    ]
    drawn = figure("layers").draw(pd.DataFrame(rows))
    renderer = FigureCanvasAgg(drawn).get_renderer()
    drawn.draw(renderer)
    for ax in drawn.axes:
        boxes = [
            text.get_window_extent(renderer) for text in ax.get_xticklabels() if text.get_text()
        ]
        assert len(boxes) > 3
        near = [b.x0 - a.x1 for a, b in pairwise(boxes)]
        assert min(near) > 0, near


def test_layers_add_up_to_the_mean_similarity(runs):
    sums = figure("layers").numbers(runs).groupby(["run", "observed_group"])["contribution"].sum()
    assert sums.round(6).to_dict() == {
        (run, group): mean
        for run, mean in (("stl", 0.32), ("dcr-stl", 0.1))
        for group in ("seemingly_toxic", "toxic")
    }


def test_pairs_leave_out_a_prompt_with_itself(runs):
    numbers = figure("pairs").numbers(runs)
    assert len(numbers) == 2 * 15 * 14
    assert (numbers["observed"] != numbers["updated"]).all()


def test_neighbours_are_the_most_similar_toxic_prompts(tmp_path):
    run = write_run(tmp_path / "stl-ntk")
    for file in (run / "kernel").iterdir():  # every prompt has a neighbour of its own
        table = pd.read_parquet(file)
        near = (table["observed"] + table["updated"]) % 5 == 0
        table.assign(norm=table["norm"] + 0.1 * near).to_parquet(file)
    (found,) = find_runs([run]).values()
    numbers = figure("neighbours").numbers({"stl": found})
    toxic = found.prompts.query("group == 'toxic' and in_kernel")["prompt"]
    wanted = [next(t for t in toxic if (p + t) % 5 == 0) for p in numbers["prompt"]]
    assert numbers["neighbour"].tolist() == wanted and len(set(wanted)) == len(numbers) == 5
    texts = found.prompts.set_index("prompt")["text"]
    assert numbers["neighbour_text"].tolist() == texts[wanted].tolist()


def test_influence_has_the_sign_of_the_mean_at_both_ends(runs):
    numbers = figure("influence").numbers({"stl": runs["stl"]})
    assert set(numbers["step"]) == {0, 40} and set(numbers["updated_group"]) == {"toxic"}
    first = numbers.query("step == 0").set_index("observed_group")
    # Pairs push by −1, 0, 1 and 2 times the prompt's number: its mean is half of that.
    assert first["change"].round(6).to_dict() == {
        "normal": 1.5,
        "seemingly_toxic": 7.5,
        "toxic": 13.5,
    }
    assert set(first["raising"]) == {0.5} and set(first["pairs"]) == {20}


def test_a_map_of_influence_is_symmetric_about_zero(runs):
    module = figure("influence")
    for ax in module.draw(module.numbers(runs)).axes:
        low, high = ax.collections[0].get_clim()
        assert low == -high < 0


def test_why_names_the_pairs_that_pushed_most_when_refusals_rose(runs):
    numbers = figure("why").numbers({"stl": runs["stl"]})
    assert numbers.groupby("prompt")["updated"].apply(list).tolist() == 4 * [[3, 2, 1]]
    refused = numbers.drop_duplicates("prompt").iloc[0]
    assert refused["text"].startswith("seemingly_toxic") and refused["refusal"] == pytest.approx(
        0.88
    )
    late = numbers[numbers["prompt"] == numbers["prompt"].max()].iloc[0]
    rises = runs["stl"].refusal().query("reduction == 'literal'")
    path = rises[rises["prompt"] == late["prompt"]].set_index("step")["probability"]
    assert late["step"] == path.index[path.diff().shift(-1).argmax()]


def test_influence_that_is_missing_goes_into_the_same_folder(tmp_path):
    run = write_run(tmp_path / "stl-ntk")
    shutil.rmtree(run / "influence")
    drawn = draw_figures(find_runs([run]), tmp_path / "figures", ["influence", "why"])
    assert set(drawn.missing) == {"influence", "why"}
    assert f"--influence refusal --output-dir {run}`" in drawn.missing["why"]


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


def test_the_command_prints_the_papers_numbers_beside_ours(folder, tmp_path, capsys):
    call = ["figures", str(folder), "--only", "fig6", "--compare", "paper"]
    assert main([*call, "--output-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "paper" in printed and "0.64" in printed
    assert printed.strip().endswith("(fig6), each as PNG, PDF and CSV.")


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
    with pytest.raises(UserError, match=r"no figure 'fig99': choose from directions, drift, fig1"):
        draw_figures(runs, tmp_path, ["fig99"])


def test_an_unwritable_folder_is_one_clear_line(runs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        draw_figures(runs, tmp_path / "file" / "figures", ["fig6"])


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


def test_directions_says_how_well_each_layer_tells_refused_prompts_apart(runs):
    numbers = figure("directions").numbers(runs).query("run == 'stl'")
    # Layer 2 is made of the toxic prompts but 3 of 12; at step 0 nothing is refused.
    toxicity = numbers[numbers["direction"] == "toxicity"].set_index(["layer", "step"])
    # Layer 1 is made of every other prompt, whatever its group.
    assert (toxicity.loc[2, "value"] > 0.85).all() and (toxicity.loc[1, "value"] < 0.6).all()
    assert (toxicity.loc[2, "p_value"] < toxicity.loc[1, "p_value"]).all()
    assert set(numbers.loc[numbers["step"] == 0, "direction"]) == {"toxicity"}
    assert set(numbers.loc[numbers["step"] == 40, "direction"]) == {
        "refusal",
        "over_refusal",
        "toxicity",
    }


def test_directions_of_a_run_without_activations_says_what_makes_them(folder, tmp_path):
    shutil.copytree(folder / "stl-ntk", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "activations")
    with pytest.raises(UserError, match="--only activations"):
        figure("directions").numbers(find_runs([tmp_path / "out"]))
