"""Named models in one folder: order, templates, and what goes wrong with one of them."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file
from tiny_runs import TEXTS, WORDS, contents, lora_checkpoint, save_base, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ntkprobe import PromptSet, Trajectory, UserError, measure_kernel, measure_refusal
from ntkprobe.checkpoints import LoadSettings, load_model, load_tokenizer
from ntkprobe.cli import main
from ntkprobe.figures import draw_figures, figure_names, find_runs
from ntkprobe.figures.measured_tables import missing_message
from ntkprobe.figures.stages import templates_of
from ntkprobe.prompts.special_tokens import vocabulary_difference
from ntkprobe.stages import Stage, differences, parse_stages
from ntkprobe.watcher import (
    ActivationSettings,
    KernelSettings,
    MeasureSettings,
    RefusalSettings,
    measure_run,
    measure_stages,
)

PROMPTS = PromptSet.from_texts(TEXTS)
KERNEL = KernelSettings(estimator="dense", top_k=2)
SETTINGS = MeasureSettings(
    kernel=KERNEL,
    refusal=RefusalSettings(max_new_tokens=4),
    load=LoadSettings(device="cpu"),
    verify=False,
)
CHAT = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'sure ' + m.content }}"
    "{% else %}{{ m.content + ' . ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'sure ' }}{% endif %}"
)


def tokenizer_of(words, **changes):
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<eos>", "<pad>", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>", **changes
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base, a model trained from it, and an adapter over the base."""
    root = tmp_path_factory.mktemp("stages")
    save_base(root / "base", seed=0)
    save_base(root / "sft", seed=1)
    tokenizer_of(WORDS, chat_template=CHAT).save_pretrained(root / "sft")
    lora_checkpoint(root / "run", 10, root / "base")
    return root


def three(world, **templates):
    models = {"base": "base", "sft": "sft", "dpo": "run/checkpoint-10"}
    return [
        Stage(name, str(world / place), templates.get(name, "raw"))
        for name, place in models.items()
    ]


@pytest.fixture(scope="module")
def measured(world):
    how = replace(SETTINGS, activations=ActivationSettings(), verify=True)
    outcome = measure_stages(PROMPTS, world / "out", three(world), settings=how)
    assert outcome.status == 0 and outcome.new == [0, 1, 2]
    return world / "out"


@pytest.mark.slow
def test_the_numbers_of_a_stage_are_those_of_its_model_alone(world, measured):
    run = Trajectory(measured)
    for number, name in enumerate(("base", "sft")):
        model = load_model(str(world / name), SETTINGS.load)
        tokenizer = load_tokenizer(world / name)
        alone = measure_kernel(
            model, tokenizer, PROMPTS, estimator="dense", top_k=2, template="raw"
        )
        rows = run.kernel()[run.kernel()["step"] == number]
        assert rows["norm"].to_numpy() == pytest.approx(alone.norms.flatten().numpy(), rel=1e-5)
        wanted = measure_refusal(model, tokenizer, PROMPTS, max_new_tokens=4, template="raw")
        found = run.refusal()[run.refusal()["step"] == number].query("reduction == 'literal'")
        assert found["log_probability"].to_numpy() == pytest.approx(
            wanted.log_probabilities["paper31", "literal"].numpy(), rel=1e-5
        )
    other = run.kernel().query("step == 1")["norm"].to_numpy()
    assert other != pytest.approx(run.kernel().query("step == 0")["norm"].to_numpy(), rel=0.01)


def test_an_adapter_as_a_stage_is_what_it_is_as_a_checkpoint(world, measured, tmp_path):
    how = replace(SETTINGS, template="raw")
    measure_run(PROMPTS, tmp_path / "run", ckpt_dir=world / "run", settings=how)
    wanted = Trajectory(tmp_path / "run").kernel().query("step == 10")["norm"].to_numpy()
    found = Trajectory(measured).kernel().query("stage == 'dpo'")["norm"].to_numpy()
    assert found == pytest.approx(wanted, rel=1e-6)


def test_tables_name_the_stages_in_their_order(measured):
    run = Trajectory(measured)
    assert run.stage_names == {0: "base", 1: "sft", 2: "dpo"}
    tables = [run.kernel(), run.refusal(), run.tokens(), run.group_means(), run.refusal_means()]
    for table in tables:
        assert table["stage"].dtype.ordered
        assert list(table["stage"].cat.categories) == ["base", "sft", "dpo"]
        assert (
            table["stage"].map({"base": 0, "sft": 1, "dpo": 2}).astype(int) == table["step"]
        ).all()
    assert "dpo" in run._repr_html_()


