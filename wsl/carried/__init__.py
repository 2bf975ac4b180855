"""The data that the package carries, and workspaces made of them.

Two small real sets, so that the demo and the tests run without a network: a part of Fashion-MNIST (MIT
licence) and Open Clip Art (public domain) with the tags of its authors. `wsl.carried.make` made the
files from Debian's packages.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from wsl._core import UsageError
from wsl.carried import fashion_mnist, openclipart
from wsl.files.publish import publish_text

HERE = Path(__file__).resolve().parent
MARKER = "data/made.json"
"""Written after all data of a workspace: of which set and options they are."""

EMPTY = """\
# A workspace: name your shards and records here, then run 'wsl index build'.
indexes: {}
#  labelled: {shards: data/labelled-*.tar, label_kind: class, class_names: data/classes.txt}
#  unlabelled: {shards: data/unlabelled-*.tar}
#  test: {shards: data/test-*.tar, label_kind: class, class_names: data/classes.txt}
#  hashtags: {shards: data/tagged-*.tar, records: data/tags.parquet, label_kind: hashtag}
stages: {}
#  pretrain: {config: configs/stages/pretrain.yaml, index: hashtags}
#  teacher: {config: configs/stages/teacher.yaml, index: labelled, evaluate: test}
#  student: {config: configs/stages/student.yaml, index: unlabelled, evaluate: test}
#  finetune: {config: configs/stages/finetune.yaml, index: labelled, evaluate: test, init: student}
"""


def data_files() -> list[Path]:
    """The compressed files of the package."""
    return [HERE / fashion_mnist.FILE, HERE / openclipart.FILE]


def configs_folder() -> Path:
    """The stage and DeepSpeed configs that come with the package."""
    for folder in (HERE.parent / "configs", HERE.parent.parent / "configs"):
        if (folder / "stages").is_dir():
            return folder
    raise UsageError(f"{HERE.parent}: the package lacks its configs; install it again")


def make_workspace(
    folder: Path,
    dataset: str,
    *,
    source: Path | None = None,
    num_labelled: int = 500,
    num_unlabelled: int | None = None,
    num_test: int | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Lays a workspace out in `folder` and returns the files that are new.

    `dataset` is "fashion-mnist" (with `num_labelled` labelled images, and the first `num_unlabelled` and
    `num_test` of the others; None is all), "openclipart" or "none". The data are the bundled ones, or the
    full set in its original files under `source`. Configs that are there stay as they are; `wsl.yaml` comes
    last. UsageError where the folder is a workspace of another set and `overwrite` is not given, a number of
    images is not to be had, or files of `source` are missing; DataError where they are damaged.
    """
    # By what it is made of a workspace is known again, and left as it is.
    made_of = {"dataset": dataset, "source": str(source.resolve()) if source else None}
    sizes = fashion_mnist.Sizes(num_labelled, num_unlabelled, num_test)
    if dataset == "fashion-mnist":
        made_of |= {f"num_{name}": str(size) for name, size in asdict(sizes).items() if size is not None}
    elif num_unlabelled is not None or num_test is not None:
        raise UsageError(f"--num-unlabelled and --num-test are for fashion-mnist, and the data are {dataset}")
    file = folder / "wsl.yaml"
    known = _read_marker(folder)
    new = known != made_of or not file.is_file()
    if new and not overwrite and (known is not None or file.exists()):
        raise UsageError(
            f"{folder} is a workspace of other data already; choose another folder, or pass --overwrite to "
            "replace its data and wsl.yaml"
        )

    # The marker and wsl.yaml come last: where this is killed, the next call makes it all once more.
    folder.mkdir(parents=True, exist_ok=True)
    written = _copy_configs(folder)
    if not new:
        return written
    text = EMPTY
    if dataset != "none":
        files, text = _write_data(folder / "data", dataset, source, sizes)
        written += files
    (folder / "data").mkdir(exist_ok=True)
    publish_text(folder / MARKER, json.dumps(made_of) + "\n")
    publish_text(file, text)
    return [*written, file]


def _write_data(
    data: Path, dataset: str, source: Path | None, sizes: fashion_mnist.Sizes
) -> tuple[list[Path], str]:
    """Writes the data beside their place and moves them there, so that none is there by half."""
    data.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=data) as name:
        made = Path(name)
        if dataset == "fashion-mnist":
            files = fashion_mnist.write_data(made, HERE / fashion_mnist.FILE, source, sizes)
            text = fashion_mnist.WORKSPACE
        else:
            files, text = openclipart.write_data(made, HERE / openclipart.FILE, source)
        # What was there goes only now: numbers that cannot be had cost no data.
        (data.parent / MARKER).unlink(missing_ok=True)
        for part in ("labelled", "unlabelled", "test", "tagged"):
            for old in data.glob(f"{part}-*.tar"):
                old.unlink()
        return [path.replace(data / path.name) for path in files], text


def _copy_configs(folder: Path) -> list[Path]:
    source = configs_folder()
    copied = []
    for path in sorted(source.rglob("*")):
        target = folder / "configs" / path.relative_to(source)
        if path.suffix in (".yaml", ".json") and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            copied.append(target)
    return copied


def _read_marker(folder: Path) -> dict[str, str | None] | None:
    try:
        content = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
