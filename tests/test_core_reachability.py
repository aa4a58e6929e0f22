"""Whom a device believes that it can be reached."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core.reachability import Answer, Verdict, judge, may_be_dialled

HERE, THERE = "198.51.100.7:7700", "203.0.113.9:7700"
HUB_YES = Answer(hub=True, reached=True, seen=True, addr=HERE)
HUB_NO = Answer(hub=True, reached=False, seen=False, addr=HERE)
YES = Answer(hub=False, reached=True, seen=True, addr=HERE)
NO = Answer(hub=False, reached=False, seen=False, addr=HERE)
LIE = Answer(hub=False, reached=True, seen=False, addr=THERE)
HUB_LIE = Answer(hub=True, reached=True, seen=False, addr=THERE)
ELSEWHERE = Answer(hub=False, reached=True, seen=True, addr=THERE)

answers = st.builds(Answer, hub=st.just(value=False), reached=st.booleans(), seen=st.booleans())


@pytest.mark.parametrize(
    ("said", "believed"),
    [
        ([], None),
        ([HUB_YES], Verdict(HERE)),
        ([HUB_NO], Verdict(None)),
        ([YES], None),
        ([NO], None),
        ([YES, YES], Verdict(HERE)),
        ([NO, NO], Verdict(None)),
        ([YES, ELSEWHERE], None),
        ([YES, NO], None),
        ([HUB_YES, NO], Verdict(HERE)),
        ([HUB_NO, YES], Verdict(None)),
        ([HUB_YES, LIE, LIE], Verdict(HERE)),
        ([HUB_LIE], None),
        ([LIE, LIE], None),
        ([HUB_LIE, YES, YES], Verdict(HERE)),
        ([Answer(hub=True, reached=True, seen=True, addr="")], None),
    ],
)
def test_whose_word_counts(said: list[Answer], believed: Verdict | None) -> None:
    assert judge(said) == believed
    assert judge(said[::-1]) == believed


@given(answers)
def test_no_single_device_decides(answer: Answer) -> None:
    assert judge([answer]) is None


@given(answers, st.integers(0, 2))
def test_a_liar_changes_nothing_where_a_hub_speaks(liar: Answer, place: int) -> None:
    for honest, believed in ((HUB_YES, Verdict(HERE)), (HUB_NO, Verdict(None))):
        said = [honest, liar]
        assert judge(said[place % 2 :] + said[: place % 2]) == believed


@pytest.mark.parametrize(
    ("port", "may"),
    [
        (1, False),
        (22, False),
        (25, False),
        (80, True),
        (443, True),
        (1023, False),
        (1024, True),
        (65535, True),
    ],
)
def test_services_of_the_system_are_not_dialled_for_others(port: int, may: bool) -> None:  # noqa: FBT001 - a table
    assert may_be_dialled(port) is may
