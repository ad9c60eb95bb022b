"""Faults, each really done: processes killed, disks full, checkpoints deleted while read."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from threading import Thread

import fault_workers
import pandas as pd
import pytest
from fault_workers import SETTINGS, measure, same_tables, write_slowly
from tiny_runs import (
    age,
    another_account,
    contents,
    events,
    finish,
    full_run,
    lora_run,
    tiny_adapter,
    tiny_model,
)

from ntkprobe import PromptSet, Trajectory
from ntkprobe.checkpoints import Checkpoint, readiness
from ntkprobe.watcher import Choice, Following, parse_steps
from ntkprobe.watcher.recorder import Recorder
from ntkprobe.watcher.scan import CheckpointScanner

pytestmark = pytest.mark.slow

STEPS = (10, 20, 30, 40, 50)


@pytest.fixture(scope="module")
def processes():
    """Children start from a small server that has everything imported, and no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(fault_workers.PRELOADED)
    return context


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    lora_run(root, STEPS)
    full_run(root / "full", STEPS)
    full_run(root / "sharded", STEPS, max_shard_size="2KB")
    measure(root / "run", root / "lora-undisturbed")
    for kind in ("full", "sharded"):
        measure(root / kind, root / f"{kind}-undisturbed")
    return root


def whole(out):
    """Every file under a visible name can be read."""
    for path in out.rglob("[!.]*.parquet"):
        pd.read_parquet(path)
    if (out / "run.json").exists():
        json.loads((out / "run.json").read_text())
    return True


def killed_at_random(processes, run, out, seconds, times, seed=0):
    """Start, kill after a random while, start again; return how often a kill hit a live process."""
    hits, chance = 0, random.Random(seed)
    for _ in range(times):
        child = processes.Process(target=measure, args=(run, out))
        child.start()
        child.join(chance.uniform(0.1, seconds))
        hits += child.is_alive()
        child.kill()
        child.join()
        assert whole(out)
    return hits


def test_killed_runs_leave_whole_files_and_the_tables_of_an_undisturbed_run(
    processes, source, tmp_path
):
    begin = time.monotonic()
    measure(source / "run", tmp_path / "timed")
    seconds = time.monotonic() - begin
    # Within half the time that all takes, so that more than one child is killed at its work.
    assert killed_at_random(processes, source / "run", tmp_path / "out", seconds / 2, times=4) >= 2
    known = (
        Trajectory(tmp_path / "out").steps if (tmp_path / "out/prompts.parquet").exists() else []
    )
    outcome = measure(source / "run", tmp_path / "out")
    assert outcome.known == known and sorted(outcome.new + known) == [0, *STEPS]
    assert same_tables(tmp_path / "out", source / "lora-undisturbed")
    assert not list((tmp_path / "out").rglob("*.safetensors"))  # pins of the dead are gone


def test_what_a_killed_process_left_half_written_is_removed_after_a_while(source, tmp_path):
    measure(source / "run", tmp_path / "out")
    for hours, name in [(0, "new"), (2, "old")]:
        path = tmp_path / "out" / "kernel" / f".step-00000010.parquet.{name}.tmp"
        path.write_bytes(b"PAR1")
        age(path, hours * 3600)
    measure(source / "run", tmp_path / "out")
    assert [p.name.split(".")[3] for p in (tmp_path / "out").rglob(".*.tmp")] == ["new"]


def test_half_a_line_of_events_is_not_glued_to_the_next(source, tmp_path):
    measure(source / "run", tmp_path / "out")
    path = next((tmp_path / "out").glob("events-*.jsonl"))
    path.write_bytes(path.read_bytes()[:-20])
    (tmp_path / "out" / "kernel" / "step-00000010.parquet").unlink()
    measure(source / "run", tmp_path / "out")
    lines = path.read_text().splitlines()
    torn = [number for number, line in enumerate(lines) if not _is_json(line)]
    assert len(torn) == 1
    again = [json.loads(line) for line in lines[torn[0] + 1 :]]
    states = ["ready", "measuring", "compared", "done", "skipped"]
    assert [event["state"] for event in again] == states


def _is_json(line):
    try:
        return bool(json.loads(line))
    except ValueError:
        return False


