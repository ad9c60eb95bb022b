"""Folders that a user names: snapshots of the hub's cache are read, pickled weights are refused."""

import json
import shutil

import pytest
import torch
from fault_workers import SETTINGS
from safetensors.torch import load_file
from tiny_runs import (
    TEXTS,
    finish,
    lora_run,
    save_base,
    tiny_adapter,
    tiny_model,
    write_prompts,
)

from ntkprobe import PromptSet
from ntkprobe.checkpoints import (
    LoadSettings,
    adapted,
    find_checkpoints,
    load_model,
    load_tokenizer,
    loading,
    readiness,
)
from ntkprobe.checkpoints.headers import regular_file
from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.mitigations.lora_expert import Expert
from ntkprobe.mitigations.ssd import load_draft
from ntkprobe.watcher import Following, measure_run

CPU = LoadSettings(device="cpu")
PROMPTS = PromptSet.from_texts(TEXTS)


def snapshot_of(folder, cache):
    """Lay a model out as the hub's cache does: links into the blobs of its repository."""
    repository = cache / "models--someone--model"
    place, blobs = repository / "snapshots" / "abc", repository / "blobs"
    place.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, blobs / f"b{number}")
        (place / file.name).symlink_to(f"../../blobs/b{number}")
    return place


def test_a_snapshot_of_the_hubs_cache_is_a_model_a_base_and_a_checkpoint(tmp_path):
    place = snapshot_of(save_base(tmp_path / "base"), tmp_path / "hub")
    ids = torch.arange(6)[None]
    found = load_model(str(place), CPU)(ids).logits
    assert torch.allclose(found, tiny_model()(ids).logits, atol=1e-6)
    assert readiness(place).state == "unmarked" and len(find_checkpoints(place)) == 1
    for named in ({"model": str(place)}, {"ckpt_dir": place}):
        if "ckpt_dir" in named:
            finish(place, 0, 10)
        outcome = measure_run(PROMPTS, tmp_path / next(iter(named)), settings=SETTINGS, **named)
        assert outcome.status == 0 and outcome.new == [0]


def test_a_link_out_of_the_blobs_is_refused(tmp_path):
    place = snapshot_of(save_base(tmp_path / "base"), tmp_path / "hub")
    regular_file(place / "config.json")
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (place / "config.json").unlink()
    (place / "config.json").symlink_to(secret)
    with pytest.raises(UserError, match="leaves its folder"):
        regular_file(place / "config.json")
    # Blobs that are a link themselves, and the layout outside of a repository.
    (place / "config.json").unlink()
    blobs = place.parents[1] / "blobs"
    shutil.move(blobs, tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    (place / "config.json").symlink_to("../../blobs/b0")
    with pytest.raises(UserError, match="leaves its folder"):
        regular_file(place / "config.json")
    shutil.move(tmp_path / "hub" / "models--someone--model", tmp_path / "run")
    with pytest.raises(UserError, match="leaves its folder"):
        regular_file(tmp_path / "run" / "snapshots" / "abc" / "config.json")


def pickled_adapter(folder):
    tiny_adapter(tiny_model(), seed=1).save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    torch.save(load_file(weights), folder / "adapter_model.bin")
    return folder


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "weights.pth"]
)
def test_pickled_models_are_refused_with_how_to_convert_them(name, tmp_path):
    folder = save_base(tmp_path / "checkpoint-10")
    for state in ("optimizer.pt", "rng_state_0.pth", "training_args.bin", "scheduler.pt"):
        torch.save({}, folder / state)
    torch.save({}, folder / name)
    assert readiness(folder).state == "unmarked"  # there are safetensors, too
    (folder / "model.safetensors").unlink()
    verdict = readiness(folder)
    assert verdict.state == "refused" and name in verdict.reason
    assert "safe_serialization=True" in verdict.reason and find_checkpoints(folder)
    with pytest.raises(UserError, match=name):
        load_model(str(folder), CPU)
    (folder / name).unlink()
    assert readiness(folder).state == "incomplete"  # a trainer's state alone is no weights


def test_a_pickled_adapter_is_refused_by_every_reader(tmp_path):
    folder = pickled_adapter(tmp_path / "checkpoint-10")
    base = tiny_model()
    with adapted(base, folder):  # there are safetensors, too
        pass
    Expert.of(base, folder)
    (folder / "adapter_model.safetensors").unlink()
    assert readiness(folder).state == "refused"
    for read in (lambda: adapted(base, folder).__enter__(), lambda: Expert.of(base, folder)):
        with pytest.raises(UserError, match=r"adapter_model\.bin is a pickle.*save it again"):
            read()


def test_following_says_at_once_that_a_checkpoint_is_pickled_and_ends(tmp_path, capsys):
    base = save_base(tmp_path / "base")
    folder = finish(pickled_adapter(tmp_path / "run" / "checkpoint-10"), 10, 10)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"nothing could be measured.* is a pickle"):
        measure_run(
            PROMPTS,
            tmp_path / "out",
            ckpt_dir=tmp_path / "run",
            model=str(base),
            settings=SETTINGS,
            following=Following(poll_interval=0.02),
        )
    assert "checkpoint-10: adapter_model.bin is a pickle" in capsys.readouterr().err
    assert json.loads((folder / "trainer_state.json").read_text())["max_steps"] == 10


