"""A model behind an OpenAI-compatible server: conversations in, replies out as they finish.

Requests are made by the `openai` client. The key is read from an environment variable, is sent to
the server's own address alone (redirects are not followed), and is masked in every text that comes
back. A conversation without a reply is a `Failure`, not an exception.
"""

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import UserError, one_line
from ..prompts.unicode_text import repaired

if TYPE_CHECKING:
    from openai import OpenAI

TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""HTTP statuses after which a request is repeated."""
_LONGEST_PAUSE = 30.0  # seconds
_SHOWN = 200  # characters of a server's text in a message
_UNREACHABLE = ("ConnectError", "ConnectTimeout")  # causes of an APIConnectionError


@dataclass(frozen=True)
class Failure:
    """The reason why a conversation has no reply, one line with the key masked."""

    reason: str


class Reply(str):
    """The text of a reply, with the server's account of it.

    Attributes:
        n_tokens: its length in tokens as the server counted; None where it does not say.
        ended: whether the model stopped by itself, rather than at the limit of tokens.
    """

    n_tokens: int | None
    ended: bool

    def __new__(cls, text: str, n_tokens: int | None = None, ended: bool = True) -> "Reply":
        """Return the text with both attributes."""
        reply = super().__new__(cls, text)
        reply.n_tokens, reply.ended = n_tokens, ended
        return reply


class _Transient(Exception):
    """A failure after which the request is repeated.

    Args:
        reason: one line.
        pause: seconds that the server asks to wait.
        unreachable: whether no connection was made.
    """

    def __init__(self, reason: str, pause: float = 0.0, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.pause, self.unreachable = pause, unreachable


@dataclass(frozen=True)
class Server:
    """One model behind an OpenAI-compatible address, such as vLLM's.

    Attributes:
        base_url: up to and with `/v1`; neither a password nor a query may stand in it.
        model: what the server calls the model.
        concurrency: most conversations at the same time.
        retries: how often a request is repeated after a timeout, 429, 5xx or a malformed reply.
        timeout: seconds without data, after which a request counts as failed.
        pause: seconds before the first repetition, doubled each time, with up to 50 % of jitter.
        key_variable: the environment variable that holds the key; where unset, none is sent.
    """

    base_url: str
    model: str
    concurrency: int = 8
    retries: int = 4
    timeout: float = 60
    pause: float = 1.0
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            UserError: for an address that is no URL or holds a secret, or a number out of range.
        """
        try:
            url = urlsplit(self.base_url)
            usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            raise UserError("the server's address is no URL: write http://HOST:PORT/v1") from None
        if url.username or url.password or url.query:
            raise UserError(
                f"the server's address holds a secret: put the key in {self.key_variable} instead"
            )
        if not usable:
            raise UserError(f"no server address {self.base_url!r}: write http://HOST:PORT/v1")
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0 or self.pause < 0:
            raise UserError("a server needs concurrency ≥ 1, retries ≥ 0, timeout > 0, pause ≥ 0")

    def check(self) -> None:
        """Check that the server answers, be it with an error status.

        Raises:
            UserError: if it cannot be reached, or refuses the key.
        """
        try:
            with self._client() as client:
                models, headers = client.models.with_raw_response, self._headers()
                status, _, _ = self._sent(lambda: models.list(extra_headers=headers))
        except _Transient as failure:
            raise UserError(
                f"the server {self.base_url} cannot be reached ({self._shown(str(failure))}): "
                "start it, or correct the address; what was finished is kept"
            ) from None
        if status in (401, 403):
            raise UserError(
                f"the server {self.base_url} refuses the key (status {status}): set "
                f"{self.key_variable}"
            )

    def chat(
        self, conversations: Sequence[list[dict[str, str]]], **sampling: Any
    ) -> Iterator[tuple[int, Reply | Failure]]:
        """Ask for the next turn of each conversation, several at a time.

        Once a conversation could not reach the server in spite of its repetitions, the others are
        sent once only, until one of them succeeds.

        Args:
            conversations: each a list of `{"role": …, "content": …}`.
            sampling: passed on, such as `temperature=0, max_tokens=16`.

        Yields:
            The number of a conversation, and its reply or why there is none, as they finish. To
            stop early leaves the rest unasked.
        """
        stopped, unreachable = Event(), Event()
        self._key()  # an unusable one is refused before anything is sent
        client = self._client()
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            tasks = {
                pool.submit(
                    self._ask, client, {"messages": turns, **sampling}, stopped, unreachable
                ): number
                for number, turns in enumerate(conversations)
            }
            for task in as_completed(tasks):
                yield tasks[task], task.result()
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()

    def _key(self) -> str:
        """Return the key.

        Raises:
            UserError: if it cannot stand in a header; it is not shown.
        """
        key = os.environ.get(self.key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"{self.key_variable} is no key: it holds characters that none has")
        return key

    def _client(self) -> "OpenAI":
        """Return a client that sends the key, and nothing else of the environment, to `base_url`.

        Repetitions are ours: malformed replies count among them, and a stopped run must not wait
        for a pause to end.
        """
        from openai import DefaultHttpxClient, OpenAI

        return OpenAI(
            base_url=self.base_url,
            api_key="see _headers",
            timeout=self.timeout,
            max_retries=0,
            http_client=DefaultHttpxClient(follow_redirects=False),
        )

    def _headers(self) -> dict[str, Any]:
        """Return the headers of every request, without those that `openai` takes from elsewhere."""
        from openai import Omit

        key = self._key()
        custom = os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines()
        return {
            **{line.partition(":")[0].strip(): Omit() for line in custom if ":" in line},
            "User-Agent": "ntkprobe",
            "Authorization": f"Bearer {key}" if key else Omit(),
            "OpenAI-Organization": Omit(),
            "OpenAI-Project": Omit(),
        }

    def _ask(
        self, client: "OpenAI", body: dict[str, Any], stopped: Event, unreachable: Event
    ) -> Reply | Failure:
        """Return the reply to one conversation, or why there is none."""
        reason = "stopped"
        for attempt in range(self.retries + 1):
            if stopped.is_set():
                break
            try:
                reply = self._post(client, body)
            except _Transient as failure:
                reason = self._shown(str(failure))
                last = attempt == self.retries
                if last and failure.unreachable:
                    unreachable.set()
                if last or (failure.unreachable and unreachable.is_set()):
                    break
                stopped.wait(self._pause(attempt, failure.pause))
            else:
                unreachable.clear()
                return reply
        return Failure(reason)

    def _pause(self, attempt: int, asked: float) -> float:
        """Return the seconds before the next attempt, at least as many as the server asks for."""
        doubled = self.pause * 2**attempt * random.uniform(1.0, 1.5)
        return min(max(asked, doubled), _LONGEST_PAUSE)

    def _post(self, client: "OpenAI", body: dict[str, Any]) -> Reply | Failure:
        """Return the reply to one request.

        Raises:
            _Transient: if the request is to be repeated.
        """
        create: Callable[..., Any] = client.chat.completions.with_raw_response.create
        headers = self._headers()
        status, text, pause = self._sent(
            lambda: create(model=self.model, extra_headers=headers, **body)
        )
        if status in TRANSIENT:
            raise _Transient(f"status {status}: {text}", pause)
        return (
            read_reply(text) if status == 200 else Failure(self._shown(f"status {status}: {text}"))
        )

    def _sent(self, request: Callable[[], Any]) -> tuple[int, str, float]:
        """Return the status and the text of a response, and the pause that the server asks for.

        Raises:
            _Transient: if there is no response.
        """
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        try:
            response = request().http_response
        except APIStatusError as error:
            response = error.response
        except UnicodeError:  # of a host name that cannot be encoded
            raise _Transient("no such host", unreachable=True) from None
        except APIConnectionError as error:
            kind = type(error.__cause__ or error).__name__
            if kind in _UNREACHABLE:
                reason = str(error.__cause__) or f"no connection within {self.timeout:g} s"
                raise _Transient(reason, unreachable=True) from None
            if isinstance(error, APITimeoutError):
                raise _Transient(f"no reply within {self.timeout:g} s") from None
            raise _Transient(f"connection lost ({kind})") from None
        return response.status_code, response.text, _retry_after(response.headers)

    def _shown(self, text: str) -> str:
        """Return a server's text as one short line in which the key is masked."""
        key = self._key()
        return one_line(text.replace(key, "[key]") if key else text)[:_SHOWN]


def _retry_after(headers: Any) -> float:
    """Return the seconds that the server asks to wait; 0 without a number."""
    try:
        return max(float(headers.get("Retry-After", 0)), 0.0)
    except ValueError:
        return 0.0


def read_reply(body: str) -> Reply | Failure:
    """Return the text of a chat completion.

    Without `content`, the text is the message's `refusal`; of a model that was cut off while it
    reasoned (`reasoning_content`) it is empty.

    Raises:
        _Transient: if the body is no chat completion, as an error page of a proxy.
    """
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        message, ending = choice["message"], choice.get("finish_reason")
        text = message.get("content")
        text = message.get("refusal") if text is None else text
        if text is None and (message.get("reasoning_content") or message.get("reasoning")):
            text = ""
        count = (reply.get("usage") or {}).get("completion_tokens")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _Transient("malformed reply: no chat completion") from None
    if ending == "content_filter":
        return Failure("the server's content filter took the reply away")
    if not isinstance(text, str):
        raise _Transient("malformed reply: its message has no text")
    return Reply(repaired(text), count if isinstance(count, int) else None, ending != "length")
