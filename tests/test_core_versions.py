"""Which version is the newer one."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core.versions import compare_versions, version_key

SEMVER = "1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 1.0.0"
DEBIAN = "1.0~~ 1.0~~a 1.0~ 1.0 1.0-1 1.0-2 1.0-10 1.0a 1.0.1"


@pytest.mark.parametrize(
    "ascending",
    [
        SEMVER.split(),  # Semantic Versioning 2.0.0, clause 11
        DEBIAN.split(),  # Debian policy 5.6.12
        ["1.2", "1.10", "1.20", "2", "10"],
        ["1.0~rc1", "1.0-rc1", "1.0-rc2", "1.0-rc10", "1.0"],
        ["1.0alpha3", "1.0rc1", "1.0"],
        ["1.2-3-gabc", "1.2-14-gabc", "1.3"],
        ["2026.1", "2026.01.15", "2026.2"],
        ["1.0", "1.0.0", "1.0.0.1"],
        ["", "0"],
        ["9" * 5000, "1" + "0" * 5000],  # longer than int() accepts
    ],
    ids=lambda versions: versions[0][:12] or "empty",
)
def test_order(ascending: list[str]) -> None:
    for older, newer in itertools.combinations(ascending, 2):
        assert compare_versions(older, newer) == -1, (older, newer)
        assert compare_versions(newer, older) == 1, (older, newer)
    shuffled = random.Random(1).sample(ascending, len(ascending))
    assert sorted(shuffled, key=version_key) == ascending


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("1.0", "1.00"),
        ("v1.0", "1.0"),
        ("1.0-RC1", "1.0-rc.1"),
        ("1.0rc1", "1.0-rc1"),
        ("1.0+build.5", "1.0+build.7"),  # Semantic Versioning 2.0.0, clause 10
        ("1_0", "1.0"),
    ],
)
def test_neither_is_newer(left: str, right: str) -> None:
    assert compare_versions(left, right) == 0


versions = st.text(alphabet="019.-~+_arcv", max_size=12) | st.text(max_size=8)


@given(versions, versions, versions)
def test_it_is_a_total_order(first: str, second: str, third: str) -> None:
    assert compare_versions(first, first) == 0
    assert compare_versions(first, second) == -compare_versions(second, first)
    low, middle, high = sorted([first, second, third], key=version_key)
    assert compare_versions(low, middle) <= 0
    assert compare_versions(middle, high) <= 0
    assert compare_versions(low, high) <= 0
