"""Generation stops at a text, with and without kept keys and values."""

import pytest
import torch

from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.models.cached import batches
from ntkprobe.models.generation import answer_batch, answer_cached, generate_answers
from ntkprobe.prompts.templates import resolve_template
from ntkprobe.tiny import model_path

ROOM = 24


@pytest.fixture(scope="module")
def asked():
    model, tokenizer = load_model(str(model_path())), load_tokenizer(model_path())
    plain = resolve_template(tokenizer, "plain")
    texts = ("Why?", "How do I bake a cake?", "Tell me how to shoot a witness.")
    ids = [torch.tensor(plain.encode(tokenizer, text)) for text in texts]
    return model, tokenizer, ids


def middle(text):
    """A text in the middle of an answer, as if the next turn began there."""
    return text[len(text) // 2 : len(text) // 2 + 3]


def test_both_ways_to_generate_end_at_the_text_and_where_it_begins(asked):
    model, tokenizer, ids = asked
    free = generate_answers(model, tokenizer, ids, max_new_tokens=ROOM)
    stop = (middle(free[1]),)
    rows, kept = next(iter(batches(model, ids, 8)))
    by_keys = answer_cached(kept, tokenizer, max_new_tokens=ROOM, stop_texts=stop, rows=rows)
    plainly = answer_batch(
        model, tokenizer, [ids[row] for row in rows], max_new_tokens=ROOM, stop_texts=stop
    )
    assert by_keys == plainly
    for row, answer in zip(rows, by_keys, strict=True):
        before, found, _ = free[row].partition(stop[0])
        assert answer.text == (before.rstrip() if found else free[row])
    assert by_keys[list(rows).index(1)].ended


def test_generation_does_not_go_on_behind_the_text(asked, monkeypatch):
    model, tokenizer, ids = asked
    free = generate_answers(model, tokenizer, ids[:1], max_new_tokens=ROOM)
    steps = []
    forward = model.forward

    def counted(*args, **kwargs):
        steps.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    answer_batch(model, tokenizer, ids[:1], max_new_tokens=ROOM)
    whole = len(steps)
    steps.clear()
    answer_batch(model, tokenizer, ids[:1], max_new_tokens=ROOM, stop_texts=(free[0][1:4],))
    assert len(steps) < whole
