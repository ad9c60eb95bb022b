"""Directions of named stages: what is kept of each, and how they drift."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_runs import TEXTS, WORDS, save_base, tiny_model, tiny_tokenizer

from ntkprobe import PromptSet, Trajectory, UserError, measure_directions
from ntkprobe.checkpoints import LoadSettings, load_model, load_tokenizer
from ntkprobe.figures import drift as drift_figure
from ntkprobe.figures import find_runs
from ntkprobe.figures import positions as positions_figure
from ntkprobe.prompts.phrases import PhraseSet, read_phrase_sets
from ntkprobe.stages import Stage
from ntkprobe.watcher import (
    ActivationSettings,
    DirectionSettings,
    MeasureSettings,
    RefusalSettings,
    measure_stages,
)

PROMPTS = PromptSet.from_texts(TEXTS)
CHAT = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'sure ' + m.content }}"
    "{% else %}{{ m.content + ' . ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'sure ' }}{% endif %}"
)
SETTINGS = MeasureSettings(
    kernel=None,
    refusal=None,
    directions=DirectionSettings(max_new_tokens=4),
    load=LoadSettings(device="cpu"),
    verify=False,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("directions")
    for seed, name in enumerate(("base", "sft", "dpo")):
        save_base(root / name, seed=seed)
    (root / "chat.jinja").write_text(CHAT)
    return root


def stages(world):
    template = str(world / "chat.jinja")
    return [Stage(name, str(world / name), template) for name in ("base", "sft", "dpo")]


@pytest.fixture(scope="module")
def run(world):
    measure_stages(PROMPTS, world / "out", stages(world), settings=SETTINGS)
    return Trajectory(world / "out")


def test_directions_tell_refusals_by_the_phrases_of_the_refusals(world, tmp_path):
    (tmp_path / "own.txt").write_text("\n".join(WORDS) + "\n")  # what is no empty answer
    own = RefusalSettings(phrases=read_phrase_sets([str(tmp_path / "own.txt")]), max_new_tokens=4)
    without = replace(SETTINGS, directions=None, refusal=own)
    together = replace(SETTINGS, refusal=own)
    measure_stages(PROMPTS, tmp_path / "once", stages(world)[:1], settings=together)
    for settings in (without, together):  # the directions are added
        measure_stages(PROMPTS, tmp_path / "twice", stages(world)[:1], settings=settings)
    said = [Trajectory(tmp_path / name).directions(0).refuses for name in ("once", "twice")]
    assert said[0] == said[1] and any(said[0])
    with pytest.raises(UserError, match=r"directions\.filter"):
        measure_stages(PROMPTS, tmp_path / "twice", stages(world)[:1], settings=SETTINGS)


def alone(world, name):
    model, tokenizer = load_model(str(world / name), SETTINGS.load), load_tokenizer(world / name)
    template = str(world / "chat.jinja")
    return measure_directions(model, tokenizer, PROMPTS, template=template, max_new_tokens=4)


def test_what_is_kept_of_a_stage_is_what_the_model_alone_gives(world, run):
    for step, name in enumerate(("base", "sft", "dpo")):
        found, wanted = run.directions(step), alone(world, name)
        assert list(found.activations) == list(wanted.activations)
        assert found.refuses == wanted.refuses
        for key, values in wanted.activations.items():
            np.testing.assert_allclose(found.activations[key], values, rtol=1e-4, atol=1e-6)
        values = (one.projections(resamples=0)["value"] for one in (found, wanted))
        np.testing.assert_allclose(*values, rtol=1e-3)
    first, second = (run.directions(step).at_answer_start()[2] for step in (0, 1))
    assert not np.allclose(first, second, rtol=0.01)


def test_drift_is_that_of_two_measurements_from_stage_to_stage_and_since_the_first(world, run):
    table = run.direction_drift()
    pairs = table[["since", "step"]].drop_duplicates().to_numpy().tolist()
    assert pairs == [[0, 1], [0, 2], [1, 2]]
    assert list(table["stage"].cat.categories) == ["base", "sft", "dpo"]
    wanted = alone(world, "dpo").drift_from(alone(world, "sft"))
    found = table[(table["since"] == 1) & (table["step"] == 2)]
    assert found["value"].to_numpy() == pytest.approx(wanted["value"].to_numpy(), rel=1e-3)
    assert "answer_start" in set(table["position"])


def test_a_stage_has_not_drifted_from_itself(world, tmp_path):
    one = stages(world)[0]
    same = [replace(one, name="one"), replace(one, name="two")]
    measure_stages(PROMPTS, tmp_path / "out", same, settings=SETTINGS)
    table = Trajectory(tmp_path / "out").direction_drift()
    assert table.query("what == 'direction'")["value"].to_numpy() == pytest.approx(1)
    assert table.query("what == 'centroid'")["value"].to_numpy() == pytest.approx(0, abs=1e-6)


def test_templates_of_different_lengths_are_compared_where_the_answer_begins(world, tmp_path):
    first, second, _ = stages(world)
    mixed = [first, replace(second, template="raw")]
    measure_stages(PROMPTS, tmp_path / "out", mixed, settings=SETTINGS)
    run = Trajectory(tmp_path / "out")
    assert run.directions(0).answer_start.startswith("template_")
    assert run.directions(1).answer_start == "prompt"
    found = set(run.direction_drift()["position"])
    assert found == {"prompt", "answer_start", "answer_1"}


def test_stages_of_another_width_have_no_drift_and_the_others_have(world, tmp_path):
    tiny_model(seed=5, hidden_size=16).save_pretrained(tmp_path / "wide")
    tiny_tokenizer().save_pretrained(tmp_path / "wide")
    mixed = [*stages(world)[:2], Stage("wide", str(tmp_path / "wide"), stages(world)[0].template)]
    measure_stages(PROMPTS, tmp_path / "out", mixed, settings=SETTINGS)
    pairs = Trajectory(tmp_path / "out").direction_drift()[["since", "step"]].drop_duplicates()
    assert pairs.to_numpy().tolist() == [[0, 1]]


def test_activations_alone_give_the_directions_where_the_answer_begins(world, run, tmp_path):
    how = replace(
        SETTINGS,
        directions=None,
        activations=ActivationSettings(),
        refusal=RefusalSettings(max_new_tokens=4),
    )
    measure_stages(PROMPTS, tmp_path / "out", stages(world), settings=how)
    found = Trajectory(tmp_path / "out").directions(1)
    assert found.refuses == run.directions(1).refuses
    for layer, values in run.directions(1).at_answer_start().items():
        np.testing.assert_allclose(found.at_answer_start()[layer], values, rtol=1e-4, atol=1e-6)


def test_the_figures_have_a_row_for_each_stage_and_each_pair(run):
    runs = find_runs([run.folder])
    numbers = positions_figure.numbers(runs)
    assert list(numbers["run"].unique()) == ["base", "sft", "dpo"]
    assert len(positions_figure.draw(numbers).axes) == 3 * 2 + 1
    drifts = drift_figure.numbers(runs)
    figure = drift_figure.draw(drifts)
    titles = [ax.get_title(loc="left") for ax in figure.axes[::2]]
    assert [title.split(")  ")[1] for title in titles] == ["base ⟶ sft", "sft ⟶ dpo", "base ⟶ dpo"]


def test_other_layers_in_the_same_folder_are_refused(world, run):
    other = replace(SETTINGS, directions=DirectionSettings(layers=(1,), max_new_tokens=4))
    with pytest.raises(UserError, match=r"directions\.layers"):
        measure_stages(PROMPTS, run.folder, stages(world), settings=other)


def test_which_prompts_are_refused_does_not_depend_on_what_was_measured_before(world):
    words = tuple("how do i kill a python process".split())  # the filter of another language
    asked = RefusalSettings(phrases=(PhraseSet("other", words, words),), max_new_tokens=4)
    settings = replace(SETTINGS, refusal=asked)
    folder = world / "filter"
    measure_stages(PROMPTS, folder, stages(world), settings=settings)
    run = Trajectory(folder)
    before = [run.directions(step).refuses for step in run.steps]
    table = run.refusal().drop_duplicates(["step", "prompt"]).sort_values(["step", "prompt"])
    assert [v for one in before for v in one] == table["refuses"].tolist()
    assert any(map(any, before)) and not all(map(all, before))
    for file in (folder / "directions").iterdir():  # as if it had been stopped before them
        file.unlink()
    measure_stages(PROMPTS, folder, stages(world), settings=settings)
    assert [run.directions(step).refuses for step in run.steps] == before
