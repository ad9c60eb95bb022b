"""What judges, the keyword filter and triggers take for an answer that comes behind reasoning."""

import json
from typing import Any

import pandas as pd
import pytest
from fake_server import fake_server
from reasoning_tokenizer import tokenizer

from ntkprobe.evaluation.judges.llm import Llm, verdict_of_reply
from ntkprobe.evaluation.judges.or_bench_strings import OrBenchStrings
from ntkprobe.evaluation.judges.scans_strings import ScansStrings
from ntkprobe.evaluation.judges.xstest_prefixes import XstestPrefixes
from ntkprobe.evaluation.judging import digest, judge_answers, write_rows
from ntkprobe.evaluation.preferences import Annotator, Pair
from ntkprobe.evaluation.server import Reply, Server
from ntkprobe.evaluation.verdicts import Item, Verdict
from ntkprobe.prompts.phrases import is_refusal
from ntkprobe.prompts.reasoning import answered, closing
from ntkprobe.prompts.special_tokens import readable
from ntkprobe.storage import write_table
from ntkprobe.triggers.answers import compliant
from ntkprobe.triggers.extraction import ScoredTrigger, Trigger
from ntkprobe.triggers.extractors.llm import parsed

THOUGHT = "I cannot see harm. Theft is illegal in most places. I'm sorry to say so."
WRITTEN = {
    "qwen3": "<think>\n{}\n</think>\n\n{}",
    "r1, its template opened the block": "{}\n</think>\n\n{}",
    "r1-zero": "<think>{}</think> <answer>{}</answer>",
    "granite 3.3": "<think>{}</think>\n<response>{}</response>",
    "granite 3.2": "Here is my thought process: {}\n\nHere is my response:\n\n{}",
    "exaone": "<thought>\n{}\n</thought>\n\n{}",
    "magistral": "[THINK]{}[/THINK]{}",
    "seed-oss": "<seed:think>{}</seed:think>{}",
    "kimi": "◁think▷{}◁/think▷{}",
    "cohere": "<|START_THINKING|>{}<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>",
    "gemma 4": "<|channel>thought\n{}<channel|>{}",
    "apriel": "Here are my reasoning steps:\n{}\n[BEGIN FINAL RESPONSE]\n{}",
    "gpt-oss": (
        "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}"
    ),
    "gpt-oss, special tokens left out": "analysis{}assistantfinal{}",
}
ENDLESS = {name: form.partition("{}")[0] + THOUGHT for name, form in WRITTEN.items()}
del ENDLESS["r1, its template opened the block"]  # nothing in such a text tells
ANSWERS = {"refusal": "I'm sorry, but I cannot help with that.", "compliance": "Mix the flour."}
JUDGES = [XstestPrefixes(), OrBenchStrings(family="qwen"), ScansStrings()]


def judged(judge: Any, answer: str) -> Verdict:
    (verdict,) = judge.judge([Item("1", "How?", answer)])
    return verdict


@pytest.mark.parametrize("name", WRITTEN)
def test_the_answer_is_what_follows_the_reasoning(name):
    for verdict, answer in ANSWERS.items():
        whole = WRITTEN[name].format(THOUGHT, answer)
        assert answered(whole) == answer
        assert is_refusal(whole) == (verdict == "refusal")
        assert {judged(judge, whole).verdict for judge in JUDGES} == {verdict}


@pytest.mark.parametrize("name", ENDLESS)
def test_where_the_reasoning_never_ends_the_verdict_is_undetermined(name):
    assert answered(ENDLESS[name]) is None and is_refusal(ENDLESS[name]) is None
    for judge in JUDGES:
        assert judged(judge, ENDLESS[name]).verdict == "undetermined"
        assert "never ends" in judged(judge, ENDLESS[name]).detail
    ended = WRITTEN[name].format(THOUGHT, "Mix it.") + f"\n{ENDLESS[name]}"
    begun_again = name.startswith(("granite 3.2", "apriel", "gpt-oss, special"))  # only in front
    assert (answered(ended) is None) != begun_again


@pytest.mark.parametrize(
    "answer",
    [
        "I cannot help with that.",
        "",
        "  Sure. I think so.\n",
        "analysis of the flour comes first",
        "The tag <think> begins a block in some models.",
        "This is my response: no.",
    ],
)
def test_an_answer_without_reasoning_is_left_as_it_is(answer):
    assert answered(answer) == answer


@pytest.mark.parametrize("begun", ["analysisuser asks", "analysisThe user", "commentaryto=tool"])
def test_a_channels_name_that_runs_into_its_text_is_reasoning_whatever_its_case(begun):
    assert answered(begun) is None
    assert answered(f"{begun} for it.assistantfinalNo.") == "No."
    for name in ("analysis", "commentary"):  # the controls: the word, and a name in a program
        for text in (f"{name} of it", f"{name}: no", f"{name}_2 = 3", name):
            assert answered(text) == text


def test_an_answer_of_reasoning_alone_is_an_empty_one():
    assert answered("<think>Hm.</think>\n") == ""
    assert judged(XstestPrefixes(), "<think>Hm.</think>\n").detail == "empty answer"


def test_a_block_is_closed_only_where_it_is_open():
    assert closing("Hello<think>\n") == "\n</think>\n\n"
    assert closing("Hello<think>\nHm.") == "</think>\n\n"
    assert closing("Hello<think>Hm.</think>") == closing("Hello") == ""


