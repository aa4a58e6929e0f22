"""What a NAT is called, and what two devices behind two of them can hope for."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core.natprobe import Behaviour, Filtering, Mapping, Observations, best_path, classify
from driftseed.core.stun import BindingRequest, BindingResponse, decode
from driftseed.lab.nat import EXPECTED, NatKind

LOCAL = ("192.168.1.10", 40000)
OUTER = ("198.51.100.7", 40000)


@pytest.mark.parametrize(
    ("first", "other_address", "other_both", "mapping"),
    [
        (OUTER, OUTER, OUTER, Mapping.ENDPOINT_INDEPENDENT),
        (OUTER, (OUTER[0], 2), (OUTER[0], 2), Mapping.ADDRESS_DEPENDENT),
        (OUTER, (OUTER[0], 2), (OUTER[0], 3), Mapping.ADDRESS_AND_PORT_DEPENDENT),
        (OUTER, OUTER, (OUTER[0], 3), Mapping.ADDRESS_AND_PORT_DEPENDENT),
        (OUTER, None, None, Mapping.ADDRESS_AND_PORT_DEPENDENT),
        (None, None, None, Mapping.BLOCKED),
    ],
)
def test_the_mapping_is_told_from_three_answers(
    first: tuple[str, int] | None,
    other_address: tuple[str, int] | None,
    other_both: tuple[str, int] | None,
    mapping: Mapping,
) -> None:
    assert classify(Observations(LOCAL, first, other_address, other_both)).mapping is mapping


@pytest.mark.parametrize(
    ("elsewhere", "other_port", "filtering"),
    [
        (True, True, Filtering.ENDPOINT_INDEPENDENT),
        (True, False, Filtering.ENDPOINT_INDEPENDENT),
        (False, True, Filtering.ADDRESS_DEPENDENT),
        (False, False, Filtering.ADDRESS_AND_PORT_DEPENDENT),
    ],
)
def test_the_filter_is_told_from_who_gets_in(
    *, elsewhere: bool, other_port: bool, filtering: Filtering
) -> None:
    seen = Observations(
        LOCAL, OUTER, OUTER, OUTER, answer_from_elsewhere=elsewhere, answer_from_other_port=other_port
    )
    assert classify(seen).filtering is filtering


def test_translation_ports_and_lifetimes_are_told() -> None:
    found = classify(Observations(LOCAL, OUTER, OUTER, OUTER, open_after={1.0: True, 5.0: False, 9.0: False}))
    assert (found.translated, found.port_kept, found.open_at_least_s, found.open_less_than_s) == (
        True,
        True,
        1.0,
        5.0,
    )
    public = classify(Observations(LOCAL, LOCAL, LOCAL, LOCAL, open_after={5.0: True}))
    assert (public.translated, public.open_less_than_s) == (False, None)


def direct_pairs() -> set[frozenset[NatKind]]:
    """The table of measured paths, by the kinds' names."""
    steady = {
        NatKind.PUBLIC,
        NatKind.FULL_CONE,
        NatKind.ADDRESS_RESTRICTED,
        NatKind.PORT_RESTRICTED,
        NatKind.DOUBLE,
        NatKind.DOUBLE_HAIRPIN,
        NatKind.SHORT_LIVED,
    }
    open_to_any_port = {NatKind.PUBLIC, NatKind.FULL_CONE, NatKind.ADDRESS_RESTRICTED}
    moving = {NatKind.SYMMETRIC, NatKind.SYMMETRIC_BY_ADDRESS}
    pairs = {frozenset(pair) for pair in itertools.product(steady, steady)}
    return pairs | {frozenset(pair) for pair in itertools.product(moving, open_to_any_port)}


@pytest.mark.parametrize("one", NatKind)
@pytest.mark.parametrize("other", NatKind)
def test_the_best_path_is_what_was_measured(one: NatKind, other: NatKind) -> None:
    path = best_path(EXPECTED[one], EXPECTED[other])
    assert (path == "direct") == (frozenset({one, other}) in direct_pairs())


def test_behind_one_nat_the_way_out_and_in_again_needs_hairpinning() -> None:
    for kind, path in ((NatKind.DOUBLE, "relayed"), (NatKind.DOUBLE_HAIRPIN, "direct")):
        assert best_path(EXPECTED[kind], EXPECTED[kind], shared_nat=True) == path


behaviours = st.builds(Behaviour, st.sampled_from(Mapping), st.sampled_from(Filtering))


@given(one=behaviours, other=behaviours, shared=st.booleans())
def test_the_best_path_does_not_depend_on_who_is_asked(
    one: Behaviour, other: Behaviour, *, shared: bool
) -> None:
    assert best_path(one, other, shared_nat=shared) == best_path(other, one, shared_nat=shared)


def test_stun_bytes_are_those_of_the_rfc() -> None:
    # RFC 5769, section 2.2, reduced to the attribute that is read here.
    transaction = bytes.fromhex("b7e7a701bc34d686fa87dfae")
    golden = bytes.fromhex("0101000c2112a442b7e7a701bc34d686fa87dfae002000080001a147e112a643")
    answer = BindingResponse(transaction, ("192.0.2.1", 32853))
    assert answer.encode() == golden
    assert decode(golden) == answer
    # Section 2.3: the same over IPv6.
    six = bytes.fromhex(
        "010100182112a442b7e7a701bc34d686fa87dfae002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    )
    answer = BindingResponse(transaction, ("2001:db8:1234:5678:11:2233:4455:6677", 32853))
    assert (answer.encode(), decode(six)) == (six, answer)


@given(
    transaction=st.binary(min_size=12, max_size=12),
    ip=st.booleans(),
    port=st.booleans(),
    response_port=st.none() | st.integers(1, 0xFFFF),
)
def test_a_request_reads_back(transaction: bytes, *, ip: bool, port: bool, response_port: int | None) -> None:
    request = BindingRequest(transaction, ip, port, response_port)
    assert decode(request.encode()) == request


@given(st.binary(max_size=600))
def test_anything_else_is_no_message(data: bytes) -> None:
    decode(data)
    # Also behind a header that is right but for its contents.
    decode(bytes.fromhex("0101") + len(data).to_bytes(2) + bytes.fromhex("2112a442") + bytes(12) + data)
    decode(bytes.fromhex("0001") + len(data).to_bytes(2) + bytes.fromhex("2112a442") + bytes(12) + data)
