"""Checkpoints as tasks of a Ray cluster: a worker that is killed costs nothing."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import pytest
from fault_workers import SETTINGS, measure, same_tables
from tiny_runs import TEXTS, events, lora_run

from ntkprobe import PromptSet, Trajectory, UserError
from ntkprobe.watcher import Following
from ntkprobe.watcher.ray_cluster import measure_on_ray

STEPS, MEASURED = (10, 20, 30, 40, 50), [0, 10, 20, 40, 50]
PROMPTS = PromptSet.from_texts(TEXTS)
CLUSTER = """
import ray, sys
context = ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
                   object_store_memory=100_000_000, _temp_dir=sys.argv[1])
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def cluster():
    """The address of a Ray of its own, which ends with its standard input."""
    if find_spec("ray") is None:  # importing it would settle how it authenticates
        pytest.skip("needs ray")
    paths = [str(Path(__file__).parents[1] / "helpers"), str(Path(__file__).parents[2])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as place:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")  # else Ray writes one into the home folder
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("PYTHONPATH", ":".join(paths))
        command = [sys.executable, "-c", CLUSTER, place]
        with subprocess.Popen(command, **pipes) as process:
            yield process.stdout.readline().strip()
            process.communicate()


def kill_the_first_that_measures(out, killed, patience=600):  # a busy machine is no failure
    """Wait until a worker has begun on a checkpoint, and kill it at once."""
    until = time.monotonic() + patience
    while time.monotonic() < until and not killed:
        for path in out.glob("events-*.jsonl"):
            if '"ready"' in path.read_text():
                os.kill(int(path.stem.rpartition("-")[2]), signal.SIGKILL)
                killed.append(path)
                return
        time.sleep(0.002)


@pytest.mark.slow
def test_a_cluster_whose_worker_is_killed_gives_the_tables_of_an_undisturbed_run(cluster, tmp_path):
    run, out, killed = lora_run(tmp_path, STEPS), tmp_path / "out", []
    (run / "checkpoint-30" / "adapter_config.json").write_text("{")  # its failure is its own
    measure(run, tmp_path / "undisturbed")
    killer = Thread(target=kill_the_first_that_measures, args=(out, killed))
    killer.start()
    outcome = measure_on_ray(PROMPTS, out, address=cluster, ckpt_dir=run, settings=SETTINGS)
    killer.join()
    last = [json.loads(line)["state"] for line in killed[0].read_text().splitlines()]
    assert "done" not in last  # the kill hit a worker that was measuring
    assert list(outcome.failed) == [30] and "adapter_config.json" in outcome.failed[30]
    assert outcome.status == 1 and sorted(outcome.new) == MEASURED == Trajectory(out).steps
    done = [event["step"] for event in events(out) if event["state"] == "done"]
    assert sorted(done) == MEASURED and same_tables(out, tmp_path / "undisturbed")


def test_a_mistake_in_the_settings_is_told_before_any_cluster_is_asked(tmp_path, monkeypatch):
    run = lora_run(tmp_path, (10,))
    measure(run, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"prompts\.digest"):
        measure_on_ray(PROMPTS[:2], tmp_path / "out", address="auto", ckpt_dir=run)


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "run" / "checkpoint-10").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'ntkprobe\[ray\]'"):
        measure_on_ray(PROMPTS, tmp_path / "out", address="auto", ckpt_dir=tmp_path / "run")
    with pytest.raises(UserError, match="inside the run"):
        measure_on_ray(PROMPTS, tmp_path / "run/o", address="auto", ckpt_dir=tmp_path / "run")


@pytest.mark.parametrize("changes", [{"ckpt_dir": None}, {"following": Following()}])
def test_a_cluster_measures_the_checkpoints_that_are_there(changes, tmp_path):
    options = {"address": "auto", "ckpt_dir": tmp_path / "run", **changes}
    with pytest.raises(UserError, match="no --follow"):
        measure_on_ray(PROMPTS, tmp_path / "out", **options)
