"""Owning a launch: environment, exit codes, signals, what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsl.training import launch
from wsl.training.launch import launch_ranks, remove_shared_memory
from wsl.training.stop import StopRequest


def run(tmp_path: Path, code: str, num_ranks: int = 2) -> tuple[int, list[str]]:
    """Launches ranks that run `code`; the exit code and what was said."""
    said: list[str] = []
    code = f"import os, pathlib, signal, sys, time\nfolder = pathlib.Path({str(tmp_path)!r})\n" + code
    code = "rank = int(__import__('os').environ['RANK'])\n" + code
    return launch_ranks([sys.executable, "-c", code], num_ranks, grace_s=30.0, say=said.append), said


def test_every_rank_finds_who_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "7")
    code = "import json; (folder / str(rank)).write_text(json.dumps(dict(os.environ)))"
    assert run(tmp_path, code, num_ranks=3) == (0, [])
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    for rank, environment in enumerate(found):
        assert environment["RANK"] == environment["LOCAL_RANK"] == str(rank)
        assert environment["WORLD_SIZE"] == environment["LOCAL_WORLD_SIZE"] == "3"
        assert environment["MASTER_PORT"] == found[0]["MASTER_PORT"]
        assert environment[launch.LAUNCHER] == str(os.getpid())


def test_the_exit_code_is_that_of_the_rank_that_failed_and_the_others_are_ended(tmp_path: Path) -> None:
    code, said = run(tmp_path, "sys.exit(3) if rank == 1 else time.sleep(600)")
    assert code == 3
    assert said == []


def test_a_rank_that_a_signal_ended_is_named(tmp_path: Path) -> None:
    code, said = run(tmp_path, "os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(600)")
    assert code == 137
    assert "rank 1 was ended by SIGKILL" in said[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_rank_once_and_their_code_comes_back(tmp_path: Path, number: int) -> None:
    code = (
        "got = []\n"
        "for n in (signal.SIGTERM, signal.SIGINT): signal.signal(n, lambda n, _: got.append(n))\n"
        "(folder / f'ready-{rank}').touch()\n"
        f"if rank == 0:\n"
        "    while len(list(folder.glob('ready-*'))) < 2: time.sleep(0.01)\n"
        f"    os.kill(os.getppid(), {number})\n"
        "while not got: time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        f"(folder / f'got-{{rank}}').write_text(str(got == [{number}]))\n"
        "sys.exit(130)"
    )
    assert run(tmp_path, code) == (130, [])
    assert [(tmp_path / f"got-{rank}").read_text() for rank in range(2)] == ["True", "True"]


def test_ranks_that_do_not_end_in_time_are_killed_and_their_children_too(tmp_path: Path) -> None:
    code = (
        "import subprocess\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "(folder / f'child-{rank}').write_text(str(child.pid))\n"
        "if rank == 0:\n"
        "    while len(list(folder.glob('child-*'))) < 2: time.sleep(0.01)\n"
        "    os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(600)"
    )
    said: list[str] = []
    code = (
        f"import os, pathlib, signal, sys, time\nfolder = pathlib.Path({str(tmp_path)!r})\n"
        "rank = int(os.environ['RANK'])\n" + code
    )
    assert launch_ranks([sys.executable, "-c", code], 2, grace_s=0.5, say=said.append) == 137
    assert "did not end in time" in said[0]
    for rank in range(2):
        child = int((tmp_path / f"child-{rank}").read_text())
        for _ in range(200):
            if not _runs(child):
                break
            time.sleep(0.02)
        assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_shared_memory_of_this_port_alone_is_removed(tmp_path: Path) -> None:
    mine = [f"{launch.SHARED_MEMORY}_{os.getuid()}_127.0.0.1_4000_{rank}" for rank in range(2)]
    others = [f"{launch.SHARED_MEMORY}_{os.getuid()}_127.0.0.1_40001_0", "torch_1"]
    for name in mine + others:
        (tmp_path / name).touch()
    remove_shared_memory(4000, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(others)


def test_the_flag_is_set_by_a_signal_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as request:
        assert not request.wanted
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.wanted
        assert request.reason == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_interrupt_stops_at_once() -> None:
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.wanted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_rank_whose_launcher_is_another_process_than_its_parent_wants_to_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(launch.LAUNCHER, str(os.getppid()))
    assert not StopRequest().wanted
    monkeypatch.setenv(launch.LAUNCHER, "1" if os.getppid() != 1 else "2")
    request = StopRequest()
    assert request.wanted
    assert request.reason == "its launcher has died"


def test_a_worker_process_ignores_the_signals_of_its_rank() -> None:
    code = (
        "import os, signal; from wsl.training.stop import ignore_signals; ignore_signals(0);"
        "os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGINT); print('here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "here\n"
