"""`wsl doctor`: is this machine ready, and what to do where it is not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from wsl.cli.console import print_json, print_table
from wsl.cli.options import JsonOption
from wsl.errors import how_to_install

SHARED_MEMORY_PER_GPU = 64 << 20
"""What a rank should find in /dev/shm where NCCL connects GPUs of one machine, in bytes."""


@dataclass(frozen=True)
class Check:
    """One thing looked at; `remedy` is empty where all is well."""

    name: str
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        return not self.remedy


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(as_json: JsonOption = False) -> int:
    """Check compiler, ninja, torch, DeepSpeed, shared memory and carried data; say the remedy."""
    checks = [_python(), _engine(), _compiler(), _ninja()]
    checks += [_package(name) for name in ("torch", "torchvision", "deepspeed", "safetensors", "tensorboard")]
    checks += [_accelerator(), _shared_memory(), _carried_data(), _disk()]
    if as_json:
        print_json({"ok": all(check.ok for check in checks), "checks": [asdict(check) for check in checks]})
    else:
        rows = [["ok" if check.ok else "MISSING", check.name, check.found, check.remedy] for check in checks]
        print_table("", ["", "what", "found", "remedy"], [list(row) for row in rows])
    return 0 if all(check.ok for check in checks) else 1


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", found, "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer")


def _engine() -> Check:
    from wsl import _core

    return Check("engine", f"wsl {_core.__version__}")


def _compiler() -> Check:
    """No stage needs one: DeepSpeed's operators that are compiled at a first run are not used."""
    compiler = os.environ.get("CXX") or "c++"
    path = shutil.which(compiler) or shutil.which("g++")
    return Check("C++ compiler", path or "not on PATH; only execution.compile (inductor) needs one")


def _ninja() -> Check:
    path = shutil.which("ninja")
    return Check("ninja", path or "not on PATH; DeepSpeed goes on without its shared-memory operator")


def _package(name: str) -> Check:
    try:
        return Check(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "not installed", how_to_install("train"))


def _accelerator() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("accelerator", "unknown without torch", how_to_install("train"))
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())}
        return Check("accelerator", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")
    return Check("accelerator", f"none; training runs on {os.cpu_count()} CPU cores")


def _shared_memory() -> Check:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Check("shared memory", "no /dev/shm; ranks on CPU do without")
    free = shutil.disk_usage(folder).free
    gpus = importlib.util.find_spec("torch") is not None and _num_gpus() > 1
    small = gpus and free < SHARED_MEMORY_PER_GPU * _num_gpus()
    remedy = "GPUs of one machine exchange data there: enlarge it (docker run --shm-size=1g)" if small else ""
    return Check("shared memory", f"{free >> 20:,} MiB free in {folder}", remedy)


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _carried_data() -> Check:
    from wsl import carried

    missing = [file.name for file in carried.data_files() if not file.is_file()]
    found = "not there: " + ", ".join(missing) if missing else "fashion-mnist, openclipart"
    return Check("carried data", found, "install the package again" if missing else "")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    remedy = "" if free >= 1 << 30 else "the demo writes about 200 MB; checkpoints of large models need more"
    return Check("disk", f"{free >> 30:,} GiB free here", remedy)
