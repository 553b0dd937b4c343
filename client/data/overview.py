"""All sites side by side: what they have and what they show, as tables and as a figure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from client.data.describe import SiteDescription
from shared.errors import ConfigError
from shared.files import write_atomic
from shared.page.tokens import LIGHT

FIGURE_ENDINGS: Final = (".svg", ".html")
_MOST_FINDINGS = 9
_MOST_IN_TERMINAL = 5
_OTHERS = "others"
_BAR = 12

# Okabe and Ito's hues; neighbours in a bar differ in lightness as well.
_HUES = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9"),
    *("#d55e00", "#f0e442", "#8e4585", "#00805e", "#999999"),
)
_PARTS: Mapping[str, tuple[str, str]] = {
    "pairs": (LIGHT["shared"], "blue"),
    "noisy pairs": (LIGHT["missing"], "red"),
    "images only": (LIGHT["local"], "green"),
    "texts only": (LIGHT["personal"], "yellow"),
}
"""What training records are: colour on a page, colour on a terminal."""

_LABEL, _WIDTH, _ROW, _TOP = 150, 300, 24, 96
_LETTERS = 100  # of a note, in a line


def parts_of(site: SiteDescription) -> dict[str, int]:
    """Return how many training records are what; a pair is noisy or one of the ``pairs``."""
    train, noisy = site.splits["train"], site.noisy_pairs["train"]
    return {
        "pairs": train.pairs - noisy,
        "noisy pairs": noisy,
        "images only": train.images - train.pairs,
        "texts only": train.texts - train.pairs,
    }


def findings_of(
    sites: Sequence[SiteDescription], columns: int = _MOST_FINDINGS
) -> list[dict[str, int]]:
    """Return each site's training records per finding: the most frequent ones, and the others."""
    total: Counter[str] = Counter()
    for site in sites:
        for finding in site.findings:
            total[finding.finding] += finding.positives["train"]
    most = sorted(total, key=lambda name: (-total[name], name))
    shown = most if len(most) <= columns + 1 else most[:columns]
    rows = []
    for site in sites:
        own = {finding.finding: finding.positives["train"] for finding in site.findings}
        row = {name: own.get(name, 0) for name in shown}
        if len(shown) < len(most):
            row[_OTHERS] = sum(own.values()) - sum(row.values())
        rows.append(row)
    return rows


def overview_tables(sites: Sequence[SiteDescription]) -> list[Table]:
    """Return sites × modalities with bars, and sites × findings; training records."""
    rows = [parts_of(site) for site in sites]
    top = max((sum(row.values()) for row in rows), default=0)
    table = _table("training records", [*_PARTS], "kind")
    table.add_column("", no_wrap=True)
    for site, row in zip(sites, rows, strict=True):
        bar = _terminal_bar(row, top)
        table.add_row(Text(site.name), site.kind or "-", *_shares(row), bar)
    findings = findings_of(sites, _MOST_IN_TERMINAL)
    if not findings or not findings[0]:
        return [table]
    shown = _table("training records that show a finding", [*findings[0]])
    for site, row in zip(sites, findings, strict=True):
        shown.add_row(Text(site.name), *map(str, row.values()))
    return [table, shown]


