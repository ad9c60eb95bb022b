"""An OpenAI-compatible server: conversations in, replies out as they finish, failures as values.

The key comes from the environment alone. It is sent to the server's own address, never over a
redirect, and is struck out of every text that comes back.
"""

import http.client
import json
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import Event
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ..errors import UserError, one_line
from ..prompts.unicode_text import repaired

TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that may pass: asked again, after a pause."""
_LONGEST_PAUSE = 30.0
_LONGEST_REPLY = 16 * 2**20
_SHOWN = 200


@dataclass(frozen=True)
class Failure:
    """Why there is no reply to one conversation, in one line without the key."""

    reason: str


class Reply(str):
    """What the server said: a plain text that also knows how it ended.

    Attributes:
        n_tokens: how many tokens the server counted in it; None where it says nothing.
        ended: whether the model stopped by itself, and was not cut off.
    """

    n_tokens: int | None
    ended: bool

    def __new__(cls, text: str, n_tokens: int | None = None, ended: bool = True) -> "Reply":
        """Return the text with what the server said about it."""
        reply = super().__new__(cls, text)
        reply.n_tokens, reply.ended = n_tokens, ended
        return reply


class _Transient(Exception):
    """A failure that may pass; `pause` is how long the server asks to be left alone, in seconds."""

    def __init__(self, reason: str, pause: float = 0.0, *, gone: bool = False) -> None:
        super().__init__(reason)
        self.pause, self.gone = pause, gone


@dataclass(frozen=True)
class Server:
    """One model behind an OpenAI-compatible address, such as vLLM's.

    Attributes:
        base_url: up to and with `/v1`; neither a password nor a query may stand in it.
        model: what the server calls the model.
        concurrency: most conversations at the same time.
        retries: how often a request is repeated after a timeout, 429, 5xx or a malformed reply.
        timeout: seconds without a sign of life, after which a request counts as failed.
        pause: seconds before the first repetition; doubled each time, by chance up to half longer.
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
        """Refuse an address that cannot be one, or that would carry a secret into files.

        Raises:
            UserError: for these, and for settings that make no sense.
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
        """Do nothing if the server answers at all, be it only with an error of its own.

        Raises:
            UserError: if it cannot be reached, or refuses the key.
        """
        try:
            status, _, _ = self._send("models")
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

        Once a conversation has found nobody at the address, in spite of its repetitions, the
        others ask once only, until one of them succeeds.

        Args:
            conversations: each a list of `{"role": …, "content": …}`.
            sampling: passed on, such as `temperature=0, max_tokens=16`.

        Yields:
            The number of a conversation, and its reply or why there is none, as they finish. To
            stop early leaves the rest unasked.
        """
        stopped, gone = Event(), Event()
        self._key()  # an unusable one is refused before anything is asked
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            tasks = {
                pool.submit(self._ask, {"messages": turns, **sampling}, stopped, gone): number
                for number, turns in enumerate(conversations)
            }
            for task in as_completed(tasks):
                yield tasks[task], task.result()
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _key(self) -> str:
        """Return the key.

        Raises:
            UserError: if it cannot stand in a header; it is not shown.
        """
        key = os.environ.get(self.key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"{self.key_variable} is no key: it holds characters that none has")
        return key

    def _ask(self, body: dict[str, Any], stopped: Event, gone: Event) -> Reply | Failure:
        """Return the reply to one conversation, or why there is none."""
        reason = "stopped"
        for attempt in range(self.retries + 1):
            if stopped.is_set():
                break
            try:
                reply = self._post(body)
            except _Transient as failure:
                reason = self._shown(str(failure))
                last = attempt == self.retries
                if last and failure.gone:
                    gone.set()
                if last or (failure.gone and gone.is_set()):
                    break
                stopped.wait(self._pause(attempt, failure.pause))
            else:
                gone.clear()
                return reply
        return Failure(reason)

    def _pause(self, attempt: int, asked: float) -> float:
        """Return the seconds before the next attempt: as the server asks, else doubling."""
        doubled = self.pause * 2**attempt * random.uniform(1.0, 1.5)
        return min(max(asked, doubled), _LONGEST_PAUSE)

    def _post(self, body: dict[str, Any]) -> Reply | Failure:
        """Return what one request brings.

        Raises:
            _Transient: if another may bring more.
        """
        status, text, pause = self._send("chat/completions", {"model": self.model, **body})
        if status in TRANSIENT:
            raise _Transient(f"status {status}: {text}", pause)
        return _read(text) if status == 200 else Failure(self._shown(f"status {status}: {text}"))

    def _send(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, str, float]:
        """Return the status and text of one request, and the pause that the server asks for.

        Raises:
            _Transient: if nothing comes back.
        """
        key = self._key()
        request = Request(
            f"{self.base_url.rstrip('/')}/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "ntkprobe"},
        )
        if key:
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        try:
            with build_opener(_NoRedirect).open(request, timeout=self.timeout) as response:
                return response.status, _text(response), 0.0
        except HTTPError as error:
            with error:
                return error.code, _text(error), _retry_after(error.headers)
        except URLError as error:  # nobody there: no connection was made
            raise _Transient(str(error.reason), gone=True) from None
        except TimeoutError:
            raise _Transient(f"no reply within {self.timeout:g} s") from None
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            raise _Transient(f"connection lost ({type(error).__name__})") from None

    def _shown(self, text: str) -> str:
        """Return a server's text as one short line, the key struck out wherever it stands."""
        key = self._key()
        return one_line(text.replace(key, "[key]") if key else text)[:_SHOWN]


class _NoRedirect(HTTPRedirectHandler):
    """A redirected question is an error: neither prompts nor the key go to another address."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Return no further request."""


def _text(response: Any) -> str:
    """Return the body of a response, of a readable length."""
    return response.read(_LONGEST_REPLY).decode("utf-8", errors="replace")


def _retry_after(headers: Any) -> float:
    """Return the seconds that the server asks to wait; 0 where it says nothing readable."""
    try:
        return max(float(headers.get("Retry-After", 0)), 0.0)
    except ValueError:
        return 0.0


def _read(body: str) -> Reply | Failure:
    """Return the text of a completion.

    A refusal that stands in a field of its own is what the model said, so it is the text. A model
    that was cut off in its reasoning, which stands in a field of its own, has said nothing.

    Raises:
        _Transient: if it is none: a proxy may have answered.
    """
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        message, ending = choice["message"], choice.get("finish_reason")
        text = message.get("content")
        text = message.get("refusal") if text is None else text
        if text is None and (message.get("reasoning_content") or message.get("reasoning")):
            text = ""  # cut off while it still reasoned: there is no answer
        count = (reply.get("usage") or {}).get("completion_tokens")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _Transient("malformed reply: no chat completion") from None
    if ending == "content_filter":
        return Failure("the server's content filter took the reply away")
    if not isinstance(text, str):
        raise _Transient("malformed reply: its message has no text")
    return Reply(repaired(text), count if isinstance(count, int) else None, ending != "length")
