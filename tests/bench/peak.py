"""The peak of this process's resident memory.

``ru_maxrss`` is passed on to the programs that a process starts, so that none has a peak below that of its
parent; what the kernel says of a process's own memory begins anew with its program.
"""

from __future__ import annotations

import resource
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_mib() -> float:
    """In MiB; by ``ru_maxrss`` where the kernel does not say it."""
    lines = STATUS.read_text().splitlines() if STATUS.is_file() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
