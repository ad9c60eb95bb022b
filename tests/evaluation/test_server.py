"""The OpenAI-compatible client against a local server that fails in the ways of real ones."""

import socket
from threading import Barrier
from typing import Any

import pytest
from fake_server import Script, fake_server

from ntkprobe.errors import UserError
from ntkprobe.evaluation.server import Failure, Reply, Server


def ask(script: Script, texts: list[str], **settings: Any) -> tuple[list[Any], Any]:
    """Return the replies in the order of the texts, and what the server saw."""
    settings = {"pause": 0.01, "retries": 2, "timeout": 60, **settings}
    with fake_server(script) as fake:
        server = Server(fake.base_url, "judge", **settings)
        talks = [[{"role": "user", "content": text}] for text in texts]
        replies = dict(server.chat(talks, temperature=0))
    return [replies[row] for row in range(len(texts))], fake


def test_replies_belong_to_their_conversations_and_say_how_they_ended() -> None:
    texts = [f"question {row}" for row in range(20)]
    together = Barrier(4)

    def script(messages: list[dict[str, str]], _: int) -> str:
        together.wait(timeout=30)  # four questions are with the server at the same time
        return messages[-1]["content"].upper()

    replies, fake = ask(script, texts, concurrency=4, timeout=60)
    assert replies == [text.upper() for text in texts]
    assert (replies[0].n_tokens, replies[0].ended) == (3, True)
    assert fake.most_at_once == 4
    assert fake.bodies[0]["temperature"] == 0 and fake.bodies[0]["model"] == "judge"


@pytest.mark.parametrize(
    "trouble",
    [500, 503, 429, ("retry", 0.02), ("raw", "<html>"), ("raw", '{"choices": []}'), ("drop",)],
)
def test_what_passes_is_asked_again(trouble: Any) -> None:
    replies, fake = ask(lambda _, times: "well" if times == 2 else trouble, ["a"])
    assert replies == ["well"] and len(fake.asked) == 3


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (500, "status 500"),
        (("raw", '{"choices": [{"message": null}]}'), "malformed"),
        (("raw", "[" * 100_000), "malformed"),
        ({"content": None}, "no text"),
        (("drop",), "connection lost"),
    ],
)
def test_what_does_not_pass_is_a_failure_and_the_others_go_on(trouble: Any, said: str) -> None:
    def script(messages: list[dict[str, str]], _: int) -> Any:
        return trouble if messages[-1]["content"] == "bad" else "fine"

    replies, fake = ask(script, ["good", "bad", "good too"])
    assert isinstance(replies[1], Failure) and said in replies[1].reason
    assert [replies[0], replies[2]] == ["fine", "fine"]
    assert fake.texts().count("bad") == 3


def test_a_server_that_says_nothing_is_a_failure_after_the_timeout() -> None:
    replies, _ = ask(lambda *_: ("slow", 30), ["a"], timeout=0.1, retries=1)
    assert replies == [Failure("no reply within 0.1 s")]


def test_a_mistake_of_ours_is_not_asked_again() -> None:
    replies, fake = ask(lambda *_: 400, ["a"])
    assert "status 400" in replies[0].reason and len(fake.asked) == 1


def test_a_refusal_in_its_own_field_is_what_the_model_said() -> None:
    replies, _ = ask(lambda *_: {"content": None, "refusal": "I won't."}, ["a"])
    assert replies == ["I won't."] and isinstance(replies[0], Reply)


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    replies, fake = ask(lambda *_: 400, ["a"])  # the server repeats it in its message
    assert fake.keys == ["Bearer sk-secret"]
    assert "secret" not in replies[0].reason and "[key]" in replies[0].reason
    assert "secret" not in repr(Server(fake.base_url, "judge"))


def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert ask(lambda *_: "fine", ["a"])[1].keys == [None]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OPENAI_ADMIN_KEY", "another-secret"),
        ("OPENAI_ORG_ID", "another-secret"),
        ("OPENAI_PROJECT_ID", "another-secret"),
        ("OPENAI_CUSTOM_HEADERS", "X-Key: another-secret\nX-Other: a"),
    ],
)
def test_no_other_secret_of_the_environment_is_sent(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv(variable, value)
    _, fake = ask(lambda *_: "fine", ["a"])
    assert fake.headers and not any("another-secret" in str(each) for each in fake.headers)


def test_a_redirected_request_is_a_failure_and_goes_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with fake_server(lambda *_: "fine") as other:
        for status in (302, 307):
            there = f"{other.base_url}/chat/completions"
            replies, fake = ask(lambda *_, s=status, to=there: ("redirect", s, to), ["a"])
            assert f"status {status}" in replies[0].reason and len(fake.asked) == 1
        assert not other.asked


def _nobody() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def test_an_unreachable_server_is_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"cannot be reached \(.*refused"):
        Server(_nobody(), "judge").check()


def test_a_host_name_that_cannot_be_encoded_is_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"cannot be reached \(no such host\)"):
        Server("http://a..b/v1", "judge").check()


def test_nobody_at_the_address_fails_every_conversation_without_an_exception() -> None:
    server = Server(_nobody(), "judge", retries=1, pause=0.01, concurrency=2)
    talks = [[{"role": "user", "content": str(row)}] for row in range(50)]
    replies = dict(server.chat(talks))
    assert all(isinstance(reply, Failure) for reply in replies.values()) and len(replies) == 50


def test_stopping_early_leaves_the_rest_unasked() -> None:
    with fake_server(lambda *_: "fine") as fake:
        talks = [[{"role": "user", "content": str(row)}] for row in range(200)]
        chat = Server(fake.base_url, "judge", concurrency=1).chat(talks)
        next(chat)
        chat.close()  # type: ignore[attr-defined]
        assert len(fake.asked) < 100


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000", "write http://"),
        ("http://me:word@host/v1", "holds a secret"),
        ("http://host/v1?key=word", "holds a secret"),
        ("http://host:port/v1", "write http://"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused_without_being_a_leak(url: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        Server(url, "judge")
    assert "word" not in str(caught.value)
