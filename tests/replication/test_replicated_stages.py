"""Stages of `replicate`: killed and continued, done with another model, published without texts."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pandas as pd
import pytest
from replication_calls import MODEL, words
from safetensors.torch import load_file, save_file

from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.evaluation import Evaluation
from ntkprobe.prompts.phrases import phrase_set
from ntkprobe.replication.evaluating import evaluate, fit
from ntkprobe.replication.hypotheses import HYPOTHESES
from ntkprobe.replication.labels import SAMPLE, agreement_lines, write_sample
from ntkprobe.replication.plan import MAIN, STEERED, Stage, stages
from ntkprobe.replication.publishing import WITHHELD, publish
from ntkprobe.replication.report import write_report
from ntkprobe.replication.results import Results
from ntkprobe.replication.settings import SCALES, ReplicationSettings
from ntkprobe.replication.subjects import subjects
from ntkprobe.replication.workspace import Workspace
from ntkprobe.storage import write_json

RUN = "import sys; from ntkprobe.cli import main; sys.exit(main(sys.argv[1:]))"


def written(out):
    """Return when every batch of answers, table of measurements and checkpoint was written."""
    kinds = (
        "eval*/**/batch-*.parquet",
        "ntk/**/step-*.parquet",
        "start/**/step-*.parquet",
        "runs/*/final/*.safetensors",
    )
    return {path: path.stat().st_mtime_ns for kind in kinds for path in out.glob(kind)}


def started(*given, **streams):
    """Return the command in a process of its own, which no shape check slows down."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", RUN, *given], env=one_thread, **streams)


def kill_when_written(call, out, pattern):
    """Run the command until a file is there, and kill it."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    killed = started(*call, **quiet)
    try:
        until = time.monotonic() + 1500  # a busy machine is no failure
        while not list(out.glob(pattern)):
            assert killed.poll() is None and time.monotonic() < until
            time.sleep(0.05)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()


@pytest.fixture(scope="module")
def evaluated(published, tmp_path_factory):
    """A replication whose run of STL was trained and evaluated; its answers were killed once."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    assert main(words(published, out, "--only", "prepare")) == 0
    (out / "choice.json").write_text('{"rate": 0.003, "met": null, "tried": []}')
    assert main(words(published, out, "--only", "train-stl-0")) == 0
    evaluating = words(published, out, "--only", "evaluate-stl-0")
    kill_when_written(evaluating, out, "eval/stl-0/answers/*/batch-*.parquet")
    assert not (out / "done/evaluate-stl-0.json").exists()
    return out


def test_a_run_killed_in_its_answers_goes_on_without_repeating_any(published, evaluated):
    before = written(evaluated)
    evaluating = words(published, evaluated, "--only", "evaluate-stl-0")
    assert main(evaluating) == 0
    after = written(evaluated)
    assert before and {path: after[path] for path in before} == before
    done = {path.stem for path in (evaluated / "done").glob("[!.]*.json")}
    assert done == {"prepare", "train-stl-0", "evaluate-stl-0"}
    assert main(evaluating) == 0 and written(evaluated) == after


def write_anew(adapter):
    """Change an adapter's weights, as another training does."""
    file = adapter / "adapter_model.safetensors"
    save_file({name: values + 0.01 for name, values in load_file(file).items()}, file)


