"""A workspace as one page: every step's figures, as far as there are any.

What is missing is left out; what is damaged is a DataError that names the file. The studies of the
workspace are at the end, with their findings and figures.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from wsl._core import __version__
from wsl.figures.page import Block, HeadingBlock, LinkBlock, Page, Section, TextBlock
from wsl.report.indexes import built_indexes, hashtag_sections, index_section
from wsl.report.pictures import selection_pictures, tagged_pictures
from wsl.report.runs import read_runs, run_sections
from wsl.report.selection import read_selection, selection_sections
from wsl.studies.page import REPORT, Study, figure_blocks, findings_section, read_study, study_facts
from wsl.studies.results import RESULTS
from wsl.workspace.layout import Workspace


def workspace_page(folder: Path | None, out: Path, truth: Path | None = None) -> Page:
    """The page of the workspace in `folder`, to be written to `out` (its links are seen from there).

    `truth` is a table of the true classes of selected images: sample or key, and class or label.
    """
    workspace = Workspace.find(folder)
    sections = workspace_sections(workspace, truth=truth)
    sections += study_sections(workspace.root, out)
    return Page(
        title=workspace.root.name,
        subtitle=str(workspace.root),
        facts=page_facts(),
        sections=sections or [Section("Nothing yet", "Run 'wsl index build' first.", [])],
    )


def page_facts() -> list[tuple[str, str]]:
    """Where and with what the page was made."""
    return [("wsl", __version__), ("Python", platform.python_version()), ("machine", platform.machine())]


def workspace_sections(workspace: Workspace, prefix: str = "", truth: Path | None = None) -> list[Section]:
    """The sections of a workspace; `prefix` goes before their headings."""
    indexes = built_indexes(workspace)
    selected = read_selection(workspace, truth)
    pictured = None if selected is None else indexes.get(workspace.unlabelled())
    sections = [
        *run_sections(read_runs(workspace.root), prefix),
        *index_section(workspace, indexes, prefix),
        *hashtag_sections(indexes, prefix),
        *selection_sections(selected, prefix),
        *selection_pictures(selected, pictured, _predictions(workspace), prefix),
    ]
    for index in indexes.values():
        if index.label_kind == "hashtag":
            sections += tagged_pictures(index, prefix)
    return [_headed(section, prefix) for section in sections]


def _headed(section: Section, prefix: str) -> Section:
    """A heading that begins the line begins with a capital."""
    if prefix:
        return section
    return Section(section.title[:1].upper() + section.title[1:], section.text, section.blocks)


def _predictions(workspace: Workspace) -> Path | None:
    """The newest teacher's folder of predictions of the unlabelled index."""
    if "student" not in workspace.config.stages and "unlabelled" not in workspace.config.indexes:
        return None
    folders = [path for path in workspace.predictions_path(workspace.unlabelled()).glob("*") if path.is_dir()]
    return max(folders, key=lambda path: path.stat().st_mtime_ns, default=None)


def study_sections(root: Path, out: Path) -> list[Section]:
    """The studies under the workspace, in the order of their names."""
    found = []
    for results in sorted((root / "studies").glob(f"*/{RESULTS}")):
        study = read_study(results.parent)
        found.append(
            Section(f"Study: {study.config.title}", study.config.about.strip(), _study(study, results, out))
        )
    return found


def _study(study: Study, results: Path, out: Path) -> list[Block]:
    facts = "; ".join(f"{name}: {value}" for name, value in study_facts(study))
    blocks: list[Block] = [TextBlock(f"{facts}.")]
    findings = findings_section(study)
    if findings is not None:
        blocks += findings.blocks
    for figure in study.config.figures:
        text = [TextBlock(figure.text.strip())] if figure.text else []
        blocks += [HeadingBlock(figure.title), *text, *figure_blocks(figure, study.rows)]
    report = results.parent / REPORT
    if report.is_file():
        path = os.path.relpath(report.resolve(), out.resolve().parent)
        blocks.append(LinkBlock("The study's own page, with every row and its limits", Path(path).as_posix()))
    return blocks
