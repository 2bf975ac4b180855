"""Decoded and augmented images a second: wsl's loader beside webdataset, streaming, litdata and a bare loop.

`python tests/bench/index.py load` runs it, or `python tests/bench/loading.py --folder DIR` alone. The images
are JPEGs of 224 pixels (quality 90, about 12 kB) made from Debian's `openclipart-png`, else from noise, in
tar shards, MDS shards and litdata's chunks. Every loader shows them in batches of 64 through torch's
DataLoader with the same number of workers: decoded by torchvision, RandomResizedCrop to 224, flip and
normalisation.

- `bare`: one process goes over encoded images in a list, decodes, augments and stacks; nothing else.
- `bare-loader`: the same list as a torch dataset in the DataLoader.

After a pass to warm up, whole passes are timed: CPU seconds of the process and all that it started, by
`/proc`. The arms run one after another in rounds, and medians are shown. Peers run in the environment whose
interpreter is `--peers`; the bare arms run in both.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIDE, BATCH = 224, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIPART = Path("/usr/share/openclipart/png")
OURS = ("bare", "bare-loader", "wsl")
THEIRS = ("bare", "bare-loader", "webdataset", "streaming", "litdata")


def encoded_images(number: int) -> Iterator[bytes]:
    """JPEGs of 224 x 224, clip art on white."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    rng = np.random.default_rng(0)
    paths = sorted(CLIPART.rglob("*.png"))
    rng.shuffle(paths)  # type: ignore[arg-type]
    made = 0
    while made < number:
        if paths:
            with Image.open(paths[made % len(paths)]) as opened:
                picture = opened.convert("RGBA")
            white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, picture).convert("RGB").resize((SIDE, SIDE))
        else:
            noise = rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
            image = Image.fromarray(noise).resize((SIDE, SIDE))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=90)
        made += 1
        yield out.getvalue()


def make_shards(folder: Path, number: int) -> list[Path]:
    """Four tar shards, each image with a class."""
    from wsl.index.shards import write_shard

    paths = [folder / f"load-{shard}.tar" for shard in range(4)]
    if not all(path.exists() for path in paths):
        contents = encoded_images(number)
        for shard, path in enumerate(paths):
            keys = range(shard * number // 4, (shard + 1) * number // 4)
            write_shard(path, ((f"{n:06d}", {"jpg": next(contents), "cls": b"3"}) for n in keys))
    return paths


def contents(shards: list[Path]) -> list[bytes]:
    import tarfile

    found = []
    for path in shards:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith("jpg"):
                    found.append(archive.extractfile(member).read())  # type: ignore[union-attr]
    return found


class Show:
    """Encoded bytes to float32 3 x 224 x 224, as a user of torchvision would write it."""

    def __init__(self) -> None:
        import torch
        from torchvision.transforms import v2

        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(SIDE),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __call__(self, content: bytes) -> Any:
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg

        pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return self.transform(decode_jpeg(pixels, mode=ImageReadMode.RGB))


class Listed:
    """Encoded images in memory as a torch dataset."""

    def __init__(self, images: list[bytes], show: Show) -> None:
        self.images, self.show = images, show

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at: int) -> Any:
        return self.show(self.images[at]), 3


def loader_options(options: argparse.Namespace) -> dict[str, Any]:
    workers = options.workers
    return {"num_workers": workers, "persistent_workers": True} if workers else {"num_workers": 0}


Passes = Callable[[], int]
"""One pass over the images; how many were shown."""


def count(loader: Any) -> int:
    return sum(len(batch[0]) for batch in loader)


def bare(options: argparse.Namespace) -> Passes:
    import torch

    images, show = contents(options.shards), Show()
    rng = np.random.default_rng(0)

    def one() -> int:
        order = rng.permutation(len(images))
        for at in range(0, len(order), BATCH):
            torch.stack([show(images[place]) for place in order[at : at + BATCH]])
        return len(order)

    return one


def bare_loader(options: argparse.Namespace) -> Passes:
    from torch.utils.data import DataLoader

    data: Any = Listed(contents(options.shards), Show())
    loader = DataLoader(data, BATCH, shuffle=True, **loader_options(options))
    return lambda: count(loader)


