import json
import os
import shutil
import struct
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_runs import (
    another_account,
    full_checkpoint,
    full_run,
    lora_checkpoint,
    lora_run,
    save_base,
    tiny_adapter,
    tiny_model,
)

from ntkprobe.checkpoints import (
    Checkpoint,
    Incomplete,
    LoadSettings,
    adapted,
    base_named_by,
    find_checkpoints,
    identity,
    load_checkpoint,
    load_model,
    load_tokenizer,
    pinned,
    readiness,
    remove_stale_pins,
    settings_digest,
)
from ntkprobe.checkpoints.headers import read_header, read_index
from ntkprobe.errors import UserError
from ntkprobe.settings import same_identity

IDS = torch.arange(6)[None]
CPU = LoadSettings(device="cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    full_checkpoint(root / "full", 10)
    full_checkpoint(root / "sharded", 10, max_shard_size="2KB")
    lora_run(root / "lora", steps=(10,))
    return root


@pytest.fixture
def copied(finished, tmp_path):
    """Copies keep times, as `cp -a` does."""

    def copy(kind):
        source = finished / ("lora/run" if kind == "lora" else kind) / "checkpoint-10"
        return Path(shutil.copytree(source, tmp_path / kind / "checkpoint-10"))

    return copy


def same_function(a, b):
    return torch.allclose(a(IDS).logits, b(IDS).logits, atol=1e-6, rtol=0)


def contents(folder):
    return {
        p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()
    }


# --- finding ---


def test_checkpoints_come_in_the_order_of_their_steps(tmp_path):
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-3"):
        (tmp_path / name).mkdir()
    assert [c.step for c in find_checkpoints(tmp_path)] == [3, 20, 100]


def test_leftovers_of_interrupted_trainers_are_no_checkpoints(tmp_path):
    for name in ("tmp-checkpoint-7", "checkpoint-7.old", "checkpoint-", "checkpoint-x", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-9").write_text("a file")
    assert find_checkpoints(tmp_path) == []


def test_a_lone_checkpoint_is_a_run_of_one(finished):
    folder = finished / "full" / "checkpoint-10"
    assert find_checkpoints(folder) == [Checkpoint(10, folder)]


def test_a_missing_run_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        find_checkpoints(tmp_path / "nowhere")


# --- readiness ---


@pytest.mark.parametrize("kind", ["full", "sharded", "lora"])
def test_no_stage_of_writing_is_ready_before_the_last(kind, copied, tmp_path):
    whole = copied(kind)
    stages = sorted(
        whole.iterdir(), key=lambda p: (p.name == "trainer_state.json", p.stat().st_mtime_ns)
    )
    growing = tmp_path / "growing" / "checkpoint-10"
    growing.mkdir(parents=True)
    for path in stages[:-1]:
        shutil.copy2(path, growing)
        assert readiness(growing).state != "ready"
    assert readiness(growing).state == "unmarked"
    shutil.copy2(stages[-1], growing)
    assert readiness(growing).state == "ready"


@pytest.mark.parametrize("kind", ["full", "sharded", "lora"])
def test_every_cut_of_a_weight_file_is_incomplete(kind, copied):
    folder = copied(kind)
    weights = sorted(folder.glob("*.safetensors"))[-1]
    whole = weights.read_bytes()
    for length in {0, 4, 8, 9, len(whole) // 2, len(whole) - 1}:
        weights.write_bytes(whole[:length])
        assert readiness(folder).state == "incomplete", length


def test_a_missing_shard_is_incomplete_and_named(copied):
    folder = copied("sharded")
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    shard.unlink()
    verdict = readiness(folder)
    assert verdict.state == "incomplete" and shard.name in verdict.reason


def test_a_run_overwritten_in_place_is_not_ready_until_its_marker_is_new(copied):
    folder = copied("full")
    marker = (folder / "trainer_state.json").stat().st_mtime_ns
    os.utime(folder / "model.safetensors", ns=(marker + 1, marker + 1))
    assert readiness(folder).state == "unmarked"
    os.utime(folder / "trainer_state.json", ns=(marker + 1, marker + 1))
    assert readiness(folder).state == "ready"


def test_a_marker_of_another_step_vouches_for_nothing(copied):
    folder = copied("full")
    renamed = folder.rename(folder.with_name("checkpoint-20"))
    assert readiness(renamed).state == "unmarked"


@pytest.mark.parametrize("name", [".tmpXY12ab", "checkpoint-is-incomplete.txt"])
def test_a_writers_own_sign_of_work_in_progress_is_honoured(name, copied):
    folder = copied("full")
    (folder / name).touch()
    assert readiness(folder).state == "incomplete"


def test_a_single_file_beside_an_index_is_ambiguous(copied):
    folder = copied("sharded")
    shutil.copy(sorted(folder.glob("model-*"))[0], folder / "model.safetensors")
    assert "left over" in readiness(folder).reason


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("pytorch_model.bin", "safetensors"),
        ("latest", "zero_to_fp32"),
        ("pytorch_model_fsdp_0", "merge"),
    ],
)
def test_foreign_formats_are_refused_with_a_way_out(name, advice, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x04")
    verdict = readiness(tmp_path)
    assert verdict.state == "refused" and advice in verdict.reason


def test_a_checkpoint_deleted_while_judged_is_incomplete(tmp_path):
    assert readiness(tmp_path / "checkpoint-5").state == "incomplete"


def test_a_file_of_another_account_is_reported_as_such(copied):
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders let nobody else in
        folder = shutil.copytree(copied("full"), Path(place) / "checkpoint-10")
        os.chmod(place, 0o755)
        (folder / "model.safetensors").chmod(0o600 if os.geteuid() == 0 else 0)
        with another_account():
            verdict = readiness(folder)
    assert verdict.state == "refused" and "chmod g+r" in verdict.reason


# --- hostile folders ---


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", ""]
)
def test_shard_names_outside_the_folder_are_refused(shard, copied):
    folder = copied("sharded")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    assert readiness(folder).state == "refused"


def test_pickled_shards_are_refused(copied):
    folder = copied("sharded")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "pytorch_model.bin"}}))
    assert readiness(folder).state == "refused"