def test_two_watchers_on_one_folder_give_the_same_tables(processes, source, tmp_path):
    children = [
        processes.Process(target=measure, args=(source / "run", tmp_path / "out")) for _ in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert whole(tmp_path / "out") and same_tables(tmp_path / "out", source / "lora-undisturbed")


@pytest.mark.parametrize(("kind", "keep"), [("sharded", 2), ("lora", 2)])
def test_a_slow_trainer_that_keeps_two_checkpoints_loses_none_to_a_slower_measurer(
    kind, keep, source, tmp_path, monkeypatch
):
    original = Recorder.record

    def slowly(self, *args):
        time.sleep(0.3)  # while two more checkpoints come and go
        return original(self, *args)

    monkeypatch.setattr(Recorder, "record", slowly)
    finished = source / ("run" if kind == "lora" else kind)
    writer = Thread(target=write_slowly, args=(finished, tmp_path / "run", keep, 0.15))
    writer.start()
    outcome = measure(tmp_path / "run", tmp_path / "out", following=Following(poll_interval=0.02))
    writer.join()
    assert outcome.status == 0 and len(list((tmp_path / "run").iterdir())) == keep
    assert same_tables(tmp_path / "out", source / f"{kind}-undisturbed")
    assert "incomplete" in [event["state"] for event in events(tmp_path / "out")]


def test_a_checkpoint_deleted_before_it_could_be_pinned_is_reported_as_missed(source, tmp_path):
    finished = tmp_path / "finished"
    shutil.copytree(source / "run", finished)
    writer = Thread(target=write_slowly, args=(finished, tmp_path / "run", 1, 0.02))
    writer.start()
    outcome = measure(tmp_path / "run", tmp_path / "out", following=Following(poll_interval=0.3))
    writer.join()
    measured = set(outcome.new) - {0}
    assert measured | set(outcome.failed) <= set(STEPS) and max(STEPS) in measured
    assert len(measured) < len(STEPS)  # so fast a rotation cannot be followed by looking


# --- stopping ---


def follow(source, out, **rules):
    return measure(source / "run", out, following=Following(poll_interval=0.02, **rules))


def test_following_stops_at_the_runs_own_end(source, tmp_path):
    assert follow(source, tmp_path / "out").new == [0, *STEPS]


def test_following_stops_after_a_given_step(source, tmp_path):
    shutil.copytree(source / "run", tmp_path / "run", ignore=shutil.ignore_patterns("*-40", "*-50"))
    options = {"following": Following(poll_interval=0.02, until_step=30)}
    assert measure(tmp_path / "run", tmp_path / "out", **options).new == [0, 10, 20, 30]


def test_following_stops_when_nothing_comes_any_more(source, tmp_path):
    shutil.copytree(source / "run", tmp_path / "run", ignore=shutil.ignore_patterns("*-50"))
    rules = Following(poll_interval=0.02, idle_timeout=0.3)
    assert measure(tmp_path / "run", tmp_path / "out", following=rules).new == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("choice", [{"shard": (0, 2)}, {"shard": (1, 2)}, {"steps": "0:30"}])
def test_following_stops_at_the_end_also_where_the_last_step_is_not_ours(choice, source, tmp_path):
    chosen = Choice(**{k: parse_steps(v) if k == "steps" else v for k, v in choice.items()})
    begin, rules = time.monotonic(), Following(poll_interval=0.02, idle_timeout=30)
    outcome = measure(source / "run", tmp_path / "out", following=rules, choice=chosen)
    assert 0 < len(outcome.new) < 1 + len(STEPS) and time.monotonic() - begin < 30


def test_a_run_that_has_not_begun_is_waited_for(source, tmp_path):
    def begin():
        time.sleep(0.3)
        shutil.copytree(source / "run", tmp_path / "written")
        (tmp_path / "written").rename(tmp_path / "run")  # all at once: the order is then the steps'

    Thread(target=begin).start()
    assert measure(
        tmp_path / "run", tmp_path / "out", following=Following(poll_interval=0.02)
    ).new == [0, *STEPS]


def waited_for(path, patience=60):
    until = time.monotonic() + patience
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.01)
    return path.exists()


