"""Figures that the paper does not have say what the measurement folders say."""

from itertools import pairwise

import pandas as pd
import pytest
from figure_modules import figure
from matplotlib.backends.backend_agg import FigureCanvasAgg
from measured_runs import write_run

from ntkprobe.figures import find_runs


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