def test_the_steps_of_a_run_have_no_stage(world, tmp_path):
    how = replace(SETTINGS, refusal=None)
    measure_run(PROMPTS, tmp_path / "run", ckpt_dir=world / "run", settings=how)
    assert "stage" not in Trajectory(tmp_path / "run").kernel()
    with pytest.raises(UserError, match="holds the steps of one run, and these are named stages"):
        measure_stages(PROMPTS, tmp_path / "run", three(world), settings=SETTINGS)


def test_stages_are_no_run(world, measured):
    with pytest.raises(UserError, match="holds named stages"):
        measure_run(PROMPTS, measured, ckpt_dir=world / "run", settings=SETTINGS)


def test_the_same_call_measures_nothing_again(world, measured):
    before = contents(measured)
    how = replace(SETTINGS, activations=ActivationSettings())
    outcome = measure_stages(PROMPTS, measured, three(world), settings=how)
    assert outcome.known == [0, 1, 2] and not outcome.new
    after = contents(measured)
    tables = {name for name in before if name.endswith((".parquet", "run.json"))}
    assert tables and all(before[name] == after[name] for name in tables)


def test_a_further_stage_is_measured_in_addition(world, measured, tmp_path):
    out = shutil.copytree(measured, tmp_path / "out")
    more = [*three(world), Stage("again", str(world / "sft"), "raw")]
    how = replace(SETTINGS, activations=ActivationSettings())
    outcome = measure_stages(PROMPTS, out, more, settings=how)
    assert outcome.new == [3] and outcome.known == [0, 1, 2]
    assert list(Trajectory(out).stage_names.values()) == ["base", "sft", "dpo", "again"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: [s[1], s[0], s[2]], "stages base, sft, dpo, now they are sft, base, dpo"),
        (lambda s: [replace(s[0], model=s[1].model), *s[1:]], "the stage base from the model"),
        (lambda s: [s[0], replace(s[1], template="auto"), s[2]], "'raw', now it is 'chat'"),
    ],
    ids=["another order", "another model", "another template"],
)
def test_other_stages_into_the_same_folder_are_refused(world, measured, change, said):
    before = contents(measured)
    with pytest.raises(UserError, match="give another --output-dir") as error:
        measure_stages(PROMPTS, measured, change(three(world)), settings=SETTINGS)
    assert said in str(error.value)
    assert contents(measured) == before


def test_a_moved_model_is_the_same_stage(world, measured, tmp_path):
    out = shutil.copytree(measured, tmp_path / "out")
    shutil.copytree(world / "base", tmp_path / "elsewhere")
    stages = [replace(three(world)[0], model=str(tmp_path / "elsewhere")), *three(world)[1:]]
    assert measure_stages(PROMPTS, out, stages, settings=SETTINGS).known == [0, 1, 2]


def test_a_base_rewritten_below_its_adapter_is_refused(world, measured, tmp_path):
    out, root = shutil.copytree(measured, tmp_path / "out"), tmp_path / "world"
    for name in ("base", "sft", "run"):
        shutil.copytree(world / name, root / name)
    weights = load_file(root / "base/model.safetensors")
    save_file({k: v + 0.1 for k, v in weights.items()}, root / "base/model.safetensors")
    stages = [*three(world)[:2], three(root)[2]]
    assert measure_stages(PROMPTS, out, stages, settings=SETTINGS).known == [0, 1, 2]
    with pytest.raises(UserError, match="stage dpo from the base"):
        measure_stages(PROMPTS, out, stages, model=str(root / "base"), settings=SETTINGS)


def test_a_stage_whose_weights_were_rewritten_is_measured_again(world, measured, tmp_path):
    out, root = shutil.copytree(measured, tmp_path / "out"), tmp_path / "world"
    shutil.copytree(world / "sft", root / "sft")
    stages = [three(world)[0], Stage("sft", str(root / "sft"), "raw"), three(world)[2]]
    how = replace(SETTINGS, activations=ActivationSettings())
    assert not measure_stages(PROMPTS, out, stages, settings=how).new
    tiny_model(seed=7).save_pretrained(root / "sft")
    outcome = measure_stages(PROMPTS, out, stages, settings=how)
    assert outcome.new == [1] and outcome.known == [0, 2]


def test_a_model_without_a_template_gets_a_plain_frame_and_it_is_said(world, tmp_path, capsys):
    stages = three(world, base="auto", sft="auto", dpo="auto")
    measure_stages(PROMPTS, tmp_path / "out", stages, settings=SETTINGS)
    said = capsys.readouterr().err
    assert "base has no chat template: its prompts get a plain frame" in said
    assert "base and sft have different templates (plain, chat)" in said
    assert "sft and dpo have different templates" in said
    assert "base and dpo" not in said
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert [one["template"] for one in record["stages"]] == ["plain", "chat", "plain"]


