"""Sets of refusal phrases, named and from files, and what their filters take for a refusal."""

import json

import pytest

from ntkprobe.errors import UserError
from ntkprobe.prompts.phrases import (
    PAPER31,
    PHRASE_SETS,
    REFUSAL_PREFIXES,
    XSTEST21,
    PhraseSet,
    is_refusal,
    phrase_set,
    prefix_free,
    read_phrase_set,
    read_phrase_sets,
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


GERMAN = ["Es tut mir leid", "Ich kann nicht"]


def written(folder, name, content):
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("de.txt", "# Deutsch\n\nEs tut mir leid\n  Ich kann nicht  \n"),
        ("de.json", json.dumps(GERMAN)),
        ("de.json", json.dumps({"phrases": GERMAN})),
        ("de.yaml", "- Es tut mir leid\n- Ich kann nicht\n"),
        ("de.txt", "\ufeffEs tut mir leid\r\nIch kann nicht\r\nIch kann nicht\r\n"),
    ],
)
def test_every_form_of_file_gives_the_same_set(name, content, tmp_path):
    found = read_phrase_set(written(tmp_path, name, content))
    assert found == PhraseSet("de", tuple(GERMAN), ("es tut mir leid", "ich kann nicht"))


def test_a_set_recognises_its_own_refusals_and_no_others(tmp_path):
    spec = written(tmp_path, "de.json", json.dumps({"phrases": GERMAN, "prefixes": ["Leider"]}))
    own = read_phrase_set(spec)
    assert own.refuses(" leider geht das nicht") and not own.refuses("Es tut mir leid")
    assert own.refuses("<think>Leider?</think>Gerne.") is False
    assert own.refuses("<think>Leider") is None
    assert not own.refuses("I'm sorry") and PhraseSet.named().refuses("I'm sorry")


@pytest.mark.parametrize("answer", ["I'm sorry, no", "Sure, no", "<think>", "", "As an AI"])
def test_a_named_set_has_the_published_filter(answer):
    assert PhraseSet.named("union").refuses(answer) == is_refusal(answer)


def test_names_are_the_files_or_given_and_a_label_changes_with_the_contents(tmp_path):
    one = written(tmp_path, "de.txt", "Nein")
    assert read_phrase_set(f"deutsch={one}").name == "deutsch"
    assert read_phrase_set("xstest21").phrases == XSTEST21
    assert read_phrase_set("paper31").label == "paper31" and len(PAPER31) == 31
    first = read_phrase_set(one).label
    written(tmp_path, "de.txt", "Nein, danke")
    assert read_phrase_set(one).label != first and first.startswith("de#")


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("de.txt", "# nothing\n\n", "no phrase"),
        ("de.json", "{", "cannot be read"),
        ("de.yaml", "[", "cannot be read"),
        ("de.json", '{"words": ["a"]}', "list of texts"),
        ("de.json", '{"phrases": ["a", 1]}', "list of texts"),
        ("de.json", '{"phrases": ["a", " "]}', "list of texts"),
        ("de.json", '"text"', "list of texts"),
        ("de.json", '{"phrases": ["a"], "prefixes": "a"}', "list of texts"),
        ("de.json", '["\\ud800"]', "surrogate"),
        ("paper31.txt", "Nein", "cannot be called"),
        ("a b.txt", "Nein", "cannot be called"),
    ],
)
def test_a_mistake_gets_one_line(name, content, word, tmp_path):
    with pytest.raises(UserError, match=word) as caught:
        read_phrase_set(written(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_a_missing_file_lists_the_names_and_a_binary_one_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"paper31.*union.*xstest21"):
        read_phrase_set("nowhere.txt")
    (tmp_path / "de.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_phrase_set(str(tmp_path / "de.txt"))


def test_two_sets_of_one_name_are_refused(tmp_path):
    spec = written(tmp_path, "de.txt", "Nein")
    assert [each.name for each in read_phrase_sets(["paper31", spec])] == ["paper31", "de"]
    with pytest.raises(UserError, match="two sets of --phrases are called 'de'"):
        read_phrase_sets([spec, spec])
