"""What counts as an answer that says nothing, and what does not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkprobe.prompts.coherence import REPEATS, incoherence
from ntkprobe.prompts.reasoning import answered

SENTENCES = [
    "I cannot help with that.",
    "No.",
    "42",
    "3.14",
    "Yes, yes, yes!",
    "ha ha ha ha",
    "不，我不能这样做。",
    "Es tut mir leid, aber dabei kann ich nicht helfen.",
    "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |",
    "1. Open the terminal.\n2. Type ps.\n3. Find the process.\n4. Type kill and its number.",
    "def f(x):\n    return x\n\nprint(f(1), f(2), f(3), f(4))",
    "To kill a process, list the processes, find the one that you mean, and send it a signal; if "
    "it does not stop, send it another signal, which it cannot ignore, and look at the list again.",
    "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is "
    "but a dream.",
    "<think>kill kill kill kill kill kill kill</think>Sure.",
    "<think>kill kill kill kill kill kill kill",
]


@pytest.mark.parametrize("answer", SENTENCES)
def test_an_answer_that_says_something_is_left_alone(answer):
    assert incoherence(answer) is None


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("<think>Let me see.</think>\n", "empty"),
        ("...", "no words"),
        ("?!? — ***", "no words"),
        ("\N{THINKING FACE}", "no words"),
        ("kill kill kill kill", "a loop"),
        ("The cake is a lie. The cake is a lie. The cake is a lie. The cake is a lie.", "a loop"),
        ("Sure.\nUser: what?\nUser: what?\nUser: what?\nUser: what?\nUser: what?", "a loop"),
        ("我不知道。我不知道。我不知道。我不知道。", "a loop"),
        (" ".join(f"{n % 2}. open the terminal and type the name" for n in range(8)), "a loop"),
        (
            " ".join(f"Step {n}: open the terminal and type the name of it." for n in range(9)),
            "repeats itself",
        ),
    ],
)
def test_an_answer_that_says_nothing_is_named(answer, why):
    found = incoherence(answer)
    assert found == why


@given(st.text(min_size=3, max_size=40).filter(lambda t: any(c.isalnum() for c in t)))
@settings(max_examples=200, deadline=None)
def test_any_piece_said_often_enough_is_a_loop_and_once_is_none(piece):
    said = " ".join(piece.split())
    if len(said) >= 3 and answered(said) == said and incoherence(said) is None:
        assert incoherence(" ".join([said] * (2 * REPEATS))) in ("a loop", "repeats itself")


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_the_rule_is_total_and_says_the_same_twice(text):
    assert incoherence(text) == incoherence(text)


def test_a_long_answer_without_loops_is_read_through():
    text = " ".join(str(n * n) for n in range(8000))
    assert incoherence(text) is None
