"""A thread that ends a rank which waits too long, and reports for what and for whom.

Collectives of torch wait for half an hour and then report little; a slow file system waits for ever.
Each rank notes what it is doing (`doing`), its thread passes that on to the others through a store,
and where a rank does one thing longer than allowed its thread prints one paragraph and ends the
process with exit code 1 (the main thread cannot: it is in the call that hangs). The launcher then
ends the other ranks.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from datetime import timedelta
from types import TracebackType
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from wsl.errors import EXIT_FAILURE

PERIOD_S = 0.5
DATA = "waits for images"
STORE_TIMEOUT = timedelta(seconds=5)


class Watch:
    """Watches this rank from `__enter__` to `__exit__`."""

    def __init__(self, rank: int, world_size: int, timeout_s: float, loader_timeout_s: float) -> None:
        self.rank, self.world_size = rank, world_size
        self.limits = {DATA: loader_timeout_s}
        self.timeout_s = timeout_s
        self._now = ("starts", 0, time.monotonic())
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="wsl-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def doing(self, what: str, step: int) -> None:
        """This rank now does `what` at `step`; the clock starts anew."""
        self._now = (what, step, time.monotonic())

    def _watch(self) -> None:
        store, told = self._store(), None
        while not self._end.wait(PERIOD_S):
            now = self._now
            if store is not None and now != told:
                told = now
                _quietly(store.set, self._key(self.rank), json.dumps([now[0], now[1], time.time()]))
            what, step, since = now
            waited = time.monotonic() - since
            if waited > self.limits.get(what, self.timeout_s) and now == self._now:
                self._give_up(what, step, waited, store)

    def _give_up(self, what: str, step: int, waited: float, store: Any) -> None:
        where = f"rank {self.rank}: " if self.world_size > 1 else ""
        if what == DATA:
            text = (
                f"no batch of images came for {waited:,.0f} s before step {step + 1}: the loader starves. Is "
                "the storage reachable? Raise loader_timeout_s where it is only slow, or data.num_workers"
            )
        else:
            others = "".join(f"; {line}" for line in self._others(store))
            text = (
                f"nothing moved for {waited:,.0f} s (timeout_s) at step {step}: this rank {what}{others}. "
                "The run goes on from its newest checkpoint when the same command is given again"
            )
        os.write(sys.stderr.fileno(), f"error: {where}{text}\n".encode())
        os._exit(EXIT_FAILURE)

    def _others(self, store: Any) -> list[str]:
        """What the other ranks were last heard to do, the one that fell behind first."""
        heard = []
        for rank in range(self.world_size):
            if rank == self.rank or store is None:
                continue
            raw = _quietly(store.get, self._key(rank))
            if raw is None:
                heard.append((-1.0, f"rank {rank} was not heard of"))
                continue
            what, step, when = json.loads(raw)
            ago = time.time() - when
            heard.append((float(step), f"rank {rank} {what} at step {step}, last heard of {ago:,.0f} s ago"))
        return [text for _, text in sorted(heard)]

    def _key(self, rank: int) -> str:
        return f"wsl/doing/{rank}"

    def _store(self) -> Any:
        """A client of the store at which the ranks met; None for a rank alone, or where it is not TCP."""
        if self.world_size == 1:
            return None
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return _quietly(
            TCPStore,
            host,
            port,
            is_master=False,
            wait_for_workers=False,
            timeout=STORE_TIMEOUT,
        )


def _quietly(call: Any, *arguments: Any, **options: Any) -> Any:
    """The result, None where it fails: the store only helps to report more."""
    try:
        return call(*arguments, **options)
    except Exception:
        return None
