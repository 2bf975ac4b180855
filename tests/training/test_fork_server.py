"""Ranks that are forked: they are what started ones are, and nothing of them or their server is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wsl.train import SHARED
from wsl.training import forking, launch
from wsl.training.forking import NOT_FORKED, Adopted, NotForkedError, fork_ranks, is_gpu_visible
from wsl.training.launch import launch_program

Run = Callable[..., tuple[int, list[str]]]

START = """
import json, os, pathlib, signal, sys, time

def write(name, content):
    (folder / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(content))

def wait_for(pattern, number):
    while len(list(folder.glob(pattern))) < number:
        time.sleep(0.005)

def main(arguments):
    global folder
    folder = pathlib.Path(arguments[0])
    rank = int(os.environ["RANK"])
"""
MAIN = "if __name__ == '__main__': sys.exit(main(sys.argv[1:]))\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the lines of a program's `main` on two forked ranks; the exit code and what was said."""

    def launched(code: str, num_ranks: int = 2, **options: Any) -> tuple[int, list[str]]:
        body = textwrap.indent(textwrap.dedent(code), "    ")
        (tmp_path / "program.py").write_text(f"{START}{body}\n    return 0\n{MAIN}")
        said: list[str] = []
        given: dict[str, Any] = {"shared": (), "forked": True, "grace_s": 30.0, "say": said.append}
        given |= {"environment": environment(tmp_path)} | options
        code_ = launch_program("program", [str(tmp_path), "--x y"], num_ranks, **given)
        return code_, said

    return launched


def environment(folder: Path) -> dict[str, str]:
    """One in which modules of `folder` are found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}


def read(folder: Path, name: str, num_ranks: int = 2) -> list[Any]:
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(num_ranks)]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def processes_with(text: str) -> list[int]:
    """Living processes whose command line has `text`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line and is_running(int(folder.name)) and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


FACTS = """
import threading
write("facts", {
    "environment": dict(os.environ),
    "arguments": [sys.argv, arguments],
    "parent": os.getppid(),
    "leads": [os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid()],
    "input": [os.read(0, 1).decode(), os.readlink("/proc/self/fd/0")],
    "files": sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")[:-1]),
    "threads": threading.active_count(),
    "handlers": [signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
                 signal.getsignal(signal.SIGINT) == signal.default_int_handler],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "folder": os.getcwd(),
})
"""


def test_a_forked_rank_is_what_a_started_one_is(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "7")
    found = {}
    for forked in (True, False):
        assert run(FACTS, 3, forked=forked) == (0, [])
        found[forked] = read(tmp_path, "facts", 3)
    port = found[True][0]["environment"]["MASTER_PORT"]
    for rank in range(3):
        own, theirs = found[True][rank], found[False][rank]
        assert own["parent"] == int(own["environment"][launch.LAUNCHER]) == os.getpid()
        assert own["environment"]["RANK"] == own["environment"]["LOCAL_RANK"] == str(rank)
        assert own["environment"]["WORLD_SIZE"] == own["environment"]["LOCAL_WORLD_SIZE"] == "3"
        assert own["environment"].pop("MASTER_PORT") == port != theirs["environment"].pop("MASTER_PORT")
        assert own["leads"] == [True, True]
        assert own["input"] == ["", "/dev/null"]
        assert own == theirs


def test_the_exit_code_is_that_of_the_rank_that_failed_and_the_others_are_ended(run: Run) -> None:
    assert run("if rank == 1: return 3\ntime.sleep(600)") == (3, [])
    assert run("if rank == 0: sys.exit(4)\ntime.sleep(600)") == (4, [])


def test_what_a_rank_registers_for_its_end_is_done(run: Run, tmp_path: Path) -> None:
    assert run("import atexit; atexit.register(write, 'end', rank)") == (0, [])
    assert read(tmp_path, "end") == [0, 1]


def test_ranks_are_known_by_their_number_whichever_runs_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import os, sys, time\n"
    script += "os.write(int(sys.argv[1]), b'2 30\\n0 10\\n'); time.sleep(0.2)\n"
    script += "os.write(int(sys.argv[1]), b'1 20\\n')\n"
    reading, writing = os.pipe()
    server = subprocess.Popen([sys.executable, "-c", script, str(writing)], pass_fds=(writing,))
    os.close(writing)
    with open(reading, "rb", buffering=0) as reports:
        assert forking._process_ids(reports.fileno(), server, lambda: False) == [10, 20, 30]
    assert server.wait() == 0