def test_equal_templates_are_not_called_different(measured, world, capsys):
    measure_stages(PROMPTS, measured, three(world), settings=SETTINGS)
    assert "template" not in capsys.readouterr().err.replace("(raw)", "")


def test_one_stage_that_cannot_be_loaded_leaves_the_others(world, tmp_path, capsys):
    shutil.copytree(world / "sft", tmp_path / "broken")
    (tmp_path / "broken/model.safetensors").write_bytes(b"no weights")
    base, sft, _ = three(world)
    stages = [
        Stage("nowhere", str(tmp_path / "nowhere")),
        base,
        Stage("bad", str(tmp_path / "broken"), "raw"),
        sft,
    ]
    outcome = measure_stages(PROMPTS, tmp_path / "out", stages, settings=SETTINGS)
    assert outcome.status == 1 and outcome.new == [1, 3] and sorted(outcome.failed) == [0, 2]
    said = [line for line in capsys.readouterr().err.splitlines() if "failed" in line]
    assert len(said) == 2 and "nowhere failed: no " in said[0] and "bad failed: " in said[1]
    assert sorted(Trajectory(tmp_path / "out").kernel()["stage"].unique()) == ["base", "sft"]
    # Once it is there, it is measured in its place.
    save_base(tmp_path / "nowhere", seed=3)
    stages[0] = replace(stages[0], template="raw")
    assert measure_stages(PROMPTS, tmp_path / "out", stages, settings=SETTINGS).new == [0]


def test_stages_that_all_fail_are_a_mistake_in_the_call(tmp_path):
    with pytest.raises(UserError, match="nothing could be measured: no "):
        measure_stages(
            PROMPTS, tmp_path / "out", [Stage("a", str(tmp_path / "x"))], settings=SETTINGS
        )


def test_kernels_over_another_vocabulary_are_left_out_and_it_is_said(world, tmp_path, capsys):
    save_base(tmp_path / "other", seed=2)
    tokenizer_of([*WORDS[1:], WORDS[0]]).save_pretrained(tmp_path / "other")
    stages = [three(world)[0], Stage("other", str(tmp_path / "other"), "raw")]
    outcome = measure_stages(PROMPTS, tmp_path / "out", stages, settings=SETTINGS)
    run = Trajectory(tmp_path / "out")
    assert outcome.status == 0
    assert list(run.kernel()["stage"].unique()) == ["base"]
    assert list(run.refusal()["stage"].unique()) == ["base", "other"]
    said = [line for line in capsys.readouterr().err.splitlines() if "vocabulary" in line]
    assert len(said) == 1 and "token 3 is 'how' there and 'do' here, base being there" in said[0]
    only = replace(SETTINGS, refusal=None)
    outcome = measure_stages(PROMPTS, tmp_path / "kernels", stages, settings=only)
    assert outcome.status == 1 and "vocabulary" in outcome.failed[1]


def test_a_vocabulary_that_goes_on_is_no_other_one():
    ours, longer = tokenizer_of(WORDS), tokenizer_of([*WORDS, "more"])
    assert vocabulary_difference(ours, longer) is None
    longer.add_special_tokens({"additional_special_tokens": ["<new>"]})
    ours.add_special_tokens({"additional_special_tokens": ["<other>"]})
    assert vocabulary_difference(ours, tokenizer_of(WORDS)) is None
    assert "token 3 is" in vocabulary_difference(ours, tokenizer_of(WORDS[::-1]))


def test_other_architectures_are_said_and_measured(world, tmp_path, capsys):
    tiny_model(seed=4, num_hidden_layers=1).save_pretrained(tmp_path / "small")
    tokenizer_of(WORDS).save_pretrained(tmp_path / "small")
    stages = [three(world)[0], Stage("small", str(tmp_path / "small"), "raw")]
    outcome = measure_stages(PROMPTS, tmp_path / "out", stages, settings=SETTINGS)
    assert outcome.status == 0 and outcome.new == [0, 1]
    said = capsys.readouterr().err
    assert said.count("have different architectures") == 1
    assert "qwen2, 2 layers of 8; qwen2, 1 layers of 8" in said


def test_workers_share_the_stages_between_them(world, tmp_path):
    from ntkprobe.watcher import Choice

    for worker in (0, 1):
        choice = Choice(shard=(worker, 2))
        found = measure_stages(
            PROMPTS, tmp_path / "out", three(world), settings=SETTINGS, choice=choice
        )
        assert found.new == [[0, 2], [1]][worker]


