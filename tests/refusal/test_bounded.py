"""P(refuse) with a bound: within the tolerance of the oracle, and the bound holds."""

import pytest
import torch
from architectures import ARCHITECTURES, VOCABULARY, build, ragged_prompts
from toy_tokenizers import byte_bpe

from ntkprobe.errors import UserError
from ntkprobe.models.cached import CachedPrompts, batches
from ntkprobe.prompts.phrases import PAPER31
from ntkprobe.refusal import (
    Bounded,
    UsualBeginnings,
    bound_phrases,
    phrase_ids,
    reduce_phrases,
)
from ntkprobe.refusal.bounded import TOLERANCE
from ntkprobe.refusal.rows import score_by_rows

PHRASES = [tuple(t % VOCABULARY for t in ids)[:9] for ids in phrase_ids(byte_bpe(), PAPER31)]
SYSTEM = torch.tensor([3, 1, 4, 1])
PROMPTS = [torch.cat([SYSTEM, ids]) for ids in ragged_prompts((5, 3, 9, 1, 10))]
HOWS = ("literal", "prefix_free")


def bounded(model, tolerance, prompts=PROMPTS, phrases=PHRASES, size=3):
    lower = torch.full((len(prompts), len(phrases)), torch.nan, dtype=torch.float64)
    upper = lower.clone()
    for rows, kept in batches(model, prompts, size):
        found = bound_phrases(kept, phrases, tolerance=tolerance, rows=rows)
        lower[rows], upper[rows] = found.lower, found.upper
    return Bounded(lower, upper)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_with_no_tolerance_every_phrase_is_the_oracles(name):
    model = build(name)
    found = bounded(model, 0.0)
    assert torch.equal(found.lower, found.upper)
    expected = score_by_rows(model, PROMPTS, PHRASES)
    torch.testing.assert_close(found.lower, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma3", "mixtral"])
@pytest.mark.parametrize("tolerance", [TOLERANCE, 0.01, 1.0])
def test_both_sums_are_within_the_tolerance_and_below_their_bounds(name, tolerance):
    model = build(name)
    found, expected = bounded(model, tolerance), score_by_rows(model, PROMPTS, PHRASES)
    assert (found.upper >= expected - 1e-5).all()
    for how in HOWS:
        least, most, exact = (
            reduce_phrases(each, PHRASES, how) for each in (found.lower, found.upper, expected)
        )
        assert (most - least <= tolerance + 1e-9).all()
        assert (least <= exact + 1e-5).all() and (exact <= most + 1e-5).all()
    assert found.lower.isinf().any()  # else nothing was spared


def test_what_is_spared_is_what_the_tolerance_allows(monkeypatch):
    model, runs = build("llama"), []
    original = CachedPrompts.run

    def counted(self, tokens, positions, seen, real):
        runs.append(int(real.sum()))
        return original(self, tokens, positions, seen, real)

    monkeypatch.setattr(CachedPrompts, "run", counted)
    spent = []
    for tolerance in (0.0, TOLERANCE, 0.01, 1.0):
        runs.clear()
        bounded(model, tolerance)
        spent.append(sum(runs))
    assert spent == sorted(spent, reverse=True) and spent[-1] < spent[1] < spent[0]


def test_the_batch_and_what_prompts_share_change_no_number():
    model = build("qwen3")
    one, all_at_once = bounded(model, 0.0, size=1), bounded(model, 0.0, size=8)
    torch.testing.assert_close(one.lower, all_at_once.lower, atol=1e-5, rtol=0)
    alone = [bounded(model, 0.0, [ids]).lower[0] for ids in PROMPTS]  # which share nothing
    torch.testing.assert_close(torch.stack(alone), one.lower, atol=1e-5, rtol=0)


MANY = [torch.cat([SYSTEM, ids]) for ids in ragged_prompts((5, 3, 9, 1, 10, 2, 4, 6, 8, 7, 3, 5))]


def passes(monkeypatch, tolerance, size):
    """Return what is bounded of many prompts, and how many tokens each pass behind them has."""
    original, sizes = CachedPrompts.run, []

    def counted(self, tokens, positions, seen, real):
        sizes.append(int(real.sum()))
        return original(self, tokens, positions, seen, real)

    with monkeypatch.context() as patched:
        patched.setattr(CachedPrompts, "run", counted)
        found = bounded(build("llama"), tolerance, MANY, size=size)
    return found, sizes


@pytest.mark.parametrize("tolerance", [TOLERANCE, 0.01])
def test_what_other_prompts_needed_changes_no_number_and_saves_passes(monkeypatch, tolerance):
    found, sizes = passes(monkeypatch, tolerance, 12)
    alone, _ = passes(monkeypatch, tolerance, 1)
    assert torch.equal(found.lower.isinf(), alone.lower.isinf()) and alone.lower.isinf().any()
    for ours, theirs in ((found.lower, alone.lower), (found.upper, alone.upper)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    monkeypatch.setattr("ntkprobe.refusal.bounded.PILOTS", len(MANY))  # none is run first
    apart, without = passes(monkeypatch, tolerance, 12)
    torch.testing.assert_close(found.lower, apart.lower, atol=1e-5, rtol=0)
    assert len(sizes) < len(without)


def test_later_batches_begin_with_what_earlier_ones_needed():
    usual = UsualBeginnings()
    usual.note(torch.tensor([[1, 1, 0, 1], [1, 1, 0, 0], [1, 0, 1, 1], [1, 1, 0, 0]]).bool())
    assert usual.nodes() == [1, 3]  # 3 and 2 of 4, and the prompt's end is none
    model, seen = build("llama"), UsualBeginnings()
    for rows, kept in batches(model, MANY, 4):
        bound_phrases(kept, PHRASES, rows=rows, usual=seen)
    assert seen.prompts == len(MANY) and set(seen.nodes()) <= set(seen.counts)


def test_few_logits_at_a_time_change_no_number(monkeypatch):
    model = build("gpt2")
    expected = bounded(model, 0.0).lower
    monkeypatch.setattr("ntkprobe.refusal.bounded.LARGEST", 3 * 4 * VOCABULARY)
    torch.testing.assert_close(bounded(model, 0.0).lower, expected, atol=1e-5, rtol=0)


def test_few_prompts_at_a_time_change_no_number_and_no_prompt_is_run_twice(monkeypatch):
    whole, sizes = passes(monkeypatch, 0.0, 12)
    monkeypatch.setattr("ntkprobe.refusal.bounded.ROWS", {"cpu": 5})
    found, parts = passes(monkeypatch, 0.0, 12)
    torch.testing.assert_close(found.lower, whole.lower, atol=1e-5, rtol=0)
    assert len(parts) > len(sizes) and sum(parts) == sum(sizes)
    _, spared = passes(monkeypatch, TOLERANCE, 12)
    assert sum(spared) < sum(parts)


def test_a_phrase_that_cannot_be_written_counts_nothing_in_either():
    phrases = [(1, 2), (), (3,)]
    found = bounded(build("llama"), TOLERANCE, phrases=phrases)
    assert (found.lower[:, 1] == -torch.inf).all() and (found.upper[:, 1] == -torch.inf).all()


def test_phrases_less_likely_than_any_float_are_bounded_all_the_same():
    model = build("gpt2")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 1e4)
    found, expected = bounded(model, TOLERANCE), score_by_rows(model, PROMPTS, PHRASES)
    assert expected.logsumexp(1).min() < -1000
    for how in HOWS:
        least, exact = (reduce_phrases(each, PHRASES, how) for each in (found.lower, expected))
        torch.testing.assert_close(least, exact, atol=1e-4, rtol=1e-5)


def test_broken_logits_are_refused_by_the_prompts_number():
    model = build("gpt2")
    kept = list(batches(model, PROMPTS, 8))
    kept[0][1].logits[1] = torch.nan
    with pytest.raises(UserError, match=f"prompt {kept[0][0][1]} has NaN or infinite"):
        bound_phrases(kept[0][1], PHRASES, rows=kept[0][0])
