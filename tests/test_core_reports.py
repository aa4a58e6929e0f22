"""Reports: bounded, in any order, twice, by anybody."""

from __future__ import annotations

import itertools
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core import limits
from driftseed.core.errors import ReportInvalid
from driftseed.core.reports import (
    BODY_BYTES_MAX,
    DETAIL_CHARS_MAX,
    InstalledReport,
    Report,
    ReportBook,
    UpdateReport,
    decode_report,
    encode_report,
    fit,
)
from driftseed.core.verified import VerifiedReport
from support_core import NOW, device

OWN, HUB, OTHER_HUB = device(0), device(900), device(901)


def update(number: int, *, detail: str = "", finished: bool = True) -> UpdateReport:
    return UpdateReport(
        deployment=f"{number:032x}",
        release="app",
        version=f"1.{number}",
        state="rolled-back" if finished else "downloading",
        attempts=1,
        progress=1.0 if finished else 0.25,
        reason="health-check-failed",
        detail=detail,
        started=NOW + number,
        finished=NOW + number + 5 if finished else None,
        bytes_from={"hub/direct": 100, "peers/lan": 900},
        seconds=5.0,
    )


def report(**changes: object) -> Report:
    full = Report(
        device=device(1),
        sequence=7,
        time=NOW,
        agent_version="0.1.0",
        inventory={"arch": "arm64", "os.id": "debian"},
        labels={"site": "glasgow"},
        installed={"app": InstalledReport(version="1.0", manifest_sha256="a" * 64)},
        updates=[update(1)],
        refusals={"metadata-replayed": 2},
        clock_skew_s=-1.5,
        free_bytes=10**9,
    )
    return msgspec.structs.replace(full, **changes)


def test_a_report_reads_back() -> None:
    assert decode_report(encode_report(report()), device(1)) == report()


def test_a_smaller_report_of_a_newer_agent_reads_too() -> None:
    body = msgspec.msgpack.encode({"device": device(1), "sequence": 1, "time": NOW, "mood": "fine"})
    assert decode_report(body, device(1)) == Report(device=device(1), sequence=1, time=NOW)


def test_nobody_reports_on_somebody_else() -> None:
    with pytest.raises(ReportInvalid, match="reports as"):
        decode_report(encode_report(report()), device(2))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x81" * 10_000,
        b"\x91" * 10_000,
        msgspec.msgpack.encode({"device": device(1), "sequence": 0, "time": NOW}),
        msgspec.msgpack.encode({"device": device(1), "sequence": 1, "time": math.nan}),
        msgspec.msgpack.encode({"device": device(1), "sequence": 1, "time": math.inf}),
        msgspec.msgpack.encode({"device": device(1), "sequence": 1, "time": NOW, "clock_skew_s": math.nan}),
        msgspec.msgpack.encode({"device": "x", "sequence": 1, "time": NOW}),
        msgspec.msgpack.encode(
            {"device": device(1), "sequence": 1, "time": NOW, "inventory": {"a": "b" * 129}}
        ),
        msgspec.msgpack.encode({"device": device(1), "sequence": 1, "time": NOW, "refusals": {"a": -1}}),
        msgspec.msgpack.encode(
            {"device": device(1), "sequence": 1, "time": NOW, "inventory": {b"\xff": "b"}}
        ),
        b"x" * (BODY_BYTES_MAX + 1),
    ],
)
def test_a_malformed_report_is_refused(body: bytes) -> None:
    with pytest.raises(ReportInvalid):
        decode_report(body, device(1))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_report_or_refused(body: bytes) -> None:
    try:
        decode_report(body, device(1))
    except ReportInvalid as error:
        assert error.reason == "report-invalid"  # noqa: PT017 - most bytes are refused, some could be a report


@pytest.mark.parametrize("count", [limits.REPORT_UPDATES_MAX, limits.REPORT_UPDATES_MAX + 1])
def test_the_number_of_updates_is_bounded(count: int) -> None:
    body = encode_report(report(updates=[update(number) for number in range(count)]))
    if count <= limits.REPORT_UPDATES_MAX and len(body) <= BODY_BYTES_MAX:
        assert len(decode_report(body, device(1)).updates) == count
    else:
        with pytest.raises(ReportInvalid):
            decode_report(body, device(1))


# --- fitting ------------------------------------------------------------------------------------


def test_a_report_that_fits_stays_whole() -> None:
    assert fit(report()) == report()


def test_old_explanations_go_before_old_updates() -> None:
    many = [update(number, detail="d" * DETAIL_CHARS_MAX) for number in range(20, 0, -1)]
    whole = report(updates=many)
    short = fit(whole)
    assert len(encode_report(short)) <= BODY_BYTES_MAX
    assert [each.deployment for each in short.updates] == [each.deployment for each in many]
    kept = [bool(each.detail) for each in short.updates]
    assert kept[0]
    assert not kept[-1]
    assert kept == sorted(kept, reverse=True)


def test_updates_under_way_outlive_those_that_have_ended() -> None:
    running = update(1, finished=False)
    many = [*[update(number) for number in range(40, 1, -1)], running]
    assert running in fit(report(updates=many)).updates
    small = fit(report(updates=many), bytes_max=1000)
    assert [each.deployment for each in small.updates] == [update(40).deployment, running.deployment]


