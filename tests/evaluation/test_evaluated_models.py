"""Which model `ntkprobe evaluate` asks: adapters, mitigations, and what it was trained on."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import training_world as world
from evaluate_calls import QUICK, TINY, mistake

from ntkprobe.evaluation.benchmarks import read_benchmark
from ntkprobe.evaluation.results import Evaluation
from ntkprobe.tiny import dcr_path

DATA = Path(os.environ.get("NTKPROBE_DATA", Path(__file__).parents[3] / "shared" / "data"))


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


@pytest.mark.skipif(not DATA.is_dir(), reason="the published files are not here")
def test_a_random_model_answers_the_published_files(call, tmp_path):
    stl = DATA / "safety-tuned-llamas"
    words = [f"xstest={DATA}/xstest/xstest_prompts.csv", f"q_harm={stl}/Q-Harm.json"]
    words += [f"i_cona={stl}/I-CoNa.json", f"advbench={DATA}/advbench/harmful_behaviors.csv"]
    named = [part for word in words for part in ("--benchmark", word)]
    status, out, _ = call("--model", world.saved(tmp_path / "base"), *named, *QUICK)
    assert status == 0 and out.startswith("20 new answers")  # four of each kind
