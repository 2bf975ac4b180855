"""A proxy before a server of S3, in whose namespace it runs, that fails at a third of all requests.

python tests/help/faulty.py HOST PORT SERVER_PORT
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.help.proxy import Fault, proxy

OF_ALL = {
    0: Fault(status=503),
    3: Fault(status=429, code="TooManyRequests"),
    6: Fault(reset=True),
    9: Fault(delay_s=0.02),
}
OF_READS = {11: Fault(cut=True), 50: Fault(stall_s=1.5)}
ROUND = 60


def mixed(number: int, line: str) -> Fault | None:
    """What becomes of a request: writes are refused, lost or late, answers to reads cut or stopped too."""
    fault = OF_ALL.get(number % 12)
    if fault is None and line.startswith("GET "):
        fault = OF_READS.get(number % 12) or OF_READS.get(number % ROUND)
    return fault


def main() -> None:
    """Serves until it is killed."""
    host, port, server_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with proxy((host, server_port), mixed, (host, port)):
        threading.Event().wait()


if __name__ == "__main__":
    main()
