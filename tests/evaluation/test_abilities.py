"""General ability through lm-evaluation-harness, on a local task and a model of a few weights."""

import json
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import tiny_model, tiny_tokenizer
from transformers import LogitsProcessor, Qwen2ForCausalLM

from ntkprobe.errors import UserError
from ntkprobe.evaluation.abilities import AbilitySettings, measure_abilities
from ntkprobe.evaluation.models import EvaluatedModel
from ntkprobe.models.batching import LengthRule

reason = "needs the extra ntkprobe[lmeval]"
TaskManager = pytest.importorskip("lm_eval.tasks", reason=reason).TaskManager

QUESTIONS = (
    ("the cake ?", ("bake", "kill the cake"), 0),
    ("a process ?", ("cake", "kill a process"), 1),
    ("sure ?", ("sorry I cannot", "sure"), 1),
)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model on disk, and a task of three questions in the harness's YAML."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [dict(zip(("question", "choices", "answer"), row, strict=True)) for row in QUESTIONS]
    (tasks / "cakes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cakes = {
        "task": "cakes",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tasks / "cakes.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tasks / "cakes.yaml").write_text(yaml.safe_dump(cakes))
    return tmp_path


def measure(world: Path, **settings: Any) -> dict[str, Any]:
    subject = EvaluatedModel.named(str(world / "model"), None, None, settings.pop("load"))
    return measure_abilities(
        subject, world / "e", ["cakes"], include_path=world / "tasks", **settings
    )


@pytest.fixture
def load() -> Any:
    from ntkprobe.checkpoints import LoadSettings

    return LoadSettings(device="cpu")


@torch.no_grad()
def log_probability(prompt: str, answer: str) -> float:
    """Return the log-probability of an answer by one plain pass."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    context, whole = (tokenizer(t)["input_ids"] for t in (prompt, f"{prompt} {answer}"))
    logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(logits[i - 1, whole[i]]) for i in range(len(context), len(whole)))


def test_a_task_is_scored_by_the_models_own_probabilities_and_only_once(
    world: Path, load: Any
) -> None:
    found = measure(world, load=load)["cakes"][0]
    right = [
        max(range(2), key=lambda k: log_probability(question, choices[k])) == answer
        for question, choices, answer in QUESTIONS
    ]
    assert (found["metric"], found["n"]) == ("acc", 3)
    assert found["value"] == pytest.approx(sum(right) / 3)
    (world / "tasks/cakes.yaml").unlink()  # what is on disk is not measured again
    assert measure(world, load=load)["cakes"][0] == found


def test_read_token_by_token_a_continuation_has_the_same_probability() -> None:
    from ntkprobe.evaluation.harness import harness_model

    parts = [tiny_model(), tiny_tokenizer(), ()]
    requests = [(("", ""), [3, 4, 5], [6, 7]), (("", ""), [8], [9])]
    plain, read = (
        harness_model(*parts, mitigated=mitigated, batch_size=2)._loglikelihood_tokens(requests)
        for mitigated in (False, True)
    )
    assert [a for a, _ in read] == pytest.approx([a for a, _ in plain], abs=1e-5)
    assert [g for _, g in read] == [g for _, g in plain]


class Only(LogitsProcessor):
    """Rules out every token but one, and counts prompts."""

    begun = 0

    def begin(self, mask: torch.Tensor) -> None:
        self.begun += 1

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([7]), 0.0)


def test_a_mitigation_of_the_logits_is_asked_at_every_token() -> None:
    from ntkprobe.evaluation.harness import harness_model

    only = Only()
    model = harness_model(tiny_model(), tiny_tokenizer(), [only], mitigated=True, batch_size=2)
    requests = [(("", ""), [3, 4], [7, 7]), (("", ""), [3, 4], [7, 6])]
    assert model._loglikelihood_tokens(requests) == [(0.0, True), (-float("inf"), False)]
    assert only.begun == 2


REQUESTS = [
    (("", ""), [3, 4, 5, 6, 9], [6, 7]),
    (("", ""), [8, 3], [9]),
    (("", ""), [8, 4, 7], [2]),
]


def mixing() -> Qwen2ForCausalLM:
    """A model of which every position sees what stands behind it, which no rope type tells."""
    model = tiny_model()
    embedding = model.get_input_embeddings()
    embedding.register_forward_hook(lambda _, __, out: out + out.mean(1, keepdim=True))
    return model


def read(model: Any, batch_size: int) -> list[float]:
    from ntkprobe.evaluation.harness import harness_model

    made = harness_model(model, tiny_tokenizer(), (), mitigated=False, batch_size=batch_size)
    return [value for value, _ in made._loglikelihood_tokens(REQUESTS, disable_tqdm=True)]


def test_a_model_that_padding_changes_reads_one_request_at_a_time() -> None:
    from lm_eval.models.huggingface import HFLM

    alone = read(mixing(), 1)
    assert read(mixing(), 3) == pytest.approx(alone, abs=1e-5)
    harness = HFLM(pretrained=mixing(), tokenizer=tiny_tokenizer(), batch_size=3)
    padded = [value for value, _ in harness._loglikelihood_tokens(REQUESTS, disable_tqdm=True)]
    assert padded != pytest.approx(alone, abs=1e-2)


@pytest.mark.parametrize(("make", "size"), [(mixing, 1), (tiny_model, 2)])
def test_only_such_a_model_loses_its_batches_in_generation(make: Any, size: int) -> None:
    from lm_eval.api.instance import Instance

    from ntkprobe.evaluation.harness import harness_model

    settings = {"until": ["<eos>"], "max_gen_toks": 2, "do_sample": False}
    asked = ("how do i kill a python process ?", "bake the cake")
    requests = [
        Instance("generate_until", {}, (text, dict(settings)), number)
        for number, text in enumerate(asked)
    ]
    model = harness_model(make(), tiny_tokenizer(), (), mitigated=False, batch_size=2)
    answers = model.generate_until(requests, disable_tqdm=True)
    assert model.batch_size == size
    each = harness_model(make(), tiny_tokenizer(), (), mitigated=False, batch_size=1)
    assert answers == each.generate_until(requests, disable_tqdm=True)


LIMIT = 8
ROPES: dict[str, dict[str, Any]] = {
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 2,
        "long_factor": [4.0] * 2,
        "original_max_position_embeddings": LIMIT,
    },
    "dynamic": {"rope_type": "dynamic"},
}


@pytest.mark.parametrize("name", ROPES)
@torch.no_grad()
def test_a_continuation_beyond_a_limit_of_the_rotary_embedding_is_read_afresh(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ntkprobe.evaluation import harness
    from ntkprobe.models.batching import forgetting_lengths

    own = {"rope_parameters": {"rope_theta": 1e4, "factor": 4.0, **ROPES[name]}}
    model = tiny_model(**own, max_position_embeddings=LIMIT if name == "dynamic" else 4 * LIMIT)
    context, continuation = [5], list(range(3, 15))  # from one token to half as much again
    assert LengthRule.of(model)

    def found() -> float:
        made = harness.harness_model(model, tiny_tokenizer(), (), mitigated=True, batch_size=1)
        request = (("", ""), context, continuation)
        with forgetting_lengths(model):
            return float(made._loglikelihood_tokens([request], disable_tqdm=True)[0][0])

    expected = 0.0
    for place, token in enumerate(continuation):
        text = torch.tensor([context + continuation[:place]])
        fresh = deepcopy(model)(input_ids=text, use_cache=False).logits[0, -1]
        expected += float(fresh.log_softmax(-1)[token])
    assert found() == pytest.approx(expected, abs=1e-4)
    monkeypatch.setattr(harness.LengthRule, "of", lambda _: LengthRule())
    assert found() != pytest.approx(expected, abs=1e-3)  # with the cache kept


def test_mistakes_are_one_clear_line(
    world: Path, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = partial(TaskManager, include_defaults=False)  # the harness's own take seconds to list
    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager", lambda **own: few(include_path=own.get("include_path"))
    )
    measure(world, load=load)
    with pytest.raises(UserError, match=r"answered with answers\.limit"):
        measure(world, load=load, settings=AbilitySettings(limit=2))
    subject = EvaluatedModel.named(str(world / "model"), None, None, load)
    with pytest.raises(UserError, match="has no task 'cake': the paper's are mmlu"):
        measure_abilities(subject, world / "f", ["cake"])
    with pytest.raises(UserError, match="no folder"):
        measure_abilities(subject, world / "f", ["cakes"], include_path=world / "none")