ACCELERATE = (
    *("optimizer.bin", "optimizer_1.bin", "scheduler.bin", "scheduler_1.bin", "sampler.bin"),
    *("sampler_1.bin", "dl_state_dict.bin", "dl_state_dict_1.bin", "scaler.pt"),
    *("random_states_0.pkl", "random_states_11.pkl", "custom_checkpoint_0.pkl"),
)
"""What `Accelerator.save_state` writes besides weights, which may come after all of it."""


@pytest.mark.parametrize("name", ACCELERATE)
def test_states_that_accelerate_saves_before_the_weights_are_waited_with_and_not_refused(
    name, tmp_path
):
    folder = save_base(tmp_path / "checkpoint-10")
    weights = (folder / "model.safetensors").rename(tmp_path / "kept")
    torch.save({}, folder / name)
    assert readiness(folder).state == "incomplete"
    weights.rename(folder / "model.safetensors")
    assert readiness(folder).state == "unmarked"


@pytest.mark.parametrize(
    "name", ["pytorch_model_1.bin", "optimizers_model.bin", "custom_checkpoint.pkl", "states_0.pkl"]
)
def test_other_pickles_are_refused_though_their_names_resemble_those(name, tmp_path):
    folder = save_base(tmp_path / "checkpoint-10")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / name)
    assert readiness(folder).state == "refused"


def test_a_folder_missing_in_a_run_is_said_at_once_and_no_hub_is_asked(
    tmp_path, monkeypatch, capsys
):
    asked = []
    monkeypatch.setattr(
        loading, "load_with_transformers", lambda name, settings: asked.append(name)
    )
    monkeypatch.chdir(tmp_path)
    for folder in ("run/checkpoint-5", "owner/other"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UserError, match="no model at 'run/final': run holds checkpoint-5"):
        loading.load_model("run/final")
    assert not asked
    for name in ("owner/model", "owner/model", "elsewhere/model", "model"):  # may be on the hub
        loading.load_model(name)
    assert asked == ["owner/model", "owner/model", "elsewhere/model", "model"]
    said = capsys.readouterr().err
    assert said.count("owner/model is no folder here: asking the Hugging Face hub") == 1


# Folders that are no model


@pytest.fixture(scope="module")
def no_models(tmp_path_factory):
    """A folder without a model, and a run that holds some."""
    root = tmp_path_factory.mktemp("none")
    (root / "empty").mkdir()
    (root / "empty" / "notes.txt").write_text("none here")
    lora_run(root, steps=(10, 20))
    write_prompts(root / "prompts.csv")
    return root


NOT_LOADED = {
    "load_model": lambda root, name: load_model(str(root / name), CPU),
    "load_tokenizer": lambda root, name: load_tokenizer(root / name, local=False),
    "the draft of ssd": lambda root, name: load_draft(str(root / name), None, None),
}


@pytest.mark.parametrize("call", NOT_LOADED.values(), ids=NOT_LOADED.keys())
@pytest.mark.parametrize(
    ("name", "ending"),
    [("empty", r"\)$"), ("run", "; it holds models in checkpoint-10, checkpoint-20: name one of")],
)
def test_a_folder_that_is_no_model_names_the_models_inside_it(no_models, call, name, ending):
    with pytest.raises(UserError, match=rf"{name} is no model: no weights \(.*{ending}") as told:
        call(no_models, name)
    assert "\n" not in str(told.value)


def test_an_adapter_without_a_tokenizer_is_a_whole_line(tmp_path):
    tiny_adapter(tiny_model(), seed=1).save_pretrained(tmp_path / "a")
    with pytest.raises(UserError, match=r"no tokenizer in .*/a: tokenizer\.save_pretrained\("):
        load_tokenizer(tmp_path / "a", local=False)


COMMANDS = {
    "measure a model": ["measure", "--only=kernel", "--model={}"],
    "measure a stage": ["measure", "--only=kernel", "--stage=base={}"],
    "evaluate a model": ["evaluate", "--benchmark=tiny", "--model={}"],
    "evaluate a stage": ["evaluate", "--benchmark=tiny", "--stage=base={}"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS.keys())
def test_every_command_tells_a_run_that_is_named_as_a_model(no_models, tmp_path, capsys, words):
    words = [word.format(no_models / "run") for word in words]
    prompts = [f"--prompts={no_models}/prompts.csv"] if words[0] == "measure" else []
    assert main([*words, *prompts, "--device=cpu", f"--output-dir={tmp_path}/out"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("ntkprobe: ") and " model: no weights (" in line
    assert line.endswith("; it holds models in checkpoint-10, checkpoint-20: name one of these")