def test_a_link_that_leaves_the_folder_is_refused(copied):
    folder = copied("full")
    outside = folder.parent / "outside.bin"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)
    assert readiness(folder).state == "refused"


def test_a_pickle_under_the_name_of_safetensors_is_never_ready(copied):
    folder = copied("full")
    torch.save({"w": torch.zeros(2)}, folder / "model.safetensors")
    assert readiness(folder).state in ("incomplete", "refused")


def test_a_fifo_does_not_hang_the_judge(copied):
    folder = copied("full")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    assert readiness(folder).state == "refused"


def test_a_header_of_a_terabyte_is_refused_without_reading_it(copied):
    folder = copied("full")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    assert readiness(folder).state == "refused"


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=200, deadline=None)
def test_the_header_reader_is_total(tmp_path_factory, body, framed):
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes((struct.pack("<Q", len(body)) if framed else b"") + body)
    with pytest.raises((Incomplete, UserError)):
        if read_header(path).size == path.stat().st_size:
            raise Incomplete("as it should")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@pytest.mark.slow
@given(JSON | st.fixed_dictionaries({"weight_map": st.dictionaries(st.text(), JSON)}))
@settings(max_examples=200, deadline=None)
def test_the_index_reader_returns_plain_names_or_refuses(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "fuzzed.index.json"
    path.write_text(json.dumps(value))
    try:
        names = read_index(path)
    except (Incomplete, UserError):
        return
    assert names and all(Path(name).name == name for name in names)


@given(JSON | st.dictionaries(st.text(), st.fixed_dictionaries({"data_offsets": JSON})))
@settings(max_examples=200, deadline=None)
def test_a_header_with_nonsense_inside_raises_nothing_else(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "nonsense.safetensors"
    text = json.dumps(value).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    try:
        assert read_header(path).start == 8 + len(text)
    except (Incomplete, UserError):
        pass


def edited_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"_attn_implementation": "evil/kernel"}, "kernel"),
        ({"text_config": {"attn_implementation": "evil/kernel"}}, "kernel"),
        (
            {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Model"}},
            "code of its own",
        ),
        ({"model_type": "own"}, "not known"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
    ],
)
def test_what_a_config_may_not_ask_for_is_refused_in_one_line(changes, word, copied):
    folder = edited_config(copied("full"), **changes)
    with pytest.raises(UserError, match=word) as caught:
        load_checkpoint(folder, CPU)
    assert "\n" not in str(caught.value)


