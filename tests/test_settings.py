"""Laws of what a user writes: YAML's text stays text, a device is one of this machine's."""

import pytest
import torch
import yaml

from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.settings import LoadSettings, parse_yaml
from ntkprobe.tiny import measure_path, model_path

READ = {
    "10:30": "10:30",
    "no": "no",
    "on": "on",
    "true": True,
    "1e-4": 1e-4,
    "1.5e3": 1500.0,
    "-.5": -0.5,
    ".inf": float("inf"),
    "16": 16,
    "010": 10,
    "1_000": "1_000",
    "2026-11-29": "2026-11-29",
    "~": None,
    "": None,
    "'16'": "16",
    "[1, 1e-3, no]": [1, 1e-3, "no"],
}


@pytest.mark.parametrize("text", READ)
def test_values_are_read_by_the_core_schema_of_yaml_1_2(text):
    found = parse_yaml(text)
    assert (type(found), found) == (type(READ[text]), READ[text])


def test_what_the_older_schema_reads_otherwise_is_what_the_tests_are_about():
    assert yaml.safe_load("10:30") == 630
    assert yaml.safe_load("1e-4") == "1e-4"
    assert yaml.safe_load("no") is False


def test_keys_may_be_merged():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}")["b"] == {"x": 1, "y": 2}


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['true']", "a: [1"])
def test_what_is_no_plain_yaml_is_an_error(text):
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)


# Devices


@pytest.fixture
def machine(monkeypatch):
    """Make this machine one with so many GPUs of NVIDIA's, and maybe one of Apple's."""

    def made(gpus: int, *, apple: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)

    return made


@pytest.mark.parametrize(
    ("device", "gpus"),
    [("cpu", 0), ("cpu:0", 0), ("cuda", 1), ("cuda:1", 2), ("mps", 0), ("mps:0", 0)],
)
def test_a_device_that_is_there_is_taken_as_it_is_written(machine, device, gpus):
    machine(gpus, apple=device.startswith("mps"))
    assert LoadSettings(device=device).placement() == device


@pytest.mark.parametrize("device", ["foo", "", "cuda:x", "cuda:2", "cuda:-1", "mps", "meta", "xpu"])
def test_a_device_that_is_not_there_names_those_that_are(machine, device):
    machine(2)
    known = "here: choose from auto, cpu, cuda, cuda:0, cuda:1$"
    with pytest.raises(UserError, match=f"^no --device '{device}' {known}"):
        LoadSettings(device=device).placement()


MODEL, PROMPTS = f"--model={model_path()}", str(measure_path())
LOADING = {
    "evaluate": ["evaluate", MODEL, "--benchmark=tiny"],
    "fit": ["mitigate", "fit", "scans", MODEL, f"--prompts={PROMPTS}"],
    "triggers": ["triggers", MODEL, f"--harmful={PROMPTS}"],
    "measure": ["measure", MODEL, f"--prompts={PROMPTS}"],
}


@pytest.mark.parametrize("device", ["cuda", "foo"])
@pytest.mark.parametrize("command", LOADING)
def test_every_command_tells_a_wrong_device_in_one_line(machine, tmp_path, capsys, command, device):
    machine(0)
    place = "--output-file=t.jsonl" if command == "triggers" else "--output-dir=out"
    option, name = place.split("=")
    words = [*LOADING[command], f"--device={device}", f"{option}={tmp_path / name}"]
    assert main(words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"no --device '{device}' here: choose from auto, cpu")
