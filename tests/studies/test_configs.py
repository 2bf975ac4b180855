"""Every study that comes with the package holds together: its data, indexes, steps and figures."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from wsl.carried import configs_folder, fashion_mnist, openclipart
from wsl.index.shards import Sample
from wsl.studies.plan import axis_values, plan_steps
from wsl.studies.run import StudyRequest, run_study
from wsl.studies.spec import StudyConfig
from wsl.workspace.settings import load

FILES = sorted((configs_folder() / "studies").glob("*.yaml"))
GENERIC = {
    "k": "fashion-mnist-500",
    "shift": "fashion-mnist-500",
    "noise": "openclipart",
    "sampling": "openclipart",
}
"""Studies of any workspace, and one that has what they need."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for studies over a stub of the carried data: all keys, tags and classes, and one small image.

    A plan asks which samples there are, and of what class, and never for a pixel.
    """
    out = io.BytesIO()
    Image.new("L", (1, 1)).save(out, "PNG")

    def samples(part: fashion_mnist.Part, prefix: str, *, with_class: bool) -> Iterator[Sample]:
        for label, number in zip(part.labels.tolist(), part.numbers.tolist(), strict=True):
            labels = {"cls": str(label).encode()} if with_class else {}
            yield f"{prefix}-{number:06}", {"png": out.getvalue()} | labels

    def image(number: int) -> bytes:
        return out.getvalue()

    clipart = openclipart.read_carried
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fashion_mnist, "_samples", samples)
        patch.setattr(openclipart, "read_carried", lambda file: replace(clipart(file), image=image))
        yield tmp_path_factory.mktemp("studies")


def test_the_study_on_the_page_of_studies_holds_together(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "guide" / "studies.md"
    found = re.search(r"```yaml\n(title: .*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    (tmp_path / "mine.yaml").write_text(found.group(1))
    study = load(StudyConfig, tmp_path / "mine.yaml")
    plan = plan_steps(study, axis_values(study, {}))
    assert {name: len(steps) for name, steps in plan.templates().items()} == {
        "teacher": 3,
        "chosen": 9,
        "student": 18,
        "finetuned": 18,
    }


def test_the_studies_of_the_commands_are_there() -> None:
    assert set(GENERIC) <= {file.stem for file in FILES}


# Those that bring data along come first, since the others borrow it.
@pytest.mark.parametrize("file", sorted(FILES, key=lambda file: file.stem in GENERIC), ids=lambda f: f.stem)
def test_a_study_is_planned_to_its_last_step(file: Path, root: Path) -> None:
    study = load(StudyConfig, file)
    if not Path("/usr/share/wordnet/index.noun").is_file() and "wordnet" in file.read_text():
        pytest.skip("WordNet is not installed")
    borrowed = root / "data" / GENERIC[file.stem] if file.stem in GENERIC else None
    result = run_study(StudyRequest(file.stem, out=root, workspace=borrowed, dry_run=True))
    assert result.num_missing > 10
    assert {step for figure in study.figures for step in figure.steps} <= {*study.runs, *study.selections}
    assert study.figures
    assert study.findings
