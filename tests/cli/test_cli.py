import errno
import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from tiny_runs import events, lora_run, save_base, write_prompts

from ntkprobe import Trajectory, __version__
from ntkprobe.cli import main

QUICK = ["--only", "kernel", "--estimator", "dense", "--top-k", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    lora_run(root, steps=(10, 20))
    write_prompts(root / "prompts.csv")
    return root


@pytest.fixture
def call(source, tmp_path, capsys):
    """`ntkprobe measure` with defaults that a test may replace: status, last words, errors."""

    def run(*flags, **replaced):
        options = {
            "ckpt_dir": source / "run",
            "prompts": source / "prompts.csv",
            "output_dir": tmp_path / "out",
            **replaced,
        }
        named = [f"--{k.replace('_', '-')}={v}" for k, v in options.items() if v is not None]
        status = main(["measure", *named, *QUICK, *map(str, flags)])
        printed = capsys.readouterr()
        return status, printed.out.strip(), printed.err.strip()

    return run


def test_measure_ends_with_one_line_that_says_what_to_do_next(call, tmp_path):
    status, out, _ = call()
    assert status == 0
    assert out == f"3 steps in {tmp_path}/out, 3 new: ntkprobe figures {tmp_path}/out"
    assert call()[1].startswith(f"3 steps in {tmp_path}/out, 0 new")


def test_everything_is_measured_by_default(source, tmp_path, capsys):
    flags = [f"--ckpt-dir={source}/run", f"--output-dir={tmp_path}/out", "--max-new-tokens=3"]
    assert main(["measure", f"--prompts={source}/prompts.csv", *flags]) == 0
    run = Trajectory(tmp_path / "out")
    assert run.steps == [0, 10, 20] and run.settings["kernel"]["estimator"] == "gram"
    assert len(run.kernel()) == 3 * 36 and len(run.refusal()) == 3 * 6 * 2
    assert "kernel of 6 and refusal of 6 prompts, template raw" in capsys.readouterr().err


def test_run_json_tells_the_settings_and_the_versions(call, tmp_path):
    call()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["kernel"]["estimator"] == "dense" and record["versions"]["torch"]
    assert record["prompts"]["template"] == "raw"


def test_prompts_that_were_trained_on_are_counted_and_told(source, tmp_path, capsys):
    asked = pd.read_csv(source / "prompts.csv")
    run = tmp_path / "run"
    shutil.copytree(source / "run", run)
    trained = [asked["prompt"][0].upper() + "!", "something else", asked["prompt"][1]]
    pd.DataFrame({"prompt": trained}).to_parquet(run / "data.parquet")
    flags = [f"--prompts={source}/prompts.csv", "--limit=1", *QUICK]
    assert (
        main(["measure", f"--ckpt-dir={run}", f"--output-dir={tmp_path}/a", *flags[:1], *QUICK])
        == 0
    )
    assert "2 of 6 prompts measured were trained on" in capsys.readouterr().err
    told = json.loads((tmp_path / "a" / "run.json").read_text())["trained_on"]
    assert (told["prompts"], told["of"]) == (2, 6) and list(told["sources"].values()) == [2]
    assert sum(told["groups"].values()) == 2
    pd.DataFrame({"prompt": ["something else"]}).to_parquet(run / "data.parquet")
    assert main(["measure", f"--ckpt-dir={run}", f"--output-dir={tmp_path}/b", *flags]) == 0
    assert "trained on" not in capsys.readouterr().err


def test_a_table_of_somebody_elses_beside_a_run_stops_no_measurement(source, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(source / "run", run)
    pd.DataFrame({"loss": [1.0]}).to_parquet(run / "data.parquet")
    flags = [f"--prompts={source}/prompts.csv", "--limit=1", *QUICK]
    assert main(["measure", f"--ckpt-dir={run}", f"--output-dir={tmp_path}/out", *flags]) == 0
    assert "what was trained on is not known" in capsys.readouterr().err


def test_some_rows_of_a_file_are_measured(call, source, tmp_path):
    status, _, _ = call(prompts=f"{source}/prompts.csv:group=toxic")
    assert status == 0
    found = pd.read_parquet(tmp_path / "out" / "prompts.parquet")
    assert set(found["group"]) == {"toxic"} and 0 < len(found) < 6
    status, _, err = call(prompts=f"{source}/prompts.csv:group=evil")
    assert status == 2 and "no row has 'evil'" in err


def test_the_default_output_lies_beside_the_run(call, source):
    status, out, _ = call(output_dir=None)
    assert status == 0 and f"{source}/run-ntk" in out
    assert Trajectory(source / "run-ntk").steps == [0, 10, 20]


def test_underscores_in_flags_work_like_dashes(source, tmp_path):
    flags = [f"--ckpt_dir={source}/run", f"--output_dir={tmp_path}/out", "--dry_run"]
    assert main(["measure", f"--prompts={source}/prompts.csv", *flags]) == 0


def test_a_dry_run_lists_checkpoints_and_writes_nothing(call, tmp_path):
    status, out, _ = call("--dry-run")
    assert status == 0 and "checkpoint-10: ready" in out and "checkpoint-20: ready" in out
    assert "3 to measure" in out and not (tmp_path / "out").exists()


def test_a_dry_run_tells_what_is_measured_already_and_how_long_it_took(call):
    call("--steps", "0:10")
    _, out, _ = call("--dry-run")
    assert "checkpoint-10: ready" in out and out.count("has measurements") == 2
    assert re.search(r"1 to measure, \d+\.\d MB to read, about \d+ s each", out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ("head", "parameters head: the output matrix is the embedding (tied)"),
        ("all+lora", "parameters all+lora: an adapter's parameters and the base's"),
        ("all", None),
    ],
)
def test_what_should_be_known_about_the_parameters_is_said_once_a_run(call, parameters, said):
    err = call("--parameters", parameters)[2]
    assert len(re.findall(r"(?m)^parameters ", err)) == (said is not None)
    assert (said or "") in err and "MeasurementWarning" not in err


def test_the_estimator_is_verified_once_a_run_unless_that_is_not_wanted(call):
    _, _, err = call()
    assert err.count("verified over") == 1 and "relative error" in err
    assert "verified" not in call("--overwrite", "--no-verify")[2]


def test_how_parameters_are_handled_is_said_once_a_run_and_kept(call, tmp_path):
    status, _, err = call("--estimator", "gram", "--no-verify")
    assert status == 0 and err.count("kernel over") == 1 and "none by autograd" in err
    (kept,) = (e for e in events(tmp_path / "out") if e["state"] == "coverage")
    assert kept["share_without_rule"] == 0 and kept["matrix"] > 0
    assert call("--estimator", "gram", "--no-verify")[1].startswith("3 steps in")  # settings agree
    assert "kernel over" not in call("--overwrite", "--estimator", "dense")[2]


@pytest.mark.slow
def test_an_approximation_that_is_off_warns_and_is_measured(call, monkeypatch):
    monkeypatch.setattr("ntkprobe.estimators.finite_difference.FiniteDifference.rtol", 0.0)
    status, _, err = call("--estimator", "finite_difference")
    assert status == 0 and err.count("differs from plain backward passes") == 1


def test_an_exact_estimator_that_is_off_measures_nothing(call, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ntkprobe.measurement.verification.backward_passes.tolerance_for", lambda chosen: 0.0
    )
    status, _, err = call()
    assert status == 2 and "differs from plain backward passes" in err
    assert not list((tmp_path / "out").rglob("step-*"))


# --- mistakes: one line, status 2 ---


def one_mistake(result, *words):
    status, out, err = result
    assert status == 2 and out == ""
    line = [line for line in err.splitlines() if line.startswith("ntkprobe: ")]
    assert len(line) == 1 and all(word in line[0] for word in words), err
    assert "Traceback" not in err


def test_an_unknown_model_path(call, tmp_path):
    one_mistake(call(ckpt_dir=None, model=tmp_path / "none"), "no model at", "--model takes")


def test_a_prompts_file_without_the_columns(call, tmp_path):
    (tmp_path / "p.csv").write_text("id,sentence\n1,hello\n")
    one_mistake(call(prompts=tmp_path / "p.csv"), "has no prompts", "sentence")


def test_an_empty_group(call, tmp_path):
    (tmp_path / "p.csv").write_text("prompt,group\nhello,\n")
    one_mistake(call(prompts=tmp_path / "p.csv"), "p.csv, row 1", "choose from")


def test_an_empty_prompts_file(call, tmp_path):
    (tmp_path / "p.csv").write_text("prompt,group\n")
    one_mistake(call(prompts=tmp_path / "p.csv"), "is empty")


def test_no_prompts_at_all(call):
    one_mistake(call(prompts=None), "--prompts FILE")


def test_a_run_without_checkpoints(call, tmp_path):
    (tmp_path / "empty").mkdir()
    one_mistake(call(ckpt_dir=tmp_path / "empty"), "no checkpoints in", "checkpoint-N")


def test_a_run_that_is_not_there(call, tmp_path):
    one_mistake(call(ckpt_dir=tmp_path / "none"), "no folder")


def test_an_output_folder_under_a_file(call, tmp_path):
    (tmp_path / "file").write_text("")
    one_mistake(call(output_dir=tmp_path / "file" / "out"), "cannot write to")


def test_an_output_folder_inside_the_run(call, source):
    one_mistake(call(output_dir=source / "run" / "out"), "inside the run")


def test_another_setting_in_the_same_folder(call):
    call()
    one_mistake(
        call("--parameters", "last:1"), "kernel.parameters", "'all'", "'last:1'", "--overwrite"
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--estimator", "guess"], ["'guess'", "gram"]),
        (["--parameters", "everything"], ["everything", "last:N"]),
        (["--dtype", "int8"], ["'int8'", "float32"]),
        (["--only", "both"], ["'both'", "refusal"]),
        (["--steps", "a:b"], ["--steps", "A:B:C"]),
        (["--shard", "3/3"], ["--shard", "i/n"]),
        (["--batch-size", "0"], ["--batch-size", "auto"]),
        (["--top-k", "0"], ["--top-k", "1 or more"]),
        (["--follow", "--poll-interval", "-1"], ["--poll-interval", "0.01"]),
        (["--top-k-at", "last"], ["--top-k-at", "first"]),
        (["--template", "none.jinja"], ["none.jinja", "raw"]),
        (["--random-probes", "2"], ["--random-probes", "3 or more"]),
        (["--full-vocabulary", "--by", "layer"], ["--by", "all logits"]),
        (["--until-step", "3"], ["--follow"]),
        (["--limit", "0"], ["--limit"]),
        (["--preset", "mine"], ["'mine'", "paper"]),
        (["--colour", "red"], ["colour"]),
        (["--top-k", "many"], ["top-k", "integer"]),
        (["--parameters", "last:9"], ["last:9", "2"]),
    ],
)
def test_a_value_that_is_not_allowed_names_what_is(flags, words, call):
    one_mistake(call(*flags), *words)


