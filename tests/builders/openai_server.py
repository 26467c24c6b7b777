"""A small server of OpenAI's protocol in a thread of the test process: real HTTP, answers as the test wants them."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What goes over the wire.

    Attributes:
        body: bytes, an iterator of bytes that are sent as they come, or what becomes JSON.
        length: lies about the body's where given; needed with an iterator.
    """

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None


@dataclass
class Served:
    """A running server; ``answer`` may be exchanged while it runs, ``asked`` has every request to it."""

    url: str
    answer: Callable[[dict[str, Any], int], Reply]
    models: tuple[str, ...] = ("served",)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    release: threading.Event = field(default_factory=threading.Event)  # for answers that wait


def completion(text: str = "so \\boxed{7}", tokens: int = 5, stop: str = "stop", **message: Any) -> Reply:
    """A proper answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": stop}
    return Reply({"object": "chat.completion", "choices": [choice], "usage": {"completion_tokens": tokens}})


@contextlib.contextmanager
def serving(answer: Callable[[dict[str, Any], int], Reply] | None = None) -> Iterator[Served]:
    """A server on a free port of this machine.

    Args:
        answer: given a request's body and its number, from 0, makes the reply.
    """
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Tests are quiet."""

        def do_GET(self) -> None:
            served.keys.add(self.headers.get("Authorization"))
            self._send(Reply({"object": "list", "data": [{"id": name} for name in served.models]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(served.asked)
                served.asked.append(body)
                served.keys.add(self.headers.get("Authorization"))
            with contextlib.suppress(OSError):  # the client may be gone
                self._send(served.answer(body, number))

        def _send(self, reply: Reply) -> None:
            parts = reply.body if isinstance(reply.body, Iterator) else [reply.body]
            parts = (part if isinstance(part, bytes) else json.dumps(part).encode() for part in parts)
            content = next(parts)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) if reply.length is None else reply.length))
            self.end_headers()
            self.wfile.write(content)
            for part in parts:
                self.wfile.write(part)
            if reply.length is not None:
                self.close_connection = True

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Clients that hang up are part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{server.server_address[1]}/v1", answer or (lambda body, number: completion()))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.release.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
