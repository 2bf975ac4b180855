"""The command line in one process: what it prints, what it refuses, with which exit codes."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from PIL import Image

import wsl
from tests.help.commands import refused, wsl_json
from tests.help.workspaces import NUM_TEST
from wsl.cli import run
from wsl.errors import exit_code, explain
from wsl.index.shards import write_shard

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_help_of_every_command_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    commands = ["", "demo", "init", "stats", "train", "score", "evaluate", "export", "predict", "report"]
    commands += ["doctor", "pseudolabel", "pseudolabel merge", "shards pack", "index", "weights"]
    commands += ["counts", "counts build", "counts merge", "vocabulary", "vocabulary build"]
    commands += ["index build", "index info", "index verify", "index get"]
    for command in commands:
        assert run([*command.split(), "--help"]) == 0
        assert "Usage: wsl" in capsys.readouterr().out


def test_the_data_commands_load_no_torch(workspace: Path) -> None:
    code = (
        "import sys; from wsl.cli import run; import wsl; wsl.TopK; wsl.Index\n"
        f"assert run(['index', 'info', r'{workspace}/index/test', '--json']) == 0\n"
        f"assert run(['index', 'build', '-w', r'{workspace}']) == 0\n"
        "assert 'torch' not in sys.modules and 'deepspeed' not in sys.modules\n"
        "assert run(['--help']) == 0 and 'polars' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=workspace, stdout=subprocess.DEVNULL)


def test_help_loads_neither_torch_nor_polars() -> None:
    code = (
        "import sys; from wsl.cli import run; run(['--help'])\n"
        "assert not {'torch', 'polars', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)


def test_building_again_is_up_to_date_and_new_shards_are_appended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--shards", f"{tmp_path}/*.tar", "--out", tmp_path / "index", "--json"]
    write_shard(tmp_path / "b.tar", [("b0", {"png": b"x"}), ("b1", {"png": b"y"})])
    assert wsl_json(capsys, "index", "build", *options)[0]["state"] == "built"
    assert wsl_json(capsys, "index", "build", *options)[0]["state"] == "up to date"
    write_shard(tmp_path / "a.tar", [("a0", {"png": b"z"})])
    assert wsl_json(capsys, "index", "build", *options)[0]["state"] == "appended"
    assert wsl.Index.open(tmp_path / "index").keys(np.arange(3)) == ["b0", "b1", "a0"]
    write_shard(tmp_path / "b.tar", [("c0", {"png": b"x"})])
    code, text = refused(capsys, "index", "build", *options)
    assert code == 2
    assert "b.tar changed since" in text
    assert "--overwrite" in text


def test_one_sample_is_shown_by_ordinal_and_key(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = workspace / "index" / "test"
    row = wsl_json(capsys, "index", "get", index, "3", "--json")
    assert row["key"] == "test-000003"
    again = wsl_json(capsys, "index", "get", index, "test-000003", "--out", tmp_path / "a.png", "--json")
    assert again == row
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (28, 28)


def test_statistics_are_one_json_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tags = [[f"t{n}" for n in range(i % 7)] for i in range(60)]
    pl.DataFrame({"hashtags": tags}).write_parquet(tmp_path / "r.parquet")
    records = tmp_path / "r.parquet"
    found = wsl_json(
        capsys, "stats", "--records", records, "--json", "--plot", tmp_path / "z.svg", "--top", 2
    )
    assert found["records"] == 60
    assert found["top"] == [["t0", 51], ["t1", 42]]
    assert set(found["zipf"]) >= {"alpha", "standard_error", "x_min", "ks_distance", "rank_exponent"}
    assert (tmp_path / "z.svg").read_text().lstrip().startswith("<?xml")
    code, text = refused(capsys, "stats", "--records", records, "--hashtags-column", "tags")
    assert (code, "columns are: hashtags" in text) == (2, True)


def test_selection_scores_first_agrees_with_polars_and_is_then_up_to_date(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = wsl_json(capsys, "pseudolabel", "-w", workspace, "--k", 40, "--p", 2, "--keep", "all", "--json")
    assert report["state"] == "selected"
    assert wsl_json(capsys, "pseudolabel", "-w", workspace, "--k", 40, "--p", 2, "--json")["state"] == (
        "up to date"
    )
    code, text = refused(capsys, "pseudolabel", "-w", workspace, "--k", 30, "--p", 2)
    assert (code, "k differ" in text) == (2, True)
    table = pl.read_parquet(workspace / "pseudolabels.parquet")
    files = list((workspace / "predictions" / "unlabelled").rglob("*.parquet"))
    scores = (
        pl.read_parquet(files)
        .with_columns(pl.lit(list(range(10))).alias("class"))
        .explode("scores", "class")
        .sort(["class", "scores", "sample"], descending=[False, True, False])
    )
    best = scores.group_by("class", maintain_order=True).head(40)
    kept = (
        best.sort(["sample", "scores", "class"], descending=[False, True, False])
        .group_by("sample", maintain_order=True)
        .head(2)
    )
    expected = set(kept.select("sample", "class").iter_rows())
    assert set(table.select("sample", "class").iter_rows()) == expected
    assert table.columns == ["sample", "key", "class", "score", "probability", "rank"]
    # Straight into the selection, in two parts of states, and from cut predictions: the same file.
    direct = tmp_path / "direct.parquet"
    arguments = [
        "--checkpoint",
        workspace / "runs" / "teacher",
        "--index",
        workspace / "index" / "unlabelled",
    ]
    state = tmp_path / "part.state"
    wsl_json(
        capsys, "pseudolabel", *arguments, "--k", 40, "--p", 2, "--out", direct, "--state", state, "--json"
    )
    assert pl.read_parquet(direct).equals(table)
    merged = tmp_path / "merged.parquet"
    wsl_json(
        capsys, "pseudolabel", "merge", state, "--index", arguments[3], "--out", merged, "--p", 2, "--json"
    )
    assert pl.read_parquet(merged).equals(table)
    cut = tmp_path / "cut"
    wsl_json(capsys, "score", *arguments, "--out", cut, "--keep", 3, "--json")
    code, text = refused(
        capsys, "pseudolabel", "--predictions", cut, "--k", 480, "--p", 2, "--out", tmp_path / "c.parquet"
    )
    assert (code, "best classes of an image" in text) == (2, True)


def test_a_run_is_evaluated_exported_and_predicts(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, test = workspace / "runs" / "teacher", workspace / "index" / "test"
    found = wsl_json(capsys, "evaluate", teacher, "--index", test, "--json")
    recorded = json.loads((teacher / "run.json").read_text())["evaluation"]
    assert found["top1"] == pytest.approx(recorded["top1"])
    assert sum(map(sum, found["confusion"])) == found["num_samples"] == NUM_TEST
    assert run(["export", str(teacher), str(tmp_path / "model")]) == 0
    assert run(["export", str(teacher), str(tmp_path / "model")]) == 2
    assert run(["index", "get", str(test), "0", "--out", str(tmp_path / "a.png")]) == 0
    capsys.readouterr()
    answers = [
        wsl_json(capsys, "predict", m, tmp_path / "a.png", "--json") for m in (teacher, tmp_path / "model")
    ]
    assert answers[0] == answers[1]
    assert len(answers[0][0]["classes"]) == 3
    (tmp_path / "no.png").write_bytes(b"no image")
    code, text = refused(capsys, "predict", teacher, tmp_path / "no.png")
    assert (code, "no.png: expected an image" in text) == (3, True)


def test_a_report_of_a_workspace_is_written(workspace: Path, tmp_path: Path) -> None:
    assert run(["report", "-w", str(workspace), "--out", str(tmp_path / "r.html")]) == 0
    assert "teacher" in (tmp_path / "r.html").read_text()
    assert run(["report", "-w", str(workspace), "--out", str(tmp_path / "r.html")]) == 2


def test_an_image_folder_is_packed_and_indexed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "tree" / name / "a.b.jpg")
    wsl_json(capsys, "shards", "pack", tmp_path / "tree", "--out", tmp_path / "data", "--json")
    options = [
        "--shards",
        f"{tmp_path}/data/*.tar",
        "--label-kind",
        "class",
        "--out",
        tmp_path / "i",
        "--json",
    ]
    assert wsl_json(capsys, "index", "build", *options)[0]["num_labels"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["index", "build", "-w", "{none}"], 2, "is no workspace"),
        (["index", "build", "nothing", "-w", "{root}"], 2, "names no index 'nothing'"),
        (["index", "info", "{none}"], 2, "is not an index"),
        (["index", "get", "{root}/index/test", "99999"], 2, "ordinals run from 0 to 299"),
        (["index", "get", "{root}/index/test", "nokey"], 2, "no sample with the key"),
        (["index", "build", "--shards", "{none}/*.tar", "--out", "{none}/i"], 2, "no file matches"),
        (["index", "build", "--bogus"], 2, "No such option"),
        (["pseudolabel", "-w", "{root}"], 2, "--k and --p are needed"),
        (["pseudolabel", "-w", "{root}", "--k", "0", "--p", "1"], 2, "--k 0: expected at least 1"),
        (["pseudolabel", "-w", "{root}", "--k", "1", "--p", "0"], 2, "--p 0: expected at least 1"),
        (["pseudolabel", "-w", "{root}", "--k", "1", "--p", "1", "--order", "up"], 2, "class-first"),
        (["score", "-w", "{root}", "--keep", "some"], 2, "or all"),
        (["train", "-w", "{root}", "--stage", "finetune"], 2, "no complete student run"),
        (["train", "-w", "{root}", "--stage", "pretrain"], 2, "has no stage 'pretrain'"),
        (["train", "-w", "{root}", "--stage", "teacher", "--set", "optimizer.rl=1"], 2, "did you mean 'lr'"),
        (["train", "-w", "{root}", "--stage", "teacher", "--set", "num_steps=0"], 2, "num_steps"),
        (["train", "-w", "{root}", "--stage", "teacher", "--set", "num_steps=9"], 2, "num_steps"),
        (["train", "-w", "{root}", "--stage", "teacher", "-c", "none.yaml"], 2, "none.yaml"),
        (
            ["train", "-w", "{root}", "--stage", "teacher", "--out", "{none}/r", "--resume", "{root}/data"],
            3,
            "not a complete checkpoint",
        ),
        (["evaluate", "{none}", "--index", "{root}/index/test"], 2, "is not a complete run"),
        (["export", "{root}/data", "{none}/m"], 2, "is not a complete run"),
        (["init", "{none}/w", "--dataset", "imagenet"], 2, "expected one of"),
        (["stats", "--records", "{none}/*.parquet"], 2, "no file matches"),
        (["stats", "{root}"], 2, "names no hashtag records"),
        (["shards", "pack", "{none}"], 2, "no images found"),
    ],
)
def test_wrong_usage_names_what_was_expected(
    workspace: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    filled = [text.format(root=workspace, none=tmp_path) for text in arguments]
    assert refused(capsys, *filled)[0] == code
    run(filled)
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_bad_data_names_file_and_place(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = next((workspace / "data").glob("test-*.tar")).read_bytes()
    (tmp_path / "cut.tar").write_bytes(shard[:5000])
    options = ["--shards", tmp_path / "cut.tar", "--out", tmp_path / "i"]
    code, text = refused(capsys, "index", "build", *options)
    assert (code, "cut.tar: at byte" in text, "cut short" in text) == (3, True, True)
    (tmp_path / "empty.parquet").touch()
    code, text = refused(capsys, "stats", "--records", tmp_path / "empty.parquet")
    assert (code, "the file is empty" in text) == (3, True)
    (tmp_path / "bad.yaml").write_text("stage: teacher\nmodle: {}\n")
    code, text = refused(capsys, "train", "-w", workspace, "--stage", "teacher", "-c", tmp_path / "bad.yaml")
    assert (code, "unknown key 'modle'; did you mean 'model'?" in text) == (2, True)


def test_a_stage_trains_on_several_indexes_of_a_workspace(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (workspace / "wsl.yaml").read_text()
    tree = yaml.safe_load(text)
    tree["stages"]["teacher"]["index"] = {"labelled": 3, "test": 1}
    (tmp_path / "wsl.yaml").write_text(yaml.safe_dump(tree))
    for name in ("index", "configs", "data"):
        (tmp_path / name).symlink_to(workspace / name)
    command = ["train", "-w", str(tmp_path), "--stage", "teacher", "--set", "num_steps=4"]
    assert run([*command, "--set", "data.sampling=uniform", "--set", "data.label_noise=0.5"]) == 0
    info = json.loads((tmp_path / "runs" / "teacher" / "run.json").read_text())
    assert info["inputs"]["index_weights"] == [3, 1]
    assert info["inputs"]["index_fingerprint"].count("+") == 1
    code, said = refused(capsys, *command)
    assert (code, "data.label_noise, data.sampling differ" in said) == (2, True)
    tree["stages"]["teacher"]["index"] = ["labelled", "unlabelled"]
    (tmp_path / "wsl.yaml").write_text(yaml.safe_dump(tree))
    code, said = refused(capsys, *command, "--overwrite")
    assert (code, "have different vocabularies" in said) == (2, True)


def test_corrupt_images_are_replaced_and_counted_and_too_many_fail_the_run(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = wsl.Index.open(workspace / "index" / "test")
    samples: list[tuple[str, dict[str, bytes]]] = [
        (key, {"png": content, "cls": str(int(labels[0])).encode()})
        for key, content, labels in zip(
            index.keys(np.arange(200)), index.read(np.arange(200)), index.labels(np.arange(200)), strict=True
        )
    ]
    samples[7][1]["png"] = samples[7][1]["png"][:60]
    write_shard(tmp_path / "a.tar", samples)
    classes = (workspace / "data" / "classes.txt").read_text().splitlines()
    wsl.build_index(tmp_path / "i", [tmp_path / "a.tar"], label_kind="class", class_names=classes)
    config = workspace / "configs" / "stages" / "fashion-mnist-teacher.yaml"
    base = ["train", "--stage", "teacher", "--index", tmp_path / "i", "-c", config, "--set", "num_steps=4"]
    code = run([str(a) for a in [*base, "--out", tmp_path / "good"]])
    assert code == 0
    assert "corrupt images replaced" in capsys.readouterr().err
    limit = ["--set", "data.max_corrupt_share=0.001"]
    code, text = refused(capsys, *base, *limit, "--out", tmp_path / "bad")
    assert (code, "could not be decoded" in text) == (3, True)
    assert not (tmp_path / "bad" / "model.safetensors").exists()


def test_doctor_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    run(["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert {"Python", "engine", "C++ compiler", "ninja", "torch", "deepspeed", "carried data"} <= set(checks)
    assert checks["carried data"]["remedy"] == ""


def test_a_full_disk_is_named_with_its_remedy() -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    assert explain(error).startswith("no space is left on the disk; free some")
    assert exit_code(error) == 1
