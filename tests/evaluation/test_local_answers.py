"""Answers of a local model: the same in any batch and order, drawn by seed, halved batches."""

import pytest
import torch

from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.evaluation.answers import LocalModel, Question
from ntkprobe.evaluation.benchmarks import read_benchmark
from ntkprobe.evaluation.settings import AnswerSettings
from ntkprobe.models import generation
from ntkprobe.prompts.templates import resolve_template
from ntkprobe.tiny import model_path


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
