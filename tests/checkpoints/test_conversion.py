"""Shards of FSDP and DeepSpeed: found, named, and converted where that is asked for."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from peft import get_peft_model_state_dict
from tiny_runs import (
    contents,
    finish,
    full_checkpoint,
    save_base,
    tiny_adapter,
    tiny_model,
    write_prompts,
)

from ntkprobe import Trajectory
from ntkprobe.checkpoints import LoadSettings, adapted, find_checkpoints, load_model, readiness
from ntkprobe.checkpoints.conversion import convert_run
from ntkprobe.cli import main
from ntkprobe.errors import UserError

CPU = LoadSettings(device="cpu")
IDS = torch.arange(6)[None]


def save_shards(state: dict, place: Path) -> None:
    """Save a state as accelerate does for `SHARDED_STATE_DICT`, in one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": state}, checkpoint_id=str(place), no_dist=True)


def fsdp_checkpoint(run: Path, step: int, marker: str = "pytorch_model_fsdp_0") -> Path:
    """A checkpoint of transformers' Trainer under FSDP: no configuration, no tokenizer."""
    folder = run / f"checkpoint-{step}"
    save_shards(tiny_model(step).state_dict(), folder / marker if marker else folder)
    (folder / "optimizer_0").mkdir()
    return finish(folder, step, 20)


def logits(model):
    return model(IDS).logits.detach()


@pytest.fixture
def base(tmp_path):
    return save_base(tmp_path / "base")


def test_shards_are_found_and_one_line_says_what_to_do(tmp_path):
    for marker in ("pytorch_model_fsdp_0", ""):
        verdict = readiness(fsdp_checkpoint(tmp_path / (marker or "torchtitan"), 10, marker))
        assert verdict.state == "refused" and "--convert" in verdict.reason
        assert "\n" not in verdict.reason


@pytest.mark.parametrize("marker", ["pytorch_model_fsdp_0", ""])
def test_converted_shards_are_the_function_that_was_trained(marker, base, tmp_path):
    run = tmp_path / "run"
    for step in (10, 20):
        fsdp_checkpoint(run, step, marker)
    before = contents(run)
    made = convert_run(run, tmp_path / "out" / "converted", str(base))
    assert [c.step for c in find_checkpoints(made)] == [10, 20]
    for checkpoint in find_checkpoints(made):
        assert readiness(checkpoint.path).state == "ready"
        found = logits(load_model(str(checkpoint.path), CPU))
        assert torch.allclose(found, logits(tiny_model(checkpoint.step)), atol=1e-6)
    assert contents(run) == before


@pytest.mark.parametrize("marker", ["pytorch_model_fsdp_0", ""])
def test_one_checkpoint_in_shards_is_a_run_of_one(marker, base, tmp_path):
    folder = fsdp_checkpoint(tmp_path / "run", 10, marker)
    assert [c.step for c in find_checkpoints(folder)] == [10]
    made = convert_run(folder, tmp_path / "converted", str(base))
    assert [c.step for c in find_checkpoints(made)] == [10]


def test_an_adapters_shards_become_an_adapter(base, tmp_path):
    folder = tmp_path / "run" / "checkpoint-10"
    model = tiny_adapter(tiny_model(0), seed=3)
    model.save_pretrained(tmp_path / "saved")
    save_shards(get_peft_model_state_dict(model), folder / "pytorch_model_fsdp_0")
    shutil.copy(tmp_path / "saved" / "adapter_config.json", folder)
    finish(folder, 10, 20)
    made = convert_run(tmp_path / "run", tmp_path / "converted", str(base))
    assert readiness(made / "checkpoint-10").kind == "adapter"
    with adapted(tiny_model(0), made / "checkpoint-10") as found:
        assert torch.allclose(logits(found), logits(model), atol=1e-5)


def test_what_was_converted_is_not_converted_again_unless_it_was_written_anew(
    base, tmp_path, monkeypatch
):
    run, out = tmp_path / "run", tmp_path / "converted"
    fsdp_checkpoint(run, 10)
    convert_run(run, out, str(base))
    first = contents(out)
    convert_run(run, out, str(base))
    assert contents(out) == first
    shutil.rmtree(run)
    folder = fsdp_checkpoint(run, 10)
    save_shards(tiny_model(5).state_dict(), folder / "pytorch_model_fsdp_0")
    convert_run(run, out, str(base))
    found = logits(load_model(str(out / "checkpoint-10"), CPU))
    assert torch.allclose(found, logits(tiny_model(5)), atol=1e-6)


