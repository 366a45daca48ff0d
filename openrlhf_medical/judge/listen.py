"""Being a well-behaved server process: the port, the signals, the parent."""

from __future__ import annotations

import errno
import ipaddress
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from openrlhf_medical.errors import UserError

logger = logging.getLogger(__name__)

_PARENT_CHECK_S = 0.5
_LAST_ANSWERS_S = 1.0  # after the grace time, for writing
_MAX_CONNECTIONS = 900  # below the 1,024 open files that a process is usually allowed
_KEEP_ALIVE_S = 75  # longer than a training step has no question, so that pooled connections last
_LAST_WORDS_S = 10.0  # after which a server whose parent is gone is ended the hard way


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Binding is the check that a port is free: looking first and binding later is a race.

    Raises:
        UserError: a port out of range, one in use or not allowed, a host that is not of this machine.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise UserError(f"port {port!r} is not a port; allowed: 0 (any free one) to 65535")
    family, address = _resolve(host, port)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # restart without waiting for TIME_WAIT
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise UserError(_cannot_bind(host, port, error)) from None
    return listener


def check_exposure(host: str, token: str | None) -> None:
    """Raises UserError where others could reach the judge and it asks for no token."""
    address = ipaddress.ip_address(str(_resolve(host, 0)[1][0]).partition("%")[0])
    if token is None and not address.is_loopback:
        raise UserError(
            f"host {host!r} can be reached from other machines, and the judge would answer anyone; "
            "give --token-file FILE (clients: judge.token_file), or listen on 127.0.0.1"
        )


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"host {host!r} is no address of this machine ({error}); use 127.0.0.1 or 0.0.0.0") from None
    return found[0], found[4]


def _cannot_bind(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; stop what listens there, or choose another with --port (0: any free)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} is not allowed for this user; choose one from 1024 to 65535 with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host {host!r} is no address of this machine; use 127.0.0.1 or 0.0.0.0"
    return f"cannot listen on {host}:{port}: {error.strerror}"


def write_port(path: Path, port: int) -> None:
    """The whole number or no file: readers poll for it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(f"{port}\n", encoding="utf-8")
    partial.replace(path)


def watch_parent() -> None:
    """Ends this process, as SIGTERM would, once the process that started it is gone.

    Polled: PR_SET_PDEATHSIG fires when the *thread* that started us ends, which in a Ray actor is soon.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        logger.warning("the process %d that started the judge is gone: stopping", parent)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_LAST_WORDS_S)
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


class _DrainingServer(uvicorn.Server):
    """Says when it stops before it waits for the requests under way."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        await super().shutdown(sockets)


def make_server(app: Any, on_stop: Callable[[], None], grace_s: float) -> uvicorn.Server:
    """A server of an ASGI app; ``on_stop`` is called on its loop, and has ``grace_s`` to bring all to an end."""
    return _DrainingServer(
        uvicorn.Config(
            app,
            http="h11",  # the one with a limit on the length of headers
            ws="none",
            access_log=False,
            log_level="warning",
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(grace_s + _LAST_ANSWERS_S),
        ),
        on_stop,
    )


def run_until_stopped(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serves until SIGTERM or SIGINT, lets requests under way finish, and returns (exit code 0)."""

    def stopped(signum: int, frame: FrameType | None) -> None:
        # uvicorn raises the signal again once it has shut down; by then there is nothing left to do.
        if not server.started:
            raise SystemExit(0)

    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, stopped)
    with listener:
        server.run(sockets=[listener])
