"""`wsl stats`, `counts`, `vocabulary`, `weights`: what they print, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import wsl
from tests.help.commands import refused, wsl_json
from wsl import _core
from wsl.cli import run
from wsl.cli.options import parse_bytes
from wsl.figures import plots
from wsl.index.shards import write_shard

WORDNET = Path("/usr/share/wordnet")


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Four files of records."""
    rng = np.random.default_rng(3)
    folder = tmp_path / "records"
    folder.mkdir()
    for number in range(4):
        tags = [[f"t{n}" for n in rng.zipf(1.5, 3) % 500] for _ in range(200)]
        keys = [f"{number}-{row}" for row in range(200)]
        pl.DataFrame({"key": keys, "hashtags": tags}).write_parquet(folder / f"{number}.parquet")
    return folder


def test_counts_made_in_parts_join_to_the_whole(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, records: Path
) -> None:
    parts = []
    for part in (1, 2, 3):
        out = tmp_path / f"part-{part}.counts"
        made = wsl_json(
            capsys, "counts", "build", "--records", records, "--part", f"{part}/3", "--out", out, "--json"
        )
        assert made["state"] == "built"
        parts.append(out)
    whole = tmp_path / "whole.counts"
    arguments = ["counts", "merge", *parts, "--out", whole, "--memory", "1MiB", "--json"]
    assert wsl_json(capsys, *arguments)["state"] == "built"
    assert wsl_json(capsys, *arguments)["state"] == "up to date"
    assert wsl.HashtagCounts.load(whole).table().equals(wsl.count_hashtags(records).table())
    of_counts = wsl_json(capsys, "stats", "--counts", whole, "--json")
    of_records = wsl_json(capsys, "stats", "--records", records, "--memory", "2MiB", "--workers", 1, "--json")
    assert of_counts == of_records
    wanted = {"records", "hashtags", "distinct", "duplicates", "rejected", "top", "zipf"}
    assert wanted <= set(of_counts)
    assert {"alpha", "standard_error", "x_min", "ks_distance", "rank_exponent", "loglog_slope"} <= set(
        of_counts["zipf"]
    )

    code, text = refused(capsys, "counts", "merge", parts[0], parts[0], "--out", tmp_path / "x")
    assert code == 2
    assert "given twice" in text
    twin = tmp_path / "twin.counts"
    assert run(["counts", "build", "--records", str(records), "--part", "1/3", "--out", str(twin)]) == 0
    code, text = refused(capsys, "counts", "merge", parts[0], twin, "--out", tmp_path / "x")
    assert code == 2
    assert "count twice" in text
    code, text = refused(capsys, "counts", "build", "--records", records, "--out", whole)
    assert code == 2
    assert "--overwrite" in text


def test_a_part_without_files_counts_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, records: Path
) -> None:
    arguments = ["counts", "build", "--records", records, "--part", "9/9", "--out", tmp_path / "c", "--json"]
    assert wsl_json(capsys, *arguments)["files"] == 0
    assert wsl.HashtagCounts.load(tmp_path / "c").num_records == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["counts", "build", "--records", "{records}", "--part", "3/2", "--out", "x"], 2, "I/N"),
        (["counts", "build", "--records", "{records}", "--part", "half", "--out", "x"], 2, "I/N"),
        (["counts", "merge", "{records}/none", "--out", "x"], 1, "no such file of counts"),
        (["counts", "merge", "{records}/0.parquet", "--out", "x"], 3, "no file of hashtag counts"),
        (["stats", "--records", "{records}", "--memory", "lots"], 2, "2GiB"),
        (["stats", "--records", "{records}", "--memory", "1k"], 2, "1 MiB"),
        (["stats", "--records", "{records}", "--counts", "x"], 2, "not both"),
        (
            ["vocabulary", "build", "--records", "{records}", "--min-count", "9999", "--out", "{records}/v"],
            2,
            "lower it",
        ),
        (
            [
                "vocabulary",
                "build",
                "--records",
                "{records}",
                "--wordnet",
                "{records}",
                "--out",
                "{records}/v",
            ],
            2,
            "wordnet-base",
        ),
        (["vocabulary", "build", "--records", "{records}", "--out", "{records}/0.parquet"], 2, "--overwrite"),
    ],
)
def test_bad_input_is_refused(
    capsys: pytest.CaptureFixture[str], records: Path, arguments: list[str], code: int, message: str
) -> None:
    found, text = refused(capsys, *(part.format(records=records) for part in arguments))
    assert (found, message in text) == (code, True), text


def test_a_vocabulary_is_made_and_says_what_it_covers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, records: Path
) -> None:
    (tmp_path / "without.txt").write_text("t1\n")
    out = tmp_path / "made" / "vocabulary.parquet"
    made = wsl_json(
        capsys,
        *("vocabulary", "build", "--records", records, "--min-count", 5, "--max-labels", 20),
        *("--exclude-tags", tmp_path / "without.txt", "--out", out, "--json"),
    )
    vocabulary = wsl.Vocabulary.read(out)
    assert made["labels"] == len(vocabulary) == 20
    assert made["fingerprint"] == vocabulary.fingerprint
    assert vocabulary.encode("t1") is None
    frame = pl.read_parquet(records / "*.parquet")
    known = pl.col("hashtags").list.eval(pl.element().is_in(vocabulary.names)).list.any()
    assert made["covered_records"] == frame.select(known.sum()).item()
    assert run(["vocabulary", "build", "--records", str(records), "--out", str(tmp_path / "v")]) == 0
    assert "records with a label" in capsys.readouterr().out