def test_an_interrupt_ends_following_with_whole_files_and_status_130(processes, source, tmp_path):
    shutil.copytree(source / "run", tmp_path / "run", ignore=shutil.ignore_patterns("*-50"))
    child = processes.Process(
        target=fault_workers.follow, args=(tmp_path / "run", tmp_path / "out")
    )
    child.start()
    assert waited_for(tmp_path / "out" / "kernel" / "step-00000010.parquet")
    os.kill(child.pid, signal.SIGINT)
    child.join(60)
    assert child.exitcode == 130 and whole(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.safetensors"))  # no pins left


# --- overwritten, cut, full, skewed ---


def test_a_run_overwritten_while_followed_has_its_rows_replaced_with_an_event(source, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(source / "run", run, ignore=shutil.ignore_patterns("*-50"))

    def overwrite_and_end():
        waited_for(out / "kernel" / "step-00000040.parquet")
        tiny_adapter(tiny_model(), seed=77).save_pretrained(run / "checkpoint-30")
        finish(run / "checkpoint-30", 30, 50)
        while not any(event["state"] == "replaced" for event in events(out)):
            time.sleep(0.02)
        shutil.copytree(source / "run" / "checkpoint-50", run / "checkpoint-50")

    trainer = Thread(target=overwrite_and_end)
    trainer.start()
    rules = Following(poll_interval=0.02, idle_timeout=60)
    assert measure(run, out, following=rules).new == [0, 10, 20, 30, 40, 30, 50]
    trainer.join()
    assert [e["step"] for e in events(out) if e["state"] == "replaced"] == [30]
    changed = Trajectory(out).kernel().groupby("step")["norm"].sum()
    before = Trajectory(source / "lora-undisturbed").kernel().groupby("step")["norm"].sum()
    assert list(changed.index[changed != before]) == [30]


def test_a_checkpoint_of_another_account_fails_alone_and_says_what_to_do(source):
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders let nobody else in
        shutil.copytree(source / "full", Path(place) / "run")
        (Path(place) / "out").mkdir()
        for path, mode in [(Path(place), 0o755), (Path(place) / "out", 0o777)]:
            path.chmod(mode)
        for weights in (Path(place) / "run").glob("*/*.safetensors"):
            weights.chmod(0o644)
        locked = Path(place) / "run" / "checkpoint-20" / "model.safetensors"
        locked.chmod(0o600 if os.geteuid() == 0 else 0)
        with another_account():
            outcome = measure(Path(place) / "run", Path(place) / "out")
    assert list(outcome.failed) == [20] and "chmod g+r" in outcome.failed[20]
    assert outcome.new == [10, 30, 40, 50]


@pytest.mark.parametrize("kind", ["run", "full"])
def test_weights_cut_short_between_pinning_and_loading_fail_alone(
    kind, source, tmp_path, monkeypatch
):
    run = shutil.copytree(source / kind, tmp_path / "run")
    original = Recorder.missing

    def cut(self, step, identity):
        if step == 20:
            os.truncate(next((run / "checkpoint-20").glob("*.safetensors")), 300)
        return original(self, step, identity)

    monkeypatch.setattr(Recorder, "missing", cut)
    outcome = measure(run, tmp_path / "out")
    assert list(outcome.failed) == [20] and set(STEPS) - set(outcome.new) == {20}


def test_a_full_disk_stops_with_an_error_and_loses_nothing(source, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        with pytest.raises(OSError) as caught:
            measure(source / "full", place / "out")
        assert caught.value.errno == errno.ENOSPC and whole(place / "out")
        shutil.copytree(place / "out", tmp_path / "out")
    finally:
        subprocess.run(["umount", str(place)], check=True)
    known = Trajectory(tmp_path / "out").steps
    assert 0 < len(known) < len(STEPS)
    assert measure(source / "full", tmp_path / "out").known == known
    assert same_tables(tmp_path / "out", source / "full-undisturbed")


@pytest.mark.parametrize("hours", [-30, 30])
def test_a_file_servers_clock_does_not_matter(hours, source, tmp_path):
    folder = shutil.copytree(source / "full" / "checkpoint-10", tmp_path / "run" / "checkpoint-10")
    for path in folder.iterdir():
        moved = path.stat().st_mtime_ns + hours * 3_600_000_000_000
        os.utime(path, ns=(moved, moved))
    assert readiness(folder).state == "ready"


def test_a_checkpoint_without_a_marker_is_ready_once_our_own_clock_saw_it_rest(source, tmp_path):
    folder = shutil.copytree(source / "full" / "checkpoint-10", tmp_path / "run" / "checkpoint-10")
    (folder / "trainer_state.json").unlink()
    weights, now = folder / "model.safetensors", [0.0]
    ahead = time.time_ns() + 10**13  # written by a clock that is hours ahead
    os.utime(weights, ns=(ahead, ahead))
    scanner = CheckpointScanner(tmp_path / "run", settle=30, clock=lambda: now[0])
    states = []
    for seconds, touched in [(0, False), (29, False), (1, True), (29, False), (1, False)]:
        now[0] += seconds
        if touched:
            os.utime(weights, ns=(ahead + 1, ahead + 1))
        states.append(scanner.look()[0].verdict.state)
    assert states == ["unmarked"] * 4 + ["ready"]


def test_a_finished_run_without_markers_is_measured(source, tmp_path):
    run = shutil.copytree(source / "run", tmp_path / "run")
    for marker in run.rglob("trainer_state.json"):
        marker.unlink()
    for weights in run.rglob("*.safetensors"):
        os.utime(weights, (1e9, 1e9))
    assert measure(run, tmp_path / "out").new == [0, *STEPS]


def test_measuring_needs_no_right_to_write_the_run(source, tmp_path):
    before = contents(source / "run")
    for path in [source / "run", *(source / "run").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert measure(source / "run", tmp_path / "out").status == 0
    assert contents(source / "run") == before


def test_prompts_with_escape_sequences_are_measured_and_kept_as_they_are(source, tmp_path):
    from ntkprobe.watcher import measure_run

    hostile = "kill\x1b[31m \x07 my neighbour"
    prompts = PromptSet.from_texts({"toxic": [hostile, "bake a cake"]})
    measure_run(prompts, tmp_path / "out", ckpt_dir=source / "run", settings=SETTINGS)
    assert Trajectory(tmp_path / "out").prompts["text"][0] == hostile


def test_the_scanner_gives_every_checkpoint_its_verdict(source):
    found = CheckpointScanner(source / "full").look()
    assert [s.checkpoint for s in found] == [
        Checkpoint(step, source / "full" / f"checkpoint-{step}") for step in STEPS
    ]
    assert all(s.is_ready for s in found)
    assert (
        Path(found[0].checkpoint.path).is_dir() and CheckpointScanner(source / "full").end() == 50
    )
