"""`measure --stage … --dry-run` counts and refuses what the same command then does."""

import re
import shutil

import pytest
from tiny_runs import contents, lora_checkpoint, save_base, tiny_model, write_prompts

from ntkprobe.cli import main

QUICK = ["--no-verify", "--no-generate", "--estimator", "dense", "--top-k", "2", "--device", "cpu"]
REFUSAL = ["--only", "refusal"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base, a model trained from it, an adapter over the base, and refusals of all three."""
    root = tmp_path_factory.mktemp("stages")
    save_base(root / "base", seed=0)
    save_base(root / "sft", seed=1)
    lora_checkpoint(root / "run", 10, root / "base")
    write_prompts(root / "prompts.csv")
    assert measure(root, root / "out", *REFUSAL) == 0
    return root


def measure(world, out, *flags, **models):
    """Measure the three models as stages, or others in their place."""
    named = {"base": world / "base", "sft": world / "sft", "dpo": world / "run/checkpoint-10"}
    stages = [f"--stage={name}={place}" for name, place in {**named, **models}.items()]
    call = ["measure", *stages, "--prompts", world / "prompts.csv", "--output-dir", out]
    return main([str(word) for word in (*call, *QUICK, *flags)])


def planned(world, out, capsys, *flags, **models):
    """Return what a dry run says, which writes nothing."""
    before = contents(out) if out.is_dir() else None
    capsys.readouterr()
    assert measure(world, out, *flags, "--dry-run", **models) == 0
    assert (contents(out) if out.is_dir() else None) == before
    return capsys.readouterr().out


@pytest.fixture
def out(world, tmp_path):
    return shutil.copytree(world / "out", tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        (REFUSAL, 0),
        ([*REFUSAL, "--overwrite"], 3),
        (["--only", "kernel,refusal", "--steps", "1:2"], 2),
        (["--only", "kernel", "--shard", "1/2"], 1),
    ],
)
def test_a_dry_run_counts_the_tables_that_stages_lack(flags, count, world, out, capsys):
    said = planned(world, out, capsys, *flags)
    assert f"{count} to measure" in said
    assert measure(world, out, *flags) == 0
    assert f"{count} new" in capsys.readouterr().out


def test_a_dry_run_names_what_each_stage_lacks(world, out, capsys):
    (out / "refusal/step-00000001.parquet").unlink()
    said = planned(world, out, capsys, "--only", "kernel,refusal").splitlines()
    assert [re.sub(r": .* MB", "", line) for line in said[:3]] == [
        "base, lacks kernel",
        "sft",
        "dpo, lacks kernel",
    ]
    assert said[3].startswith("3 to measure, ")


def test_a_dry_run_counts_a_stage_that_was_written_anew(world, out, tmp_path, capsys):
    sft = shutil.copytree(world / "sft", tmp_path / "sft")
    assert "0 to measure" in planned(world, out, capsys, *REFUSAL, sft=sft)
    assert measure(world, out, *REFUSAL, sft=sft) == 0  # from here on it is at this place
    tiny_model(seed=7).save_pretrained(sft)
    assert "1 to measure" in planned(world, out, capsys, *REFUSAL, sft=sft)


def test_a_dry_run_says_which_stage_cannot_be_measured(world, out, tmp_path, capsys):
    said = planned(world, out, capsys, *REFUSAL, more=tmp_path / "nowhere")
    assert "more: " in said and ": no model at " in said and "0 to measure" in said
    over_adapter = ["--only", "kernel", "--parameters", "lora"]
    said = planned(world, out, capsys, *over_adapter)
    assert said.count("and this is none") == 2 and "1 to measure" in said
    assert measure(world, out, *over_adapter) == 1


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_dry_run_refuses_what_the_command_refuses(dry, world, out, tmp_path, capsys):
    def refused(said, *flags, **models):
        capsys.readouterr()
        before = contents(out)
        assert measure(world, out, *flags, *dry, **models) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
        assert contents(out) == before

    refused("refusal.phrases", *REFUSAL, "--phrases", "xstest21")
    refused("the stage sft from the model", *REFUSAL, sft=world / "base")
    refused("lies inside the stage base", *REFUSAL, "--output-dir", world / "base/out")
    refused("there are 0 base, 1 sft, 2 dpo", *REFUSAL, "--steps", "7")
    lora = ["--only", "kernel", "--parameters", "lora", "--steps", "0:1"]
    refused("none is among the stages chosen (base, sft)", *lora)
    run = ["--ckpt-dir", world / "run", "--prompts", world / "prompts.csv", "--output-dir", out]
    assert main([str(word) for word in ("measure", *run, *REFUSAL, *QUICK, *dry)]) == 2
    assert "holds named stages" in capsys.readouterr().err
