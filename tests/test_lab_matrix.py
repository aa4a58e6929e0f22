"""Devices behind NATs reach each other: the cells of the matrix that differ most, and what helps the hopeless.

All cells: ``make lab``.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final
from xml.etree import ElementTree as ET

import pytest

from driftseed.core.errors import LabUnavailable, Misuse
from driftseed.lab import render
from driftseed.lab.main import assisted, nat_matrix
from driftseed.lab.nat import NatKind
from support_lab import require_lab

WHOLE: Final = bool(os.environ.get("DRIFTSEED_LAB_WHOLE"))
SUBSET: Final = (
    NatKind.PORT_RESTRICTED,
    NatKind.SYMMETRIC,
    NatKind.DOUBLE_HAIRPIN,
    NatKind.NO_UDP,
)


@pytest.mark.root
async def test_every_pair_is_connected_and_direct_where_that_is_possible() -> None:
    require_lab()
    kinds = tuple(NatKind) if WHOLE else SUBSET
    found = await nat_matrix(kinds)
    cells = found["cells"]
    assert len(cells) == len(kinds) ** 2
    summary = render.summary(cells)
    assert summary["connected"] == len(cells), json.dumps(summary)
    assert summary["not_as_expected"] == [], json.dumps(summary)
    assert summary["direct_after_connection_s"]["p95"] <= 1.0


@pytest.mark.root
async def test_port_mapping_and_ipv6_make_relayed_pairs_direct() -> None:
    require_lab()
    try:
        found = await assisted()
    except LabUnavailable as error:
        pytest.skip(f"{error.message}; {error.hint}")
    assert {(cell["dialler"], cell["answerer"]): cell["path"] for cell in found["cells"]} == {
        ("a-upnp", "b-upnp"): "direct",
        ("plain", "b-upnp"): "direct",
        ("a-upnp", "plain"): "direct",
        ("a-ipv6", "b-ipv6"): "direct",
    }


async def test_a_kind_that_is_none_is_refused_before_anything_is_built() -> None:
    with pytest.raises(Misuse, match="imaginary"):
        await nat_matrix(["imaginary"])


def cell(dialler: str, answerer: str, path: str, *, expected: str = "direct") -> dict[str, Any]:
    return {
        "dialler": dialler,
        "answerer": answerer,
        "expected": expected,
        "connected": bool(path),
        "path": path,
        "first_byte_s": 0.02,
        "direct_s": None if path in {"", "relayed"} else 0.1,
        "goodput_mbytes": 50.0,
        "as_expected": bool(path) and (path != "relayed" or expected == "relayed"),
    }


CELLS: Final = [
    cell("a", "a", "direct"),
    cell("a", "<b>", "relayed"),
    cell("<b>", "a", ""),
    cell("<b>", "<b>", "relayed", expected="relayed"),
]


def test_the_table_marks_what_falls_short() -> None:
    columns, rows = render.table_rows(CELLS)
    assert columns[1:] == ["a", "<b>"]
    assert rows == [["a", "direct", "relay!"], ["<b>", "NONE!", "relay"]]


def test_the_summary_counts_what_was_reached() -> None:
    summary = render.summary(CELLS)
    assert (summary["pairs"], summary["connected"], summary["direct_possible"], summary["direct"]) == (
        4,
        3,
        3,
        1,
    )
    assert summary["not_as_expected"] == ["a -> <b>", "<b> -> a"]
    assert summary["direct_after_connection_s"] == {"min": 0.1, "median": 0.1, "p95": 0.1, "max": 0.1}
    assert render.summary([CELLS[2]])["first_byte_s"] is None


def test_the_picture_is_well_formed_and_shows_every_pair() -> None:
    picture = render.svg(CELLS, "NATs & friends")
    tree = ET.fromstring(picture)
    texts = [each.text for each in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("direct") == 2  # one pair, and the legend
    assert texts.count("relayed") == 3
    assert "NATs & friends" in texts
