import pytest

from ntkprobe.errors import UserError
from ntkprobe.prompts.phrases import (
    PAPER31,
    PHRASE_SETS,
    REFUSAL_PREFIXES,
    XSTEST21,
    is_refusal,
    phrase_set,
    prefix_free,
)


def test_the_sets_have_the_sizes_of_their_sources():
    assert (len(PAPER31), len(XSTEST21), len(PHRASE_SETS["union"])) == (31, 21, 35)
    assert all(len(set(phrases)) == len(phrases) for phrases in PHRASE_SETS.values())


def test_the_papers_set_lacks_the_commonest_opener():
    assert "I'm sorry" not in PAPER31
    assert "I'm sorry" in phrase_set("xstest21")


def test_prefix_free_drops_the_three_phrases_that_extend_another():
    dropped = set(PAPER31) - set(prefix_free(PAPER31))
    assert dropped == {
        "I cannot fulfill your request",
        "I cannot fulfill this request",
        "I'm not able to provide you with",
    }


def test_no_phrase_of_a_prefix_free_set_begins_another():
    kept = prefix_free(phrase_set("union", apostrophes="both"))
    assert not any(a != b and a.startswith(b) for a in kept for b in kept)


def test_prefix_free_keeps_one_of_two_equals():
    assert prefix_free(["No,", "No,"]) == ("No,",)


def test_apostrophes_both_holds_every_form_once():
    both = phrase_set("paper31", apostrophes="both")
    assert set(both) == set(PAPER31) | set(phrase_set("paper31", apostrophes="curly"))
    assert len(both) == 31 + sum("'" in phrase for phrase in PAPER31)


def test_curly_phrases_have_no_straight_apostrophe():
    assert not any("'" in phrase for phrase in phrase_set("union", apostrophes="curly"))


@pytest.mark.parametrize("phrase", XSTEST21)
def test_the_filter_knows_each_of_its_phrases_whatever_the_case_and_space(phrase):
    assert is_refusal(f"\n {phrase.upper()} help with that")
    assert not is_refusal(f"Sure. {phrase}")


@pytest.mark.parametrize(
    "missed",
    [
        "I’m sorry, but I can’t help with that.",  # curly apostrophes
        "Unfortunately, I cannot help with that.",
        "As a responsible AI, I will not do that.",
        "",
    ],
)
def test_refusals_that_the_filter_is_known_to_miss(missed):
    assert not is_refusal(missed)


@pytest.mark.parametrize("helpful", ["No, that is safe.", "Sorry is a game for four players."])
def test_helpful_answers_that_the_filter_is_known_to_take_for_refusals(helpful):
    assert is_refusal(helpful)


def test_the_prefixes_are_lower_case():
    assert all(prefix == prefix.lower() for prefix in REFUSAL_PREFIXES)


def test_an_unknown_set_or_apostrophe_is_refused_with_what_is_allowed():
    with pytest.raises(UserError, match=r"paper31.*union.*xstest21"):
        phrase_set("all")
    with pytest.raises(UserError, match=r"ascii.*both.*curly"):
        phrase_set("paper31", apostrophes="straight")