def test_foreign_code_for_a_known_architecture_is_left_out(copied, tmp_path):
    changes = {
        "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"},
        "trust_remote_code": True,
        "transformers_weights": "../../elsewhere.safetensors",
    }
    folder = edited_config(copied("full"), **changes)
    (folder / "modeling_evil.py").write_text("raise SystemExit('executed')")
    with pinned(Checkpoint(10, folder), readiness(folder), tmp_path / "pins") as pin:
        model = load_checkpoint(pin, CPU)
        assert not set(changes) & set(json.loads((pin / "config.json").read_text()))
        assert not (pin / "modeling_evil.py").exists()
    assert same_function(model, tiny_model(10))


def test_an_adapter_without_weights_is_incomplete_and_asks_nobody(copied, monkeypatch):
    folder = copied("lora")
    (folder / "adapter_model.safetensors").unlink()
    monkeypatch.setattr("socket.socket.connect", lambda *a: pytest.fail("network"))
    assert readiness(folder).state == "incomplete"


# --- pins ---


@pytest.mark.parametrize("kind", ["full", "sharded"])
def test_a_pinned_model_survives_the_deletion_of_its_checkpoint(kind, copied, tmp_path):
    folder = copied(kind)
    with pinned(Checkpoint(10, folder), readiness(folder), tmp_path / "pins") as pin:
        shutil.rmtree(folder)
        model = load_checkpoint(pin, CPU)
    assert same_function(model, tiny_model(10))
    assert not any((tmp_path / "pins").rglob("*.safetensors"))


