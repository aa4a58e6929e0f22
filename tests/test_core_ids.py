"""Identifiers are checked once, at the border."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core.errors import Misuse
from driftseed.core.ids import parse_device_id, parse_digest, parse_fleet_id, parse_safe_name

HEX_PARSERS = (parse_device_id, parse_fleet_id, parse_digest)


@pytest.mark.parametrize("parse", HEX_PARSERS)
def test_64_lowercase_hexadecimal_characters_are_an_id(parse: Callable[[str], str]) -> None:
    assert parse("0123456789abcdef" * 4) == "0123456789abcdef" * 4


@pytest.mark.parametrize("parse", HEX_PARSERS)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "a" * 63,
        "a" * 65,
        "A" * 64,
        "g" * 64,
        "a" * 64 + "\n",
        " " + "a" * 63,
        "\N{ARABIC-INDIC DIGIT ONE}" * 64,
        "a" * 10**6,
    ],
)
def test_anything_else_is_not_and_the_message_stays_short(parse: Callable[[str], str], text: str) -> None:
    with pytest.raises(Misuse) as caught:
        parse(text)
    assert caught.value.hint == "it has 64 characters of 0-9 and a-f"
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("text", ["a", "1.0", "my-app_2+build~rc1", "A" * 128])
def test_a_safe_name(text: str) -> None:
    assert parse_safe_name(text, "release name") == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-rf",
        "_x",
        "a/b",
        "../../etc/passwd",
        "a\\b",
        "a b",
        "a\n",
        "a\x00",
        "ä",
        "A" * 129,
    ],
)
def test_a_name_that_could_leave_its_directory_or_be_an_option_is_refused(text: str) -> None:
    with pytest.raises(Misuse, match="not a usable release name"):
        parse_safe_name(text, "release name")


@given(st.text())
def test_a_safe_name_is_one_path_component(text: str) -> None:
    try:
        name: str | None = parse_safe_name(text, "name")
    except Misuse:
        name = None
    if name is not None:
        assert name not in {".", ".."}
        assert not set(name) & set("/\\\x00\n ")
        assert name.isascii()
        assert 1 <= len(name) <= 128
