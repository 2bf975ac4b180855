"""Options of the command line: none is ignored, and each means one thing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import wsl
from tests.help.commands import refused, wsl_json
from wsl.cli import run
from wsl.index.shards import write_shard

WORKSPACE = """\
indexes:
  labelled: {shards: data/labelled.tar, label_kind: class, class_names: data/classes.txt}
  unlabelled: {shards: data/unlabelled.tar}
  hashtags: {shards: data/tagged.tar, records: data/tags.parquet, label_kind: hashtag}
  shown: {shards: data/tagged.tar, records: data/tags.parquet, label_kind: hashtag}
"""
KEYS = [f"k{number}" for number in range(8)]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Four small indexes, none of them built."""
    root = tmp_path / "workspace"
    data = root / "data"
    data.mkdir(parents=True)
    write_shard(data / "labelled.tar", [("a", {"png": b"x", "cls": b"0"}), ("b", {"png": b"y", "cls": b"1"})])
    (data / "classes.txt").write_text("cat\ndog\n")
    write_shard(data / "unlabelled.tar", [("u", {"png": b"z"})])
    write_shard(data / "tagged.tar", [(key, {"jpg": b"x"}) for key in KEYS])
    tags = [["common", f"rare{number}"] if number else ["common"] for number in range(len(KEYS))]
    other = [["second"] for _ in KEYS]
    table = pl.DataFrame({"key": KEYS, "hashtags": tags, "other": other})
    table = table.with_columns(text=pl.lit("one,two"))
    table.write_parquet(data / "tags.parquet")
    (root / "wsl.yaml").write_text(WORKSPACE)
    return root


Build = Callable[..., Any]


@pytest.fixture
def build(workspace: Path, capsys: pytest.CaptureFixture[str]) -> Build:
    """`wsl index build` in the workspace: what it prints."""
    return lambda *arguments: wsl_json(capsys, "index", "build", "-w", workspace, "--json", *arguments)


def names(folder: Path) -> list[str]:
    vocabulary = wsl.Index.open(folder).vocabulary
    assert vocabulary is not None
    return vocabulary.names


