"""For every test: one thread a process, groups of pytest-xdist, how thorough a run is, what is missing."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from hypothesis import settings

from tests.help import missing
from tests.help.thoroughness import EVERY, Places, first_place, runs_long

# Before torch and NumPy are imported, and for every process that a test starts: threads of two processes that
# wait for one another at full speed take three times the time.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# A process that was started in the background ignores Ctrl-C, and so would its children.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = [
    "tests.help.clusters",
    "tests.help.stores",
    "tests.help.workspaces",
]

NUM_WORKERS = 2
GROUPS = {
    "tests/test_project.py": "project",
    "tests/training/test_ranks.py": "ranks",
    "tests/scoring/test_killed_at_writes.py": "kill",
    "tests/cluster/test_cluster.py": "ray",
    "tests/cluster/test_stored_parts.py": "ray",
}
"""Files of tests that one process runs one after another, those first that take longest; every other file is
a group of its own. (`--dist loadgroup` of pytest-xdist 3.8 finds no groups under pytest 9.2.)"""

settings.register_profile("default", max_examples=20, deadline=None)
settings.register_profile("long", max_examples=100, deadline=None, print_blob=True)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """A run of everything is spread over processes where pytest-xdist is there; `-n 0` says otherwise."""
    options = config.option
    # A worker of pytest-xdist comes here too, and must start none.
    if hasattr(config, "workerinput") or not config.pluginmanager.hasplugin("xdist"):
        return
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS
    if options.numprocesses is None and whole and not (options.usepdb or options.collectonly):
        options.numprocesses = min(NUM_WORKERS, os.cpu_count() or 1)
    if options.numprocesses and options.dist == "no":
        options.dist = "loadscope"
    options.loadscopereorder = False


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of one group go to one process, unless another `--dist` is asked for."""
    if config.getoption("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)


def group_of(nodeid: str) -> str:
    """The group of a test."""
    file = nodeid.split("::", maxsplit=1)[0]
    return GROUPS.get(file, file)


def pytest_configure(config: pytest.Config) -> None:
    """The profile of Hypothesis, where the command line names none, is that of the markers."""
    if not config.getoption("--hypothesis-profile", None):
        settings.load_profile("long" if runs_long(config) else "default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The groups that take longest come first."""
    order = list(dict.fromkeys(GROUPS.values()))

    def place(item: pytest.Item) -> int:
        group = group_of(item.nodeid)
        return order.index(group) if group in order else len(order)

    items.sort(key=place)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """How thorough the run is, and what is not here and therefore skipped."""
    every = f"every fifth place, from {first_place()} on (WSL_FIRST_PLACE=0 to 4)"
    how = "all of it" if runs_long(config) else f"without what takes long (-m '' runs all); {every}"
    said = [f"thoroughness: {how}"]
    return said + [f"missing: {line}" for line in missing.lines()]


@pytest.fixture(scope="session")
def places(request: pytest.FixtureRequest) -> Places:
    """All of them where long tests run, else every fifth, from another one on each day."""
    return Places(1, 0) if runs_long(request.config) else Places(EVERY, first_place())
