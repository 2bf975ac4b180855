"""Ray: connecting to a cluster, looking at its nodes, and keeping them busy. The one module that imports it.

Plain tasks make parts; actors make those that need a loaded network, one for each GPU or share of CPUs,
with two parts at most at each. A task returns the name, hash and size of what it wrote, or what went wrong.
Ray runs a task again when its worker or node is lost; a part whose task itself fails is not tried again:
its traceback is shown once, the other parts continue, and the run ends with the command that resumes it.

Before the first task every node is looked at: the same wsl and Python, the folder and the inputs there to
be seen, memory for a task's share. Only a cluster of one node that is reached over loopback may do without
Ray's token; everywhere else it is needed on both sides.
"""

from __future__ import annotations

import itertools
import os
import platform
import shlex
import sys
import time
import traceback
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from wsl._core import DataError, UsageError, WslError, __version__
from wsl.cluster.address import is_loopback, probe, require_token, resolve
from wsl.cluster.parts import Mark, Part, Parts, Run
from wsl.cluster.plan import Stage, missing
from wsl.cluster.status import Line, Tally
from wsl.errors import EXIT_DATA, EXIT_USAGE, exit_code, explain, how_to_install
from wsl.files import stores
from wsl.workspace.config import ClusterConfig

LOOK_TIMEOUT_S = 120.0
"""Seconds that the nodes have to start a worker and report what they are."""
STORAGE_OPTION = "--storage-option"
"""What options of stores are given with on the command line, each as KEY=VALUE."""
MOST_LOOKED_FOR = 10_000
"""Inputs that each node is asked for; of more it is asked for some of each folder."""
TRIES = 5
"""How often a part is begun again after its worker or node was lost."""
AT_AN_ACTOR = 2

# The driver's settings of Ray where the user has none: a silent partition is noticed soon,
# and a task that has no memory is not tried for ever.
DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "10000",
    "RAY_task_oom_retries": "3",
    # Seconds, about, in which a cluster that refuses this process is asked again.
    "RAY_NUM_REDIS_GET_RETRIES": "8",
}


ERRORS: dict[int, type[WslError]] = {EXIT_USAGE: UsageError, EXIT_DATA: DataError}
"""Errors of a task that are raised here as what they are, by their exit codes."""


class ClusterError(WslError):
    """A run on a cluster ended with parts that could not be made."""


@dataclass(frozen=True)
class Outcome:
    """What a worker returns for a part: its mark, or what went wrong."""

    mark: Mark | None
    error: str = ""
    trace: str = ""
    code: int = 0


@dataclass
class Result:
    """What a run came to."""

    num_parts: int
    num_made: int = 0
    num_kept: int = 0
    failed: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, int]:
        """For JSON."""
        return {"parts": self.num_parts, "made": self.num_made, "kept": self.num_kept}


def make_part(folder: str, part: Part, store_options: str | None) -> Outcome:
    """Makes one part, on a worker; a finished one is left as it is.

    `store_options` is how object stores are reached, as `wsl.files.stores` hands it to processes it starts.
    """
    if store_options is not None:
        os.environ[stores.ENVIRONMENT] = store_options
    from wsl.cluster import tasks

    parts = Parts(folder)
    try:
        # Another try may have made it since this one was scheduled.
        mark = parts.finished(part)
        if mark is None:
            tasks.make(parts, part)
            mark = parts.finished(part)
    except Exception as error:
        outcome = Outcome(None, explain(error), traceback.format_exc(), exit_code(error))
        try:
            parts.note_failure(part, outcome.error)
        except OSError:
            return outcome
        return outcome
    return Outcome(mark)


class PartMaker:
    """What an actor is: it makes parts one after another, and keeps what `tasks` keeps between them."""

    def ready(self) -> bool:
        """Answers once the actor is there."""
        return True

    def make_part(self, folder: str, part: Part, store_options: str | None) -> Outcome:
        """As `make_part`."""
        return make_part(folder, part, store_options)


