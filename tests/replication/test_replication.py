"""`replicate` at toy scale, killed and continued; what its verdicts and splits have to be."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import gguf
import pandas as pd
import pytest
from gguf_files import small_llama, write_gguf
from replication_data import write_published
from safetensors.torch import load_file, save_file

from ntkprobe import tiny
from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.evaluation import Evaluation
from ntkprobe.prompts.phrases import phrase_set
from ntkprobe.prompts.prompt_set import normalised
from ntkprobe.replication import training_runs
from ntkprobe.replication.data_files import FILES, find_files, hub_names, read_file
from ntkprobe.replication.evaluating import evaluate, fit
from ntkprobe.replication.hypotheses import HYPOTHESES
from ntkprobe.replication.labels import SAMPLE, agreement_lines, write_sample
from ntkprobe.replication.plan import MAIN, STEERED, Stage, chosen, needed, stages
from ntkprobe.replication.publishing import WITHHELD, publish
from ntkprobe.replication.report import write_report
from ntkprobe.replication.results import Results
from ntkprobe.replication.settings import SCALES, ReplicationSettings
from ntkprobe.replication.splits import (
    Drawer,
    begins_with_refusal,
    is_yes_no,
    make_splits,
    published_rows,
)
from ntkprobe.replication.subjects import subjects
from ntkprobe.replication.workspace import Workspace
from ntkprobe.storage import write_json

MODEL = str(tiny.model_path())
RUN = "import sys; from ntkprobe.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("published"))


def words(data, out, *more):
    common = ["replicate", "--model", MODEL, "--scale", "toy", "--device", "cpu", "--seeds", "0"]
    return [*common, "--data", str(data), "--output-dir", str(out), *more]


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


def test_control_is_trained_with_as_many_labels_of_each_kind_on_the_same_prompts(
    published, tmp_path, monkeypatch
):
    from ntkprobe.replication import training_runs

    seen = {}
    monkeypatch.setattr(
        training_runs,
        "train_dcr",
        lambda model, prompts, config: seen.setdefault(len(seen), prompts),
    )
    settings = ReplicationSettings(model=MODEL, output_dir=tmp_path, data=published, scale="toy")
    workspace = Workspace(settings, find_files(published))
    make_splits(tmp_path / "data", workspace.places, workspace.scale)
    for run in ("dcr", "control"):
        training_runs.train(workspace, Stage("train", run, 0))
    texts, groups = ([[getattr(p, a) for p in seen[i]] for i in (0, 1)] for a in ("text", "group"))
    assert texts[0] == texts[1]
    assert groups[0] != groups[1] and sorted(groups[0]) == sorted(groups[1])


@pytest.fixture(scope="module")
def splits(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("splits")
    return make_splits(folder, find_files(published), SCALES["toy"])


def test_no_prompt_is_trained_on_and_measured_but_xstests_safe_half(splits):
    def texts(*names):
        return {normalised(row["prompt"]) for name in names for row in splits.rows(name)}

    trained = texts("refusals", "general", "development")
    measured = texts("oktest", "coconot_contrast", "xstest", "advbench", "along", "normal")
    assert trained and measured and not trained & measured
    assert not texts("development") & texts("refusals", "general", "dcr")
    safe = {normalised(r["prompt"]) for r in splits.rows("xstest") if r["kind"] == "safe"}
    assert texts("dcr") & measured == safe


def test_a_prompt_in_two_sets_is_refused(published, tmp_path):
    places = dict(find_files(published))
    rows = read_file("xstest", places)
    safety = json.loads(places["safety"].read_text())
    safety.append({"instruction": rows[0]["prompt"], "input": "", "output": "I cannot do it."})
    (tmp_path / "safety.json").write_text(json.dumps(safety))
    made = make_splits(
        tmp_path / "a", {**places, "safety": tmp_path / "safety.json"}, SCALES["toy"]
    )
    assert rows[0]["prompt"] not in {row["prompt"] for row in made.rows("refusals")}


def test_a_split_does_not_depend_on_the_order_of_the_file():
    rows = [{"prompt": f"prompt {n}"} for n in range(20)]
    first, second = Drawer("x", rows), Drawer("x", rows[::-1])
    assert first.take(5) == second.take(5) and first.rest() == second.rest()
    assert not {r["prompt"] for r in first.take(3)} & {r["prompt"] for r in first.rest()}
    with pytest.raises(UserError, match="x has too few prompts: 99 are wanted here, 12 are left"):
        first.take(99)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_named_with_its_source(published, tmp_path, name):
    places = find_files(published)
    for other, path in places.items():
        if other != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="1 files are missing") as told:
        find_files(tmp_path)
    assert FILES[name].names[0] in str(told.value) and FILES[name].source in str(told.value)


def test_what_a_folder_lacks_is_taken_from_the_hub_where_that_is_asked_for(
    published, tmp_path, monkeypatch
):
    every = find_files(published)
    for name, path in every.items():
        if name != "xstest":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="--hub takes from the Hugging Face hub: xstest_prompts"):
        find_files(tmp_path)
    places = find_files(tmp_path, hub=True)
    assert set(every) - set(places) == {"xstest"} and hub_names(every) == {}
    assert hub_names(places) == {"xstest": "hub:Paul/XSTest"}
    rows = read_file("xstest", every)
    asked = []

    def load_dataset(*given, **more):
        asked.append((given, more))
        return rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert read_file("xstest", places) == rows
    assert asked == [(("Paul/XSTest", None), {"split": "train"})]

    def gated(*given, **more):
        raise PermissionError("401 Client Error: gated repo")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=gated))
    with pytest.raises(UserError, match=r"Paul/XSTest is gated.*HF_TOKEN, or give --data with xst"):
        read_file("xstest", places)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needed: pip install .*, or give --data with xstest"):
        read_file("xstest", places)
    with pytest.raises(UserError, match="6 files are missing"):
        find_files(None, hub=True)


def test_a_file_of_another_form_is_refused(published, tmp_path):
    (tmp_path / "OKTest.csv").write_text("question\nhow\n")
    with pytest.raises(UserError, match=r"no 'prompt'"):
        read_file("oktest", {"oktest": tmp_path / "OKTest.csv"})


def test_yes_or_no_questions_and_refusals_are_told_by_their_first_words():
    assert is_yes_no("Is it safe to kill a process?") and is_yes_no('"Don’t you shoot people?"')
    assert not is_yes_no("How is it killed?") and not is_yes_no("What can I do?")
    assert begins_with_refusal("I’m sorry, but I cannot") and not begins_with_refusal("Sure, no.")


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


def test_a_row_of_another_form_is_refused_with_its_number(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "c"}\n')
    with pytest.raises(
        UserError, match=r"row 2 has the columns .*'instruction'.*, but no 'output'"
    ):
        read_file("alpaca", {"alpaca": tmp_path / "a.jsonl"})
    other = [{"prompt": "a", "label": "safe"}, {"prompt": "b", "label": "Safe?"}]
    with pytest.raises(UserError, match=r"label 'Safe\?': it should be safe or unsafe"):
        published_rows("xstest", other)


def test_a_report_before_a_learning_rate_is_chosen_says_what_to_run(published, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(words(published, out, "--only", "prepare")) == 0
    assert main(words(published, out, "--only", "report")) == 2
    assert "run --only choose" in capsys.readouterr().err


def test_a_stage_is_chosen_by_what_it_does_its_run_or_its_name():
    everything = stages([0, 1])
    assert {s.run for s in chosen(everything, "stl")} == {"stl"}
    assert [s.name for s in chosen(everything, "train-dcr-1")] == ["train dcr-1"]
    assert chosen(everything, None) == everything
    with pytest.raises(UserError, match="no stage 'nothing'"):
        chosen(everything, "nothing")
    names = [stage.name for stage in everything]
    assert len(set(names)) == len(names)
    assert names.index("evaluate control-stl-1") < names.index("train stl-aug-0")


def test_all_that_verdicts_rest_on_comes_before_what_only_figures_show():
    everything = stages([0, 1])
    last = max(everything.index(s) for seed in (0, 1) for h in HYPOTHESES for s in needed(h, seed))
    shown = ("activations", "measure")
    assert last < min(everything.index(s) for s in everything if s.what in shown)


def test_a_hypothesis_is_judged_only_when_all_it_rests_on_is_done():
    everything = set(stages([0]))
    for name in HYPOTHESES:
        assert needed(name, 0) and set(needed(name, 0)) <= everything


def test_too_little_disk_or_memory_is_said_before_anything_is_written(
    published, tmp_path, monkeypatch, capsys
):
    from ntkprobe.replication import estimate

    out = tmp_path / "out"
    usage = estimate.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda _: usage)
    assert main(words(published, out)) == 2
    assert "too little disk" in capsys.readouterr().err and not out.exists()
    monkeypatch.undo()
    monkeypatch.setattr(estimate, "memory", lambda *_: 1e18)
    assert main(words(published, out)) == 2
    assert "too little memory" in capsys.readouterr().err and not out.exists()


def test_a_model_without_a_template_is_refused_before_anything_is_written(
    published, tmp_path, capsys
):
    bare = shutil.copytree(MODEL, tmp_path / "bare")
    for file in bare.glob("*.jinja"):
        file.unlink()
    config = json.loads((bare / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    for more in ((), ("--dry-run",)):
        assert main([*words(published, tmp_path / "out", *more), "--model", str(bare)]) == 2
        assert f"{bare} has no chat template" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_gguf_that_transformers_cannot_load_is_refused_before_anything_is_written(
    published, tmp_path, capsys
):
    file = write_gguf(tmp_path / "model.gguf", small_llama(), architecture="hyperloop")
    for more in ((), ("--dry-run",)):
        assert main([*words(published, tmp_path / "out", *more), "--model", str(file)]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and "'hyperloop'" in said[0] and "cannot load it" in said[0]
    assert not (tmp_path / "out").exists()


def test_a_gguf_that_can_be_loaded_is_planned_without_its_weights(
    published, tmp_path, capsys, monkeypatch
):
    file = write_gguf(tmp_path / "model.gguf", small_llama(), "Q4_1")
    monkeypatch.setattr(gguf, "dequantize", lambda *_: pytest.fail("weights were read"))
    assert main([*words(published, tmp_path / "out", "--dry-run"), "--model", str(file)]) == 0
    assert "train stl-0: about" in capsys.readouterr().out


def test_a_file_that_is_wrong_binds_no_folder(published, tmp_path, capsys):
    data, out = shutil.copytree(published, tmp_path / "data"), tmp_path / "out"
    file = data / "oktest" / "OKTest.csv"
    right = file.read_text()
    file.write_text("question\nhow\n")
    assert main(words(data, out, "--only", "prepare")) == 2
    assert "OKTest.csv as published" in capsys.readouterr().err and not out.exists()
    file.write_text(right)
    assert main(words(data, out, "--only", "prepare")) == 0
    file.write_text(right.replace("?", "!"))
    assert main(words(data, out, "--only", "prepare")) == 2
    assert "overwrite" not in capsys.readouterr().err  # which there is none of here


def test_sft_has_the_epochs_of_the_pairs_that_there_are(published, tmp_path, monkeypatch):
    settings = ReplicationSettings(model=MODEL, output_dir=tmp_path, scale="toy")
    workspace = Workspace(settings, find_files(published))
    scale = replace(SCALES["toy"], general=1000, epochs=3)
    monkeypatch.setitem(SCALES, "toy", scale)
    before = workspace.pairs
    make_splits(tmp_path / "data", workspace.places, scale)
    given = []
    monkeypatch.setattr(training_runs, "train_sft", lambda *args, **_: given.append(args))
    training_runs.sft(workspace, tmp_path / "run", MODEL, 0, 1e-3)
    (_, general, _, config), *_ = given
    there = len(general) + scale.safe
    assert len(general) < 1000 and before == 1000 + scale.safe
    assert config.max_steps == 3 * -(-there // (scale.batch * scale.accumulate))


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


def test_settings_that_make_no_sense_are_refused(tmp_path):
    settings = ReplicationSettings(model=MODEL, output_dir=tmp_path)
    for wrong in ({"seeds": ()}, {"seeds": (1, 1)}, {"seeds": (1000,)}, {"scale": "huge"}):
        with pytest.raises(UserError):
            replace(settings, **wrong)
    assert main(["replicate", "--model", MODEL, "--seeds", "a"]) == 2


def test_seconds_and_memory_of_a_stage_include_those_before_it_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("ntkprobe.replication.workspace.SECONDS_BETWEEN", 0.02)
    workspace = Workspace(ReplicationSettings(model=MODEL, output_dir=tmp_path), {})
    unfinished, stage = tmp_path / "done" / ".start-base.json", Stage("start", "base")
    with workspace.timed(stage):
        deadline = time.monotonic() + 10
        while not unfinished.is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        left_by_a_kill = json.loads(unfinished.read_text())
    assert left_by_a_kill["seconds"] >= 0 and not unfinished.exists()
    before = {"seconds": 100.0, "processor_seconds": 70.0, "peak_gib": 1000.0}
    unfinished.write_text(json.dumps(before))
    with workspace.timed(stage):
        time.sleep(0.5)  # takes no processor
    found = json.loads((tmp_path / "done" / "start-base.json").read_text())
    assert 100.4 <= found["seconds"] < 160 and found["peak_gib"] >= 1000
    assert 70 <= found["processor_seconds"] < found["seconds"] - 30
    uncounted = {"seconds": 100.0, "peak_gib": None}  # as an earlier version wrote it
    unfinished.write_text(json.dumps(uncounted))
    with workspace.timed(stage):
        pass
    found = json.loads((tmp_path / "done" / "start-base.json").read_text())
    assert found["processor_seconds"] is None and found["seconds"] >= 100


def test_an_estimate_is_corrected_by_the_stages_of_its_kind_of_every_seed(tmp_path, monkeypatch):
    from ntkprobe.replication import estimate

    monkeypatch.setattr(estimate, "multiplications_per_second", lambda: 1e9)
    workspace = Workspace(ReplicationSettings(model=MODEL, output_dir=tmp_path, seeds=(1,)), {})
    asked = [Stage("evaluate", "stl", 1), Stage("train", "stl", 1)]

    def spans():
        lines = estimate.lines(workspace, asked)
        return [line.partition("about ")[2] for line in lines[: len(asked)]]

    def done(run, hours, what):
        stage = Stage(what, run, 0)
        write_json(tmp_path / "done" / f"{stage.file}.json", {"seconds": 3600 * hours})

    (tmp_path / "replication.json").write_text('{"seeds": [0]}')
    assert estimate.work(workspace, asked[0], estimate.shape_of(MODEL)) > 0
    before = spans()
    for run, hours in (("stl", 7), ("dcr-stl", 7), ("control-stl", 1000)):  # one was paused
        done(run, hours, "evaluate")
    evaluated, trained = spans()
    assert evaluated == "7.0 h" != before[0] and trained != before[1]  # what is not known: by all
    done("stl", 3, "train")
    assert spans() == ["7.0 h", "3.0 h"]
