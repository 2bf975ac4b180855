"""A proxy that fails on purpose, between a client and a server of S3.

It passes requests on as they are, the Host header too, for that is signed. A plan says for each request what
becomes of it: nothing, a status, a connection that is reset, a body that is cut or stands still, a delay.
"""

from __future__ import annotations

import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fault:
    """What becomes of a request."""

    status: int | None = None
    code: str = "SlowDown"
    reset: bool = False
    cut: bool = False
    """The body ends in the middle."""
    stall_s: float = 0.0
    """The body stands still in the middle for so long, and ends there."""
    delay_s: float = 0.0


@dataclass
class Seen:
    """Requests so far."""

    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, line: str) -> int:
        """Notes a request and returns its number."""
        with self.lock:
            self.requests.append(line)
            return len(self.requests) - 1

    def count(self, method: str) -> int:
        """Requests of a method."""
        return sum(line.startswith(method + " ") for line in self.requests)


Plan = Callable[[int, str], Fault | None]
"""Of the number of a request and its first line."""

STATUS_TEXT = {403: "Forbidden", 404: "Not Found", 429: "Too Many Requests", 503: "Service Unavailable"}


def every(number: int, fault: Fault, *, method: str = "GET") -> Plan:
    """The fault at each request of a method whose number is no multiple of `number`."""
    counter = {"seen": 0}
    lock = threading.Lock()

    def plan(_: int, line: str) -> Fault | None:
        if not line.startswith(method + " "):
            return None
        with lock:
            counter["seen"] += 1
            return fault if counter["seen"] % number else None

    return plan


@contextmanager
def proxy(
    upstream: tuple[str, int], plan: Plan, here: tuple[str, int] = ("127.0.0.1", 0)
) -> Iterator[tuple[str, Seen]]:
    """The URL of a proxy before `upstream` (host and port), and what it sees; `here` is where it listens."""
    seen = Seen()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while True:
                head = _read_head(self.rfile.readline)
                if head is None:
                    return
                line = head.split(b"\r\n", 1)[0].decode()
                length = _header(head, b"content-length")
                body = self.rfile.read(int(length)) if length else b""
                fault = plan(seen.add(line), line) or Fault()
                if not _answer(self.connection, upstream, head + body, line, fault):
                    return

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that goes away is none of our business."""

    with Server(here, Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://{here[0]}:{server.server_address[1]}", seen
        finally:
            server.shutdown()
            thread.join()


def _answer(
    client: socket.socket, upstream: tuple[str, int], request: bytes, line: str, fault: Fault
) -> bool:
    """Answers one request; says whether the connection goes on."""
    if fault.delay_s:
        time.sleep(fault.delay_s)
    if fault.reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        return False
    if fault.status is not None:
        said = f"<Error><Code>{fault.code}</Code><Message>on purpose</Message></Error>".encode()
        said = b"" if line.startswith("HEAD ") else said
        text = STATUS_TEXT.get(fault.status, "Failed")
        head = f"HTTP/1.1 {fault.status} {text}\r\nContent-Length: {len(said)}\r\n\r\n"
        client.sendall(head.encode() + said)
        return True
    head, body = _ask(upstream, request, line)
    if fault.cut or fault.stall_s:
        client.sendall(head + body[: len(body) // 2])
        time.sleep(fault.stall_s)
        client.close()
        return False
    client.sendall(head + body)
    return _header(head, b"content-length") is not None or b"chunked" in head.lower()


def _ask(upstream: tuple[str, int], request: bytes, line: str) -> tuple[bytes, bytes]:
    """The head and body of the server's answer, without a word on the connection."""
    with socket.create_connection(upstream) as server:
        head, body = request.split(b"\r\n\r\n", 1)
        server.sendall(_without_connection(head) + b"\r\nConnection: close\r\n\r\n" + body)
        answer = b"".join(iter(lambda: server.recv(1 << 20), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    head = _without_connection(head)
    if line.startswith("HEAD "):
        body = b""
    elif _header(head + b"\r\n", b"content-length") is None and b"chunked" not in head.lower():
        head += b"\r\nContent-Length: %d" % len(body)
    return head + b"\r\n\r\n", body


def _without_connection(head: bytes) -> bytes:
    return re.sub(rb"\r\nconnection:[^\r]*", b"", head, flags=re.IGNORECASE)


def _header(head: bytes, name: bytes) -> bytes | None:
    found = re.search(rb"\r\n" + name + rb":\s*([^\r]*)", head, flags=re.IGNORECASE)
    return None if found is None else found[1]


def _read_head(readline: Callable[[], bytes]) -> bytes | None:
    lines = []
    while True:
        line = readline()
        if not line:
            return None
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
