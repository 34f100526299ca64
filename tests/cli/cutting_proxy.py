"""A TCP proxy that breaks connections: a network that fails, for clients that must go on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class CuttingProxy:
    """Forwards to a port, and breaks the connection of any answer that is marked by `sign` after `cut_after` bytes.

    It does so `cuts` times and is an honest proxy from then on. `requests` are the heads of all requests that came.
    """

    target_port: int
    sign: bytes
    cut_after: int
    cuts: int = 1
    requests: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        with caller, socket.create_connection(("127.0.0.1", self.target_port)) as service:
            marked = threading.Event()
            upward = threading.Thread(target=self._forward, args=(caller, service, marked), daemon=True)
            upward.start()
            self._answer(service, caller, marked)
            for end in (caller, service):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            upward.join(5)

    def _forward(self, caller: socket.socket, service: socket.socket, marked: threading.Event) -> None:
        with suppress(OSError):
            while data := caller.recv(65536):
                if data.startswith((b"GET", b"POST")):
                    self.requests.append(data.partition(b"\r\n\r\n")[0])
                    if self.sign in data.partition(b"\r\n")[0]:
                        marked.set()
                service.sendall(data)

    def _answer(self, service: socket.socket, caller: socket.socket, marked: threading.Event) -> None:
        sent = 0
        with suppress(OSError):
            while data := service.recv(4096):
                caller.sendall(data)
                sent += len(data) if marked.is_set() else 0
                if sent > self.cut_after and self._may_cut():
                    return

    def _may_cut(self) -> bool:
        with self._lock:
            self.cuts -= 1
            return self.cuts >= 0

    def asked(self, sign: bytes) -> list[bytes]:
        """The heads of the requests whose first line holds `sign`."""
        return [head for head in self.requests if sign in head.partition(b"\r\n")[0]]


@contextmanager
def cutting(target_port: int, sign: bytes, cut_after: int, cuts: int = 1) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(target_port, sign, cut_after, cuts)
    try:
        yield proxy
    finally:
        proxy.close()