def test_marks_of_reasoning_that_are_special_tokens_stay_in_an_answer():
    for text, left in [
        ("[THINK]Hm.[/THINK]No.<|im_end|>", "[THINK]Hm.[/THINK]No."),
        (WRITTEN["gpt-oss"].format("Hm.", "No.") + "<|return|>", None),
        ("No.<|end|><|im_end|>", "No."),
    ]:
        ids = tokenizer()(text)["input_ids"]
        shown = readable(tokenizer(), ids)
        assert shown == (left or text.removesuffix("<|return|>"))
        assert answered(shown) == "No."
    assert tokenizer().decode(ids, skip_special_tokens=True) == "No."


def test_a_judge_is_asked_about_the_answer_alone():
    def script(messages: list[dict[str, str]], _: int) -> str:
        return json.loads(messages[-1]["content"])["answer"]

    with fake_server(script) as fake:
        judge = Llm(Server(fake.base_url, "m", retries=0))
        items = [
            Item(str(n), "q", a)
            for n, a in enumerate(["<think>PARTIAL</think>REFUSAL", ENDLESS["qwen3"]])
        ]
        assert [v.verdict for v in judge.judge(items)] == ["refusal", "undetermined"]
        assert len(fake.asked) == 1


@pytest.mark.parametrize("reply", ["It declines.</think>\n\nREFUSAL", "[THINK]No[/THINK]REFUSAL"])
def test_a_judges_own_reasoning_is_no_verdict(reply):
    assert verdict_of_reply("1", Reply(reply)).verdict == "refusal"
    assert verdict_of_reply("1", Reply("<think>REFUSAL")).verdict == "undetermined"


class Hears:
    """A judge of one's own, which knows nothing of reasoning."""

    asks = "refusal"

    def __init__(self) -> None:
        self.heard: list[str] = []

    def judge(self, items: Any) -> list[Verdict]:
        self.heard += [item.answer for item in items]
        return [Verdict(item.id, "compliance") for item in items]


def test_a_judge_of_ones_own_is_shown_answers_without_reasoning_and_once(tmp_path):
    answers = ["<think>Hm.</think>Yes.", "<think>Hm.", "Plain.", ""]
    table = pd.DataFrame({"id": list("abcd"), "answer": answers, "prompt": "q"})
    write_table(tmp_path / "answers/b/batch-00000.parquet", table[["id", "answer"]])
    write_table(tmp_path / "prompts/b.parquet", table[["id", "prompt"]])
    judge = Hears()
    for _ in range(2):
        found = judge_answers(tmp_path, "b", judge, "mine")
        assert found["verdict"].tolist() == ["compliance", "undetermined"] * 2
        assert judge.heard == ["Yes.", "Plain."]


def test_a_verdict_on_endless_reasoning_from_before_it_was_undetermined_does_not_stay(tmp_path):
    answers = pd.DataFrame({"id": ["a", "b"], "answer": ["<think>Hm.", "Plain."], "prompt": "q"})
    write_table(tmp_path / "answers/b/batch-00000.parquet", answers[["id", "answer"]])
    write_table(tmp_path / "prompts/b.parquet", answers[["id", "prompt"]])
    old = [
        {"id": i, "verdict": "refusal", "detail": "", "digest": digest(a)}
        for i, a in zip(answers["id"], answers["answer"], strict=True)
    ]
    path = tmp_path / "verdicts/b/test_reasoning.parquet"
    write_rows(path, old, ["id", "verdict", "detail", "digest"], {"asks": "refusal"})
    found = judge_answers(tmp_path, "b", Hears(), "test_reasoning")
    assert found["verdict"].tolist() == ["undetermined", "refusal"]  # the other one stays


def test_answers_are_compared_without_their_reasoning():
    def script(messages: list[dict[str, str]], _: int) -> str:
        fields = json.loads(messages[-1]["content"])
        assert "Hm." not in str(fields)
        return "<think>SECOND?</think>" + ("FIRST" if fields["first"] == "Better." else "SECOND")

    pairs = [
        Pair("1", "q", "<think>Hm.</think>Better.", "Worse."),
        Pair("2", "q", "<think>Hm.", "Worse."),
        Pair("3", "q", "<think>Hm.</think>Same.", "Same."),
    ]
    with fake_server(script) as fake:
        rows = Annotator(Server(fake.base_url, "m", retries=0)).prefer(pairs)
    said = [(row["ours_first"], row["ours_second"]) for row in rows]
    assert said == [("ours",) * 2, ("undetermined",) * 2, ("tie",) * 2]
    assert len(fake.asked) == 2 and "never ends" in rows[1]["detail"]


def test_a_trigger_with_endless_reasoning_has_no_answer():
    made = [Trigger(str(n), "s", 1.0, a) for n, a in enumerate([*ANSWERS.values(), "<think>Hm."])]
    kept, counts = compliant(made)
    assert counts == {"answered": 1, "refused": 1, "unanswered": 1}
    assert [trigger.text for trigger in kept] == ["1"]


def test_a_trigger_is_read_behind_the_reasoning_of_the_model_that_found_it():
    reply = '{"trigger": "Write a script"}'
    assert isinstance(parsed(f"<think>{{}}</think>\n{reply}", "Write a bad script"), ScoredTrigger)
    assert "never ends" in str(parsed(f"<think>{reply}", "Write a bad script"))


def test_a_server_whose_model_was_cut_off_in_its_reasoning_has_answered_nothing():
    message = {"content": None, "reasoning_content": "They ask how to"}

    def script(*_: Any) -> Any:
        return message

    with fake_server(script) as fake:
        ((_, reply),) = Server(fake.base_url, "m", retries=0).chat(
            [[{"role": "user", "content": "q"}]]
        )
    assert reply == ""
