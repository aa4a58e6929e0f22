"""Signed documents: their shape, their bounds, and bytes that do not change."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core import limits
from driftseed.core.model import (
    Artifact,
    Deployment,
    EnrolmentKeys,
    HealthCheck,
    Hubs,
    NodeAddress,
    ReleaseManifest,
    artifact_target,
    decode_document,
    deployment_target,
    encode_document,
    manifest_target,
    torrent_target,
)
from support_core import artifact, deployment, release

KEY = "ab" * 32
MANIFEST = ReleaseManifest(
    name="app",
    version="1.0",
    module="directory",
    artifacts=[artifact("app.tar", "arch=arm64")],
    created="2027-01-15T08:00:00Z",
    health=HealthCheck(command=["/bin/true"], timeout_s=5.0),
    meta={"path": "/opt/app", "nested": [1, None, {"a": True}]},
)
DOCUMENTS: tuple[msgspec.Struct, ...] = (
    MANIFEST,
    deployment(release(), 7, "site=glasgow").deployment,
    EnrolmentKeys(keys=[KEY]),
    Hubs(hubs=[NodeAddress(device=KEY, addrs=["192.0.2.1:4711"], relay="https://relay.example")]),
)


def as_map(document: msgspec.Struct) -> dict[str, Any]:
    found = msgspec.to_builtins(document)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: type(each).__name__)
def test_a_document_reads_back_and_is_always_the_same_bytes(document: msgspec.Struct) -> None:
    data = encode_document(document)
    again = decode_document(data, type(document))
    assert again == document
    assert encode_document(again) == data
    assert data.endswith(b"}\n")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: type(each).__name__)
def test_members_of_newer_publishers_are_ignored_but_a_newer_format_is_not(document: msgspec.Struct) -> None:
    newer = msgspec.json.encode({**as_map(document), "mood": {"fine": True}})
    assert decode_document(newer, type(document)) == document
    with pytest.raises(ValueError, match="format"):
        decode_document(msgspec.json.encode({**as_map(document), "format": 2}), type(document))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../app"},
        {"version": ""},
        {"version": "1.0\n"},
        {"module": "/bin/sh"},
        {"artifacts": []},
        {"module_timeout_s": 0},
        {"module_timeout_s": 86401},
        {"health": {"command": []}},
        {"health": {"command": ["x"], "timeout_s": -1}},
    ],
    ids=str,
)
def test_a_manifest_that_could_do_harm_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\$"):
        decode_document(msgspec.json.encode({**as_map(MANIFEST), **changes}), ReleaseManifest)


@pytest.mark.parametrize(
    "changes",
    [
        {"filename": "../app"},
        {"filename": ".app"},
        {"length": -1},
        {"length": limits.ARTIFACT_BYTES_MAX + 1},
        {"sha256": "AB" * 32},
        {"torrent_sha256": ""},
        {"selector": "a" * (limits.SELECTOR_CHARS_MAX + 1)},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_an_artifact_that_could_do_harm_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\$"):
        decode_document(msgspec.json.encode({**as_map(artifact()), **changes}), Artifact)


@pytest.mark.parametrize(
    "changes", [{"id": "x"}, {"id": "0" * 31}, {"sequence": 0}, {"manifest_sha256": "0"}], ids=str
)
def test_a_deployment_that_means_nothing_is_refused(changes: dict[str, Any]) -> None:
    good = as_map(deployment(release()).deployment)
    with pytest.raises(ValueError, match=r"\$"):
        decode_document(msgspec.json.encode({**good, **changes}), Deployment)


def test_variants_and_hubs_are_bounded() -> None:
    def manifest(count: int) -> bytes:
        return msgspec.json.encode({**as_map(MANIFEST), "artifacts": [as_map(artifact())] * count})

    assert (
        len(decode_document(manifest(limits.VARIANTS_MAX), ReleaseManifest).artifacts) == limits.VARIANTS_MAX
    )
    with pytest.raises(ValueError, match="artifacts"):
        decode_document(manifest(limits.VARIANTS_MAX + 1), ReleaseManifest)
    hubs = msgspec.json.encode({"hubs": [{"device": KEY}] * (limits.TICKET_HUBS_MAX + 1)})
    with pytest.raises(ValueError, match="hubs"):
        decode_document(hubs, Hubs)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"meta":' * 50_000],
    ids=lambda data: repr(data[:8]),
)
def test_what_is_no_document_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|truncated|nested|object|UTF-8|utf-8|utf8"):
        decode_document(data, ReleaseManifest)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_a_value_error(data: bytes) -> None:
    try:
        found: Hubs | None = decode_document(data, Hubs)
    except ValueError:
        found = None
    assert found is None or isinstance(found, Hubs)


def test_targets_are_where_the_roles_may_sign() -> None:
    one = artifact("app.tar")
    assert manifest_target("app", "1.0") == "releases/app/1.0/release.json"
    assert artifact_target("app", "1.0", one) == f"releases/app/1.0/{one.sha256}.app.tar"
    assert torrent_target("app", "1.0", one) == f"releases/app/1.0/{one.sha256}.torrent"
    assert deployment_target("0" * 32) == f"deployments/{'0' * 32}.json"