def test_without_hard_links_a_copy_survives_too(copied, tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    folder = copied("full")
    with pinned(Checkpoint(10, folder), readiness(folder), tmp_path / "pins", copy=True) as pin:
        shutil.rmtree(folder)
        model = load_checkpoint(pin, CPU)
    assert same_function(model, tiny_model(10))


def test_without_hard_links_or_copies_a_deletion_is_noticed(copied, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *args: (_ for _ in ()).throw(OSError(18, "EXDEV")))
    folder = copied("full")
    with pytest.raises(Incomplete, match="deleted"):
        with pinned(Checkpoint(10, folder), readiness(folder), tmp_path / "pins"):
            shutil.rmtree(folder)


def test_weights_rewritten_in_place_while_read_are_noticed(copied, tmp_path):
    folder = copied("full")
    with pytest.raises(Incomplete, match="written to"):
        with pinned(Checkpoint(10, folder), readiness(folder), tmp_path / "pins"):
            with (folder / "model.safetensors").open("r+b") as file:
                file.write(b"\0")


def test_weights_replaced_between_judging_and_pinning_are_noticed(copied, tmp_path):
    folder = copied("full")
    verdict = readiness(folder)
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    with pytest.raises(Incomplete, match="pinned"):
        with pinned(Checkpoint(10, folder), verdict, tmp_path / "pins"):
            pass


def test_reading_a_checkpoint_changes_nothing_in_its_folder(copied, tmp_path):
    folder = copied("full")
    before = contents(folder), folder.stat().st_mtime_ns
    with pinned(Checkpoint(10, folder), readiness(folder), tmp_path / "pins") as pin:
        load_checkpoint(pin, CPU)
    assert (contents(folder), folder.stat().st_mtime_ns) == before


def test_pins_of_dead_processes_are_removed_and_others_kept(tmp_path):
    host = os.uname().nodename
    dead = tmp_path / f"{host}-{2**22 + 1}"
    for folder in (dead, tmp_path / f"{host}-{os.getpid()}", tmp_path / "elsewhere-1"):
        (folder / "checkpoint-1").mkdir(parents=True)
    remove_stale_pins(tmp_path)
    assert not dead.exists() and len(list(tmp_path.iterdir())) == 2


# --- identity ---


@pytest.mark.parametrize("kind", ["full", "sharded", "lora"])
def test_a_copy_has_the_same_identity_and_one_changed_weight_another(kind, finished, copied):
    original = finished / ("lora/run" if kind == "lora" else kind) / "checkpoint-10"
    copy = copied(kind)
    assert identity(copy, readiness(copy).weights) == identity(
        original, readiness(original).weights
    )
    path = sorted(copy.glob("*.safetensors"))[-1]
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    assert identity(copy, readiness(copy).weights) != identity(
        original, readiness(original).weights
    )


SETTINGS_CHANGED = {
    "full": ("config.json", {"rms_norm_eps": 1e-3}, {"rope_parameters": {"rope_theta": 5.0}}),
    "lora": ("adapter_config.json", {"lora_alpha": 99}, {"use_rslora": True}),
}


@pytest.mark.parametrize("kind", SETTINGS_CHANGED)
def test_another_setting_on_which_numbers_depend_is_another_identity(kind, copied):
    folder = copied(kind)
    name, *changes = SETTINGS_CHANGED[kind]
    path, weights = folder / name, readiness(folder).weights
    config, seen = json.loads(path.read_text()), {identity(folder, weights)}
    for change in changes:
        path.write_text(json.dumps(config | change))
        assert identity(folder, weights) not in seen
        seen.add(identity(folder, weights))
    assert len({each.partition("-")[0] for each in seen}) == 1  # the weights are the same
    path.write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')  # where answers end
    assert identity(folder, weights) not in seen


@pytest.mark.parametrize("kind", SETTINGS_CHANGED)
def test_names_versions_order_and_empty_settings_are_none_of_it(kind, copied, tmp_path):
    folder = copied(kind)
    path, weights = folder / SETTINGS_CHANGED[kind][0], readiness(folder).weights
    before = identity(folder, weights)
    named = {"_name_or_path": "x", "base_model_name_or_path": "/y", "transformers_version": "9.9"}
    config = json.loads(path.read_text()) | named | {"use_cache": False, "nothing": None}
    if kind == "lora":  # a set, which peft writes in the order that a process happens to have
        config["target_modules"] = config["target_modules"][::-1]
        assert len(config["target_modules"]) > 1
    path.write_text(json.dumps(dict(reversed(config.items())), indent=7))
    assert identity(folder, weights) == before
    (checkpoint,) = find_checkpoints(folder.parent)
    with pinned(checkpoint, readiness(folder), tmp_path / "pins") as pin:
        assert identity(pin, readiness(folder).weights) == before


def test_in_memory_sets_have_no_order_and_lists_have_one():
    modules = [{"target_modules": set(names)} for names in (("q", "k", "v"), ("v", "k", "q"))]
    assert settings_digest(modules[0]) == settings_digest(modules[1])
    kinds = ["sliding_attention", "full_attention"]  # of the layers, one after the other
    assert settings_digest({"layer_types": kinds}) != settings_digest({"layer_types": kinds[::-1]})


def test_an_identity_recorded_before_settings_counted_is_that_of_the_same_weights():
    weights, other = "ab" * 32, "cd" * 32
    assert same_identity(weights, f"{weights}-0123") and same_identity(weights, weights)
    assert not same_identity(f"{weights}-4567", f"{weights}-0123")
    assert not same_identity(other, f"{weights}-0123") and not same_identity("", f"{weights}-0123")
    assert not same_identity("hub:llama", "hub:llama-2") and not same_identity(None, weights)


def test_large_files_are_sampled_in_every_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr("ntkprobe.checkpoints.identification.WHOLE", 0)
    folder = full_checkpoint(tmp_path, 10)
    before = identity(folder, readiness(folder).weights)
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        changed = {**tensors, name: tensors[name] + 1}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        assert identity(folder, readiness(folder).weights) != before


# --- loading ---


def test_weights_truncated_after_loading_do_not_kill_the_process(copied):
    folder = copied("full")
    model = load_checkpoint(folder, CPU)
    os.truncate(folder / "model.safetensors", 10)
    assert same_function(model, tiny_model(10))


def test_nan_weights_are_refused(copied):
    folder = copied("full")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.norm\.weight"):
        load_checkpoint(folder, CPU)


def test_a_weight_the_file_lacks_is_an_error(copied):
    folder = copied("full")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="up_proj"):
        load_checkpoint(folder, CPU)


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "a/b/c", ""])
def test_an_unknown_model_path_is_one_clear_line(name):
    with pytest.raises(UserError, match="--model takes a folder") as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is no model: no weights"):
        load_tokenizer(tmp_path)
    tiny_adapter(tiny_model(), seed=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"no tokenizer in {tmp_path}: "):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("changes", [{}, {"use_dora": True}, {"modules_to_save": ["norm"]}])