def test_a_run_without_shards_is_itself_and_other_checkpoints_are_linked(base, tmp_path):
    run = tmp_path / "run"
    whole = full_checkpoint(run, 20)
    assert convert_run(run, tmp_path / "converted") == run
    assert not (tmp_path / "converted").exists()
    fsdp_checkpoint(run, 10)
    made = convert_run(run, tmp_path / "converted", str(base))
    assert [c.step for c in find_checkpoints(made)] == [10, 20]
    assert (made / "checkpoint-20").resolve() == whole.resolve()


def test_without_a_configuration_one_line_asks_for_it(tmp_path):
    fsdp_checkpoint(tmp_path / "run", 10)
    with pytest.raises(UserError, match=r"no config\.json in .* --model"):
        convert_run(tmp_path / "run", tmp_path / "converted")
    assert not list((tmp_path / "converted").iterdir())


def test_damaged_shards_are_one_line_and_leave_nothing(base, tmp_path):
    folder = fsdp_checkpoint(tmp_path / "run", 10)
    shard = next((folder / "pytorch_model_fsdp_0").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be converted"):
        convert_run(tmp_path / "run", tmp_path / "converted", str(base))
    assert not list((tmp_path / "converted").iterdir())


def test_the_run_is_never_written_into(base, tmp_path):
    fsdp_checkpoint(tmp_path / "run", 10)
    with pytest.raises(UserError, match="lies inside the run"):
        convert_run(tmp_path / "run", tmp_path / "run" / "converted", str(base))


def test_deepspeeds_shards_name_the_package_that_converts_them(base, tmp_path, monkeypatch):
    folder = tmp_path / "run" / "checkpoint-10"
    (folder / "global_step10").mkdir(parents=True)
    (folder / "latest").write_text("global_step10")
    (folder / "zero_to_fp32.py").write_text("raise SystemExit('executed')")
    assert "DeepSpeed shards" in readiness(folder).reason
    monkeypatch.setitem(__import__("sys").modules, "deepspeed", None)
    monkeypatch.setitem(__import__("sys").modules, "deepspeed.utils.zero_to_fp32", None)
    with pytest.raises(UserError, match="pip install deepspeed"):
        convert_run(tmp_path / "run", tmp_path / "converted", str(base))


def measuring_shards(base, tmp_path):
    """Return the call that measures a new run of two checkpoints in shards."""
    run = tmp_path / "run"
    for step in (10, 20):
        fsdp_checkpoint(run, step)
    prompts = write_prompts(tmp_path / "prompts.csv")
    call = ["measure", "--ckpt-dir", run, "--prompts", prompts, "--model", base]
    call += ["--output-dir", tmp_path / "out", "--only", "refusal", "--no-generate"]
    return [str(word) for word in call]


def test_measure_converts_where_it_is_asked_to(base, tmp_path, capsys):
    words, out = measuring_shards(base, tmp_path), tmp_path / "out"
    assert main(words) == 2 and "--convert" in capsys.readouterr().err
    assert main([*words, "--convert"]) == 0
    assert Trajectory(out).steps == [0, 10, 20]
    for more in ([], ["--dry-run"]):
        assert main([*words, "--convert", "--follow", *more]) == 2
        assert "leave out --follow" in capsys.readouterr().err


def test_a_dry_run_counts_what_is_converted_first_and_unpickles_nothing(base, tmp_path, capsys):
    words, out = measuring_shards(base, tmp_path), tmp_path / "out"
    assert main([*words, "--dry-run"]) == 0
    assert "0 to measure, 2 refused, see above" in capsys.readouterr().out
    assert main([*words, "--convert", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("ready (in shards, converted first), full\n") == 2
    assert "3 to measure" in said and not out.exists()
    assert main([*words, "--convert", "--steps", "0:10"]) == 0
    assert "2 new" in capsys.readouterr().out
    shutil.rmtree(out / "converted/checkpoint-20")
    assert main([*words, "--convert", "--dry-run"]) == 0  # one of them was converted and measured
    said = capsys.readouterr().out
    assert "1 to measure" in said and said.count("has measurements") == 2
    assert main([*words, "--convert"]) == 0
    assert "1 new" in capsys.readouterr().out