def import_ray() -> Any:
    """Ray's module; UsageError where it is not installed."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UsageError(f"--cluster needs Ray, which is not installed: {how_to_install('ray')}") from None
    return ray


@contextmanager
def connect(settings: ClusterConfig) -> Iterator[Cluster]:
    """A connection to the cluster that is running at `settings.address`; none is ever started here.

    Leaving it ends the tasks and actors of this process that are under way, on all nodes.
    UsageError where Ray is not installed, no cluster answers, or the token that is needed is not there.
    """
    address = resolve(settings.address)
    secure = not is_loopback(address.rpartition(":")[0])
    if secure:
        require_token(address)
    ray = import_ray()
    probe(address)

    started = os.environ.pop("RAY_ADDRESS", None)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="wsl")
    except Exception as error:
        said = " ".join(str(error).split())
        raise UsageError(
            f"--cluster {settings.address}: the cluster at {address} did not let this process in: "
            f"{said[:600]} (the command must run on one of the cluster's machines, with its Ray and Python, "
            f"and with its token, if it asks for one: RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            f"~/.ray/auth_token)"
        ) from None
    finally:
        if started is not None:
            os.environ["RAY_ADDRESS"] = started
    try:
        yield Cluster(ray, settings, secure)
    finally:
        ray.shutdown()


class Cluster:
    """A cluster that this process is connected to."""

    def __init__(self, ray: Any, settings: ClusterConfig, secure: bool) -> None:
        self._ray = ray
        self.settings = settings
        self._secure = secure

    def check(self, folder: str, inputs: Sequence[str | os.PathLike[str]]) -> None:
        """Looks at every node, before the first task.

        UsageError names the nodes that have another wsl or Python, do not see the folder or an input, ask
        for no token though they are not on loopback, or have no memory for a task's share.
        """
        nodes = self._nodes()
        self._check_resources(nodes)
        folder = folder if stores.is_remote(folder) else os.path.realpath(folder)
        nonce = stores.join(folder, f".seen-{uuid.uuid4().hex}")
        stores.write_bytes(nonce, b"seen")
        local = [os.path.abspath(path) for path in inputs if "://" not in os.fspath(path)]
        wanted = {nonce: 4} | {path: _size(path) for path in _looked_for(local)}
        try:
            answers = self._ask_each(nodes, wanted)
        finally:
            stores.delete(nonce)
        for name, answer in answers.items():
            self._check_answer(name, answer, folder, nonce, len(nodes))

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _see(self, folder: str) -> bool:
        """Whether all nodes see a folder."""
        nonce = os.path.join(os.path.realpath(folder), f".seen-{uuid.uuid4().hex}")
        stores.write_bytes(nonce, b"seen")
        try:
            return not any(seen["missing"] for seen in self._ask_each(self._nodes(), {nonce: 4}).values())
        finally:
            stores.delete(nonce)

    def _ask_each(self, nodes: list[dict[str, Any]], wanted: dict[str, int]) -> dict[str, dict[str, Any]]:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # It asks for no CPU, so that a busy node answers too.
        look = self._ray.remote(num_cpus=0, max_retries=0)(_look())
        refs, ids = {}, {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            ref = look.options(scheduling_strategy=there).remote(wanted, os.environ.get(stores.ENVIRONMENT))
            refs[ref], ids[ref] = name, node["NodeID"]

        # A node that has left the cluster since is neither waited for nor an error.
        ready, late = self._ray.wait(list(refs), num_returns=len(refs), timeout=LOOK_TIMEOUT_S)
        late = [ref for ref in late if not self._is_gone(ids[ref])]
        if late:
            raise UsageError(
                f"the node {refs[late[0]]} did not answer within {LOOK_TIMEOUT_S:.0f} s; look at its logs "
                f"under /tmp/ray, or take it out of the cluster with 'ray stop' there"
            )
        answers = {}
        for ref in ready:
            try:
                answers[refs[ref]] = self._ray.get(ref)
            except Exception as error:
                if self._is_gone(ids[ref]):
                    continue
                said = " ".join(str(error).split())[:400]
                raise UsageError(f"the node {refs[ref]} could not be asked what it has: {said}") from None
        return answers

    def _is_gone(self, node_id: str) -> bool:
        """Whether a node that did not answer was lost meanwhile, which is no fault of it."""
        for _ in range(10):
            if not any(node["Alive"] and node["NodeID"] == node_id for node in self._ray.nodes()):
                return True
            time.sleep(1)
        return False

    def _check_resources(self, nodes: list[dict[str, Any]]) -> None:
        share = self.settings
        for node in nodes:
            has = node["Resources"]
            name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            memory = has.get("memory", 0)
            if share.memory_bytes is not None and has.get("CPU", 0) and memory < share.memory_bytes:
                raise UsageError(
                    f"the node {name} has {memory / (1 << 30):.1f} GiB of memory for Ray's tasks, and one "
                    f"takes {share.memory_bytes / (1 << 30):.1f} GiB; lower --memory or "
                    f"cluster.memory_bytes, or start the node with more (ray start --memory BYTES)"
                )
        if not any(node["Resources"].get("CPU", 0) >= share.num_cpus for node in nodes):
            raise UsageError(
                f"no node has {share.num_cpus} CPUs for a task; lower cluster.num_cpus, or add nodes to the "
                f"cluster"
            )

    def _check_answer(
        self, name: str, answer: dict[str, Any], folder: str, nonce: str, num_nodes: int
    ) -> None:
        here = {"wsl": __version__, "Python": platform.python_version()}
        for what, version in here.items():
            if answer[what] != version:
                raise UsageError(
                    f"the node {name} has {what} {answer[what]}, and this process has {what} {version}; "
                    f"every node must have the same, or results could differ"
                )
        for path, size in answer["missing"].items():
            where = folder if path == nonce else path
            found = "is not there" if size is None else f"has {size:,} bytes"
            raise UsageError(
                f"the node {name} does not see {where} as this process does: there it {found}. All nodes "
                f"must see the inputs and the folder of parts under the same paths, on a shared file "
                f"system; name such a folder with --cluster-dir"
            )
        if (self._secure or num_nodes > 1) and answer["auth"] != "token":
            raise UsageError(
                f"the node {name} asks for no token, so everyone who reaches its "
                f"ports can run code on it; start every node with RAY_AUTH_MODE=token and the token of "
                f"'ray get-auth-token --generate'"
            )

    def make(self, parts: Parts, stage: Stage, run: Run | None = None) -> Result:
        """Makes what is missing of a stage; `run` is what it is a stage of, if it is not a run by itself.

        ClusterError where parts could not be made; the task's own error where there is one part to make.
        """
        parts.begin()
        parts.tidy()
        run = run or Run(stage.name)
        run.levels.extend([part.name for part in level] for level in stage.levels)

        # Noted before it begins, so that `wsl cluster status` counts the parts that are still missing.
        parts.note_run(run.name, command(), run.levels, is_whole=stage.is_last)

        # Parts that are done stay, whichever run made them.
        left = missing(stage.levels, parts)
        total, num_left = sum(map(len, stage.levels)), sum(map(len, left))
        tally = Tally(total, done=total - num_left, begun=time.monotonic())
        result = Result(total, num_kept=total - num_left)
        with Line(stage.title).shown() as line:
            # The parts of a level read those of the levels before it.
            for level in filter(None, left):
                flight = _Flight(self, parts, line, tally, result, stage)
                try:
                    if level[0].kind in stage.actors:
                        flight.by_actors(level)
                    else:
                        flight.by_tasks(level)
                except KeyboardInterrupt:
                    line.say(
                        f"interrupted: the tasks under way are stopped; {tally.done:,} of {total:,} "
                        f"parts are done and stay. To go on, run the same command again: {command()}"
                    )
                    raise
                if result.failed:
                    raise ClusterError(
                        f"{len(result.failed):,} of {total:,} parts could not be made ({result.failed[0]} "
                        f"first; 'wsl cluster status {parts.folder}' lists them); {result.num_made:,} were "
                        f"made and stay. Put right what the error says and run the same command again: "
                        f"{command()}"
                    )
        return result

    def num_slots(self, gpus: bool = False) -> int:
        """How many shares the living nodes have."""
        has = self._ray.cluster_resources()
        if gpus and has.get("GPU", 0):
            return max(int(has["GPU"]), 1)
        return max(int(has.get("CPU", 0) / self.settings.num_cpus), 1)

    def has_gpus(self) -> bool:
        """Whether a node has a GPU."""
        return bool(self._ray.cluster_resources().get("GPU", 0))

    @property
    def ray(self) -> Any:
        """Ray's module."""
        return self._ray

    def options_of_tasks(self, folder: str | None) -> dict[str, Any]:
        """What a task is given that needs to see `folder`: any node, or this one where others do not.

        This one need not have a CPU to spare: there is one such task at a time.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        given = {"max_retries": TRIES, "scheduling_strategy": "SPREAD"}
        if folder is None or self._see(folder):
            return given | self.options()
        here = self._ray.get_runtime_context().get_node_id()
        return {
            "num_cpus": 0,
            "max_retries": TRIES,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
        }

    def options(self, gpus: bool = False) -> dict[str, Any]:
        """What a task or actor is given."""
        given: dict[str, Any] = {"num_cpus": self.settings.num_cpus}
        if gpus and self.has_gpus():
            given["num_gpus"] = 1
        if self.settings.memory_bytes is not None:
            given["memory"] = self.settings.memory_bytes
        return given


class _Flight:
    """The parts of one level on their way."""

    def __init__(
        self, cluster: Cluster, parts: Parts, line: Line, tally: Tally, result: Result, stage: Stage
    ) -> None:
        self._cluster, self._ray, self._stage = cluster, cluster.ray, stage
        self._parts, self._line, self._tally, self._result = parts, line, tally, result
        self._tries: dict[str, int] = {}

    def _given(self, part: Part) -> tuple[str, Part, str | None]:
        return self._parts.folder, part, os.environ.get(stores.ENVIRONMENT)

    def by_tasks(self, level: list[Part]) -> None:
        """Makes parts by plain tasks, which Ray itself begins again where a worker or node is lost.

        Where this ends early, leaving the cluster ends what is under way (`connect`). Tasks are not
        cancelled: where one finishes meanwhile, Ray 2.60 may abort this whole process ("not pending").
        """
        task = self._ray.remote(**self._cluster.options_of_tasks(self._stage.folder))(make_part)
        waiting, flying = deque(level), dict[Any, Part]()
        while waiting or flying:
            slots = self._cluster.num_slots()
            while waiting and len(flying) < 2 * slots:
                part = waiting.popleft()
                flying[task.remote(*self._given(part))] = part
            ready, _ = self._ray.wait(list(flying), num_returns=1, timeout=1.0)
            for ref in ready:
                part = flying.pop(ref)
                try:
                    self._take(part, self._ray.get(ref))
                except self._ray.exceptions.RayError as error:
                    self._lost(part, error)
            self._show(len(flying), len(waiting), slots)

    def by_actors(self, level: list[Part]) -> None:
        """Makes parts by actors; the parts of one that is lost go to others, and another takes its place."""
        kind = self._ray.remote(**self._cluster.options(gpus=True), max_restarts=0, max_task_retries=0)(
            PartMaker
        )
        waiting, flying = deque(level), dict[Any, tuple[Part, Any]]()
        starting, busy = dict[Any, Any](), dict[Any, int]()
        try:
            while waiting or flying:
                # Counted anew each time, for nodes come and go. There are never more actors than have work.
                slots = self._cluster.num_slots(gpus=True)
                wanted = min(slots, -(-(len(waiting) + len(flying)) // AT_AN_ACTOR) or 1, len(level))
                while len(starting) + len(busy) < wanted:
                    actor = kind.options(scheduling_strategy="SPREAD").remote()
                    starting[actor.ready.remote()] = actor

                # An actor gets its next part while it makes one, so that it need not wait.
                for actor in sorted(busy, key=lambda one: busy[one]):
                    while waiting and busy[actor] < AT_AN_ACTOR:
                        part = waiting.popleft()
                        ref = actor.make_part.remote(*self._given(part))
                        flying[ref] = (part, actor)
                        busy[actor] += 1
                ready, _ = self._ray.wait([*flying, *starting], num_returns=1, timeout=1.0)
                for ref in ready:
                    if ref in starting:
                        self._started(ref, starting, busy)
                    else:
                        self._landed(ref, flying, busy, waiting)
                self._show(len(flying), len(waiting), slots)
        finally:
            # An actor keeps its GPU until it is killed.
            for actor in [*busy, *starting.values()]:
                self._ray.kill(actor)

    def _started(self, ref: Any, starting: dict[Any, Any], busy: dict[Any, int]) -> None:
        actor = starting.pop(ref)
        try:
            self._ray.get(ref)
            busy[actor] = 0
        except self._ray.exceptions.RayError as error:
            self._tries["actor"] = self._tries.get("actor", 0) + 1
            if self._tries["actor"] > TRIES:
                said = " ".join(str(error).split())[:400]
                raise ClusterError(f"no worker could be started: {said}; look under /tmp/ray") from None

    def _landed(
        self, ref: Any, flying: dict[Any, tuple[Part, Any]], busy: dict[Any, int], waiting: deque[Part]
    ) -> None:
        part, actor = flying.pop(ref)
        try:
            self._take(part, self._ray.get(ref))
            busy[actor] -= 1
        except self._ray.exceptions.RayError as error:
            busy.pop(actor, None)
            self._tries[part.name] = self._tries.get(part.name, 0) + 1
            if self._tries[part.name] > TRIES:
                self._lost(part, error)
            else:
                waiting.appendleft(part)

    def _take(self, part: Part, outcome: Outcome) -> None:
        if outcome.mark is not None:
            self._tally.done += 1
            self._tally.made += 1
            self._result.num_made += 1
            return
        if self._stage.is_one and outcome.code in ERRORS:
            raise ERRORS[outcome.code](outcome.error)
        # What was asked wrongly needs no traceback.
        trace = "" if outcome.code == EXIT_USAGE else f"{outcome.trace.rstrip()}\n"
        self._fail(part, f"{trace}{outcome.error}")

    def _lost(self, part: Part, error: Exception) -> None:
        said = " ".join(str(error).split())[:600]
        text = f"its worker was lost {TRIES + 1} times: {said}"
        if "memory" in said.lower():
            text += "; a task takes more memory than its node has: lower --memory, or give a task more CPUs"
        self._parts.note_failure(part, text)
        self._fail(part, text)

    def _fail(self, part: Part, text: str) -> None:
        if not self._result.failed:
            self._line.say(f"{part.name} failed; the other parts go on.\n{text}")
        self._result.failed.append(part.name)
        self._tally.failed += 1

    def _show(self, flying: int, waiting: int, slots: int) -> None:
        self._tally.running = min(flying, slots)
        self._tally.waiting = waiting + flying - self._tally.running
        self._line.update(self._tally)


def command() -> str:
    """The command that this process runs, as it can be given again but for the values of options of stores,
    which may be secrets: they are left out, for it is printed and written beside the parts."""
    shown = ["wsl"]
    for before, word in itertools.pairwise(sys.argv):
        prefix = f"{STORAGE_OPTION}=" if word.startswith(f"{STORAGE_OPTION}=") else ""
        is_secret = prefix or before == STORAGE_OPTION
        shown.append(f"{prefix}{word.removeprefix(prefix).partition('=')[0]}=..." if is_secret else word)
    return shlex.join(shown)


def _size(path: str) -> int:
    return -1 if os.path.isdir(path) else os.stat(path).st_size


def _looked_for(paths: Sequence[str]) -> list[str]:
    """All paths; of very many the first of each folder, and some of all."""
    if len(paths) <= MOST_LOOKED_FOR:
        return list(dict.fromkeys(paths))
    found: dict[str, str] = {}
    for path in paths:
        found.setdefault(os.path.dirname(path), path)
    return list(dict.fromkeys([*found.values(), *paths[:: -(-len(paths) // MOST_LOOKED_FOR)]]))


def _look() -> Any:
    """What a node is asked. The function is sent whole, for a node may have no wsl to import it from."""

    def in_store(uri: str, store_options: str | None) -> int | None:
        import os

        try:
            from wsl.files import stores

            if store_options is not None:
                os.environ[stores.ENVIRONMENT] = store_options
            seen = stores.head(uri)
        except Exception:
            return None
        return None if seen is None else seen.size

    def look(wanted: dict[str, int], store_options: str | None) -> dict[str, Any]:
        import os
        import platform

        try:
            from wsl._core import __version__ as version
        except Exception as error:
            version = f"none that can be imported ({error})"
        missing: dict[str, int | None] = {}
        for path, size in wanted.items():
            # The size of a folder means nothing, so -1 is for one that is there.
            found = None
            if "://" in path:
                found = in_store(path, store_options)
            elif os.path.exists(path):
                found = -1 if os.path.isdir(path) else os.stat(path).st_size
            if found != size:
                missing[path] = found
        return {
            "wsl": version,
            "Python": platform.python_version(),
            "auth": os.environ.get("RAY_AUTH_MODE", ""),
            "missing": missing,
        }

    return look
