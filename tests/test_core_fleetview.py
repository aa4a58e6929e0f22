"""What a hub makes of reports."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from driftseed.core.fleetview import COUNTS, DeploymentRow, Member, fold_deployments, fold_devices
from driftseed.core.ids import DeviceId
from driftseed.core.lifecycle import State
from driftseed.core.model import Deployment
from driftseed.core.reports import REFUSED, InstalledReport, Report, UpdateReport
from support_core import NOW, deployment, device, release

V1, V2 = deployment(release("app", "1"), 1).deployment, deployment(release("app", "2"), 2).deployment


def update(
    of: Deployment, state: str, *, reason: str = "", started: float = NOW, progress: float = 0.0
) -> UpdateReport:
    return UpdateReport(
        deployment=of.id,
        release=of.release,
        version=of.version,
        state=state,
        reason=reason,
        detail=f"about {reason}" if reason else "",
        started=started,
        progress=progress,
    )


def reports(*many: tuple[int, Report]) -> dict[DeviceId, Report]:
    return {device(number): report for number, report in many}


def report(
    number: int, *updates: UpdateReport, arch: str = "arm64", has: Deployment | None = None
) -> tuple[int, Report]:
    installed = (
        {has.release: InstalledReport(version=has.version, manifest_sha256=has.manifest_sha256)}
        if has
        else {}
    )
    return number, Report(
        device=device(number),
        sequence=1,
        time=NOW,
        inventory={"arch": arch},
        labels={"site": "claimed"},
        installed=installed,
        updates=list(updates),
    )


def counted(row: DeploymentRow) -> dict[str, int]:
    return {name: count for name, count in row.counts.items() if count}


def test_devices_are_counted_by_what_they_say_of_a_deployment() -> None:
    heard = reports(
        report(1, update(V1, State.SUCCEEDED)),
        report(2, update(V1, State.DOWNLOADING, progress=0.5)),
        report(3, update(V1, State.PROBING)),
        report(4, update(V1, State.ROLLED_BACK, reason="health-check-failed")),
        report(5, update(V1, State.INCONSISTENT, reason="module-failed")),
        report(6, update(V1, REFUSED, reason="no-variant")),
        report(7, update(V1, State.WAITING, reason="disk-full")),
        report(8),
        report(9, has=V1),
        report(10, update(V1, "a-state-of-a-newer-agent")),
    )
    (row,) = fold_deployments([V1], [Member(device=device(11))], heard)
    assert counted(row) == {
        "succeeded": 2,
        "installing": 2,
        "downloading": 1,
        "waiting": 1,
        "failed": 1,
        "rolled-back": 1,
        "refused": 1,
        "silent": 2,
    }
    assert tuple(row.counts) == COUNTS
    assert row.addressed == 11
    assert row.reasons == {"health-check-failed": 1, "module-failed": 1, "no-variant": 1, "disk-full": 1}
    assert [(each.device, each.reason) for each in row.failed] == [
        (device(4), "health-check-failed"),
        (device(5), "module-failed"),
        (device(6), "no-variant"),
    ]
    assert row.failed[0].detail == "about health-check-failed"


def test_a_device_counts_for_the_newest_deployment_that_addresses_it() -> None:
    heard = reports(report(1, update(V1, State.SUCCEEDED), has=V1), report(2))
    first, second = fold_deployments([V2, V1], [], heard)
    assert (first.id, counted(first)) == (V1.id, {"succeeded": 1})
    assert (second.id, counted(second)) == (V2.id, {"silent": 2})


def test_an_update_that_was_cancelled_for_a_newer_one_is_not_counted() -> None:
    heard = reports(report(1, update(V1, State.CANCELLED), update(V2, State.DOWNLOADING)))
    first, second = fold_deployments([V1, V2], [], heard)
    assert counted(first) == {}
    assert counted(second) == {"downloading": 1}


def test_signed_labels_decide_whom_a_deployment_addresses() -> None:
    glasgow = deployment(release("app", "3"), 3, "site=glasgow,arch=arm64").deployment
    members = [
        Member(device=device(1), labels={"site": "glasgow"}),
        Member(device=device(2), labels={"site": "oslo"}),
        Member(device=device(3), labels={"site": "glasgow"}),
    ]
    heard = reports(report(1), report(2), report(3, arch="amd64"))
    (row,) = fold_deployments([glasgow], members, heard)
    assert row.addressed == 1


def test_a_selector_that_does_not_parse_addresses_nobody_but_shows_who_refused() -> None:
    broken = deployment(release("app", "3"), 3, "site in").deployment
    heard = reports(report(1, update(broken, REFUSED, reason="selector-invalid")), report(2))
    (row,) = fold_deployments([broken], [], heard)
    assert counted(row) == {"refused": 1}
    assert row.reasons == {"selector-invalid": 1}


def test_a_member_that_never_reported_has_a_row() -> None:
    (row,) = fold_devices([Member(device=device(1), labels={"ring": "1"})], {}, NOW)
    assert (row.device, row.labels, row.sequence, row.heard_s) == (device(1), {"ring": "1"}, 0, None)
    assert row.doing is None
    assert row.failed is None


def test_a_device_row_shows_what_it_does_and_what_went_wrong() -> None:
    running = update(V2, State.DOWNLOADING, started=NOW + 2, progress=0.5)
    other = deployment(release("os", "9"), 9).deployment
    broken = update(other, State.FAILED, reason="module-failed", started=NOW + 1)
    heard = reports(report(1, running, broken, has=V1))
    (row,) = fold_devices([Member(device=device(1), heard_at=NOW - 30)], heard, NOW)
    assert row.doing == running
    assert row.failed == broken
    assert row.installed == {"app": "1"}
    assert row.heard_s == 30
    assert row.labels == {"site": "claimed"}


def test_a_failure_is_forgotten_once_a_newer_update_of_that_release_does_better() -> None:
    failed = update(V1, State.ROLLED_BACK, reason="health-check-failed", started=NOW)
    done = update(V2, State.SUCCEEDED, started=NOW + 1)
    (row,) = fold_devices([], reports(report(1, failed, done)), NOW)
    assert row.failed is None
    (row,) = fold_devices([], reports(report(1, failed, msgspec.structs.replace(done, started=NOW - 1))), NOW)
    assert row.failed == failed


def test_a_hub_whose_clock_went_back_shows_no_negative_age() -> None:
    (row,) = fold_devices([Member(device=device(1), heard_at=NOW + 30)], {}, NOW)
    assert row.heard_s == 0


states = st.sampled_from([*State, REFUSED, "unknown"])


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.lists(st.tuples(st.booleans(), states), max_size=3)), max_size=6
    ),
    st.lists(st.integers(1, 9), unique=True),
)
def test_every_device_is_counted_once_and_rows_are_json(
    many: list[tuple[int, list[tuple[bool, str]]]], joined: list[int]
) -> None:
    heard = reports(
        *(
            report(number, *(update(V2 if newer else V1, state) for newer, state in said))
            for number, said in many
        )
    )
    members = [Member(device=device(number)) for number in joined]
    rows = fold_deployments([V1, V2], members, heard)
    for row in rows:
        assert sum(row.counts.values()) == row.addressed
    assert rows[1].addressed == len({*heard, *(each.device for each in members)})
    devices = fold_devices(members, heard, NOW)
    assert [each.device for each in devices] == sorted({*heard, *(each.device for each in members)})
    assert msgspec.json.encode([rows, devices])
