"""A local OpenAI-compatible server that fails in the ways of real ones, as its script says."""

import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[list[dict[str, str]], int], Any]
"""From the messages, and how often the same were asked before, to what the server does.

A text is the model's reply. Else: an int is a status, `("raw", text)` a body, `("slow", seconds)`
silence, `("retry", seconds)` a 429 that asks for a pause, `("redirect", status, address)` a
redirection, `"drop"` in a tuple a closed connection, a dict the message itself.
"""


@dataclass
class Fake:
    """What was asked of a server that runs, and where it is."""

    base_url: str
    asked: list[list[dict[str, str]]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    now: int = 0

    def texts(self) -> list[str]:
        """Return the last message of each request."""
        return [messages[-1]["content"] for messages in self.asked]


@contextmanager
def fake_server(script: Script) -> Generator[Fake]:
    """Serve `script` at a free local port."""
    stop, lock = threading.Event(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._send(200, {"data": []})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                times = fake.asked.count(body["messages"])
                fake.asked.append(body["messages"])
                fake.bodies.append(body)
                fake.headers.append(dict(self.headers))
                fake.keys.append(self.headers.get("Authorization"))
                fake.now += 1
                fake.most_at_once = max(fake.most_at_once, fake.now)
            try:
                self._act(script(body["messages"], times))
            finally:
                with lock:
                    fake.now -= 1

        def _act(self, what: Any) -> None:
            if isinstance(what, str):
                what = {"role": "assistant", "content": what}
            if isinstance(what, dict):
                choice = {"message": what, "finish_reason": "stop"}
                self._send(200, {"choices": [choice], "usage": {"completion_tokens": 3}})
            elif isinstance(what, int):
                self._send(what, {"error": {"message": str(self.headers.get("Authorization"))}})
            elif what[0] == "raw":
                self._send(200, what[1])
            elif what[0] == "slow":
                stop.wait(what[1])
            elif what[0] == "redirect":
                self._send(what[1], "moved", {"Location": what[2]})
            elif what[0] == "retry":
                self._send(429, "busy", {"Retry-After": str(what[1])})
            else:
                self.close_connection = True

        def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who hung up is no news
    fake = Fake(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        stop.set()
        server.shutdown()
        server.server_close()
        thread.join()
