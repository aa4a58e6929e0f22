"""Selectors: Kubernetes' meaning, exact places for what is wrong, and nothing that gets past the parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core import limits
from driftseed.core.errors import SelectorError, UnknownSelectorKey
from driftseed.core.selectors import (
    CONVENTIONAL_LABELS,
    INVENTORY_KEYS,
    Operator,
    Requirement,
    Selector,
    parse_selector,
    selectable,
)

KNOWN = INVENTORY_KEYS | CONVENTIONAL_LABELS


def parse(text: str) -> Selector:
    return parse_selector(text, known_keys=None)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", ""),
        (" \t\r\n ", ""),
        ("arch=arm64", "arch=arm64"),
        ("arch==arm64", "arch=arm64"),
        (" arch = arm64 ", "arch=arm64"),
        ("arch!=arm64", "arch!=arm64"),
        ("arch in (arm64,amd64)", "arch in (amd64,arm64)"),
        ("arch in(arm64)", "arch=arm64"),
        ("arch notin ( arm64 , amd64 )", "arch notin (amd64,arm64)"),
        ("arch notin (arm64)", "arch!=arm64"),
        ("ring", "ring"),
        ("!ring", "!ring"),
        ("! ring", "!ring"),
        ("cpus > 2", "cpus>2"),
        ("cpus<007", "cpus<7"),
        ("site=glasgow,arch=arm64", "arch=arm64,site=glasgow"),
        ("ring,ring", "ring"),
        ("ring=", "ring="),
        ("ring=,site", "ring=,site"),
        ("ring!=", "ring!="),
        ("ring in (,a)", "ring in (,a)"),
        ("ring in (a,,b)", "ring in (,a,b)"),
        ("ring in (a,)", "ring in (,a)"),
        ("ring in (,)", "ring="),
        ("in in (in,notin)", "in in (in,notin)"),
        ("notin notin (in)", "notin!=in"),
        ("!in", "!in"),
        ("a=in", "a=in"),
        ("example.com/rack.a_b-c=7", "example.com/rack.a_b-c=7"),
        ("os.id=debian", "os.id=debian"),
        (f"device.id={'a1' * 32}", f"device.id={'a1' * 32}"),
        ("cpus>2,cpus<8", "cpus<8,cpus>2"),
    ],
)
def test_what_parses_has_one_canonical_form(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical
    assert parse(text).text == text


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("", {}, True),
        ("a=1", {"a": "1"}, True),
        ("a=1", {"a": "2"}, False),
        ("a=1", {}, False),
        ("a=", {"a": ""}, True),
        ("a=", {}, False),
        # Kubernetes: != and notin hold where the key is absent.
        ("a!=1", {}, True),
        ("a!=1", {"a": "2"}, True),
        ("a!=1", {"a": "1"}, False),
        ("a notin (1,2)", {}, True),
        ("a notin (1,2)", {"a": "2"}, False),
        ("a in (1,2)", {"a": "2"}, True),
        ("a in (1,2)", {}, False),
        ("a", {"a": ""}, True),
        ("a", {}, False),
        ("!a", {}, True),
        ("!a", {"a": ""}, False),
        ("a>5", {"a": "6"}, True),
        ("a>5", {"a": "5"}, False),
        ("a>5", {"a": "10"}, True),
        ("a<5", {"a": "4"}, True),
        ("a<5", {"a": "5"}, False),
        ("a<5", {"a": "-1"}, True),
        ("a>5", {}, False),
        ("a<5", {}, False),
        ("a<5", {"a": "four"}, False),
        ("a<5", {"a": "4.0"}, False),
        ("a<5", {"a": "٤"}, False),
        ("a<5", {"a": "-" + "9" * 64}, False),
        ("a<5", {"a": "-" + "9" * 100_000}, False),
        ("a=1,b=2", {"a": "1", "b": "2"}, True),
        ("a=1,b=2", {"a": "1"}, False),
    ],
)
def test_matching_is_kubernetes_matching(text: str, values: dict[str, str], *, expected: bool) -> None:
    assert parse(text).matches(values) is expected


def test_one_device_can_be_addressed() -> None:
    wanted, other = "ab" * 32, "cd" * 32
    selector = parse_selector(f"device.id={wanted}", known_keys=KNOWN)
    assert selector.matches({"device.id": wanted})
    assert not selector.matches({"device.id": other})


def test_specificity_counts_each_requirement_once() -> None:
    assert parse("").specificity == 0
    assert parse("a=1,a==1,a in (1)").specificity == 1
    assert parse("a=1,b,!c").specificity == 3
    assert parse("a=1,b,!c").keys == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("text", "position", "message", "hint"),
    [
        ("arch in arm64", 8, "expected '(' after 'in', found 'arm64'", "write arch in (A,B)"),
        ("arch in", 7, "expected '(' after 'in', found the end", "write arch in (A,B)"),
        ("arch in ()", 9, "'in' needs at least one value", "for the empty value arch="),
        ("arch in (arm64", 14, "expected ',' or ')'", "separated by commas"),
        ("arch in (arm64 amd64)", 15, "expected ',' or ')'", "separated by commas"),
        ("arch in (a=b)", 10, "expected ',' or ')'", "separated by commas"),
        ("arch=arm64,", 11, "expected a key, found the end", "write KEY=VALUE"),
        ("arch=arm64,,ring", 11, "expected a key, found ','", "write KEY=VALUE"),
        (",arch", 0, "expected a key, found ','", "write KEY=VALUE"),
        ("!", 1, "expected a key, found the end", "!KEY"),
        ("!ring=1", 5, "expected ',' or the end, found '='", "separated by commas"),
        ("arch=arm64 ring=1", 11, "expected ',' or the end, found 'ring'", "separated by commas"),
        ("arch=arm64 or ring=1", 11, "expected ',' or the end", "there is no 'or'"),
        ("arch arm64", 5, "expected an operator after the key 'arch'", "write arch=VALUE"),
        ("arch && ring", 5, "expected an operator", "separated by commas"),
        ("arch notn (a)", 5, "expected an operator", "did you mean arch notin (A,B)?"),
        ("arch not (a)", 5, "expected an operator", "write arch notin (A,B)"),
        ("arch=(a)", 5, "expected a value after '=', found '('", "KEY in (A,B)"),
        ("arch===a", 6, "expected a value after '==', found '='", "the operators are"),
        ("arch='arm64'", 5, "not a usable value: \"'arm64'\"", "quotes are not needed"),
        ("arch=arm-", 8, "not a usable value", "begins and ends"),
        ("site=köln", 6, "not a usable value", "A-Z a-z 0-9"),
        ("cpus>=4", 5, "expected an integer after '>', found '='", "write >4 for 5 and more"),
        ("cpus>", 5, "expected an integer after '>', found the end", "integers from 0"),
        ("cpus>-1", 5, "expected an integer after '>', found '-1'", "integers from 0"),
        ("cpus>four", 5, "expected an integer", "integers from 0"),
        (f"cpus>{2**63}", 5, "expected an integer", "2^63-1"),
        ("-a=1", 0, "not a usable key", "begins and ends"),
        ("a_=1", 1, "not a usable key", "begins and ends"),
        ("a$b=1", 1, "not a usable key", "begins and ends"),
        ("/a=1", 0, "the prefix of the key '/a' is not a DNS name", "example.com/rack"),
        ("ex..com/a", 3, "is not a DNS name", "example.com/rack"),
        ("EX.com/a", 0, "is not a DNS name", "example.com/rack"),
        ("a/b/c", 1, "is not a DNS name", "example.com/rack"),
        ("a/", 2, "not a usable key", "1 to 63"),
        ("a\u00a0=1", 1, "not a usable key", "begins and ends"),
    ],
)
def test_an_error_says_where_what_and_what_instead(text: str, position: int, message: str, hint: str) -> None:
    with pytest.raises(SelectorError) as caught:
        parse(text)
    assert caught.value.position == position
    assert message in caught.value.message
    assert hint in caught.value.hint
    caret = caught.value.message.splitlines()[-1]
    assert caret == " " * (2 + position) + "^"
    assert caught.value.exit_code == 11


def test_an_unknown_key_is_pointed_at_with_the_nearest_known_one() -> None:
    with pytest.raises(UnknownSelectorKey) as caught:
        parse_selector("ring=1, ach=arm64", known_keys=KNOWN)
    assert caught.value.position == 8
    assert "no device has the key 'ach'" in caught.value.message
    assert caught.value.hint.startswith("did you mean 'arch'? known keys: agent.version, arch, board")
    assert caught.value.reason == "selector-unknown-key"


def test_an_unknown_key_with_no_near_one_gets_the_list() -> None:
    with pytest.raises(UnknownSelectorKey) as caught:
        parse_selector("zzzzzz", known_keys=KNOWN)
    assert caught.value.hint.startswith("known keys: ")


def test_every_known_key_is_one() -> None:
    for key in KNOWN:
        assert parse_selector(key, known_keys=KNOWN).keys == {key}


def test_the_message_cannot_move_the_cursor_of_a_terminal() -> None:
    with pytest.raises(SelectorError) as caught:
        parse("a\x1b[2J\nb c")
    assert "\x1b" not in caught.value.message
    assert caught.value.message.count("\n") == 2


@pytest.mark.parametrize(
    ("at_bound", "beyond"),
    [
        ("k" * limits.LABEL_CHARS_MAX, "k" * (limits.LABEL_CHARS_MAX + 1)),
        ("k=" + "v" * 64, "k=" + "v" * 65),
        ("p" * 253 + "/k", "p" * 254 + "/k"),
        (",".join(["k"] * 512) + " ", ",".join(["k"] * 512) + "  "),
    ],
    ids=["key", "value", "prefix", "selector"],
)
def test_lengths_are_bounded(at_bound: str, beyond: str) -> None:
    parse(at_bound)
    with pytest.raises(SelectorError) as caught:
        parse(beyond)
    assert 0 <= caught.value.position <= len(beyond)


def test_an_endless_selector_is_not_repeated_in_its_error() -> None:
    with pytest.raises(SelectorError) as caught:
        parse("a" * 1_000_000)
    assert len(caught.value.message) < 4 * limits.SELECTOR_CHARS_MAX


names = st.from_regex(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,10}[A-Za-z0-9])?", fullmatch=True)
keys = names | st.builds(
    "{}/{}".format, st.from_regex(r"[a-z0-9]{1,5}(\.[a-z]{1,5})?", fullmatch=True), names
)
label_values = names | st.just("")


@st.composite
def requirements(draw: st.DrawFn) -> Requirement:
    operator = draw(st.sampled_from(Operator))
    values: tuple[str, ...] = ()
    match operator:
        case Operator.GREATER | Operator.LESS:
            values = (str(draw(st.integers(0, 2**63 - 1))),)
        case Operator.IN | Operator.NOT_IN:
            values = tuple(sorted(draw(st.sets(label_values, min_size=1, max_size=4))))
    return Requirement(draw(keys), operator, values)


@given(st.lists(requirements(), max_size=8), st.dictionaries(keys, label_values))
def test_the_canonical_form_parses_back(wanted: list[Requirement], values: dict[str, str]) -> None:
    selector = Selector("", tuple(sorted(set(wanted))))
    again = parse(str(selector))
    assert again.requirements == selector.requirements
    assert str(again) == str(selector)
    assert again.matches(values) == all(each.matches(values) for each in wanted)


@given(st.text() | st.text(alphabet="ab =!(),<>/-.'\t\n019innot", max_size=40))
def test_any_text_parses_or_is_pointed_into(text: str) -> None:
    error: SelectorError | None = None
    try:
        selector = parse(text)
        assert parse(str(selector)).requirements == selector.requirements
    except SelectorError as caught:
        error = caught
    if error is not None:
        assert 0 <= error.position <= len(text)
        assert error.hint


@given(st.text())
def test_whatever_a_machine_says_of_itself_can_be_selected(text: str) -> None:
    value = selectable(text)
    assert parse(f"model={value}").matches({"model": value})


def test_selectable_keeps_what_it_can() -> None:
    assert selectable("raspberrypi,4-model-b") == "raspberrypi-4-model-b"
    assert selectable("Raspberry Pi 4 Model B Rev 1.4") == "Raspberry-Pi-4-Model-B-Rev-1.4"
    assert selectable("(none)") == "none"
