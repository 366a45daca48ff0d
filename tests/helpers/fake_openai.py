"""An endpoint that speaks OpenAI's protocol over real sockets, and does on purpose what such endpoints do wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[[BaseHTTPRequestHandler], None]
"""Answers instead of the model."""


def completion(content: Any, finish: str = "stop", **message: Any) -> bytes:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    ).encode()


def send(http: BaseHTTPRequestHandler, code: int, body: bytes, **headers: str) -> None:
    http.send_response(code)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
        http.send_header(name.replace("_", "-"), value)
    http.end_headers()
    http.wfile.write(body)


def refuse(code: int, message: str = "no", kind: str | None = None, **headers: str) -> Fault:
    body = json.dumps({"error": {"message": message, "type": "error", "param": None, "code": kind}}).encode()
    return lambda http: send(http, code, body, **headers)


class FakeOpenAI:
    """A context manager. ``said`` gives the content of a reply, ``faults`` are used up one by one before it; ``models``
    is what it lists, or a fault. ``asked`` are the bodies that came, ``keys`` their Authorization headers."""

    def __init__(self, said: Callable[[str], bytes | str] = lambda prompt: "Fine.\nVERDICT: SAFE") -> None:
        self.said = said
        self.faults: list[Fault] = []
        self.models: list[str] | Fault = ["m"]
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.work_s = 0.0
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                outer.keys.append(self.headers["Authorization"])
                if callable(outer.models):
                    return outer.models(self)
                rows = [{"id": name, "object": "model", "created": 1, "owned_by": "me"} for name in outer.models]
                send(self, 200, json.dumps({"object": "list", "data": rows}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.asked.append(body)
                    outer.keys.append(self.headers["Authorization"])
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                    fault = outer.faults.pop(0) if outer.faults else None
                try:
                    time.sleep(outer.work_s)
                    if fault is not None:
                        return fault(self)
                    said = outer.said(body["messages"][0]["content"])
                    send(self, 200, said if isinstance(said, bytes) else completion(said))
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client gave up
                finally:
                    with outer._lock:
                        outer.at_once -= 1

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.asked]

    def __enter__(self) -> FakeOpenAI:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *args: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