def test_options_stand_in_for_the_settings_of_one_index(
    workspace: Path, build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = workspace / "index" / "hashtags"
    assert build("hashtags", "--min-count", 2)[0]["state"] == "built"
    assert names(index) == ["common"]
    assert build("hashtags", "--min-count", 2)[0]["state"] == "up to date"
    code, text = refused(capsys, "index", "build", "hashtags", "-w", workspace)
    assert (code, "the setting vocabulary.min_count changed since" in text, "--overwrite" in text) == (
        2,
        True,
        True,
    )
    assert build("hashtags", "--max-labels", 3, "--overwrite")[0]["num_labels"] == 3
    assert build("hashtags", "--hashtags-column", "other", "--overwrite")[0]["num_labels"] == 1
    assert names(index) == ["second"]
    text = ["--hashtags-column", "text", "--separator", ","]
    assert build("hashtags", *text, "--overwrite")[0]["num_labels"] == 2
    assert names(index) == ["one", "two"]


def test_every_setting_of_an_index_can_be_given(
    workspace: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keep.txt").write_text("k1\nk2\nk3\n")
    (tmp_path / "drop.txt").write_text("k3\n")
    lists = ["--include", "keep.txt", "--exclude", "drop.txt"]
    assert build("unlabelled", "--label-kind", "class", "--out", "u", "--limit", "samples_split=0.5")
    assert wsl.Index.open(tmp_path / "u").info()["label_kind"] == "class"
    assert not (workspace / "index" / "unlabelled").exists()
    assert build("hashtags", *lists)[0]["num_samples"] == 2
    settings = wsl.Index.open(workspace / "index" / "hashtags").manifest["provenance"]["settings"]
    # A file outside the workspace is named by its whole path, whatever folder the command is started in.
    assert settings["include"] == str(tmp_path / "keep.txt")
    monkeypatch.chdir(workspace / "data")
    lists = ["--include", "../../keep.txt", "--exclude", "../../drop.txt"]
    assert build("hashtags", *lists)[0]["state"] == "up to date"

    pl.DataFrame({"key": range(8), "hashtags": [["one"]] * 8}).write_parquet("numbers.parquet")
    (workspace / "wsl.yaml").write_text(WORKSPACE.replace("tags.parquet", "numbers.parquet"))
    assert build("shown", "--key-format", "k{:d}", "--min-count", 1)[0]["state"] == "built"
    assert names(workspace / "index" / "shown") == ["one"]
    table = pl.DataFrame({"id": KEYS, "key": ["x"] * 8, "hashtags": [["two"]] * 8, "tar": ["tagged.tar"] * 8})
    table.write_parquet("numbers.parquet")
    scope = ["--key-scope", "shard", "--shard-column", "tar"]
    assert build("shown", "--key-column", "id", *scope, "--overwrite")[0]["state"] == "built"
    assert names(workspace / "index" / "shown") == ["two"]


def test_a_vocabulary_given_is_seen_from_the_current_folder(
    workspace: Path, build: Build, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace / "data")
    wsl_json(capsys, "vocabulary", "build", "--records", "tags.parquet", "--max-labels", 2, "--json")
    assert (workspace / "data" / "vocabulary.parquet").is_file()
    assert build("hashtags", "--vocabulary", "vocabulary.parquet")[0]["num_labels"] == 2
    # The same file named in wsl.yaml is the same setting.
    (workspace / "wsl.yaml").write_text(
        WORKSPACE.replace(
            "label_kind: hashtag}", "label_kind: hashtag, vocabulary: {file: data/vocabulary.parquet}}", 1
        )
    )
    assert build("hashtags")[0]["state"] == "up to date"
    code, text = refused(capsys, "index", "build", "hashtags", "-w", workspace, "--min-count", 2)
    assert (code, "--min-count would change nothing" in text, "read from" in text) == (2, True, True)


def test_options_hold_for_every_index_that_they_can_change(
    workspace: Path, build: Build, tmp_path: Path
) -> None:
    (tmp_path / "drop.txt").write_text("a\nk0\n")
    built = {each["name"]: each for each in build("--min-count", 2, "--exclude", tmp_path / "drop.txt")}
    assert [built[name]["num_labels"] for name in ("hashtags", "shown", "labelled")] == [1, 1, 2]
    assert [built[name]["num_samples"] for name in ("labelled", "unlabelled", "hashtags")] == [1, 1, 7]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "x"], "--out is about one index"),
        (["--include", "x"], "--include is about one index"),
        (["--label-kind", "class"], "--label-kind is about one index"),
        (["--key-scope", "shard"], "--key-scope is about one index"),
        (["--shard-column", "x"], "--shard-column would change nothing"),
        (["--synsets", "x"], "name its folder with --wordnet"),
        (["labelled", "--min-count", "2"], "--min-count would change nothing"),
        (["labelled", "--max-labels", "2"], "--max-labels would change nothing"),
        (["labelled", "--wordnet", "x"], "--wordnet would change nothing"),
        (["labelled", "--hashtags-column", "x"], "--hashtags-column would change nothing"),
        (["labelled", "--separator", ","], "--separator would change nothing"),
        (["labelled", "--key-column", "x"], "--key-column would change nothing"),
        (["labelled", "--key-format", "x"], "--key-format would change nothing"),
        (["unlabelled", "--vocabulary", "x"], "--vocabulary would change nothing"),
        (["hashtags", "--vocabulary", "x", "--min-count", "2"], "--min-count would change nothing"),
        (["hashtags", "--label-kind", "tags"], "label_kind"),
        (["hashtags", "--cluster-dir", "x"], "name a cluster with --cluster ADDRESS"),
    ],
)
def test_what_could_change_nothing_is_refused(
    workspace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, text = refused(capsys, "index", "build", "-w", workspace, *arguments)
    assert (code, words in text) == (2, True), text
    assert not (workspace / "index").exists()


def test_without_a_workspace_what_could_change_nothing_is_refused_too(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = [
        "--shards",
        workspace / "data" / "labelled.tar",
        "--label-kind",
        "class",
        "--out",
        tmp_path / "i",
    ]
    code, text = refused(capsys, "index", "build", *shards, "--min-count", 3)
    assert (code, "--min-count would change nothing" in text) == (2, True)
    code, text = refused(capsys, "index", "build", *shards, "-w", tmp_path)
    assert (code, "is no workspace" in text) == (2, True)


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Scores of forty images for three classes."""
    file = tmp_path / "scores.parquet"
    scores = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    pl.DataFrame(
        [pl.Series("sample", np.arange(40)), pl.Series("scores", scores, dtype=pl.Array(pl.Float32, 3))]
    ).write_parquet(file)
    return file


def test_no_plot_is_replaced_unasked(
    workspace: Path,
    build: Build,
    predictions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build("hashtags")
    state, out = tmp_path / "a.state", tmp_path / "o.parquet"
    select = ["pseudolabel", "--predictions", predictions, "--k", 3, "--p", 1, "--state", state, "--out", out]
    assert run([str(argument) for argument in select]) == 0
    plot = tmp_path / "p.svg"
    commands = [
        select,
        ["pseudolabel", "merge", state, "--out", tmp_path / "merged.parquet"],
        ["stats", "-w", workspace],
        ["weights", workspace / "index" / "hashtags"],
    ]
    for command in commands:
        plot.write_text("mine")
        code, text = refused(capsys, *command, "--plot", plot)
        assert (code, "pass --overwrite to replace it" in text, plot.read_text()) == (2, True, "mine")
        assert run([str(argument) for argument in [*command, "--plot", plot, "--overwrite"]]) == 0
        assert plot.read_text().startswith("<?xml")
        code, text = refused(capsys, *command, "--plot", "x.gif")
        assert (code, "ends in .svg" in text) == (2, True)


def test_a_wrong_size_is_refused_under_its_own_name(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["stats", "-w", workspace, "--cluster", "127.0.0.1:1"]
    code, text = refused(capsys, *command, "--cluster-group", "lots")
    assert (code, "--cluster-group lots: expected a size" in text, "--memory" in text) == (2, True, False)


def test_the_scheme_of_weights_is_one_choice(
    workspace: Path, build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    build("hashtags")
    weights = ["weights", workspace / "index" / "hashtags", "--threshold", 0.5]

    def found(*arguments: object) -> Any:
        return wsl_json(capsys, *weights, "--json", *arguments)

    assert found()["scheme"] == "square-root"
    assert (
        found("--scheme", "clip")
        == found("--balance", "clip")
        == found("--balance", "clip", "--scheme", "clip")
    )
    assert found("--scheme", "clip")["scheme"] == "clip"
    assert found("--balance", "repeat", "--scheme", "uniform") == found("--scheme", "uniform")
    for balance, scheme in (("clip", "uniform"), ("repeat", "clip"), ("clip", "natural")):
        code, text = refused(capsys, *weights, "--balance", balance, "--scheme", scheme)
        assert (code, "disagree" in text) == (2, True)
    assert run(["weights", "--help"]) == 0
    assert "--balance" not in capsys.readouterr().out


def test_counting_takes_the_workspace_as_every_command_does(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    named = wsl_json(capsys, "stats", "-w", workspace, "--json")
    assert named["records"] == 8
    assert named == wsl_json(capsys, "stats", workspace, "--json")
    assert named == wsl_json(capsys, "stats", workspace, "-w", workspace, "--json")
    for command in (["counts", "build"], ["vocabulary", "build"]):
        out = tmp_path / command[0]
        made = wsl_json(capsys, *command, "--workspace", workspace, "--out", out, "--json")
        # Two indexes are over these records, which count once.
        assert made.get("files", made.get("records")) in (1, 8)
    monkeypatch.setenv("WSL_WORKSPACE", str(workspace))
    assert wsl_json(capsys, "stats", "--json") == named
    monkeypatch.delenv("WSL_WORKSPACE")
    code, text = refused(capsys, "stats")
    assert (code, "is no workspace" in text) == (2, True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "wsl.yaml").write_text(WORKSPACE)
    code, text = refused(capsys, "stats", workspace, "-w", other)
    assert (code, "two workspaces" in text) == (2, True)
    # Records that are named come instead of those of the workspace, whose settings of stores hold.
    pl.DataFrame({"hashtags": [["a"], ["a", "b"]]}).write_parquet(tmp_path / "r.parquet")
    found = wsl_json(capsys, "stats", "-w", workspace, "--records", tmp_path / "r.parquet", "--json")
    assert found["records"] == 2


def test_threads_are_called_threads_and_the_old_name_is_taken(
    workspace: Path, predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    select = ["pseudolabel", "--predictions", predictions, "--k", 1, "--p", 1]
    commands = [
        ["stats", "-w", workspace],
        ["counts", "build", "-w", workspace, "--out", tmp_path / "c"],
        ["vocabulary", "build", "-w", workspace, "--out", tmp_path / "v"],
        ["index", "build", "-w", workspace],
        [*select, "--out", tmp_path / "o"],
    ]
    for command in commands:
        for flags in (["--threads", 2], ["--workers", 2], ["--workers", 1, "--threads", 1]):
            assert run([str(argument) for argument in [*command, *flags, "--overwrite"]]) == 0
        code, text = refused(capsys, *command, "--threads", 1, "--workers", 2, "--overwrite")
        assert (code, "two names of one option" in text) == (2, True)
        assert run([*map(str, command[: 1 + (command[1] == "build")]), "--help"]) == 0
        shown = capsys.readouterr().out
        assert "--threads" in shown
        assert "--workers" not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stats", "--counts", "x", "--threads", "2"], "--threads: with --counts no records are read"),
        (["stats", "--counts", "x", "--separator", ","], "--separator: with --counts"),
        (["stats", "--counts", "x", "--hashtags-column", "t"], "--hashtags-column: with --counts"),
        (["stats", "--counts", "x", "--cluster", "auto"], "--cluster: with --counts"),
        (["stats", "--counts", "x", "-w", "y"], "not both"),
        (["vocabulary", "build", "--counts", "x", "--workers", "2"], "--workers: with --counts"),
        (["stats", "--records", "x", "--cluster-group", "1GiB"], "name a cluster with --cluster"),
        (["stats", "--records", "x", "--cluster", "none", "--cluster-dir", "d"], "name a cluster"),
        (["stats", "--records", "x", "--cluster", "h:1", "--threads", "2"], "--threads is for this machine"),
        (["counts", "build", "--records", "{here}", "--out", "o", "--cluster", "h:1", "--workers", "2"],
         "--threads is for this machine"),
        (["index", "build", "--records", "x", "--out", "o", "--cluster", "h:1", "--threads", "2"],
         "--threads is for this machine"),
        (["pseudolabel", "--k", "1", "--p", "1", "--predictions", "x", "--cluster", "h:1", "--threads", "2"],
         "--threads is for this machine"),
        (["pseudolabel", "--k", "1", "--p", "1", "--cluster", "h:1", "--num-accelerators", "2"],
         "--num-accelerators is for this machine"),
        (["pseudolabel", "--k", "1", "--p", "1", "--predictions", "x", "--no-flip"], "--flip: with --pred"),
        (["pseudolabel", "--k", "1", "--p", "1", "--predictions", "x", "--temperature", "1"],
         "--temperature: with --predictions nothing is scored"),
        (["pseudolabel", "--k", "1", "--p", "1", "--predictions", "x", "--keep", "all"], "--keep: with"),
        (["pseudolabel", "--k", "1", "--p", "1", "--predictions", "x", "--checkpoint", "y"],
         "--checkpoint: with --predictions nothing is scored"),
        (["pseudolabel", "--k", "1", "--p", "1", "--predictions", "x", "--num-accelerators", "2"],
         "--num-accelerators: with --predictions"),
        (["pseudolabel", "--k", "1", "--p", "1", "--truth-column", "x"], "there is no --truth FILE"),
        (["pseudolabel", "--k", "1", "merge", "x", "--out", "y"], "--k: options of 'merge' come after it"),
    ],
)  # fmt: skip
def test_an_option_that_changes_nothing_is_refused(
    predictions: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, text = refused(capsys, *(argument.format(here=predictions) for argument in arguments))
    assert (code, words in text) == (2, True), text


def test_an_image_is_not_written_where_records_have_none(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = ["--records", workspace / "data" / "tags.parquet", "--out", tmp_path / "i"]
    wsl_json(capsys, "index", "build", *records, "--json")
    code, text = refused(capsys, "index", "get", tmp_path / "i", 0, "--out", tmp_path / "a.png")
    assert (code, "has no image to write" in text, (tmp_path / "a.png").exists()) == (2, True, False)


def test_the_package_is_a_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wsl", "--version"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == f"wsl {wsl.__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "wsl", "index", "info", "none"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "is not an index" in done.stderr


def test_a_selection_that_is_there_does_not_pass_for_one_with_more_in_its_report(
    predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.parquet"
    select = ["pseudolabel", "--predictions", predictions, "--k", 3, "--p", 1, "--out", out, "--json"]
    truth = tmp_path / "t.parquet"
    pl.DataFrame({"sample": np.arange(40), "label": np.arange(40) % 3, "other": 0}).write_parquet(truth)
    assert wsl_json(capsys, *select)["state"] == "selected"
    code, text = refused(capsys, *select, "--truth", truth)
    assert (code, f"lacks the precision by --truth {truth}" in text, "--overwrite" in text) == (2, True, True)
    first = wsl_json(capsys, *select, "--truth", truth, "--overwrite")
    again = wsl_json(capsys, *select, "--truth", truth)
    assert (again["state"], again["precision"]) == ("up to date", first["precision"])
    # Another column, or other content, is another truth.
    assert refused(capsys, *select, "--truth", truth, "--truth-column", "other")[0] == 2
    pl.DataFrame({"sample": np.arange(40), "label": 0, "other": 0}).write_parquet(truth)
    assert refused(capsys, *select, "--truth", truth)[0] == 2
    assert wsl_json(capsys, *select)["precision"] == first["precision"]


def test_how_far_orders_agree_is_not_left_out_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = pl.DataFrame({"sample": [0, 0, 1, 1], "class": [0, 1, 0, 1], "score": [1.0, 2.0, 3.0, 4.0]})
    pairs.with_columns(pl.col("score").cast(pl.Float32)).write_parquet(tmp_path / "p.parquet")
    select = ["pseudolabel", "--predictions", tmp_path / "p.parquet", "--k", 1, "--p", 1, "--json"]
    select += ["--out", tmp_path / "o.parquet"]
    assert wsl_json(capsys, *select)["agreement_of_orders"] is None
    code, text = refused(capsys, *select, "--compare-orders")
    assert (code, "lacks how far the orders agree" in text) == (2, True)
    assert wsl_json(capsys, *select, "--compare-orders", "--overwrite")["agreement_of_orders"] is not None
    assert wsl_json(capsys, *select, "--compare-orders")["state"] == "up to date"


def test_a_state_is_not_replaced_unasked(
    predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "a.state"
    select = ["pseudolabel", "--predictions", predictions, "--p", 1, "--state", state, "--json"]
    state.write_bytes(b"mine")
    code, text = refused(capsys, *select, "--k", 2, "--out", tmp_path / "o.parquet")
    assert (code, "pass --overwrite to replace it" in text, state.read_bytes()) == (2, True, b"mine")
    assert not (tmp_path / "o.parquet").exists()
    wsl_json(capsys, *select, "--k", 2, "--out", tmp_path / "o.parquet", "--overwrite")
    # As a command that was killed after it saved its state would find it.
    (tmp_path / "o.parquet").unlink()
    assert wsl_json(capsys, *select, "--k", 2, "--out", tmp_path / "o.parquet")["state"] == "selected"
    assert refused(capsys, *select, "--k", 3, "--out", tmp_path / "o3.parquet")[0] == 2
    for flag in ("--k", "--p"):
        merge = ["pseudolabel", "merge", state, "--out", tmp_path / "m.parquet", flag, 0]
        code, text = refused(capsys, *merge)
        assert (code, f"{flag} 0: expected at least 1" in text) == (2, True)


def test_options_of_a_set_that_is_not_laid_out_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for dataset in ("openclipart", "none"):
        code, text = refused(capsys, "init", tmp_path / "w", "--dataset", dataset, "--num-labelled", 20)
        assert (code, "--num-labelled: this is for --dataset fashion-mnist" in text) == (2, True)
    code, text = refused(capsys, "init", tmp_path / "w", "--dataset", "none", "--source", tmp_path)
    assert (code, "--source: with --dataset none" in text, (tmp_path / "w").exists()) == (2, True, False)


def test_natural_sampling_takes_no_threshold(
    workspace: Path, build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    build("hashtags")
    natural = ["weights", workspace / "index" / "hashtags", "--scheme", "natural"]
    assert wsl_json(capsys, *natural, "--json")["scheme"] == "natural"
    for flag in ("--threshold", "--epoch-length"):
        code, text = refused(capsys, *natural, flag, 0.5)
        assert (code, f"{flag}: natural sampling shows every sample once" in text) == (2, True)


def test_a_study_is_shown_as_json_and_kept_in_the_workspace_that_is_named(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsl.studies import run as studies

    study = studies.load(studies.StudyConfig, studies.study_file("fashion-mnist-k"))
    folders: list[Path] = []

    def dry(request: studies.StudyRequest, **_: object) -> studies.StudyResult:
        folders.append(studies._root(request, study))
        return studies.StudyResult("fashion-mnist-k", folders[-1], study, pl.DataFrame({"step": [1]}), 0, 4)

    monkeypatch.setattr(studies, "run_study", dry)
    monkeypatch.chdir(workspace.parent)
    command = ["study", "fashion-mnist-k", "--dry-run", "--json"]
    shown = wsl_json(capsys, *command)
    assert (shown["num_steps"], shown["num_missing"]) == (5, 4)
    wsl_json(capsys, *command, "-w", workspace)
    assert folders == [workspace.parent / "studies", workspace / "studies"]