@pytest.mark.parametrize("only", ["evaluate-stl-0", "refusals-stl-0", "report"])
def test_a_stage_done_with_another_model_than_the_run_holds_now_is_refused(
    only, published, evaluated, tmp_path, capsys
):
    assert main(words(published, evaluated, "--only", "evaluate-stl-0")) == 0
    out = shutil.copytree(evaluated, tmp_path / "out")
    record = out / "done/evaluate-stl-0.json"
    assert list(json.loads(record.read_text())["models"]) == ["stl-0"]
    write_anew(out / "runs/stl-0/final")
    before = written(out)
    capsys.readouterr()
    assert main(words(published, out, "--only", only)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "evaluate stl-0 was done with another model than" in said
    assert said.endswith(f"remove {out / 'eval/stl-0'}, {record}") and written(out) == before


def test_a_model_that_was_not_recorded_or_is_not_there_is_unknown(
    published, evaluated, tmp_path, capsys
):
    evaluating = words(published, tmp_path / "out", "--only", "evaluate-stl-0")
    assert main(words(published, evaluated, "--only", "evaluate-stl-0")) == 0
    out = shutil.copytree(evaluated, tmp_path / "out")
    shutil.rmtree(out / "runs/stl-0/final")
    assert main(evaluating) == 0
    shutil.copytree(evaluated / "runs/stl-0/final", out / "runs/stl-0/final")
    write_anew(out / "runs/stl-0/final")
    assert main(evaluating) == 2
    assert main([*evaluating, "--dry-run"]) == 2
    record = json.loads((out / "done/evaluate-stl-0.json").read_text())
    write_json(out / "done/evaluate-stl-0.json", {k: record[k] for k in ("stage", "seconds")})
    assert main(evaluating) == 0 and main([*evaluating, "--dry-run"]) == 0


def test_every_stage_about_a_trained_model_names_it_and_what_its_sft_starts_from(tmp_path):
    for run in ("dcr-0", "control-0", "dcr-stl-0", "control-stl-0", "stl-0", "stl-aug-0"):
        shutil.copytree(MODEL, tmp_path / "runs" / run / "final")
    starts = {"dcr-stl": ["dcr-0"], "control-stl": ["control-0"]}
    for stage in (s for s in stages([0]) if s.seed is not None):
        own = "stl" if stage.run in STEERED else stage.run
        read = [*starts.get(own, []), *([] if stage.what == "train" else [f"{own}-0"])]
        assert list(subjects(tmp_path, stage)) == read, stage
    assert not any(subjects(tmp_path, s) for s in stages([0]) if s.seed is None)


def cells(place):
    """Return every text in a folder's files: table cells, and whole other files."""
    found = []
    for path in (p for p in place.rglob("*") if p.is_file() and p.suffix != ".png"):
        if path.suffix in (".parquet", ".csv"):
            table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
            found += [str(value) for name in table for value in (name, *table[name].unique())]
        elif path.suffix in (".json", ".md"):
            found.append(path.read_text())
    return found


def assert_nothing_private(out, place):
    """Check that a published copy holds no prompt, no pair, no answer and no place of a file."""
    rows = [json.loads(line) for file in (out / "data").glob("*.jsonl") for line in file.open()]
    answers = [pd.read_parquet(path)["answer"] for path in out.glob("eval/*/answers/*/*.parquet")]
    texts = {text for row in rows for text in (row["prompt"], row.get("response"))}
    texts |= {text for table in answers for text in table if len(text) > 8}
    own = " ".join(phrase_set())  # our own list, in every record; toy answers are as short
    private = [text for text in texts if text and text not in own] + [str(out), MODEL]
    assert len(private) > 10
    for cell in cells(place):
        assert not [text for text in private if text in cell], cell[:200]


def test_a_published_copy_has_the_numbers_and_neither_texts_nor_places(
    published, evaluated, tmp_path
):
    out, place = evaluated, tmp_path / "copy"
    assert main(words(published, out, "--only", "evaluate-stl-0")) == 0
    terms = pd.DataFrame({"observed": [0], "updated": [1], "kernel": [0.5]})
    (out / "start/dcr-0").mkdir(parents=True)  # its kernel is another stage, not done here
    terms.to_parquet(out / "start/dcr-0/bounds.parquet")
    publish(out, place)
    pd.testing.assert_frame_equal(pd.read_parquet(place / "start/dcr-0/bounds.parquet"), terms)
    assert_nothing_private(out, place)
    with pytest.raises(AssertionError):
        assert_nothing_private(out, out)
    first, second = (Results(folder).table("stl-0") for folder in (out, place))
    pd.testing.assert_frame_equal(first, second)
    verdicts = [Evaluation(folder / "eval/stl-0").verdicts() for folder in (out, place)]
    assert len(verdicts[0]) and (verdicts[0]["verdict"] == verdicts[1]["verdict"]).all()
    publish(out, place)  # over an older copy
    other = tmp_path / "other"
    (other / "mine").mkdir(parents=True)
    for folder, why in ((out, "not apart"), (out / "x", "not apart"), (other, "something else")):
        with pytest.raises(UserError, match=why):
            publish(out, folder)
    assert (out / "replication.json").is_file() and (other / "mine").is_dir()


def assert_published_without_texts_or_places(out, place):
    """Check that a published copy gives the report's verdicts again, and holds nothing private."""
    publish(out, place)
    settings = ReplicationSettings(model=MODEL, output_dir=place, seeds=(0,), scale="toy")
    report = write_report(Workspace(settings, {})).read_text()
    numbers = (out / "report.md").read_text().partition("## The filters")[0]
    numbers = re.sub(
        r"(could not be fitted: ).+", rf"\1{WITHHELD}", numbers.replace(MODEL, "model")
    )
    assert "### H6" in numbers and report.startswith(numbers)
    for name in ("fig7.csv", "fig8.csv"):  # the copy has no activations
        first, second = ((folder / "figures" / name).read_bytes() for folder in (out, place))
        assert first == second
    assert_nothing_private(out, place)


def test_labels_are_read_in_any_case_and_never_overwritten(evaluated, tmp_path):
    shutil.copytree(evaluated / "eval", tmp_path / "eval")
    write_sample(tmp_path, ["stl-0"])
    drawn = pd.read_csv(tmp_path / SAMPLE, keep_default_na=False)
    assert set(drawn["label"]) == {""}
    for word in ("Refusal ", "refused"):
        drawn.assign(label=word).to_csv(tmp_path / SAMPLE, index=False)
        write_sample(tmp_path, ["stl-0"])
        assert set(pd.read_csv(tmp_path / SAMPLE)["label"]) == {word}
        told = "\n".join(agreement_lines(tmp_path))
        assert ("answers are labelled, of stl-0" in told) == (word == "Refusal ")


def test_prompts_that_a_method_was_fitted_on_are_counted_as_learned(evaluated, tmp_path):
    out = shutil.copytree(evaluated, tmp_path / "out")
    settings = ReplicationSettings(model=MODEL, output_dir=out, scale="toy", seeds=(0,))
    workspace, stage = Workspace(settings, {}), Stage("fit", "scans", 0)
    fit(workspace, stage)
    rows = [json.loads(x) for x in (out / "mitigations/scans-0.prompts.jsonl").open()]
    assert {row["group"] for row in rows} == {"seemingly_toxic", "toxic", "normal"}
    evaluate(workspace, replace(stage, what="evaluate"))
    recorded = json.loads((out / "eval/scans-0/run.json").read_text())["benchmarks"]
    assert recorded["xstest"]["overlap"]["kinds"] == {"safe": SCALES["toy"].anchors}
    assert recorded["oktest"]["overlap"]["prompts"] == 0


@pytest.mark.slow
def test_replicate_killed_on_the_way_goes_on_and_ends_with_a_report(published, tmp_path, capfd):
    out = tmp_path / "out"
    kill_when_written(words(published, out), out, "eval/base/answers/*/batch-*.parquet")
    before = written(out)
    assert before and not (out / "report.md").exists()

    assert main(words(published, out, "--only", "report")) == 0
    assert "not measured yet" in (out / "report.md").read_text()  # nothing half done is judged
    (out / "report.md").unlink()
    assert started(*words(published, out)).wait() == 0
    after = written(out)
    assert {path: after[path] for path in before} == before
    assert len(after) > len(before)
    report = (out / "report.md").read_text()
    for name in HYPOTHESES:
        assert f"### {name}" in report
    assert "not measured yet" not in report and "Scale `toy` is for tests" in report
    assert {path.stem for path in (out / "done").glob("[!.]*.json")} == {
        stage.file for stage in stages([0])
    }
    for run in (*MAIN, "stl-aug"):
        assert len(list((out / "ntk" / f"{run}-0" / "kernel").glob("step-*"))) == 2
    assert_published_without_texts_or_places(out, tmp_path / "published")
    assert len(pd.read_csv(out / "labels.csv")) == 100

    capfd.readouterr()
    assert main(words(published, out)) == 0  # nothing is left but the report
    assert written(out) == after
    assert main(words(published, out, "--dry-run")) == 0
    said = capfd.readouterr().out
    assert "train stl-0: done" in said and "time: about 0 s" in said
    other = words(published, out, "--dtype", "bfloat16")
    assert main(other) == 2 and "dtype = 'float32'" in capfd.readouterr().err
