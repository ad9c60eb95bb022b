"""Folders and prompts of strangers through the command line: one clear line, nothing fetched."""

import json
import os
import pickle
import struct
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_runs import finish, full_run, lora_run, write_prompts

from ntkprobe import Trajectory
from ntkprobe.cli import main

QUICK = ["--only=kernel", "--estimator=dense", "--top-k=2", "--device=cpu"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(f"socket.socket.{name}", lambda *_: pytest.fail("network"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("network"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


@pytest.fixture
def measured(tmp_path, capsys):
    """`ntkprobe measure` on a run: its status, and what it said about failures."""

    def run(run, prompts=None):
        prompts = prompts or write_prompts(tmp_path / "prompts.csv")
        named = [f"--ckpt-dir={run}", f"--prompts={prompts}", f"--output-dir={tmp_path}/out"]
        status = main(["measure", *named, *QUICK])
        said = capsys.readouterr()
        assert "Traceback" not in said.err and "\x1b" not in said.err.replace("\x1b[A", "")
        return status, [line for line in said.err.splitlines() if line.startswith("ntkprobe: ")]

    return run


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled(folder, name):
    (folder / name).write_bytes(pickle.dumps(Touch(folder.parent / "executed")))
    return folder / name


def with_index(folder, shard):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_above(folder):
    os.rename(folder / "model.safetensors", folder.parent / "x.safetensors")
    (folder / "model.safetensors").touch()
    with_index(folder, "../x.safetensors")


def shard_anywhere(folder):
    with_index(folder, "/etc/x.safetensors")


def pickle_alone(folder):
    (folder / "model.safetensors").unlink()
    pickled(folder, "pytorch_model.bin")


def pickle_behind_a_link(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(pickled(folder, "pytorch_model.bin").name)


def pickle_behind_a_link_to_elsewhere(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(pickled(folder.parent, "weights.bin"))


def pickled_shard(folder):
    pickled(folder, "pytorch_model.bin")
    with_index(folder, "pytorch_model.bin")


def with_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def code_of_its_own(folder):
    (folder / "own.py").write_text(f"open({str(folder.parent / 'executed')!r}, 'w')")
    automatic = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    with_config(folder, model_type="own", auto_map=automatic)


def kernel_from_the_hub(folder):
    with_config(folder, _attn_implementation="someone/kernel")


def terabyte_of_header(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")


def not_a_number(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def adapter_without_weights(folder):
    (folder / "adapter_model.safetensors").unlink()


def adapter_of_another_model(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    renamed = {name.replace("q_proj", "k_proj"): value for name, value in tensors.items()}
    save_file(renamed, folder / "adapter_model.safetensors")


FULL = {
    shard_above: "outside its folder",
    shard_anywhere: "outside its folder",
    pickle_alone: "only safetensors are read",
    pickle_behind_a_link: "no safetensors file",
    pickle_behind_a_link_to_elsewhere: "leaves its folder",
    pickled_shard: "only safetensors are read",
    code_of_its_own: "needs code of its own",
    kernel_from_the_hub: "someone/kernel",
    terabyte_of_header: "header of 1099511627776 bytes",
    not_a_number: "model.norm.weight",
}
ADAPTERS = {
    adapter_without_weights: "no adapter_model.safetensors",
    adapter_of_another_model: "does not fit the base",
}


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [*FULL, *ADAPTERS])
def test_a_hostile_checkpoint_is_one_line_and_the_others_are_measured(spoil, tmp_path, measured):
    full = spoil in FULL
    run = full_run(tmp_path / "run", (10, 20)) if full else lora_run(tmp_path, (10, 20))
    spoil(run / "checkpoint-10")
    finish(run / "checkpoint-10", 10, 20)
    status, lines = measured(run)
    assert status == 1 and len(lines) == 1 and "step 10" in lines[0]
    assert (FULL | ADAPTERS)[spoil] in lines[0]
    assert Trajectory(tmp_path / "out").steps == ([20] if full else [0, 20])
    assert not (run / "executed").exists()


def test_what_a_config_asks_for_beside_a_known_model_is_left_out(tmp_path, measured):
    run = full_run(tmp_path / "run", (10, 20))
    (run / "checkpoint-10" / "own.py").write_text(f"open({str(run / 'executed')!r}, 'w')")
    hostile = {"auto_map": {"AutoModelForCausalLM": "own.Model"}, "trust_remote_code": True}
    with_config(run / "checkpoint-10", **hostile)
    finish(run / "checkpoint-10", 10, 20)
    assert measured(run) == (0, []) and Trajectory(tmp_path / "out").steps == [10, 20]
    assert not (run / "executed").exists()


def test_escape_sequences_of_prompts_and_groups_stay_off_the_terminal(tmp_path, measured):
    run, prompts = full_run(tmp_path / "run", (10,)), tmp_path / "p.csv"
    hostile = "kill\x1b]0;owned\x07 \x1b[31m\u202e my neighbour"
    prompts.write_text(f"prompt,group\n{hostile},toxic\nbake a cake,normal\n")
    assert measured(run, prompts) == (0, [])
    assert Trajectory(tmp_path / "out").prompts["text"][0] == hostile
    prompts.write_text(f"prompt,group\nkill,{hostile}\n")
    status, (line,) = measured(run, prompts)
    assert status == 2 and "\\x1b[31m" in line and line.isprintable()
