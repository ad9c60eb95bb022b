"""`ntkprobe evaluate`: answers in whole shards, asked once, judged side by side."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import training_world as world
from fake_server import fake_server

from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.cli import main
from ntkprobe.evaluation.answers import LocalModel, Question
from ntkprobe.evaluation.benchmarks import read_benchmark
from ntkprobe.evaluation.results import Evaluation
from ntkprobe.evaluation.settings import AnswerSettings
from ntkprobe.models import generation
from ntkprobe.prompts.templates import resolve_template
from ntkprobe.tiny import dcr_path, model_path

DATA = Path(os.environ.get("NTKPROBE_DATA", Path(__file__).parents[3] / "shared" / "data"))
TINY = ["--model", str(model_path()), "--benchmark", "tiny", "--device", "cpu"]
QUICK = ["--limit", "4", "--max-new-tokens", "6", "--batch-size", "3"]


@pytest.fixture
def call(tmp_path, capsys):
    """`ntkprobe evaluate`: status, last words, errors."""

    def run(*flags):
        words = ["evaluate", *map(str, flags), f"--output-dir={tmp_path}/e"]
        status = main(words)
        printed = capsys.readouterr()
        return status, printed.out.strip(), printed.err

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of one evaluation of the embedded model, made once."""
    folder = tmp_path_factory.mktemp("finished") / "e"
    assert main(["evaluate", *TINY, *QUICK, f"--output-dir={folder}"]) == 0
    return folder


@pytest.fixture
def started(finished, tmp_path):
    """The same where `call` goes on."""
    shutil.copytree(finished, tmp_path / "e")


@pytest.fixture
def answers(tmp_path):
    return lambda name="tiny": Evaluation(tmp_path / "e").answers(name).set_index("id")


def mistake(result):
    status, out, err = result
    lines = [line for line in err.splitlines() if line.startswith("ntkprobe: ")]
    assert status == 2 and out == "" and len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


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


def test_another_setting_in_the_same_folder_is_refused_with_both_values(started, call, answers):
    for flags, words in [
        (["--max-new-tokens", "7"], "answers.max_new_tokens = 6, now it is 7"),
        (["--limit", "2"], "benchmarks.tiny.prompts = 8, now it is 4"),
        (["--temperature", "1"], "answers.temperature = 0.0, now it is 1.0"),
        (["--dtype", "float64"], "model.dtype = 'float32', now it is 'float64'"),
    ]:
        assert words in mistake(call(*TINY, *QUICK, *flags))
    assert len(answers()) == 8


def test_what_counts_of_a_template_is_what_it_comes_to(started, call):
    assert call(*TINY, *QUICK, "--template", "chat")[0] == 0
    assert "answers.resolved_template = 'chat#" in mistake(call(*TINY, *QUICK, "--template", "raw"))


