"""Errors are a contract: a code for scripts, a token for reports, words for people."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from driftseed.core import errors
from driftseed.core.errors import DriftseedError, PeerMisbehaved, SelectorError

GROUPS: dict[type[DriftseedError], range] = {
    errors.Misuse: range(10, 30),
    errors.TrustError: range(30, 50),
    errors.TransportError: range(50, 70),
    errors.DeviceError: range(70, 126),  # 126 and up are the shell's own
}


def kinds(base: type[DriftseedError] = DriftseedError) -> Iterator[type[DriftseedError]]:
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield kind
            yield from kinds(kind)


KINDS = tuple(kinds())


def test_codes_and_tokens_are_unique() -> None:
    assert len({kind.exit_code for kind in KINDS}) == len(KINDS)
    assert len({kind.reason for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_is_in_the_group_of_whose_fault_it_is(kind: type[DriftseedError]) -> None:
    (codes,) = (codes for group, codes in GROUPS.items() if issubclass(kind, group))
    assert kind.exit_code in codes
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.reason)
    assert len(kind.reason) <= 64
    assert kind.__doc__


def test_codes_that_scripts_already_use_stay() -> None:
    """A sample of the contract: whoever changes one of these breaks somebody's script."""
    expected: dict[type[DriftseedError], tuple[int, str]] = {
        errors.Misuse: (10, "misuse"),
        errors.SelectorError: (11, "selector-invalid"),
        errors.UnknownSelectorKey: (12, "selector-unknown-key"),
        errors.MetadataReplayed: (32, "metadata-replayed"),
        errors.ContentMismatch: (34, "content-mismatch"),
        errors.PeerMisbehaved: (52, "peer-misbehaved"),
        errors.DiskFull: (72, "disk-full"),
        errors.HealthCheckFailed: (77, "health-check-failed"),
        errors.NoVariant: (81, "no-variant"),
        errors.AmbiguousVariant: (82, "ambiguous-variant"),
    }
    assert {kind: (kind.exit_code, kind.reason) for kind in expected} == expected


def test_an_error_has_a_message_and_a_hint() -> None:
    error = errors.DiskFull("no space on /var", hint="free some")
    assert (str(error), error.message, error.hint) == ("no space on /var", "no space on /var", "free some")
    assert errors.DiskFull("no space").hint == ""


def test_a_selector_error_points_at_the_place() -> None:
    error = SelectorError("wrong", text="a b", position=2, hint="write a=b")
    assert error.message == "wrong\n  a b\n    ^"
    assert (error.text, error.position, error.hint) == ("a b", 2, "write a=b")


def test_a_misbehaving_peer_is_counted_by_kind() -> None:
    assert PeerMisbehaved("it sends garbage", kind="frame-malformed").kind == "frame-malformed"