def _table(title: str, numbers: Sequence[str], *words: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("site", *words):
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(Text(name), justify="right")
    return table


def _shares(parts: Mapping[str, int]) -> list[str]:
    """Counts, and what share of the pairs is noisy or of the records lacks a side."""
    paired, total = parts["pairs"] + parts["noisy pairs"], sum(parts.values())
    cells = []
    for name, count in parts.items():
        whole = {"pairs": 0, "noisy pairs": paired}.get(name, total)
        cells.append(f"{count} ({count / whole:.0%})" if 0 < count < whole else str(count))
    return cells


def _terminal_bar(parts: Mapping[str, int], top: int) -> Text:
    """A stacked bar; its parts end where the exact ones do, to the nearest character."""
    bar, end, drawn = Text(), 0, 0
    for name, count in parts.items():
        end += count
        length = round(_BAR * end / max(top, 1)) - drawn
        bar.append("█" * length, style=_PARTS[name][1])
        drawn += length
    return bar


def write_figure(path: Path, sites: Sequence[SiteDescription], note: str = "") -> None:
    """Write the figure, as SVG or as a page that holds it.

    Args:
        path: Where.
        sites: What is drawn.
        note: A line below, such as how the sites were made.

    Raises:
        ConfigError: If the file's name ends in neither ``.svg`` nor ``.html``.
        StorageError: If it cannot be written.
    """
    check_figure(path)
    svg = figure(sites, note)
    if path.suffix.lower() == ".html":
        head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Sites</title>'
        svg = f"{head}<body>{svg}</body></html>"
    write_atomic(path, (svg + "\n").encode())


def check_figure(path: Path) -> None:
    """Raise ``ConfigError`` unless a figure can have that name."""
    if path.suffix.lower() not in FIGURE_ENDINGS:
        raise ConfigError(f"--figure {path}: expected a name that ends in .svg or .html")


def figure(sites: Sequence[SiteDescription], note: str = "") -> str:
    """Return an SVG: for each site a bar of what its records are, and one of what they show."""
    kinds = [parts_of(site) for site in sites]
    findings = findings_of(sites)
    hues = dict(zip(findings[0] if findings else {}, _HUES, strict=False))
    present = {name for row in kinds for name, count in row.items() if count}
    colours = {name: page for name, (page, _) in _PARTS.items() if name in present}
    middle = _LABEL + _WIDTH + 40
    bottom = _TOP + _ROW * len(sites) + 20
    words = wrap(note, _LETTERS)
    height = bottom + 16 * len(words)
    body = [
        *(
            f'<text x="{_LABEL}" y="{bottom + 16 * line}" font-size="11">{escape(part)}</text>'
            for line, part in enumerate(words)
        ),
        *_legend(_LABEL, "Training records", colours),
        *_legend(middle, "What they show (a record may show several)", hues),
    ]
    for number, site in enumerate(sites):
        y = _TOP + number * _ROW
        name = site.name if len(site.name) <= 20 else f"{site.name[:19]}…"
        body.append(f'<text x="{_LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        body += _bar(_LABEL, y, kinds[number], colours, _largest(kinds))
        body += _bar(middle, y, findings[number], hues, _largest(findings))
    width = middle + _WIDTH + 60
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="system-ui, sans-serif" font-size="12" '
        f'fill="{LIGHT["ink"]}"><rect width="{width}" height="{height}" fill="{LIGHT["card"]}"/>'
        + "".join(body)
        + "</svg>"
    )


def _largest(rows: Sequence[Mapping[str, int]]) -> int:
    return max((sum(row.values()) for row in rows), default=0) or 1


def _legend(x: int, title: str, colours: Mapping[str, str]) -> list[str]:
    """The title, and the names in lines of three, each where the one before it ends."""
    out = [f'<text x="{x}" y="16" font-weight="600">{escape(title)}</text>']
    for line in range(4):
        left = float(x)
        for name, colour in [*colours.items()][3 * line : 3 * line + 3]:
            words = name if len(name) <= 14 else f"{name[:13]}…"
            y = 26 + 16 * line
            out.append(f'<rect x="{left:g}" y="{y}" width="9" height="9" fill="{colour}"/>')
            out.append(f'<text x="{left + 12:g}" y="{y + 9}" font-size="10">{escape(words)}</text>')
            left += 24 + 6 * len(words)  # letters of ten units are narrower than six
    return out


def _bar(
    x: int, y: int, parts: Mapping[str, int], colours: Mapping[str, str], top: int
) -> list[str]:
    out, left = [], float(x)
    for name, count in parts.items():
        width = _WIDTH * count / top
        if count:
            out.append(
                f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="{_ROW - 6}" '
                f'fill="{colours[name]}"><title>{escape(name)}: {count}</title></rect>'
            )
        left += width
    total = sum(parts.values())
    return [*out, f'<text x="{left + 6:.1f}" y="{y + 14}" font-size="10">{total}</text>']
