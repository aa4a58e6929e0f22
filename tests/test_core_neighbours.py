"""Whom a node dials: no islands, no eclipse, no hammering, no endless memory."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core import limits, wire
from driftseed.core.ids import DeviceId
from driftseed.core.model import NodeAddress
from driftseed.core.neighbours import DirectoryBook, PathKind, Tie, choose_prunes, share_network
from driftseed.core.wire import DirectoryEntry
from support_core import NOW, device

OWN = device(0)


def rng(seed: int = 1) -> random.Random:
    return random.Random(seed)


def address(number: int, *addrs: str) -> NodeAddress:
    return NodeAddress(device=device(number), addrs=list(addrs) or [f"203.0.{number % 256}.9:4711"])


def entry(number: int, *addrs: str, role: str = "agent", age_ms: int = 0) -> DirectoryEntry:
    return DirectoryEntry(address=address(number, *addrs), role=role, age_ms=age_ms)


def book_of(*entries: DirectoryEntry, kept: int = limits.DIRECTORY_KEPT_MAX) -> DirectoryBook:
    book = DirectoryBook(OWN, kept=kept)
    book.set_own_addresses(["192.168.7.2:4711", "198.51.100.1:4711"])
    book.learn(entries, NOW)
    return book


def near(number: int) -> DirectoryEntry:
    return entry(number, f"192.168.7.{number}:4711")


def chosen(book: DirectoryBook, ties: Sequence[Tie] = (), now: float = NOW) -> list[DeviceId]:
    found = book.choose(ties, now, rng().random)
    return [DeviceId(each.device) for each in found]


def tie(
    number: int,
    role: str = "agent",
    *,
    outgoing: bool = True,
    since: float = 0.0,
    path: PathKind = "direct",
    busy: bool = False,
) -> Tie:
    return Tie(device(number), role, outgoing=outgoing, since=since, path=path, busy=busy)


# --- whom to dial -------------------------------------------------------------------------------


def test_hubs_come_first_up_to_their_number() -> None:
    book = book_of(*[entry(number) for number in range(1, 20)])
    book.set_hubs([address(number) for number in range(100, 108)], NOW)
    found = chosen(book)
    assert len(found) == limits.HUBS_ACTIVE_MAX + limits.NEIGHBOURS_ACTIVE_MAX
    assert {each in {device(n) for n in range(100, 108)} for each in found[: limits.HUBS_ACTIVE_MAX]} == {
        True
    }
    linked = [tie(number, "hub") for number in range(100, 103)] + [tie(number) for number in range(1, 6)]
    assert chosen(book, linked) == []


def test_claimed_hubs_are_dialled_after_signed_ones() -> None:
    book = book_of(*[entry(number, role="hub") for number in range(1, 50)])
    book.set_hubs([address(number) for number in (100, 101)], NOW)
    assert set(chosen(book)[:2]) == {device(100), device(101)}


def test_neighbours_on_the_lan_come_first_but_a_site_is_no_island() -> None:
    lan = [near(number) for number in range(10, 30)]
    far = [entry(number) for number in range(100, 120)]
    found = chosen(book_of(*lan, *far))
    kinds = [int(each, 16) < 100 for each in found]
    assert kinds == [True, True, True, False, False]


def test_without_others_the_lan_fills_all_slots_and_the_other_way_round() -> None:
    assert len(chosen(book_of(*[near(number) for number in range(10, 30)]))) == limits.NEIGHBOURS_ACTIVE_MAX
    assert (
        len(chosen(book_of(*[entry(number) for number in range(100, 120)]))) == limits.NEIGHBOURS_ACTIVE_MAX
    )


def test_the_slots_for_elsewhere_count_links_that_are_up() -> None:
    book = book_of(
        *[near(number) for number in range(10, 30)], *[entry(number) for number in range(100, 120)]
    )
    ties = [tie(1, path="lan"), tie(2, path="lan"), tie(3, path="lan")]
    assert [int(each, 16) >= 100 for each in chosen(book, ties)] == [True, True]
    ties = [tie(1), tie(2)]
    assert [int(each, 16) < 100 for each in chosen(book, ties)] == [True, True, True]


def test_whoever_dials_us_takes_none_of_our_slots() -> None:
    """An eclipse attack: many members dial one device to be all that it is connected to."""
    attackers = [tie(number, outgoing=False) for number in range(200, 232)]
    assert len(chosen(book_of(*[entry(number) for number in range(1, 20)]), attackers)) == 5


def test_nobody_is_dialled_twice_nor_oneself() -> None:
    book = book_of(entry(1), entry(2), entry(0))
    assert book.contact(OWN) is None
    book.dialling(device(1))
    assert chosen(book, [tie(2, outgoing=False)]) == []
    book.dialled(device(1))
    assert set(chosen(book)) == {device(1), device(2)}


def test_dials_under_way_count_against_the_slots() -> None:
    book = book_of(*[entry(number) for number in range(1, 20)])
    for number in range(1, 5):
        book.dialling(device(number))
    assert len(chosen(book)) == 1


def test_hubs_dial_hubs_and_publishers_nobody() -> None:
    book = book_of(*[entry(number) for number in range(1, 9)])
    book.set_hubs([address(100)], NOW)
    assert [each.device for each in book.choose((), NOW, rng().random, own_role="hub")] == [device(100)]
    assert book.choose((), NOW, rng().random, own_role="publisher") == ()


def test_chance_spreads_the_load_and_a_seed_repeats_it() -> None:
    book = book_of(*[entry(number) for number in range(1, 100)])
    picks = {tuple(each.device for each in book.choose((), NOW, rng(seed).random)) for seed in range(20)}
    assert len(picks) > 15
    assert chosen(book) == chosen(book)


# --- failures -----------------------------------------------------------------------------------


def test_failures_back_off_exponentially_within_bounds_and_apart() -> None:
    book = book_of(entry(1))
    waits: list[float] = []
    for _ in range(12):
        book.failed(device(1), NOW, rng().random)
        contact = book.contact(device(1))
        assert contact is not None
        waits.append(contact.retry_at - NOW)
    assert limits.DIAL_RETRY_BASE_S / 2 <= waits[0] <= limits.DIAL_RETRY_BASE_S
    assert waits == sorted(waits)
    assert waits[-1] <= limits.DIAL_RETRY_MAX_S
    assert chosen(book, now=NOW + waits[-1] - 0.1) == []
    assert book.next_look(NOW) == NOW + waits[-1]
    assert chosen(book, now=NOW + waits[-1]) == [device(1)]
    assert book.next_look(NOW + waits[-1]) is None


def test_signed_hubs_are_tried_more_often() -> None:
    book = DirectoryBook(OWN)
    book.set_hubs([address(100)], NOW)
    for _ in range(40):
        book.failed(device(100), NOW, lambda: 0.999)
    contact = book.contact(device(100))
    assert contact is not None
    assert contact.retry_at - NOW <= limits.HUB_RETRY_MAX_S


def test_hearsay_forgives_no_failure_but_meeting_does() -> None:
    """A member cannot have a device hammered by naming it again and again."""
    book = book_of(entry(1))
    book.failed(device(1), NOW, rng().random)
    book.learn([entry(1, "203.0.113.77:1")], NOW + 1)
    assert chosen(book, now=NOW + 1) == []
    book.met(address(1), "agent", NOW + 1)
    assert chosen(book, now=NOW + 1) == [device(1)]


def test_a_new_network_forgives_all() -> None:
    book = book_of(entry(1))
    book.failed(device(1), NOW, rng().random)
    book.forgive()
    assert chosen(book) == [device(1)]


def test_a_failure_of_an_unknown_device_is_nothing() -> None:
    book = book_of()
    book.failed(device(1), NOW, rng().random)
    assert len(book) == 0


# --- merging ------------------------------------------------------------------------------------


def addrs_of(book: DirectoryBook, number: int) -> list[str]:
    contact = book.contact(device(number))
    assert contact is not None
    return contact.address.addrs


def test_the_newest_evidence_wins_in_any_order() -> None:
    old, new = entry(1, "203.0.113.1:1", age_ms=60_000), entry(1, "203.0.113.2:2", age_ms=1_000)
    for order in ((old, new), (new, old)):
        assert addrs_of(book_of(*order), 1) == ["203.0.113.2:2", "203.0.113.1:1"]


def test_a_false_address_does_not_drive_out_the_true_one() -> None:
    book = DirectoryBook(OWN)
    book.met(address(1, "203.0.113.1:1"), "agent", NOW)
    book.learn([entry(1, "192.0.2.66:6")], NOW + 5)
    assert addrs_of(book, 1) == ["192.0.2.66:6", "203.0.113.1:1"]
    book.learn([entry(1, *[f"192.0.2.{n}:6" for n in range(8)])], NOW + 6)
    assert len(addrs_of(book, 1)) <= limits.ADDRESSES_PER_DEVICE_MAX
    assert "203.0.113.1:1" in addrs_of(book, 1)


def test_a_proved_role_is_not_changed_by_hearsay() -> None:
    book = DirectoryBook(OWN)
    book.met(address(1), "agent", NOW)
    book.learn([entry(1, role="hub")], NOW + 5)
    contact = book.contact(device(1))
    assert contact is not None
    assert contact.role == "agent"


def test_a_hub_that_is_signed_no_more_becomes_a_contact_like_any() -> None:
    book = DirectoryBook(OWN, kept=2)
    book.set_hubs([address(100), address(101), address(0)], NOW)
    book.learn([entry(1)], NOW)
    assert [book.contact(device(number)) is not None for number in (100, 101, 1)] == [True, True, False]
    book.set_hubs([address(101)], NOW + 1)
    book.met(address(1), "agent", NOW + 2)
    assert [book.contact(device(number)) is not None for number in (100, 101, 1)] == [False, True, True]


def test_the_book_is_bounded_and_keeps_what_was_met() -> None:
    """A member floods the directory with made-up devices."""
    book = DirectoryBook(OWN, kept=64)
    book.set_hubs([address(1000)], NOW)
    for number in range(1, 11):
        book.met(address(number), "agent", NOW)
    for start in range(2000, 4000, limits.DIRECTORY_ENTRIES_MAX):
        book.learn([entry(start + n) for n in range(limits.DIRECTORY_ENTRIES_MAX)], NOW + start)
    assert len(book) == 64
    assert all(book.contact(device(number)) for number in (*range(1, 11), 1000))


def test_only_devices_that_were_met_are_told_of_the_newest_first() -> None:
    book = book_of(entry(9))
    book.met(address(1), "agent", NOW - 10)
    book.met(address(2), "hub", NOW - 5)
    told = book.entries(NOW, exclude={device(3)})
    assert [(each.address.device, each.role, each.age_ms) for each in told] == [
        (device(2), "hub", 5000),
        (device(1), "agent", 10_000),
    ]
    assert book.entries(NOW, exclude={device(1), device(2)}) == []


def test_what_is_told_fits_into_a_frame() -> None:
    book = DirectoryBook(OWN)
    for number in range(1, limits.DIRECTORY_ENTRIES_MAX + 10):
        long = [f"{n:02d}{'x' * 62}" for n in range(limits.ADDRESSES_PER_DEVICE_MAX)]
        where = NodeAddress(device=device(number), addrs=long, relay="https://" + "r" * 248)
        book.met(where, "r" * 16, NOW)
    told = book.entries(NOW + 1e9)
    assert len(told) > 30
    assert len(wire.encode(wire.Directory(entries=told))) <= limits.FRAME_BYTES_MAX


# --- pruning ------------------------------------------------------------------------------------


def test_what_is_over_the_cap_goes_the_worst_first() -> None:
    ties = [
        tie(1, since=1, path="relayed"),
        tie(2, since=2),
        tie(3, since=3),
        tie(4, since=9, path="relayed", busy=True),
        tie(5, since=5, path="lan"),
    ]
    assert choose_prunes(ties, neighbours_max=5) == ()
    assert choose_prunes(ties, neighbours_max=3) == (device(3), device(1))


def test_each_kind_of_link_has_its_own_cap() -> None:
    ties = [
        *[tie(number, "hub", since=number) for number in range(1, 5)],
        *[tie(number, since=number) for number in range(10, 16)],
        *[tie(number, outgoing=False, since=number) for number in range(20, 23)],
    ]
    assert choose_prunes(ties, incoming_max=2) == (device(4), device(15), device(22))


@given(
    st.lists(
        st.tuples(st.integers(1, 400), st.booleans(), st.sampled_from(["lan", "far", "hub"])), max_size=60
    ),
    st.integers(0, 2**32),
)
def test_choosing_keeps_every_bound(known: list[tuple[int, bool, str]], seed: int) -> None:
    book = book_of()
    ties: dict[int, Tie] = {}
    for number, linked, kind in known:
        role = "hub" if kind == "hub" else "agent"
        where = address(number, "192.168.7.9:1") if kind == "lan" else address(number)
        book.learn([DirectoryEntry(address=where, role=role)], NOW)
        if linked and len(ties) < 4:
            ties[number] = tie(number, role)
    found = [DeviceId(each.device) for each in book.choose(ties.values(), NOW, rng(seed).random)]
    assert len(found) == len(set(found))
    assert not set(found) & {each.device for each in ties.values()}
    after = [*ties.values(), *(tie(int(each, 16), book.contact(each).role) for each in found)]  # type: ignore[union-attr]  # chosen from the book
    assert sum(each.role == "hub" for each in after) <= max(
        3, sum(each.role == "hub" for each in ties.values())
    )
    assert sum(each.role == "agent" for each in after) <= limits.NEIGHBOURS_ACTIVE_MAX


@pytest.mark.parametrize(
    ("ours", "theirs", "shared"),
    [
        (["192.168.1.2:1"], ["192.168.1.200:9"], True),
        (["192.168.1.2:1"], ["192.168.2.2:1"], False),
        (["[2001:db8:1:2::1]:1"], ["[2001:db8:1:2:ffff::9]:1"], True),
        (["[2001:db8:1:2::1]:1"], ["[2001:db8:1:3::1]:1"], False),
        (["[::1]:1"], ["0.0.0.1:1"], False),
        (["[fe80::1%eth0]:1"], ["[fe80::2]:1"], True),
        (["nonsense", "", ":", "[]:1"], ["nonsense", "", ":", "[]:1"], False),
        ([], ["192.168.1.2:1"], False),
    ],
)
def test_sharing_a_network(ours: list[str], theirs: list[str], *, shared: bool) -> None:
    assert share_network(ours, theirs) is shared


@given(st.lists(st.text(max_size=30)), st.lists(st.text(max_size=30)))
def test_no_address_of_a_peer_raises(ours: list[str], theirs: list[str]) -> None:
    share_network(ours, theirs)
