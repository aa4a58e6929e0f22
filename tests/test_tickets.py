"""Join tickets: what a person's clipboard does to them, and what a forger may put into them."""

from __future__ import annotations

import base64
import hashlib
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core import limits
from driftseed.core.errors import Misuse, TicketDamaged, TicketExpired
from driftseed.core.model import NodeAddress
from driftseed.core.tickets import PREFIX, Ticket, decode_ticket, encode_ticket, fleet_of

NOW = 1_800_000_000.0
ROOT = b'{"signed": {"_type": "root", "version": 1}}'


def make_ticket(expires: float = NOW + 60, root: bytes = ROOT) -> Ticket:
    return Ticket(
        fleet=fleet_of(root),
        name="harbour",
        root=root,
        hubs=[NodeAddress(device="ab" * 32, addrs=["192.0.2.1:4433"], relay="https://relay.example/")],
        invitation=b"\x01\x02\x03",
        expires=expires,
    )


def text_of(body: bytes) -> str:
    raw = hashlib.sha256(body).digest()[:4] + body
    return PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


TEXT = encode_ticket(make_ticket())


def test_a_ticket_survives_the_way_through_text() -> None:
    assert decode_ticket(TEXT, NOW) == make_ticket()
    assert TEXT.startswith("driftseed1")
    assert TEXT.isascii()
    assert "=" not in TEXT


@given(st.lists(st.tuples(st.integers(0, len(TEXT)), st.sampled_from([" ", "\n", "\r\n", "\t"])), max_size=8))
def test_spaces_and_line_ends_of_mail_programs_are_ignored(pasted: list[tuple[int, str]]) -> None:
    text = TEXT
    for position, space in pasted:
        text = text[:position] + space + text[position:]
    assert decode_ticket(text, NOW) == make_ticket()


def test_every_single_changed_character_is_found() -> None:
    for position, right in enumerate(TEXT):
        for other in set("AB_-9") - {right}:
            with pytest.raises(TicketDamaged):
                decode_ticket(TEXT[:position] + other + TEXT[position + 1 :], NOW)


@given(st.integers(0, len(TEXT) - 1))
def test_every_truncation_is_found(length: int) -> None:
    with pytest.raises(TicketDamaged):
        decode_ticket(TEXT[:length], NOW)


@given(st.integers(0, len(TEXT) - 1), st.text(min_size=1, max_size=1).filter(lambda c: not c.isspace()))
def test_every_inserted_character_is_found(position: int, inserted: str) -> None:
    text = TEXT[:position] + inserted + TEXT[position:]
    if text != TEXT:
        with pytest.raises(TicketDamaged):
            decode_ticket(text, NOW)


@given(st.text(max_size=200))
def test_any_text_is_a_ticket_or_damaged(text: str) -> None:
    with pytest.raises(TicketDamaged):
        decode_ticket(text, NOW)


@given(st.binary(max_size=200))
def test_any_bytes_under_a_right_checksum_are_damaged_at_most(body: bytes) -> None:
    for inner in (body, zlib.compress(body)):
        with pytest.raises(TicketDamaged):
            decode_ticket(text_of(inner), NOW)


def test_an_expired_ticket_is_told_from_a_damaged_one() -> None:
    text = encode_ticket(make_ticket(expires=NOW - 3 * 86400))
    with pytest.raises(TicketExpired, match="expired 3 days ago"):
        decode_ticket(text, NOW)
    with pytest.raises(TicketDamaged):
        decode_ticket(text[:-3], NOW)


@pytest.mark.parametrize("now", [NOW + 60, NOW + 61, 1e18])
def test_a_ticket_ends_at_its_expiry(now: float) -> None:
    assert decode_ticket(TEXT, NOW + 59.9).name == "harbour"
    with pytest.raises(TicketExpired):
        decode_ticket(TEXT, now)


def test_a_ticket_that_never_compares_as_expired_is_refused() -> None:
    with pytest.raises(TicketExpired):
        decode_ticket(text_of(zlib.compress(msgspec.msgpack.encode(make_ticket(expires=float("nan"))))), NOW)


def test_a_decompression_bomb_is_not_unfolded() -> None:
    bomb = zlib.compress(b"\0" * (16 * limits.TICKET_UNPACKED_BYTES_MAX), 9)
    assert len(text_of(bomb)) < limits.TICKET_BYTES_MAX
    with pytest.raises(TicketDamaged, match="does not unpack"):
        decode_ticket(text_of(bomb), NOW)


def test_a_nesting_bomb_is_damaged() -> None:
    nested = b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(TicketDamaged):
        decode_ticket(text_of(zlib.compress(nested)), NOW)
    in_unknown_member = b"\x81\xa1x" + nested
    with pytest.raises(TicketDamaged):
        decode_ticket(text_of(zlib.compress(in_unknown_member)), NOW)


def test_bytes_behind_the_packed_ticket_are_refused() -> None:
    body = zlib.compress(msgspec.msgpack.encode(make_ticket())) + b"more"
    with pytest.raises(TicketDamaged):
        decode_ticket(text_of(body), NOW)


def test_a_longer_text_than_allowed_is_not_decoded() -> None:
    with pytest.raises(TicketDamaged, match=f"{limits.TICKET_BYTES_MAX} are allowed"):
        decode_ticket(PREFIX + "A" * limits.TICKET_BYTES_MAX, NOW)


def test_another_root_under_the_same_fleet_id_is_refused() -> None:
    ticket = msgspec.structs.replace(make_ticket(), root=b"another root")
    with pytest.raises(Misuse, match="does not have this root"):
        encode_ticket(ticket)
    with pytest.raises(TicketDamaged, match="fleet id"):
        decode_ticket(text_of(zlib.compress(msgspec.msgpack.encode(ticket))), NOW)


def test_a_ticket_that_would_be_too_long_is_not_made() -> None:
    noise = b"".join(hashlib.sha256(bytes([n // 256, n % 256])).digest() for n in range(1000))
    with pytest.raises(Misuse, match="characters where"):
        encode_ticket(make_ticket(root=noise))
