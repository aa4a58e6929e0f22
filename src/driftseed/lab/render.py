"""The NAT matrix for people: a table of text, and a picture."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, Final

_MARKS: Final = {"lan": "lan", "direct": "direct", "relayed": "relay", "": "NONE"}
_COLOURS: Final = {
    "lan": ("#1b7837", "#ffffff"),
    "direct": ("#5aae61", "#ffffff"),
    "relayed": ("#fdd49e", "#333333"),
    "": ("#d73027", "#ffffff"),
}
_CELL_W: Final = 92
_CELL_H: Final = 44
_LEFT: Final = 170
_TOP: Final = 118


def kinds_of(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """The kinds that a matrix has, in its order."""
    return list(dict.fromkeys(str(cell["dialler"]) for cell in cells))


def table_rows(cells: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: who dials down the side, who answers along the top."""
    kinds = kinds_of(cells)
    by_pair = {(cell["dialler"], cell["answerer"]): cell for cell in cells}
    rows = [[dialler, *(_mark(by_pair[dialler, answerer]) for answerer in kinds)] for dialler in kinds]
    return ["DIALS \\ ANSWERS", *kinds], rows


def _mark(cell: Mapping[str, Any]) -> str:
    mark = _MARKS[cell["path"]]
    return mark if cell["as_expected"] else f"{mark}!"


def summary(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures by which the matrix is judged; seconds and megabytes per second."""
    connected = [cell for cell in cells if cell["connected"]]
    possible = [cell for cell in cells if cell["expected"] == "direct"]
    direct = [cell for cell in connected if cell["path"] != "relayed"]
    relayed = [cell for cell in connected if cell["path"] == "relayed"]
    return {
        "pairs": len(cells),
        "connected": len(connected),
        "direct_possible": len(possible),
        "direct": len(direct),
        "not_as_expected": [
            f"{cell['dialler']} -> {cell['answerer']}" for cell in cells if not cell["as_expected"]
        ],
        "first_byte_s": _spread([cell["first_byte_s"] for cell in connected]),
        "direct_after_connection_s": _spread(
            [cell["direct_s"] for cell in direct if cell["direct_s"] is not None]
        ),
        "goodput_direct_mbytes": _spread([cell["goodput_mbytes"] for cell in direct]),
        "goodput_relayed_mbytes": _spread([cell["goodput_mbytes"] for cell in relayed]),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, 95th percentile (nearest rank) and extremes; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    rank = max(-(-len(ordered) * 95 // 100) - 1, 0)
    return {
        "min": round(ordered[0], 4),
        "median": round(ordered[len(ordered) // 2], 4),
        "p95": round(ordered[rank], 4),
        "max": round(ordered[-1], 4),
    }


def rollout_tables(figures: Mapping[str, Any]) -> list[tuple[tuple[str, ...], list[list[str]]]]:
    """Headings and rows: the devices of a rollout, and the uplinks of its sites."""
    devices = [
        [
            name,
            device["state"],
            "" if device["seconds"] is None else f"{device['seconds']:.1f}",
            ", ".join(
                f"{source} {count / 1e6:.1f}" for source, count in sorted(device["bytes_from"].items())
            ),
            device["detail"] or device["reason"],
        ]
        for name, device in figures["by_device"].items()
    ]
    uplinks = [
        [
            name,
            f"{use['received_bytes'] / 1e6:.1f}",
            f"{use['sent_bytes'] / 1e6:.1f}",
            f"{use['received_copies']:.2f}",
        ]
        for name, use in figures["uplinks"].items()
    ]
    return [
        (("DEVICE", "STATE", "SECONDS", "MEGABYTES FROM", "WHY"), devices),
        (("UPLINK OF", "MB IN", "MB OUT", "COPIES IN"), uplinks),
    ]


def rollout_lines(figures: Mapping[str, Any]) -> list[str]:
    """The rest of a rollout's figures, in words."""
    lines = [
        f"{figures['succeeded']} of {figures['devices']} devices updated in {figures['seconds']:.1f} s",
        f"copies of the payload from hubs: {figures['origin_copies']:.2f}",
        f"copies received by the average device: {figures['received_copies']:.2f}",
    ]
    for event in figures["events"]:
        found = "" if event["found_s"] is None else f"; knew where it is after {event['found_s']:.1f} s"
        lines.append(f"at {event['at_s']:.1f} s: {event['what']}{found}")
    return lines


def svg(cells: Sequence[Mapping[str, Any]], title: str) -> str:
    """The matrix as a picture (SVG 1.1): path, time to first byte and goodput of each pair."""
    kinds = kinds_of(cells)
    width, height = _LEFT + _CELL_W * len(kinds) + 20, _TOP + _CELL_H * len(kinds) + 50
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">'
        ),
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(16, 26, title, size=16, weight="bold"),
        _text(
            16, 44, "rows dial, columns answer; time to the first byte, goodput afterwards", colour="#555555"
        ),
    ]
    place = {kind: number for number, kind in enumerate(kinds)}
    for kind, number in place.items():
        parts.append(_text(_LEFT - 8, _TOP + _CELL_H * number + 26, kind, anchor="end"))
        x = _LEFT + _CELL_W * number + _CELL_W / 2
        parts.append(_text(x - 20, _TOP - 8, kind, turned=True))
    for cell in cells:
        x = _LEFT + _CELL_W * place[cell["answerer"]]
        y = _TOP + _CELL_H * place[cell["dialler"]]
        parts += _square(x, y, cell)
    y = _TOP + _CELL_H * len(kinds) + 24
    x = float(_LEFT)
    for path, (fill, _) in _COLOURS.items():
        parts.append(f'<rect x="{x}" y="{y}" width="14" height="14" fill="{fill}"/>')
        parts.append(_text(x + 20, y + 12, path or "not connected"))
        x += 110
    return "\n".join([*parts, "</svg>", ""])


def _square(x: float, y: float, cell: Mapping[str, Any]) -> list[str]:
    fill, ink = _COLOURS[cell["path"]]
    border = "#ffffff" if cell["as_expected"] else "#d73027"
    middle = x + _CELL_W / 2
    lines = [
        (
            f'<rect x="{x + 1}" y="{y + 1}" width="{_CELL_W - 2}" height="{_CELL_H - 2}" rx="3" fill="{fill}" '
            f'stroke="{border}" stroke-width="2"/>'
        ),
        _text(middle, y + 18, cell["path"] or "not connected", anchor="middle", colour=ink, weight="bold"),
    ]
    if cell["connected"]:
        figures = f"{cell['first_byte_s'] * 1000:.0f} ms · {cell['goodput_mbytes']:.0f} MB/s"
        lines.append(_text(middle, y + 33, figures, anchor="middle", colour=ink))
    return lines


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    colour: str = "#222222",
    size: int = 11,
    weight: str = "normal",
    turned: bool = False,
) -> str:
    turn = f' transform="rotate(-35 {x} {y})"' if turned else ""
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}" font-size="{size}" '
        f'font-weight="{weight}"{turn}>{html.escape(text)}</text>'
    )
