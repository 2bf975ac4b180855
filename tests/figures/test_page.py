"""Reports: one file that needs nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from wsl.figures import plots
from wsl.figures.charts import Band, Chart, Point, chart
from wsl.figures.page import (
    Badge,
    GalleryBlock,
    Group,
    HeadingBlock,
    Lines,
    LinkBlock,
    Page,
    Picture,
    Section,
    SvgBlock,
    TableBlock,
    TextBlock,
    render,
    write,
)

HOSTILE = '<script>alert("x")</script> & $x$'
VOID = {"meta", "img", "link", "br"}


class Balance(HTMLParser):
    """Checks that tags outside SVG close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page() -> Page:
    svgs = [
        plots.zipf({100: 1, 40: 1, 10: 2, 3: 9, 1: 30}, alpha=2.0, x_min=3, loglog_slope=-1.2),
        plots.selection_balance([HOSTILE, "b"], [5, 3], [4, 3]),
        plots.curves({HOSTILE: [(1, 2.0), (2, 1.0)]}, ylabel="loss"),
        plots.accuracies([("a: b", 0.5, 1.0), (HOSTILE, 0.25, None)]),
        plots.confusion(["a", HOSTILE], [[3, 1], [0, 4]]),
        chart(
            Chart(
                HOSTILE,
                {HOSTILE: [Point(1, 0.5, 0.4, 0.6, [0.5]), Point(1000, 0.6)]},
                [Band(HOSTILE, 0.5, 0.4, 0.6)],
                xlabel=HOSTILE,
                reference=[(HOSTILE, 0.5)],
            )
        ),
        chart(Chart(HOSTILE, {"a": [Point(HOSTILE, 1.0)], "b": [Point("c", 9.0, 8.0, 10.0)]})),
    ]
    blocks = [TextBlock(HOSTILE), *(SvgBlock(svg, HOSTILE) for svg in svgs)]
    more = [
        HeadingBlock(HOSTILE),
        LinkBlock(HOSTILE, f"studies/{HOSTILE}/report.html"),
        TableBlock(["name", "number"], [[HOSTILE, "1,234"], ["b", "5.5%"]], "caption"),
        TableBlock([HOSTILE, "b"], [[Badge(HOSTILE, "good"), Lines(HOSTILE, [HOSTILE])]], stack=True),
        GalleryBlock([Group(HOSTILE, [(HOSTILE, [Picture(b"\x89PNG", HOSTILE, marked=True)])])]),
    ]
    return Page(HOSTILE, HOSTILE, [("a", HOSTILE)], [Section(HOSTILE, HOSTILE, [*blocks, *more])])


def test_a_page_is_well_formed_escaped_and_needs_no_network() -> None:
    text = render(page())
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert "<script" not in text
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"'\s<)]+", text)) <= namespaces
    assert "data:image/png;base64," in text
    assert '<td class="number">1,234</td>' in text


def test_references_inside_plots_lead_somewhere() -> None:
    text = render(page())
    ids = set(re.findall(r'id="([^"]+)"', text))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= ids
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= ids


def test_nothing_to_show_is_said_in_words() -> None:
    svgs = [
        plots.zipf({}, alpha=2.0, x_min=1, loglog_slope=-1.0),
        plots.selection_balance([], [], []),
        plots.curves({"a": []}, ylabel="loss"),
        plots.accuracies([]),
        plots.confusion([], []),
    ]
    assert all("Nothing to draw" in svg for svg in svgs)
    text = render(Page("t", sections=[Section("s", "", [TableBlock(["a"], []), GalleryBlock([])])]))
    assert "no rows" in text
    assert "no pictures" in text


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    write(tmp_path / "deeper" / "r.html", page())
    assert (tmp_path / "deeper" / "r.html").read_text().startswith("<!doctype html>")
    assert len(list((tmp_path / "deeper").iterdir())) == 1
