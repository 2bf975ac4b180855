"""A report as one HTML file that needs nothing else: style, plots and pictures are inside.

Data classes describe what is on the page, `render` writes it, `write` publishes it. Every text is
escaped; plots come from `wsl.figures.plots` as they are.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from wsl.files.publish import publish_text

CSS = """
:root{color-scheme:light dark;--ink:#1d2733;--soft:#5f6b7a;--line:#e1e6ec;--ground:#f6f8fa;--card:#fff;--link:#0072b2;--good:#00694d;--open:#7d5700;--bad:#b04a00}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf1;--soft:#9aa7b6;--line:#2b3644;--ground:#10161d;--card:#18212b;--link:#6bb8ea;--good:#4fd1a5;--open:#f0c25b;--bad:#ff9a5c}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
.frame{max-width:1180px;margin:0 auto;padding:48px 24px 96px;display:grid;grid-template-columns:minmax(0,1fr);gap:40px}
@media(min-width:1000px){.frame{grid-template-columns:190px minmax(0,1fr)}nav{position:sticky;top:32px;align-self:start}}
header{grid-column:1/-1}
h1{font-size:2.2rem;line-height:1.15;margin:0 0 8px;letter-spacing:-.02em}
.subtitle{color:var(--soft);font-size:1.1rem;margin:0 0 20px;max-width:48em}
.facts{display:flex;flex-wrap:wrap;gap:8px 28px;margin:0}
.facts dt{color:var(--soft);font-size:.75rem;text-transform:uppercase;letter-spacing:.06em}
.facts dd{margin:0;font-variant-numeric:tabular-nums}
nav ol{list-style:none;margin:0;padding:0;font-size:.86rem;line-height:1.35}
nav li{margin:0 0 9px}
nav a{color:var(--soft);text-decoration:none}
nav a:hover{color:var(--link)}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:28px 32px;margin:0 0 28px}
h2{font-size:1.28rem;margin:0 0 12px;letter-spacing:-.01em}
section p{max-width:46em;margin:0 0 16px}
figure{margin:0 0 20px}
figure>.plot{background:#fff;border-radius:8px;overflow-x:auto;padding:6px 10px}
figure svg{display:block;width:100%;height:auto}
figcaption,.caption{color:var(--soft);font-size:.86rem;margin-top:6px}
.scroll{overflow-x:auto;margin:0 0 20px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.94rem}
th{color:var(--soft);font-weight:600;font-size:.78rem;text-align:left;border-bottom:2px solid var(--line);padding:6px 14px 6px 0}
td{border-bottom:1px solid var(--line);padding:8px 14px 8px 0;vertical-align:top}
td.number,th.number{text-align:right;white-space:nowrap;padding-right:24px}
tbody tr:last-child td{border-bottom:0}
td small{display:block;color:var(--soft);font-size:.86em;line-height:1.4;margin-top:3px}
h3{font-size:1rem;margin:24px 0 8px}
a{color:var(--link)}
.badge{display:inline-block;border:1.5px solid currentColor;border-radius:12px;padding:0 10px;font-size:.8rem;font-weight:600;line-height:1.6;color:var(--soft)}
.badge.good{color:var(--good)}.badge.open{color:var(--open);border-style:dashed}.badge.bad{color:var(--bad);border-style:dotted}
table.slim{width:auto;min-width:min(22em,100%)}
.stack td.number{white-space:normal;min-width:5.5em}
.group{margin:0 0 22px}
.group h3{font-size:.94rem;margin:0 0 6px}
.group h4{color:var(--soft);font-size:.78rem;font-weight:600;margin:8px 0 4px}
.pictures .marked img{border:2px solid var(--bad)}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(72px,1fr));gap:10px}
.pictures div{font-size:.68rem;line-height:1.25;color:var(--soft);overflow-wrap:anywhere}
.pictures img{display:block;width:72px;height:72px;object-fit:contain;border-radius:6px;background:#fff;border:1px solid var(--line);image-rendering:pixelated;margin-bottom:3px}
.nothing{color:var(--soft);font-style:italic;padding:12px}
@media(max-width:640px){.frame{padding:28px 12px 64px;gap:24px}section{padding:20px 16px;border-radius:8px}h1{font-size:1.7rem;overflow-wrap:anywhere}
.subtitle{overflow-wrap:anywhere}figure>.plot{padding:4px}
.stack thead{display:none}.stack tr{display:block;border-bottom:1px solid var(--line);padding:10px 0}.stack td{display:block;border:0;padding:2px 0;text-align:left}
.stack td[data-name]:not([data-name=""])::before{content:attr(data-name) ": ";color:var(--soft);font-size:.8rem}}
@page{margin:16mm 14mm}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--line:#bbb;--ground:#fff;--card:#fff;--link:#000;--good:#000;--open:#000;--bad:#000}
body{font-size:10.5pt;line-height:1.45}.frame{display:block;max-width:none;padding:0}header{margin-bottom:18pt}nav{display:none}section{border:0;padding:0;margin:0 0 20pt}
h2,h3,h4{break-after:avoid}figure,tr,.pictures div{break-inside:avoid}figure svg{max-height:110mm}.scroll,figure>.plot{overflow:visible}
table{font-size:8.5pt}td,th{padding:3pt 6pt 3pt 0}.pictures{grid-template-columns:repeat(auto-fill,62px)}.pictures img{width:56px;height:56px}}
"""  # noqa: E501


@dataclass(frozen=True)
class TextBlock:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class HeadingBlock:
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class LinkBlock:
    """A link to a file beside the page, by its relative path."""

    text: str
    path: str


@dataclass(frozen=True)
class Badge:
    """A cell that judges."""

    text: str
    kind: Literal["good", "open", "bad", "none"] = "none"


@dataclass(frozen=True)
class Lines:
    """A cell with small print beneath it."""

    text: str
    small: Sequence[str] = ()


@dataclass(frozen=True)
class TableBlock:
    """Rows of cells; columns whose cells are all numbers are to the right.

    Cells are anything with a text, `Badge` or `Lines`. A table that stacks shows its rows one below the
    other where the screen is narrow.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    stack: bool = False