def test_an_adapter_merged_in_place_computes_what_peft_computes(changes, tmp_path):
    wanted = tiny_adapter(tiny_model(), seed=1, **changes)
    wanted.save_pretrained(tmp_path)
    base = tiny_model()
    for merge in (True, False):
        with adapted(base, tmp_path, merge=merge) as model:
            torch.testing.assert_close(model(IDS).logits, wanted(IDS).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"use_dora": True}, {"modules_to_save": ["norm"]}])
@pytest.mark.parametrize("merge", [True, False])
def test_the_base_is_back_bit_for_bit_after_an_adapter(changes, merge, tmp_path):
    tiny_adapter(tiny_model(), seed=1, **changes).save_pretrained(tmp_path)
    base, untouched = tiny_model(), tiny_model()
    with adapted(base, tmp_path, merge=merge):
        pass
    assert [n for n, _ in base.named_parameters()] == [n for n, _ in untouched.named_parameters()]
    assert all(
        torch.equal(a, b) for a, b in zip(base.parameters(), untouched.parameters(), strict=True)
    )
    assert base.lm_head.weight is base.model.embed_tokens.weight


def test_merged_or_not_is_the_same_checkpoint(tmp_path):
    tiny_adapter(tiny_model(), seed=1).merge_and_unload().save_pretrained(tmp_path / "merged")
    tiny_adapter(tiny_model(), seed=1).save_pretrained(tmp_path / "adapter")
    merged = load_checkpoint(tmp_path / "merged", CPU)
    with adapted(tiny_model(), tmp_path / "adapter") as model:
        assert same_function(model, merged)


@pytest.mark.parametrize("change", ["rename", "drop", "reshape", "nan"])
def test_an_adapter_that_does_not_fit_is_an_error_and_the_base_is_unharmed(change, tmp_path):
    tiny_adapter(tiny_model(), seed=1).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    value = tensors.pop(name)
    tensors |= {
        "rename": {name.replace("q_proj", "zzz_proj"): value},
        "drop": {},
        "reshape": {name: torch.zeros(3, 5)},
        "nan": {name: value * float("nan")},
    }[change]
    save_file(tensors, path)
    base = tiny_model()
    with pytest.raises(UserError), adapted(base, tmp_path):
        pass
    assert same_function(base, tiny_model())


def test_the_base_an_adapter_names_is_echoed_not_followed(tmp_path):
    folder = lora_checkpoint(tmp_path / "run", 10, save_base(tmp_path / "base"))
    assert base_named_by(folder) == str(tmp_path / "base")


def test_dtype_is_the_callers_not_the_files(copied):
    model = load_checkpoint(copied("full"), replace(CPU, dtype="float64"))
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    with pytest.raises(UserError, match="dtype"):
        LoadSettings(dtype="int8")


def test_a_full_run_is_found_and_ready(tmp_path):
    run = full_run(tmp_path / "run")
    assert [readiness(c.path).state for c in find_checkpoints(run)] == ["ready"] * 3
