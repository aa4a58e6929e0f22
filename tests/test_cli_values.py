"""Durations, pairs and labels as they are written on the command line."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.cli.values import (
    DURATION_MAX_S,
    format_duration,
    parse_duration,
    parse_labels,
    parse_pairs,
    parse_size,
)
from driftseed.core.errors import Misuse
from driftseed.core.selectors import parse_selector


@given(st.integers(1, DURATION_MAX_S))
def test_a_duration_is_read_as_it_was_written(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.text(max_size=40))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    with contextlib.suppress(Misuse):
        assert 0 < parse_duration(text) <= DURATION_MAX_S


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("12h", 43200), ("7d", 604800), ("2w", 1209600), ("1d12h", 129600)],
)
def test_units(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0s", "7", "d", "-1d", "1.5h", "7 d", "7D", "٣m", "9999999999d", "11w999999h9w"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(Misuse):
        parse_duration(text)


def test_a_value_may_hold_an_equals_sign() -> None:
    assert parse_pairs(["a=b=c", "d="], "meta") == {"a": "b=c", "d": ""}


@pytest.mark.parametrize("pairs", [["a"], ["=b"], ["a=1", "a=2"]])
def test_pairs_that_are_none(pairs: list[str]) -> None:
    with pytest.raises(Misuse):
        parse_pairs(pairs, "meta")


label_word = st.from_regex(r"\A[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?\Z")


@given(st.dictionaries(label_word, st.one_of(st.just(""), label_word), min_size=1, max_size=8))
def test_every_label_that_is_accepted_can_be_selected(labels: dict[str, str]) -> None:
    assert parse_labels(f"{key}={value}" for key, value in labels.items()) == labels
    selector = parse_selector(",".join(f"{key}={value}" for key, value in labels.items()), known_keys=labels)
    assert selector.matches(labels)


@pytest.mark.parametrize(
    "pair",
    [
        "-a=1",
        "a-=1",
        "a b=1",
        "/a=1",
        "A.b/c=1",
        "x/y/z=1",
        "a=-",
        "a=x y",
        f"{'k' * 64}=1",
        f"k={'v' * 64}",
        "ä=1",
    ],
)
def test_a_label_that_no_selector_could_name_is_refused(pair: str) -> None:
    with pytest.raises(Misuse, match="label"):
        parse_labels([pair])


def test_labels_are_bounded() -> None:
    parse_labels(f"k{n}=v" for n in range(32))
    with pytest.raises(Misuse, match="33 labels"):
        parse_labels(f"k{n}=v" for n in range(33))


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("64K", 65536), ("4M", 4 << 20), ("50GiB", 50 << 30), ("1t", 1 << 40)],
)
def test_sizes_are_read_with_units_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5M", "1X", "2000T", "1 000", "٣M"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(Misuse, match="not a number of bytes"):
        parse_size(text)