@dataclass(frozen=True)
class SvgBlock:
    """A plot of `wsl.figures.plots`, taken as it is."""

    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """An encoded image and the words beneath it."""

    content: bytes
    caption: str = ""
    marked: bool = False
    """Framed in a colour of its own."""


@dataclass(frozen=True)
class Group:
    """Rows of pictures under a heading, each with a label of its own."""

    heading: str
    rows: Sequence[tuple[str, Sequence[Picture]]]


@dataclass(frozen=True)
class GalleryBlock:
    """Groups of small pictures."""

    groups: Sequence[Group]
    caption: str = ""


Block = TextBlock | HeadingBlock | LinkBlock | TableBlock | SvgBlock | GalleryBlock


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading."""

    title: str
    text: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    subtitle: str = ""
    facts: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = field(default_factory=list)


def render(page: Page) -> str:
    """The page as HTML5."""
    anchors = [f"s{number}" for number in range(1, len(page.sections) + 1)]
    links = "".join(
        f'<li><a href="#{anchor}">{escape(section.title)}</a></li>'
        for anchor, section in zip(anchors, page.sections, strict=True)
    )
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in page.facts
    )
    sections = "\n".join(
        _section(anchor, section) for anchor, section in zip(anchors, page.sections, strict=True)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(page.title)}</title>
<style>{CSS}</style>
</head>
<body>
<div class="frame">
<header>
<h1>{escape(page.title)}</h1>
<p class="subtitle">{escape(page.subtitle)}</p>
<dl class="facts">{facts}</dl>
</header>
<nav aria-label="Contents"><ol>{links}</ol></nav>
<main>
{sections}
</main>
</div>
</body>
</html>
"""