def test_an_unknown_command(capsys):
    assert main(["guess"]) == 2
    assert "guess" in capsys.readouterr().err


def test_control_characters_of_a_hostile_name_do_not_reach_the_terminal(call, tmp_path):
    hostile = tmp_path / "run\x1b[31m\nred"
    hostile.mkdir()
    result = call(ckpt_dir=hostile)
    one_mistake(result, "no checkpoints in")
    assert "\x1b" not in result[2]


# --- failures on the way: status 1, nothing lost ---


def test_a_disk_that_fills_up_keeps_what_was_measured(call, tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    written, original = [], pq.write_table

    def fill(table, path, **options):
        if "kernel" in str(path) and len(written) == 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.extend([path] * ("kernel" in str(path)))
        original(table, path, **options)

    monkeypatch.setattr(pq, "write_table", fill)
    status, _, err = call()
    assert status == 1 and "No space left on device" in err and "Traceback" not in err
    assert Trajectory(tmp_path / "out").steps == [0]
    monkeypatch.undo()
    assert call()[1].startswith(f"3 steps in {tmp_path}/out, 2 new")


def test_a_failed_checkpoint_is_named_and_gives_status_1(call, source, tmp_path):
    import shutil

    run = shutil.copytree(source / "run", tmp_path / "run")
    (run / "checkpoint-10" / "adapter_model.safetensors").unlink()
    status, out, err = call(ckpt_dir=run)
    assert status == 1 and "2 new, 1 failed" in out
    assert "step 10" in err and "adapter_model.safetensors" in err


# --- options from files ---


def test_a_config_file_sets_options_and_typed_ones_beat_it(call, tmp_path):
    (tmp_path / "c.yaml").write_text("per-group: 1\nseed: 3\n")
    call("--config", tmp_path / "c.yaml", "--seed", "4")
    kernel = Trajectory(tmp_path / "out").settings["kernel"]
    assert (kernel["per_group"], kernel["seed"]) == (1, 4)


def test_a_config_file_beats_a_preset(call, tmp_path):
    (tmp_path / "c.yaml").write_text("max_length: 5\n")
    call("--preset", "paper", "--config", tmp_path / "c.yaml", "--parameters", "last:1")
    settings = Trajectory(tmp_path / "out").settings
    assert settings["prompts"]["max_length"] == 5 and settings["prompts"]["template"] == "raw"
    assert settings["kernel"]["parameters"] == "last:1"


def test_an_unknown_option_in_a_config_file_is_a_mistake(call, tmp_path):
    (tmp_path / "c.yaml").write_text("colour: red\n")
    one_mistake(call("--config", tmp_path / "c.yaml"), "'colour'", "measure")


# --- the command itself ---


def test_help_and_version_load_neither_torch_nor_pandas():
    code = (
        "import sys; from ntkprobe.cli import main;"
        "status = main(['--help']) or main(['--version']) or main(['measure', '--help']);"
        "assert not {'torch', 'pandas', 'transformers'} & set(sys.modules); sys.exit(status)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "measure" in found.stdout and "--ckpt-dir" in found.stdout


def test_the_package_runs_as_a_module_and_passes_the_exit_status_on():
    call = [sys.executable, "-m", "ntkprobe"]
    shown = subprocess.run([*call, "--version"], capture_output=True, text=True)
    assert shown.returncode == 0 and __version__ in shown.stdout
    refused = subprocess.run([*call, "no-such-command"], capture_output=True, text=True)
    assert refused.returncode == 2 and "no-such-command" in refused.stderr


def test_events_tell_what_happened_to_each_checkpoint(call, tmp_path):
    call()
    told = events(tmp_path / "out")
    states = {
        0: ("ready", "measuring", "compared", "done"),
        10: ("ready", "measuring", "compared", "done"),
        20: ("ready", "measuring", "done", "compared"),
    }
    assert [(e["step"], e["state"]) for e in told] == [(n, s) for n in states for s in states[n]]
    assert all(e["seconds"] > 0 for e in told if e["state"] == "done")


def test_limit_takes_the_first_prompts_of_each_group(call, source, tmp_path):
    call("--limit", "1")
    table = pd.read_csv(source / "prompts.csv").groupby("group", sort=False).head(1)
    assert Trajectory(tmp_path / "out").prompts["text"].tolist() == table["prompt"].tolist()


def test_a_model_alone_can_be_measured(call, tmp_path):
    base = save_base(tmp_path / "base")
    assert call(ckpt_dir=None, model=base)[0] == 0
    assert Trajectory(tmp_path / "out").steps == [0]


@pytest.mark.slow
def test_two_workers_under_torchrun_share_the_checkpoints_as_the_recipe_says(source, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    places = [f"--ckpt-dir={source}/run", f"--prompts={source}/prompts.csv"]
    ours = [*places, f"--output-dir={tmp_path}/out", *QUICK]
    call = "import sys; from ntkprobe.cli import main; sys.exit(main())"
    subprocess.run(
        [*command, "--no-python", sys.executable, "-c", call, "measure", *ours], check=True
    )
    assert Trajectory(tmp_path / "out").steps == [0, 10, 20]
    done = {path: path.read_text().count('"done"') for path in tmp_path.glob("out/events-*")}
    assert sorted(done.values()) == [1, 2]