def test_a_rank_that_a_signal_ended_is_named(run: Run) -> None:
    code, said = run("if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(600)")
    assert code == 137
    assert "rank 1 was ended by SIGKILL" in said[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_rank_once_and_their_code_comes_back(
    run: Run, tmp_path: Path, number: int
) -> None:
    code = f"""
    got = []
    for n in (signal.SIGTERM, signal.SIGINT): signal.signal(n, lambda n, _: got.append(n))
    write("ready", True)
    if rank == 0:
        wait_for("ready-*", 2)
        os.kill(os.getppid(), {number})
    while not got: time.sleep(0.01)
    time.sleep(0.3)
    write("got", got)
    return 130
    """
    assert run(code) == (130, [])
    assert read(tmp_path, "got") == [[number], [number]]


def test_ranks_that_do_not_end_in_time_are_killed_and_their_children_too(run: Run, tmp_path: Path) -> None:
    code = """
    import subprocess
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    write("child", subprocess.Popen(["sleep", "600"]).pid)
    if rank == 0:
        wait_for("child-*", 2)
        os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(600)
    """
    code_, said = run(code, grace_s=0.5)
    assert code_ == 137
    assert "did not end in time" in said[0]
    for child in read(tmp_path, "child"):
        wait_for(lambda child=child: not is_running(child))  # type: ignore[misc]


def test_random_numbers_are_each_ranks_own(run: Run, tmp_path: Path) -> None:
    code = """
    import random, uuid, tempfile, numpy, torch
    numbers = [random.random(), numpy.random.random(), float(torch.rand(1)), str(uuid.uuid4())]
    write("numbers", [*numbers, tempfile.mktemp()])
    """
    assert run(code, shared=("torch",)) == (0, [])
    first, second = read(tmp_path, "numbers")
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_threads_of_torch_work_in_a_forked_rank(run: Run, tmp_path: Path) -> None:
    """In each rank as many as it asks for, with the sums of one."""
    code = """
    import torch
    torch.manual_seed(0)
    images, kernel = torch.rand(8, 16, 32, 32), torch.rand(16, 16, 3, 3)
    torch.set_num_threads(1)
    one = torch.nn.functional.conv2d(images, kernel)
    torch.set_num_threads(2)
    two = torch.nn.functional.conv2d(images, kernel)
    write("threads", [torch.get_num_threads(), torch.allclose(one, two, rtol=1e-5)])
    """
    assert run(code, shared=("torch",)) == (0, [])
    assert read(tmp_path, "threads") == [[2, True], [2, True]]


def test_worker_processes_of_torch_load_in_a_forked_rank(run: Run, tmp_path: Path) -> None:
    code = """
    import torch.utils.data
    loader = torch.utils.data.DataLoader(torch.arange(12), batch_size=3, num_workers=2)
    write("loaded", [batch.tolist() for batch in loader])
    """
    assert run(code, shared=("torch",)) == (0, [])
    assert read(tmp_path, "loaded") == [[[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]] * 2


def test_what_ranks_share_starts_no_thread_and_asks_for_no_gpu() -> None:
    """Else ranks would be started one by one, or could not use a GPU."""
    code = """
        import sys, torch
        from wsl import train
        from wsl.scoring import rank as scoring_rank
        from wsl.training.fork_server import _share
        asked = []
        for name in ("is_available", "device_count", "_lazy_init", "get_device_properties"):
            def ask(*_, plain=getattr(torch.cuda, name), name=name, **__):
                asked.append(name)
                return plain(*_, **__)
            setattr(torch.cuda, name, ask)
        assert _share([*scoring_rank.SHARED, *train.SHARED, "torchvision"])
        assert not asked, asked
        assert not {"polars", "deepspeed"} & set(sys.modules)
        missing = {*scoring_rank.SHARED, *train.SHARED} - set(sys.modules)
        assert not missing, missing
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(is_gpu_visible(os.environ), reason="ranks are not forked where a GPU is visible")
def test_forked_ranks_train_as_started_ones_do_to_the_bit(tmp_path: Path) -> None:
    found = {}
    for forked in (True, False):
        folder = tmp_path / f"forked {forked}"
        folder.mkdir()
        given = [str(folder), "whole"]
        own = environment(Path(__file__).resolve().parents[2])
        assert (
            launch_program("tests.help.ranks", given, 2, shared=SHARED, forked=forked, environment=own) == 0
        )
        # Losses to the last bit, samples, and the states of generators.
        files = ["whole-0.jsonl", "whole-1.jsonl", "whole/model.safetensors"]
        found[forked] = [(folder / name).read_bytes() for name in files]
    assert found[True] == found[False]


def test_where_an_import_starts_a_thread_the_ranks_are_started_instead(run: Run, tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()"
    )
    code = """
    import threading
    write("threads", threading.active_count())
    """
    (tmp_path / "program.py").write_text(START)
    with pytest.raises(NotForkedError) as refused:
        fork(tmp_path, shared=("threaded",))
    assert refused.value.code == NOT_FORKED
    assert run(code, shared=("threaded",)) == (0, [])
    assert read(tmp_path, "threads") == [1, 1]


def fork(folder: Path, shared: tuple[str, ...] = (), interrupted: bool = False) -> list[Adopted]:
    own = environment(folder) | {"WORLD_SIZE": "2", launch.LAUNCHER: str(os.getpid())}
    return fork_ranks(
        "program", [str(folder)], 2, shared=shared, environment=own, interrupted=lambda: interrupted
    )


def test_a_module_that_is_missing_is_for_the_ranks_to_miss(run: Run, tmp_path: Path) -> None:
    assert run("write('here', True)", shared=("not_there",)) == (0, [])
    assert read(tmp_path, "here") == [True, True]


SLOW = "import os, time, pathlib; pathlib.Path(__file__).with_name('loading').write_text(str(os.getpid()))\n"


def test_a_signal_while_the_server_imports_ends_it_at_once(run: Run, tmp_path: Path) -> None:
    send = "os.kill(os.getppid(), 15); time.sleep(600)"
    (tmp_path / "slow.py").write_text(SLOW + send)
    began = time.monotonic()
    code, said = run("write('here', True)", shared=("slow",))
    assert (code, said) == (130, ["interrupted; run the same command again to go on"])
    assert time.monotonic() - began < 60
    assert not list(tmp_path.glob("here-*"))
    assert not is_running(int((tmp_path / "loading").read_text()))


def test_a_server_that_is_killed_ends_the_launch_and_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW + "os.kill(os.getpid(), 9)")
    code, said = run("write('here', True)", shared=("slow",))
    assert code == 137
    assert "the process that ranks are forked from was ended by SIGKILL" in said[0]
    assert not list(tmp_path.glob("here-*"))


def test_a_server_that_is_killed_between_two_forks_leaves_no_rank(run: Run, tmp_path: Path) -> None:
    """The rank that was forked is adopted, known by its id, and killed before its program runs for long."""
    code = (
        "import os\nplain, count = os.fork, []\n"
        "def fork():\n"
        "    if count: os.kill(os.getpid(), 9)\n"
        "    count.append(1)\n"
        "    return plain()\n"
        "os.fork = fork"
    )
    (tmp_path / "dying.py").write_text(code)
    code_, said = run("write('pid', os.getpid())\ntime.sleep(600)", shared=("dying",))
    assert code_ == 137
    assert "the process that ranks are forked from" in said[0]
    assert not processes_with(str(tmp_path))


def test_without_room_for_another_process_no_rank_is_left(tmp_path: Path) -> None:
    code = (
        "import os\nplain, count = os.fork, []\n"
        "def fork():\n"
        "    if count: raise BlockingIOError(11, 'no')\n"
        "    count.append(1)\n"
        "    return plain()\n"
        "os.fork = fork"
    )
    (tmp_path / "full.py").write_text(code)
    (tmp_path / "program.py").write_text(f"{START}    write('here', True)\n    time.sleep(600)\n")
    with pytest.raises(NotForkedError) as refused:
        fork(tmp_path, shared=("full",))
    assert refused.value.code == NOT_FORKED
    assert not processes_with(str(tmp_path))


LAUNCH = (
    "import sys; from wsl.training.launch import launch_program\n"
    "sys.exit(launch_program('program', sys.argv[1:2], 2, shared=sys.argv[2:], forked=True))"
)


def launcher(folder: Path, *shared: str) -> subprocess.Popen[bytes]:
    """A process that launches `program`."""
    command = [sys.executable, "-c", LAUNCH, str(folder), *shared]
    return subprocess.Popen(command, env=environment(folder), stderr=subprocess.DEVNULL)


def test_a_rank_whose_launcher_is_killed_wants_to_stop(tmp_path: Path) -> None:
    code = """
    from wsl.training.stop import StopRequest
    request = StopRequest()
    assert not request.wanted
    write("pid", os.getpid())
    while not request.wanted: time.sleep(0.01)
    write("reason", request.reason)
    """
    (tmp_path / "program.py").write_text(START + textwrap.indent(textwrap.dedent(code), "    "))
    process = launcher(tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
    process.kill()
    process.wait()
    wait_for(lambda: len(list(tmp_path.glob("reason-*"))) == 2)
    wait_for(lambda: not processes_with(str(tmp_path)))
    assert read(tmp_path, "reason") == ["its launcher has died"] * 2


def test_a_server_whose_launcher_is_killed_forks_no_rank_that_runs(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(f"{START}    write('here', True)\n    time.sleep(600)\n")
    wait = f"while not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.01)"
    (tmp_path / "slow.py").write_text(SLOW + wait)
    process = launcher(tmp_path, "slow")
    wait_for((tmp_path / "loading").exists)
    process.kill()
    process.wait()
    (tmp_path / "go").touch()
    wait_for(lambda: not processes_with(str(tmp_path)))
    assert not list(tmp_path.glob("here-*"))


def test_the_orphans_of_later_processes_are_not_adopted(run: Run) -> None:
    assert run("") == (0, [])
    code = "import os, subprocess; print(subprocess.Popen(['sleep', '0.3']).pid)"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    orphan = int(done.stdout)
    parent = Path(f"/proc/{orphan}/stat").read_text().rsplit(")", 1)[1].split()[1]
    assert int(parent) != os.getpid()


def test_shared_memory_and_pipes_are_not_left(run: Run) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    code = f"""
    port = os.environ["MASTER_PORT"]
    open(f"/dev/shm/{launch.SHARED_MEMORY}_{{os.getuid()}}_127.0.0.1_{{port}}_{{rank}}", "w").close()
    write("port", port)
    """
    assert run(code) == (0, [])
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert not list(Path("/dev/shm").glob(f"{launch.SHARED_MEMORY}_{os.getuid()}_*"))


@pytest.mark.parametrize("device", ["nvidia0", "nvidiactl", "kfd", "dxg", "nvhost-gpu"])
def test_a_gpu_is_seen_in_dev_and_hidden_by_the_environment(tmp_path: Path, device: str) -> None:
    (tmp_path / "null").touch()
    assert not is_gpu_visible({}, tmp_path)
    (tmp_path / device).touch()
    assert is_gpu_visible({}, tmp_path)
    assert is_gpu_visible({"CUDA_VISIBLE_DEVICES": "0,1"}, tmp_path)
    assert not is_gpu_visible({"CUDA_VISIBLE_DEVICES": ""}, tmp_path)
    assert not is_gpu_visible({"CUDA_VISIBLE_DEVICES": "-1"}, tmp_path)


def test_where_a_gpu_is_visible_ranks_are_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import os, sys; os.write(os.open(sys.argv[1], os.O_CREAT | os.O_APPEND | os.O_WRONLY), b'here\\n')"
    )
    monkeypatch.setattr(launch, "is_gpu_visible", lambda environment: True)
    monkeypatch.setattr(launch, "fork_ranks", None)
    out = tmp_path / "out"
    assert launch_program("program", [str(out)], 2, environment=environment(tmp_path)) == 0
    assert len(out.read_text().splitlines()) == 2