def write(path: Path, page: Page) -> None:
    """Writes the page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    publish_text(path, render(page))


def _section(anchor: str, section: Section) -> str:
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    blocks = "\n".join(_block(block) for block in section.blocks)
    return f'<section id="{anchor}"><h2>{escape(section.title)}</h2>{text}\n{blocks}</section>'


def _block(block: Block) -> str:
    if isinstance(block, TextBlock):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, HeadingBlock):
        return f"<h3>{escape(block.text)}</h3>"
    if isinstance(block, LinkBlock):
        return f'<p><a href="{escape(quote(block.path))}">{escape(block.text)}</a></p>'
    if isinstance(block, TableBlock):
        return _table(block)
    if isinstance(block, SvgBlock):
        return _plot(block)
    return _gallery(block)


def _plot(block: SvgBlock) -> str:
    """A card as wide as its plot."""
    width = re.match(r"<svg[^>]*max-width:(\d+)px", block.svg)
    style = f' style="max-width:{int(width[1]) + 20}px"' if width else ""
    caption = _caption(block.caption, "figcaption")
    return f'<figure><div class="plot"{style}>{block.svg}</div>{caption}</figure>'


def _caption(text: str, tag: str) -> str:
    return f'<{tag} class="caption">{escape(text)}</{tag}>' if text else ""


def _table(table: TableBlock) -> str:
    if not table.rows:
        return '<p class="nothing">The table has no rows.</p>'
    numeric = [all(_is_number(row[place]) for row in table.rows) for place in range(len(table.columns))]
    kinds = [' class="number"' if is_number else "" for is_number in numeric]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, table.columns, strict=True))
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{kind}{_name(table, place)}>{_cell(cell)}</td>"
            for place, (kind, cell) in enumerate(zip(kinds, row, strict=True))
        )
        + "</tr>"
        for row in table.rows
    )
    kind = "stack" if table.stack else "slim" if len(table.columns) < 4 else ""
    style = f' class="{kind}"' if kind else ""
    whole = f"<table{style}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{whole}</div>{_caption(table.caption, "p")}'


def _name(table: TableBlock, place: int) -> str:
    """What a cell is called where the head is not shown."""
    return f' data-name="{escape(table.columns[place])}"' if table.stack else ""


def _cell(cell: object) -> str:
    if isinstance(cell, Badge):
        return f'<span class="badge {cell.kind}">{escape(cell.text)}</span>'
    if isinstance(cell, Lines):
        return escape(cell.text) + "".join(f"<small>{escape(line)}</small>" for line in cell.small)
    return escape(str(cell))


def _is_number(cell: object) -> bool:
    return bool(re.fullmatch(r"-|[-+]?[\d,]+(\.\d+)?\s?%?", str(cell)))


def _gallery(gallery: GalleryBlock) -> str:
    groups = [group for group in gallery.groups if any(pictures for _, pictures in group.rows)]
    if not groups:
        return '<p class="nothing">There are no pictures to show.</p>'
    shown = "".join(
        f'<div class="group"><h3>{escape(group.heading)}</h3>'
        + "".join(_pictures(label, pictures) for label, pictures in group.rows if pictures)
        + "</div>"
        for group in groups
    )
    return f"{_caption(gallery.caption, 'p')}{shown}"


def _pictures(label: str, pictures: Sequence[Picture]) -> str:
    heading = f"<h4>{escape(label)}</h4>" if label else ""
    return f'{heading}<div class="pictures">{"".join(map(_picture, pictures))}</div>'


def _picture(picture: Picture) -> str:
    kind = "png"
    if picture.content.startswith(b"\xff\xd8"):
        kind = "jpeg"
    elif picture.content[8:12] == b"WEBP":
        kind = "webp"
    data = base64.b64encode(picture.content).decode("ascii")
    caption = escape(picture.caption)
    mark = ' class="marked"' if picture.marked else ""
    return f'<div{mark}><img alt="{caption}" src="data:image/{kind};base64,{data}">{caption}</div>'
