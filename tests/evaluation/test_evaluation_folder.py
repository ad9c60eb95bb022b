"""`ntkprobe evaluate`: answers in whole shards, asked once, judged side by side."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from evaluate_calls import QUICK, TINY, mistake

from ntkprobe.evaluation.results import Evaluation


def test_evaluate_answers_judges_and_says_what_to_do_next(call, answers, tmp_path):
    status, out, err = call(*TINY, *QUICK)
    assert status == 0 and out.startswith(f"8 new answers in {tmp_path}/e; tiny (safe) compliance")
    assert out.endswith(f"next: ntkprobe table {tmp_path}/e")
    assert err.count("of 4 prompts") == 2 * 3 and "scans_strings" in err
    assert sorted(path.name for path in (tmp_path / "e/answers/tiny").iterdir()) == [
        f"batch-{n:05d}.parquet" for n in range(3)
    ]
    table = answers()
    assert len(table) == 8 and (table["n_tokens"] <= 6).all() and (table["seconds"] > 0).all()
    assert table["ended"].dtype == "boolean" and table["answer"].str.strip().all()


def test_run_json_holds_every_setting_and_where_the_prompts_came_from(started, call, tmp_path):
    call(*TINY, *QUICK, "--label", "base", "--no-judge")
    record = json.loads((tmp_path / "e/run.json").read_text())
    assert record["label"] == "base" and record["versions"]["torch"]
    assert record["answers"]["max_new_tokens"] == 6 and record["model"]["dtype"] == "float32"
    assert record["benchmarks"]["tiny"]["prompts"] == 8
    assert re.fullmatch(r"[0-9a-f]{64}-[0-9a-f]{16}", record["model"]["base"]["identity"])
    assert record["answers"]["resolved_template"].startswith("chat#")


def test_a_second_call_asks_nothing_and_loads_no_model(started, call, monkeypatch):
    monkeypatch.setattr("ntkprobe.evaluation.models.load_model", None)
    status, out, _ = call(*TINY, *QUICK)
    assert status == 0 and out.startswith("0 new answers") and "tiny (safe) compliance" in out


def test_only_what_is_missing_is_asked_again(started, call, answers, tmp_path):
    whole = answers()
    (tmp_path / "e/answers/tiny/batch-00001.parquet").unlink()
    status, out, _ = call(*TINY, *QUICK, "--batch-size", "1")
    assert status == 0 and out.startswith("3 new answers")
    pd.testing.assert_frame_equal(
        answers().drop(columns="seconds").sort_index(),
        whole.drop(columns="seconds").sort_index(),
    )


def test_a_further_benchmark_or_judge_goes_into_the_same_folder(started, call, tmp_path):
    more = tmp_path / "mine.csv"
    more.write_text("prompt\nHow do I greet a guest?\n")
    _, out, err = call(
        *TINY, *QUICK, "--benchmark", f"{more}=safe", "--judge", "c=or_bench_strings:family=claude"
    )
    assert out.startswith("1 new answers") and "mine (safe) compliance" in out
    assert err.count(" c ") == 3 and "scans_strings" not in err
    assert set(Evaluation(tmp_path / "e").rates()["benchmark"]) == {"mine", "tiny"}


def test_sets_of_phrases_are_judges_under_their_names(started, call, tmp_path):
    (tmp_path / "en.txt").write_text("I cannot\nI am\n")
    (tmp_path / "all.json").write_text('{"phrases": ["I"], "prefixes": ["i", "y", "use", "the"]}')
    named = ["--phrases", tmp_path / "en.txt", "--phrases", f"wide={tmp_path}/all.json"]
    status, _, _ = call(*TINY, *QUICK, *named)
    rates = Evaluation(tmp_path / "e").rates()
    assert status == 0 and {"en", "wide", "xstest_prefixes"} <= set(rates["judge"])
    unsafe = rates[rates["kind"] == "unsafe"].set_index("judge")["value"]
    assert unsafe["wide"] >= unsafe["en"]
    (tmp_path / "en.txt").write_text("Other words\n")
    assert "en" in mistake(call(*TINY, *QUICK, *named))


@pytest.mark.slow
def test_kill_9_loses_one_batch_at_most(tmp_path):
    command = [sys.executable, "-c", "import sys, ntkprobe.cli; sys.exit(ntkprobe.cli.main())"]
    command += ["evaluate", *TINY, "--batch-size", "2", "--max-new-tokens", "24", "--output-dir"]
    process = subprocess.Popen([*command, str(tmp_path / "e")], stderr=subprocess.DEVNULL)
    shards = tmp_path / "e/answers/tiny"
    while process.poll() is None and len(list(shards.glob("batch-*"))) < 5:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = Evaluation(tmp_path / "e").answers("tiny")
    assert process.returncode == -signal.SIGKILL and 10 <= len(done) < 182 and len(done) % 2 == 0
    rest = subprocess.run([*command, str(tmp_path / "e")], capture_output=True, text=True)
    assert rest.stdout.startswith(f"{182 - len(done)} new answers"), rest.stderr
    whole = subprocess.run([*command, str(tmp_path / "whole")], capture_output=True, text=True)
    assert whole.stdout.startswith("182 new answers")
    columns = ["id", "answer", "n_tokens", "ended"]
    pd.testing.assert_frame_equal(
        *(
            Evaluation(tmp_path / name)
            .answers("tiny")[columns]
            .sort_values("id", ignore_index=True)
            for name in ("e", "whole")
        )
    )