@pytest.mark.slow
def test_every_figure_names_the_stages(measured):
    drawn = draw_figures({"out": Trajectory(measured)}, measured.parent / "figures")
    assert not drawn.broken, drawn.broken
    names = {path.stem for path in drawn.files}
    assert names >= {"fig1", "fig3", "fig4", "fig5", "fig6", "fig7", "fig8", "fig9", "pairs"}
    for path in drawn.files:
        if path.suffix == ".csv":
            table = pd.read_csv(path)
            named = set(table[["step", "stage"]].itertuples(index=False, name=None))
            if path.stem == "drift":  # of what moved since an earlier stage
                assert named == {(1, "sft"), (2, "dpo")}
                assert set(table["since_name"]) == {"base", "sft"}
            else:
                assert named == {(0, "base"), (1, "sft"), (2, "dpo")}, path
            assert set(table["template"]) == {"raw"}


def test_figures_say_where_templates_change(world, tmp_path):
    stages = three(world, base="auto", sft="auto")[:2]
    measure_stages(PROMPTS, tmp_path / "out", stages, settings=SETTINGS)
    from ntkprobe.figures import fig3, fig5, fig6

    for module in (fig3, fig5, fig6):
        figure = module.draw(module.numbers(find_runs([tmp_path / "out"])))
        note = figure.get_supxlabel().replace("\n", " ")
        assert "Templates differ (base plain, sft chat)" in note
    assert sorted(figure_names())


def test_the_command_for_what_is_missing_has_the_templates_that_were_chosen(world, tmp_path):
    stages = three(world, base="raw", sft="auto")[:2]
    measure_stages(PROMPTS, tmp_path / "out", stages, settings=SETTINGS)
    line = missing_message(Trajectory(tmp_path / "out"), "influence", "--influence refusal")
    assert "--template base=raw" in line and "--template sft" not in line


def test_a_template_of_one_name_and_other_tokens_is_told_apart():
    stages = [
        {"name": n, "template": t, "tokens": k, "same_vocabulary": True, "architecture": None}
        for n, t, k in (("a", "chat", "1"), ("b", "chat", "2"), ("c", "chat", "2"))
    ]
    assert templates_of(stages) == ["chat 1", "chat 2", "chat 2"]
    assert "two kinds of chat" in differences(stages[0], stages[1])[0]
    assert not differences(stages[1], stages[2])


@pytest.mark.parametrize(
    ("words", "templates", "said"),
    [
        (["a=x", "A=y"], [], "two stages are called 'A', x and y"),
        (["a"], [], "give NAME=MODEL"),
        (["a="], [], "the stage a has no model"),
        (["=x"], [], "no stage can be called ''"),
        (["../a=x"], [], "no stage can be called '../a'"),
        (["a=x"], ["b=raw"], "no stage is called 'b': choose from ['a']"),
        (["a=x"], ["a=raw", "a=chat"], "two templates for the stage a"),
    ],
)
def test_a_stage_that_makes_no_sense_is_one_clear_line(words, templates, said):
    with pytest.raises(UserError) as error:
        parse_stages(words, templates)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_templates_are_those_of_the_stages_named():
    found = parse_stages(["base=x", "sft=y=z"], ["raw", "sft=chat"])
    assert found == (Stage("base", "x", "raw"), Stage("sft", "y=z", "chat"))


def test_the_command_measures_stages_and_refuses_what_is_about_runs(world, tmp_path, capsys):
    prompts = tmp_path / "prompts.csv"
    rows = [(text, group) for group, texts in TEXTS.items() for text in texts]
    pd.DataFrame(rows, columns=["prompt", "group"]).to_csv(prompts, index=False)
    call = ["measure", "--stage", f"base={world / 'base'}", "--stage", f"sft={world / 'sft'}"]
    call += ["--prompts", str(prompts), "--output-dir", str(tmp_path / "out"), "--no-verify"]
    call += ["--only", "refusal", "--max-new-tokens", "4", "--template", "base=raw"]
    assert main([*call, "--dry-run"]) == 0
    assert f"sft: {world / 'sft'}" in capsys.readouterr().out
    assert main(call) == 0
    assert "2 stages in" in capsys.readouterr().out
    assert main([*call, "--stage", "sft=x"]) == 2
    assert main([*call, "--ckpt-dir", str(world / "run")]) == 2
    assert main([*call, "--model", "x"]) == 2
    assert "no --stage is one" in capsys.readouterr().err
    assert main([*call, "--follow"]) == 2
    assert "leave one of them out" in capsys.readouterr().err