@pytest.mark.skipif(not WORDNET.exists(), reason="Debian's package wordnet-base is not installed")
def test_wordnet_merges_tags_for_the_vocabulary_and_the_index(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tags = [["#brownbear"], ["#brown_bear", "#Ursus arctos"], ["#ursusarctos"], ["#selfie"]]
    pl.DataFrame({"key": list("abcd"), "hashtags": tags}).write_parquet(tmp_path / "r.parquet")
    out = tmp_path / "v.parquet"
    arguments = ["vocabulary", "build", "--records", tmp_path / "r.parquet", "--out", out]
    assert run([str(a) for a in [*arguments, "--wordnet", WORDNET]]) == 0
    assert "brown_bear" in capsys.readouterr().out
    write_shard(tmp_path / "s.tar", [(key, {"jpg": b"x"}) for key in "abcd"])
    built = wsl_json(
        capsys,
        *("index", "build", "--shards", tmp_path / "s.tar", "--records", tmp_path / "r.parquet"),
        *("--label-kind", "hashtag", "--wordnet", WORDNET, "--out", tmp_path / "index", "--json"),
    )
    index = wsl.Index.open(tmp_path / "index")
    assert [row.tolist() for row in index.labels([0, 1, 2, 3])] == [[0], [0], [0], [1]]
    assert built[0]["vocabulary_fingerprint"] == wsl.Vocabulary.read(out).fingerprint


def test_weights_say_what_resampling_changes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    labels = [0] * 80 + [1] * 15 + [2] * 5
    write_shard(
        tmp_path / "s.tar",
        [(f"k{n}", {"jpg": b"x", "cls": str(label).encode()}) for n, label in enumerate(labels)],
    )
    assert (
        run(
            [
                "index",
                "build",
                "--shards",
                str(tmp_path / "s.tar"),
                "--label-kind",
                "class",
                "--out",
                str(tmp_path / "i"),
            ]
        )
        == 0
    )
    found = wsl_json(
        capsys,
        "weights",
        tmp_path / "i",
        "--scheme",
        "uniform",
        "--threshold",
        0.8,
        "--plot",
        tmp_path / "w.svg",
        "--json",
    )
    changes = {row["name"]: (row["before"], row["after"]) for row in found["changes"]}
    assert found["epoch_length"] == pytest.approx(240, rel=1e-5)
    assert found["largest_factor"] == pytest.approx(16)
    assert changes["effective number of classes"][1] == pytest.approx(3, rel=1e-5)
    shares = np.array([0.8, 0.15, 0.05])
    assert changes["effective number of classes"][0] == pytest.approx(
        np.exp(-(shares * np.log(shares)).sum())
    )
    assert (tmp_path / "w.svg").stat().st_size > 5000
    clipped = wsl_json(capsys, "weights", tmp_path / "i", "--balance", "clip", "--threshold", 0.1, "--json")
    assert clipped["epoch_length"] == pytest.approx(10 + 10 + 5, rel=1e-5)
    code, text = refused(capsys, "weights", tmp_path / "i", "--balance", "clip", "--epoch-length", 500)
    assert code == 2
    assert "at most once" in text
    assert run(["weights", str(tmp_path / "i")]) == 0
    assert "resampled" in capsys.readouterr().out


def test_sizes_are_read_as_people_write_them() -> None:
    sizes = {"2GiB": 2 << 30, "512M": 512 << 20, "1.5 gb": 3 << 29, "4096": 4096, "8k": 8192}
    assert {text: parse_bytes(text) for text in sizes} == sizes


def test_the_zipf_plot_is_the_same_for_any_number_of_tags_of_one_count() -> None:
    figure = plots.zipf({1: 5_000_000, 7: 3, 100: 1}, alpha=2.0, x_min=1, loglog_slope=-1.0)
    assert len(figure) < 200_000


def test_counts_note_the_version_of_unicode_and_others_are_not_joined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = []
    for number in range(2):
        records = tmp_path / f"{number}.parquet"
        pl.DataFrame({"key": [f"k{number}"], "hashtags": [["#a"]]}).write_parquet(records)
        parts.append(tmp_path / f"{number}.counts")
        assert run(["counts", "build", "--records", str(records), "--out", str(parts[-1])]) == 0
    note = Path(f"{parts[0]}.json")
    known = json.loads(note.read_text())
    assert known["unicode_version"] == _core.UNICODE_VERSION
    merge = ["counts", "merge", *map(str, parts), "--out"]
    note.write_text(json.dumps(known | {"unicode_version": "1.1.0"}))
    assert run([*merge, str(tmp_path / "all")]) == 2
    assert "normalized by Unicode 1.1.0" in " ".join(capsys.readouterr().err.split())
    # Counts from before the version was noted are taken as they are, and known again.
    del known["unicode_version"]
    note.write_text(json.dumps(known))
    assert run([*merge, str(tmp_path / "all")]) == 0
    again = ["counts", "build", "--records", str(tmp_path / "0.parquet"), "--out", str(parts[0])]
    assert run(again) == 0
    assert "up to date" in capsys.readouterr().err