def test_the_newest_update_outlives_counts_and_inventory() -> None:
    crowded = report(
        installed={f"app{n:03d}": InstalledReport(version="1", manifest_sha256="a" * 64) for n in range(300)},
        inventory={f"key{n:03d}": "v" * 500 for n in range(100)},
        refusals={f"token-{n}": n for n in range(100)},
        updates=[update(1, detail="why" * 1000)],
    )
    short = fit(crowded)
    assert decode_report(encode_report(short), device(1)) == short
    assert short.updates[0].reason == "health-check-failed"
    assert len(short.updates[0].detail) == DETAIL_CHARS_MAX
    tiny = fit(crowded, bytes_max=1200)
    assert tiny.updates
    assert (tiny.refusals, tiny.installed) == ({}, {})
    assert len(tiny.inventory) < 3
    assert fit(crowded, bytes_max=300).updates == []


def test_what_can_never_fit_is_an_error_and_no_endless_loop() -> None:
    with pytest.raises(ValueError, match="no report fits into 10 bytes"):
        fit(report(), bytes_max=10)


@given(
    st.lists(
        st.builds(update, st.integers(0, 10**6), detail=st.text(max_size=800), finished=st.booleans()),
        max_size=60,
    ),
    st.dictionaries(st.text(max_size=90), st.text(max_size=200), max_size=90),
    st.dictionaries(st.text(max_size=64), st.integers(0, 2**40), max_size=90),
)
def test_whatever_is_fitted_can_be_read(
    updates: list[UpdateReport], inventory: dict[str, str], refusals: dict[str, int]
) -> None:
    short = fit(report(updates=updates, inventory=inventory, refusals=refusals))
    body = encode_report(short)
    assert len(body) <= BODY_BYTES_MAX
    assert decode_report(body, device(1)) == short


# --- the book -----------------------------------------------------------------------------------


def signed(number: int, sequence: int, data: bytes = b"") -> VerifiedReport:
    return VerifiedReport(
        device=device(number), sequence=sequence, data=data or f"{number}.{sequence}".encode()
    )


def test_the_newest_report_of_a_device_replaces_its_older_ones() -> None:
    book = ReportBook(OWN)
    assert book.add(signed(1, 5))
    assert not book.add(signed(1, 5))
    assert not book.add(signed(1, 4))
    assert book.add(signed(1, 6))
    assert book.newest(device(1)) == signed(1, 6)
    assert book.newest(device(2)) is None
    assert len(book) == 1


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5), st.sampled_from([b"a", b"b"])), max_size=30),
    st.randoms(use_true_random=False),
)
def test_order_and_repetition_do_not_matter(many: list[tuple[int, int, bytes]], shuffle: object) -> None:
    first, second = ReportBook(OWN), ReportBook(OWN)
    for each in many:
        first.add(signed(*each))
    again = many * 2
    shuffle.shuffle(again)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    for each in again:
        second.add(signed(*each))
    assert {each: first.newest(device(each)) for each in range(6)} == {
        each: second.newest(device(each)) for each in range(6)
    }
    assert set(first.unstored()) == set(second.unstored())


def test_a_full_book_loses_what_hubs_have_then_the_oldest_and_never_its_own() -> None:
    book = ReportBook(OWN, carried_max=3)
    book.add(signed(0, 1))
    for number in (1, 2, 3):
        book.add(signed(number, 1))
    book.stored(device(2), 1, HUB)
    assert book.add(signed(4, 1))
    assert [device(number) in book for number in range(5)] == [True, True, False, True, True]
    assert book.add(signed(5, 1))
    assert [device(number) in book for number in range(6)] == [True, False, False, True, True, True]
    assert len(book) == 4


def test_a_flood_of_reports_is_bounded() -> None:
    book = ReportBook(OWN)
    for number in range(limits.REPORTS_CARRIED_MAX * 2):
        book.add(signed(number, 1))
    assert len(book) == limits.REPORTS_CARRIED_MAX + 1
    assert OWN in book


def test_reports_are_handed_on_our_own_first_until_a_hub_has_them() -> None:
    book = ReportBook(OWN)
    for number in (1, 0, 2):
        book.add(signed(number, 3))
    assert [each.device for each in book.unstored()] == [OWN, device(1), device(2)]
    book.stored(OWN, 3, HUB)
    assert [each.device for each in book.unstored()] == [device(1), device(2)]
    assert [each.device for each in book.unstored(HUB)] == [device(1), device(2)]
    assert [each.device for each in book.unstored(OTHER_HUB)] == [OWN, device(1), device(2)]
    book.add(signed(0, 4))
    assert book.unstored(HUB)[0].device == OWN


def test_a_word_about_an_older_report_or_an_unknown_device_changes_nothing() -> None:
    book = ReportBook(OWN)
    book.add(signed(1, 5))
    book.stored(device(1), 4, HUB)
    book.stored(device(2), 4, HUB)
    assert book.unstored(HUB) == (signed(1, 5),)
    book.stored(device(1), 6, HUB)
    assert book.unstored(HUB) == ()


def test_a_false_word_about_the_future_does_not_silence_a_device() -> None:
    book = ReportBook(OWN)
    book.add(signed(1, 5))
    book.stored(device(1), 2**53, HUB)
    assert book.add(signed(1, 6))
    assert book.unstored(HUB) == (signed(1, 6),)


def test_the_hubs_that_have_a_report_are_bounded() -> None:
    book = ReportBook(OWN, hubs_max=2)
    book.add(signed(1, 5))
    for number in range(900, 950):
        book.stored(device(1), 5, device(number))
    assert sum(not book.unstored(device(number)) for number in range(900, 950)) == 2


def test_two_reports_of_one_sequence_end_the_same_everywhere() -> None:
    for order in itertools.permutations([signed(1, 5, b"one"), signed(1, 5, b"two")]):
        book = ReportBook(OWN)
        for each in order:
            book.add(each)
        assert book.newest(device(1)) == signed(1, 5, b"two")