def ours(options: argparse.Namespace) -> Passes:
    from torch.utils.data import DataLoader

    import wsl
    from wsl.data.augment import ImageOptions
    from wsl.data.epochs import EpochDataset, collate
    from wsl.data.sampler import StepSampler

    index = wsl.Index.open(options.folder / "load-index")
    order = wsl.EpochOrder(index, seed=0)
    data = EpochDataset(index, order, ImageOptions(image_size=SIDE))
    sampler = StepSampler(order, BATCH, num_steps=len(index) // BATCH)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=collate, **loader_options(options))
    return lambda: sum(len(batch.images) for batch in loader)


def webdataset(options: argparse.Namespace) -> Passes:
    import webdataset as wds
    from torch.utils.data import DataLoader

    show = Show()
    names = [str(path) for path in options.shards]
    data = wds.WebDataset(names, shardshuffle=len(names), empty_check=False).shuffle(1000)
    data = data.to_tuple("jpg", "cls").map_tuple(show, int)
    loader = DataLoader(data, BATCH, **loader_options(options))
    return lambda: count(loader)


def streaming(options: argparse.Namespace) -> Passes:
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    folder = options.folder / "load-mds"
    if not (folder / "index.json").exists():
        with MDSWriter(out=str(folder), columns={"jpg": "bytes", "cls": "int"}) as out:
            for content in contents(options.shards):
                out.write({"jpg": content, "cls": 3})
    show = Show()

    class Shown(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: int) -> Any:
            sample = super().__getitem__(at)
            return show(sample["jpg"]), sample["cls"]

    data = Shown(local=str(folder), shuffle=True, batch_size=BATCH)
    loader = DataLoader(data, BATCH, **loader_options(options))
    return lambda: count(loader)


def litdata(options: argparse.Namespace) -> Passes:
    import litdata as ld

    folder = options.folder / "load-litdata"
    if not (folder / "index.json").exists():
        given = [{"jpg": content, "cls": 3} for content in contents(options.shards)]
        ld.optimize(same, given, output_dir=str(folder), chunk_bytes="16MB", num_workers=1)
    data = ld.StreamingDataset(str(folder), shuffle=True, transform=shown)
    loader = ld.StreamingDataLoader(data, batch_size=BATCH, **loader_options(options))
    return lambda: count(loader)


def shown(sample: dict[str, Any], *_: Any, **__: Any) -> Any:
    """litdata pickles what it is given, so this stands here."""
    global _show  # noqa: PLW0603
    _show = _show or Show()
    return _show(sample["jpg"]), sample["cls"]


_show: Show | None = None


def same(sample: Any) -> Any:
    return sample


ARMS: dict[str, Callable[[argparse.Namespace], Passes]] = {
    "bare": bare,
    "bare-loader": bare_loader,
    "wsl": ours,
    "webdataset": webdataset,
    "streaming": streaming,
    "litdata": litdata,
}


def tree_cpu() -> float:
    """CPU seconds of this process and all its descendants, those that ended included."""
    children: dict[int, list[tuple[int, float]]] = {}
    own = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid, ticks = int(path.parent.name), sum(map(int, fields[11:15]))
        seconds = ticks / os.sysconf("SC_CLK_TCK")
        children.setdefault(int(fields[1]), []).append((pid, seconds))
        own = seconds if pid == os.getpid() else own
    found, waiting = own, [os.getpid()]
    while waiting:
        for pid, seconds in children.get(waiting.pop(), []):
            found += seconds
            waiting.append(pid)
    return found


def run_arm(options: argparse.Namespace) -> None:
    """One arm in this process; prints a JSON object."""
    import torch

    torch.set_num_threads(1)
    one = ARMS[options.arm](options)
    one()
    started, before = time.perf_counter(), tree_cpu()
    images = sum(one() for _ in range(options.passes))
    cpu, wall = tree_cpu() - before, time.perf_counter() - started
    print(json.dumps({"images": images, "cpu": cpu, "wall": wall}), flush=True)
    # Some loaders leave threads behind that never end.
    os._exit(0)


def bench(options: argparse.Namespace) -> None:
    """All arms in rounds, and a table."""
    import wsl

    options.shards = make_shards(options.folder, options.images)
    wsl.build_index(options.folder / "load-index", options.shards, label_kind="class", overwrite=True)
    arms = [(sys.executable, arm) for arm in OURS]
    arms += [(options.peers, arm) for arm in THEIRS] if options.peers else []
    rates: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(options.rounds):
        for interpreter, arm in arms:
            command = [interpreter, __file__, "--arm", arm, "--folder", str(options.folder)]
            command += ["--passes", str(options.passes), "--workers", str(options.workers)]
            theirs = interpreter == options.peers
            environment = dict(os.environ, OMP_NUM_THREADS="1")
            if theirs:
                environment.pop("PYTHONPATH", None)
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                print(f"  ({arm} did not run: {done.stderr.strip().splitlines()[-1:]})")
                continue
            found = json.loads(done.stdout.strip().splitlines()[-1])
            where = "peers" if theirs else "wsl"
            rate = (found["images"] / found["cpu"], found["images"] / found["wall"])
            rates.setdefault((where, arm), []).append(rate)
    best = {
        place: statistics.median(cpu for cpu, _ in rates[place, "bare"])
        for place in {where for where, _ in rates}
    }
    print(f"{options.images} images, {options.workers} worker(s), batches of {BATCH}; medians")
    print(f"{'':24}{'images/CPU s':>14}{'of bare':>10}{'images/s, wall':>16}")
    for (where, arm), found in rates.items():
        cpu = statistics.median(rate for rate, _ in found)
        wall = statistics.median(rate for _, rate in found)
        print(
            f"{arm:14}{'(' + where + ')':10}{cpu:>14.0f}{cpu / best[where]:>10.2f}{wall:>16.0f}", flush=True
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "wsl-bench-index")
    parser.add_argument("--peers", help="the interpreter of an environment that has the peers")
    parser.add_argument("--arm", choices=list(ARMS), help="one of them alone, in this process")
    add_options(parser)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.arm:
        options.shards = sorted(options.folder.glob("load-*.tar"))
        run_arm(options)
    else:
        bench(options)


if __name__ == "__main__":
    main()
