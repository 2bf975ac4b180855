"""Where a cluster is, and whether one may speak with it: all that is asked before Ray is."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path

from wsl._core import UsageError

CONNECT_TIMEOUT_S = 5.0
"""Seconds that the head has to answer at all, twice."""


def resolve(address: str) -> str:
    """HOST:PORT of the head; ``auto`` is that of RAY_ADDRESS or of this machine's own node."""
    if address == "auto":
        found = os.environ.get("RAY_ADDRESS", "")
        file = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
        if not found and file.is_file():
            found = file.read_text(encoding="utf-8").strip()
        if not found or found == "auto":
            raise UsageError(
                "--cluster auto: this machine is no node of a Ray cluster (neither RAY_ADDRESS nor "
                f"{file} names one); start one with 'ray start --head', or name the head as HOST:PORT"
            )
        address = found
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise UsageError(
            f"--cluster {address}: expected auto or HOST:PORT, the address that 'ray start --head' prints; "
            "Ray's client (ray://) is not used"
        )
    return address


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def require_token(address: str) -> None:
    """Turns Ray's token authentication on; UsageError where there is no token."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    if not os.environ.get("RAY_AUTH_TOKEN") and not file.is_file():
        raise UsageError(
            f"--cluster {address}: the cluster is not on loopback, so it must ask for a token, and there is "
            f"none here: neither RAY_AUTH_TOKEN nor the file {file}. Make one with 'ray get-auth-token "
            f"--generate', copy it to every node, and start all of them with RAY_AUTH_MODE=token"
        )
    os.environ["RAY_AUTH_MODE"] = "token"


def probe(address: str) -> None:
    """Asks whether a gRPC server answers there, as a cluster's head is one: without it Ray would try on."""
    host, _, port = address.rpartition(":")
    nobody = (
        f"--cluster {address}: no cluster answers there; start one with 'ray start --head', or name the "
        f"address that it printed"
    )
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S) as asked:
            asked.settimeout(CONNECT_TIMEOUT_S)
            asked.sendall(preface)
            answer = b""
            while len(answer) < 4 and (more := asked.recv(9)):
                answer += more
    except OSError as error:
        raise UsageError(f"{nobody} ({error.strerror or error})") from None
    if len(answer) < 4 or answer[3] != 4:
        raise UsageError(f"{nobody} (what listens there does not speak gRPC)")