def test_another_tokenizer_of_the_same_weights_is_refused(call, tmp_path):
    model = Path(world.saved(tmp_path / "model"))
    given = ["--model", model, *TINY[2:], *QUICK]
    assert call(*given)[0] == 0
    path = model / "tokenizer.json"
    before = path.read_text()
    whole = json.loads(before)
    whole["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(whole))
    assert "answers.probe_tokens = " in mistake(call(*given))
    path.write_text(before)
    assert call(*given)[1].startswith("0 new answers")


def test_a_mistake_beside_overwrite_costs_no_answer(started, call, answers):
    gone = "http://127.0.0.1:9/v1"
    for flags in (
        [*TINY, "--judge", f"llm:base_url={gone},model=j"],
        ["--base-url", gone, "--model", "m", "--benchmark", "tiny"],
        [*TINY, "--template", "absent.jinja"],
    ):
        mistake(call(*flags, *QUICK, "--overwrite"))
    assert len(answers()) == 8


def test_another_model_is_refused_and_overwrite_begins_anew(started, call, answers, tmp_path):
    other = ["--model", world.saved(tmp_path / "other"), *TINY[2:], *QUICK]
    assert "model.base.identity" in mistake(call(*other))
    before = answers()["answer"].tolist()
    assert call(*other, "--overwrite")[1].startswith("8 new answers")
    assert answers()["answer"].tolist() != before


def test_abilities_of_another_model_do_not_stand_beside_new_answers(started, call, tmp_path):
    folder = tmp_path / "e"
    own = json.loads((folder / "run.json").read_text())["model"]
    task = {"mmlu": [{"metric": "acc", "value": 0.5, "stderr": None, "n": 9}]}

    def write_abilities():
        (folder / "abilities.json").write_text(json.dumps({"model": own, "tasks": task}))

    write_abilities()
    call(*TINY, *QUICK, "--overwrite")
    assert len(Evaluation(folder).abilities()) == 1  # those of the same model stay
    other = ["--model", world.saved(tmp_path / "other"), *TINY[2:], *QUICK]
    call(*other, "--overwrite")
    assert not (folder / "abilities.json").exists()
    (folder / "run.json").unlink()
    write_abilities()
    assert "model.base.identity" in mistake(call(*other))


def test_answers_of_a_server_and_of_a_local_model_do_not_mix(started, call, answers):
    gone = ["--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--benchmark", "tiny", *QUICK]
    assert "answers of a local model, and this is a server's" in mistake(call(*gone))
    assert len(answers()) == 8


# --- answers ---


@pytest.fixture(scope="module")
def embedded():
    return load_model(str(model_path())), load_tokenizer(model_path())


@pytest.fixture
def respond(embedded):
    def run(rows, batch_size, **settings):
        how = AnswerSettings(max_new_tokens=6, **settings)
        template = resolve_template(embedded[1], "auto")
        model = LocalModel(*embedded, template, how, batch_size=batch_size)
        return {given.id: given.answer for batch in model.answer(rows) for given in batch}

    return run


PROMPTS = read_benchmark("tiny").first(4).table["prompt"]
ROWS = [Question(str(n), text) for n, text in enumerate(PROMPTS)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_depend_on_neither_batch_nor_order(respond, temperature):
    one = respond(ROWS, 1, temperature=temperature)
    assert respond(ROWS, 3, temperature=temperature) == one
    assert respond(ROWS[::-1], 8, temperature=temperature) == one
    assert len(set(one.values())) > 1


def test_answers_behind_a_shared_beginning_are_those_of_plain_passes(respond, monkeypatch):
    from ntkprobe.models import cached

    respond(ROWS, 3)  # the model is tried once, by passes that are not counted below
    read, lengths = cached.read, []

    def counted(model, prompts, beginning):
        lengths.append(beginning.length)
        return read(model, prompts, beginning)

    monkeypatch.setattr(cached, "read", counted)
    found = respond(ROWS, 3)
    assert len(lengths) == -(-len(ROWS) // 3) and min(lengths) > 0
    monkeypatch.setattr(cached, "usable", lambda *_: False)
    assert respond(ROWS, 3) == found and len(lengths) == -(-len(ROWS) // 3)


def test_drawn_answers_differ_by_seed_and_from_greedy_ones(respond):
    first, second = (respond(ROWS, 4, temperature=1.0, seed=seed) for seed in (0, 1))
    assert respond(ROWS, 4) != first != second


def test_a_draw_follows_the_softmax():
    from ntkprobe.evaluation.sampling import sampling_processors

    logits = torch.tensor([0.0, 1.0, 2.0])
    ids = [str(n) for n in range(4000)]
    (draw,) = sampling_processors(ids, AnswerSettings(temperature=2.0))
    scores = draw(None, logits.expand(4000, 3))
    share = scores.argmax(-1).bincount(minlength=3) / 4000
    assert torch.allclose(share, (logits / 2).softmax(-1), atol=0.03)


NO_MEMORY = {
    "a GPU's": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "a CPU's": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    "Python's": MemoryError,
}


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("whose", NO_MEMORY)
def test_a_batch_that_is_too_large_is_halved(respond, monkeypatch, shares, whose):
    from ntkprobe.models import cached

    def small(whole, place):
        def limited(*arguments, **settings):
            if len(arguments[place]) > 2:
                raise NO_MEMORY[whose]()
            return whole(*arguments, **settings)

        return limited

    expected = respond(ROWS, 2)
    if shares:
        monkeypatch.setattr(cached, "read", small(cached.read, 1))
    else:
        monkeypatch.setattr(cached, "usable", lambda *_: False)
        monkeypatch.setattr(generation, "answer_batch", small(generation.answer_batch, 2))
    assert respond(ROWS, None) == expected
    with pytest.raises(type(NO_MEMORY[whose]())):
        respond(ROWS, 7)


@pytest.mark.parametrize("whose", NO_MEMORY)
def test_without_memory_to_try_kept_columns_whole_prompts_are_run(respond, monkeypatch, whose):
    from ntkprobe.models import cached

    def exhaust(*_):
        raise NO_MEMORY[whose]()

    expected = respond(ROWS, 2)
    monkeypatch.setattr(cached.Beginning, "of", exhaust)
    assert respond(ROWS, 2) == expected


# --- the model ---


def test_an_adapter_is_evaluated_over_its_base_and_its_training_data_is_compared(
    call, answers, tmp_path
):
    files = trained(tmp_path)
    status, _, err = call("--adapter", tmp_path / "run/final", *TINY[2:4], *files, *QUICK)
    assert status == 0 and "own: 2 of 3 prompts were trained on" in err
    overlap = {name: about["overlap"] for name, about in record(tmp_path).items()}
    assert overlap["own"]["kinds"] == {"safe": 2} and overlap["tiny"]["prompts"] == 0
    adapted = answers()["answer"]
    call("--model", tmp_path / "base", *TINY[2:4], *files, *QUICK, "--overwrite")
    assert record(tmp_path)["own"]["overlap"] is None  # nothing is known of a model of others
    assert adapted.tolist() != answers()["answer"].tolist()


def record(folder):
    return json.loads((folder / "e/run.json").read_text())["benchmarks"]


def trained(folder):
    """A base, an adapter trained on it, and a file that shares two of its training prompts."""
    from tiny_runs import tiny_adapter

    base = world.network().eval()
    base.save_pretrained(folder / "base")
    world.tokenizer().save_pretrained(folder / "base")
    adapter = tiny_adapter(base, 1)
    adapter.peft_config["default"].base_model_name_or_path = str(folder / "base")
    adapter.save_pretrained(folder / "run/final")
    prompts = ["How do I greet HIM?", "How do I leave?", "Who is it?"]
    pd.DataFrame({"prompt": prompts}).to_parquet(folder / "run/data.parquet")
    rows = [{"prompt": p} for p in ("how do I greet him", "How do I leave?", "Why me?")]
    (folder / "own.json").write_text(json.dumps(rows))
    return ["--benchmark", f"{folder}/own.json=safe"]


def test_the_stage_before_counts_as_trained_on_and_so_do_files(tmp_path):
    from ntkprobe.evaluation.overlap import origin, overlap, training_prompts

    trained(tmp_path)
    shutil.copytree(tmp_path / "run", tmp_path / "later/sft")
    pd.DataFrame({"prompt": ["Why me?"]}).to_parquet(tmp_path / "later/sft/data.parquet")
    (tmp_path / "later/sft/training.yaml").write_text("model: run/final\n")
    (tmp_path / "run/training.yaml").write_text("model: Qwen/Qwen2.5-7B\n")
    assert origin([tmp_path / "later/sft/final"]) == "Qwen/Qwen2.5-7B"
    questions = read_benchmark(f"{tmp_path}/own.json=safe")
    known = training_prompts([tmp_path / "later/sft/final"])
    assert overlap(questions, known)["sources"] == {
        str(tmp_path / "later/sft"): 1,
        str(tmp_path / "run"): 2,
    }
    assert overlap(questions, training_prompts([], [tmp_path / "own.json"]))["prompts"] == 3
    assert training_prompts([tmp_path / "base"]) == {}


def test_prompts_of_dcr_are_in_distribution_for_a_model_that_dcr_made(tmp_path, call):
    # As in the paper, whose first stage trains on the XSTest prompts that it reports.
    safe = pd.read_csv(dcr_path()).query("group == 'seemingly_toxic'").head(5)
    safe.to_csv(tmp_path / "own.csv", index=False)
    flags = [*TINY[:2], *QUICK, "--trained-on", dcr_path(), "--benchmark", tmp_path / "own.csv"]
    assert "own: 4 of 4 prompts were trained on: its rates are in-dist" in call(*flags)[2]
    again = [flag for flag in flags if flag not in ("--trained-on", dcr_path())]
    assert "own: 4 of 4 prompts were trained on" in call(*again)[2]


def test_a_mitigation_is_in_place_while_the_model_answers(call, answers, tmp_path):
    import torch

    from ntkprobe.mitigations import save
    from ntkprobe.mitigations.base import identity
    from ntkprobe.mitigations.surgical import Surgical

    path = world.saved(tmp_path / "base")
    model = world.network()
    direction = torch.arange(32.0).sin()
    learned = dict(false_refusal=direction, true_refusal=-direction, block=2, report={})
    fitted = Surgical(coefficient=0.0, addition=9.0, fitted_on=identity(model), **learned)
    save(fitted, tmp_path / "m")
    call("--model", path, *TINY[2:], *QUICK)
    plain = answers()["answer"].tolist()
    assert "model.mitigation" in mistake(
        call("--model", path, *TINY[2:], *QUICK, "--mitigation", tmp_path / "m")
    )
    call("--model", path, *TINY[2:], *QUICK, "--mitigation", tmp_path / "m", "--overwrite")
    assert answers()["answer"].tolist() != plain
    assert Evaluation(tmp_path / "e").label == "base+m"


# --- a server ---


def test_a_server_is_asked_each_prompt_once_and_failures_are_asked_again(call, answers, tmp_path):
    down = True

    def script(messages, times):
        return 400 if down and "stranger" in messages[-1]["content"] else "I cannot help."

    with fake_server(script) as server:
        flags = ["--base-url", server.base_url, "--model", "org/m", "--benchmark", "tiny", *QUICK]
        status, out, _ = call(*flags)
        assert status == 1 and "are missing (status 400" in out and "again" in out
        missing = 8 - len(answers())
        down = False
        before = len(server.asked)
        status, out, _ = call(*flags)
        assert status == 0 and out.startswith(f"{missing} new answers")
        assert len(server.asked) - before == missing > 0
        assert server.bodies[0]["max_tokens"] == 6 and server.bodies[0]["temperature"] == 0
    assert answers()["n_tokens"].tolist() == [3] * 8
    assert Evaluation(tmp_path / "e").label == "m"


def test_a_server_that_is_not_there_is_one_clear_line_and_answers_stay(call, answers, tmp_path):
    with fake_server(lambda messages, times: "Well.") as server:
        url = server.base_url
        flags = ["--base-url", url, "--model", "m", "--benchmark", "tiny", *QUICK]
        call(*flags)
    (tmp_path / "e/answers/tiny/batch-00000.parquet").unlink()
    left = len(answers())
    assert f"the server {url} cannot be reached" in mistake(call(*flags))
    assert len(answers()) == left > 0


def test_a_judge_behind_a_server_that_is_gone_loses_no_answer(started, call, answers):
    judge = ["--judge", "llm:base_url=http://127.0.0.1:9/v1,model=j,retries=0"]
    assert "cannot be reached" in mistake(call(*TINY, *QUICK, *judge))
    assert len(answers()) == 8


def test_verdicts_that_a_judges_server_fails_to_give_are_told_and_asked_again(started, call):
    broken = True
    with fake_server(lambda messages, times: 500 if broken else "REFUSAL") as server:
        judge = f"j=llm:base_url={server.base_url},model=j,retries=0"
        status, out, err = call(*TINY, *QUICK, "--judge", judge)
        assert status == 1 and "8 verdicts are missing (j: status 500" in out and "again" in out
        assert err.count("nothing could be judged: 0 of 4 prompts") == 2
        broken = False
        assert call(*TINY, *QUICK, "--judge", judge)[0] == 0
    assert len(server.asked) == 16


def test_empty_answers_are_undetermined_and_told(call):
    with fake_server(lambda messages, times: "") as server:
        flags = ["--base-url", server.base_url, "--model", "m", "--benchmark", "tiny", *QUICK]
        status, out, err = call(*flags)
    assert status == 0 and "compliance unknown" in out
    assert "8 answers are empty: undetermined for every judge, incoherent in tables" in err


# --- mistakes ---


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "no benchmark: give --benchmark"),
        (["--benchmark", "tiny"], "no model: give --model"),
        (["--benchmark", "xtest"], "no benchmark 'xtest': choose from tiny"),
        ([*TINY, "--judge", "oracle"], "no 'oracle' in ntkprobe.evaluation.judges"),
        ([*TINY, "--judge", "llm"], "needs base_url"),
        ([*TINY, "--judge", "prefixes"], "write prefixes:file=FILE"),
        ([*TINY, "--judge", "prefixes:file=absent.txt"], "no such file"),
        ([*TINY, "--phrases", "absent.txt"], "--phrases absent.txt: no such file"),
        ([*TINY, "--phrases", "paper31", "--phrases", "paper31"], "two sets of --phrases"),
        ([*TINY, "--phrases", "paper31", "--no-judge"], "leave out --no-judge"),
        ([*TINY, "--judge", "or_bench_strings:kin=x"], "sets 'kin': it has ['family']"),
        ([*TINY, "--judge", "scans_strings", "--judge", "scans_strings"], "two judges are called"),
        ([*TINY, "--limit", "0"], "--limit 0"),
        ([*TINY, "--batch-size", "few"], "--batch-size 'few'"),
        ([*TINY, "--temperature", "-1"], "--temperature -1"),
        ([*TINY, "--temperature", "inf"], "--temperature inf"),
        ([*TINY, "--adapter", "absent"], "absent is no adapter"),
        ([*TINY, "--mitigation", "absent"], "absent holds no mitigation"),
        ([*TINY, "--base-url", "http://h/v1", "--adapter", "a"], "--adapter goes with a model"),
        ([*TINY, "--max-new-tokens", "9999"], "exceeds the model's context"),
        ([*TINY, "--benchmark", "tiny"], "two benchmarks are called 'tiny'"),
        (["--model", "/absent", "--benchmark", "tiny"], "no model at '/absent'"),
    ],
)
def test_a_mistake_is_one_clear_line(call, flags, words):
    assert words in mistake(call(*flags))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"kernel": {}}', "is no evaluation's folder"),
        ("{", "is damaged"),
        ('{"schema_version": 2, "benchmarks": {}}', "has format 2, this ntkprobe reads format 1"),
    ],
)
def test_a_folder_of_something_else_is_refused(call, tmp_path, text, words):
    (tmp_path / "e").mkdir()
    (tmp_path / "e/run.json").write_text(text)
    assert words in mistake(call(*TINY, *QUICK))


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


@pytest.mark.skipif(not DATA.is_dir(), reason="the published files are not here")
def test_a_random_model_answers_the_published_files(call, tmp_path):
    stl = DATA / "safety-tuned-llamas"
    words = [f"xstest={DATA}/xstest/xstest_prompts.csv", f"q_harm={stl}/Q-Harm.json"]
    words += [f"i_cona={stl}/I-CoNa.json", f"advbench={DATA}/advbench/harmful_behaviors.csv"]
    named = [part for word in words for part in ("--benchmark", word)]
    status, out, _ = call("--model", world.saved(tmp_path / "base"), *named, *QUICK)
    assert status == 0 and out.startswith("20 new answers")  # four of each kind
