"""What a person is shown of a fleet and of one agent: rows made from the JSON of the APIs, pure.

The first question of an operator is which devices are stuck and why, so those come first, and the reason is a
column of its own. The JSON comes from another version of the program perhaps, so nothing here insists on a field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Final

from driftseed.cli.output import human_bytes, human_seconds, short

REFUSALS_SHOWN_MAX: Final = 5
"""Refusals, the newest first, that ``agent status`` shows."""

INSTANT_END: Final = 253402300800
"""Seconds since 1970 at the end of the year 9999, which is where calendars end."""

Json = Mapping[str, Any]


class Condition(IntEnum):
    """How a device does, the worst first."""

    FAILED = 0
    REFUSED = 1
    NO_PROGRESS = 2
    SILENT = 3
    """Up to here it is stuck: the hub has judged that (hub/views.py)."""
    WAITING = 4
    WORKING = 5
    WELL = 6


_STUCK: Final = {
    "failed": Condition.FAILED,
    "refused": Condition.REFUSED,
    "no-progress": Condition.NO_PROGRESS,
    "silent": Condition.SILENT,
}


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device in words."""

    device: str
    condition: Condition
    state: str
    why: str
    update: str
    """What it is stuck or busy with; empty when it is neither."""


def view_device(device: Json) -> DeviceView:
    """Put one entry of the hub's ``/v1/devices`` into words."""
    identity = str(device.get("device", ""))
    failed, doing, stuck = (_object(device.get(name)) for name in ("failed", "doing", "stuck"))
    state = str(doing.get("state", ""))
    if stuck:
        kind = str(stuck.get("why", ""))
        why = (
            _why(stuck)
            if stuck.get("reason") != kind or stuck.get("detail")
            else f"was {state}"
            if doing
            else ""
        )
        since = _number(stuck.get("since_s"))
        shown = kind if since is None else f"{kind} {human_seconds(since)}"
        return DeviceView(identity, _STUCK.get(kind, Condition.FAILED), shown, why, _release(failed or doing))
    if state == "waiting":
        return DeviceView(identity, Condition.WAITING, state, _why(doing), _release(doing))
    if doing:
        percent = f"{_number(doing.get('progress')) or 0:.0%}"
        return DeviceView(identity, Condition.WORKING, f"{state} {percent}", _why(doing), _release(doing))
    return DeviceView(identity, Condition.WELL, "well", "", "")


def device_rows(devices: Sequence[Json]) -> list[list[str]]:
    """Rows for ``DEVICE_COLUMNS``, those that need a person first."""
    views = [(view_device(device), device) for device in devices]
    views.sort(key=lambda pair: (pair[0].condition, pair[0].device))
    return [
        [
            short(view.device),
            view.state,
            view.update,
            view.why,
            _installed(device),
            str(device.get("path") or "-"),
            human_seconds(_number(device.get("heard_s"))),
            _pairs(_object(device.get("labels"))),
            _pairs(
                {
                    k: v
                    for k, v in _object(device.get("inventory")).items()
                    if k in {"arch", "board", "hostname"}
                }
            ),
        ]
        for view, device in views
    ]


DEVICE_COLUMNS: Final = (
    "DEVICE",
    "STATE",
    "UPDATE",
    "WHY",
    "INSTALLED",
    "PATH",
    "HEARD",
    "LABELS",
    "MACHINE",
)


def attention(devices: Sequence[Json]) -> list[dict[str, str]]:
    """The devices that need a person, the worst first: what ``driftseed status`` ends with."""
    views = sorted(
        (view_device(device) for device in devices), key=lambda view: (view.condition, view.device)
    )
    return [
        {"device": view.device, "state": view.state, "update": view.update, "why": view.why}
        for view in views
        if view.condition <= Condition.SILENT or (view.condition is Condition.WAITING and view.why)
    ]


DEPLOYMENT_COUNTS: Final = (
    "succeeded",
    "installing",
    "downloading",
    "waiting",
    "failed",
    "rolled-back",
    "refused",
    "silent",
)
DEPLOYMENT_COLUMNS: Final = ("SEQ", "RELEASE", "TO", *(name.upper() for name in DEPLOYMENT_COUNTS))


def deployment_rows(deployments: Sequence[Json]) -> list[list[str]]:
    """Rows for ``DEPLOYMENT_COLUMNS``, the newest first."""
    newest = sorted(deployments, key=lambda one: _number(one.get("sequence")) or 0, reverse=True)
    return [
        [
            str(one.get("sequence", "")),
            _release(one),
            str(one.get("selector") or "all"),
            *(str(_object(one.get("counts")).get(name) or "-") for name in DEPLOYMENT_COUNTS),
        ]
        for one in newest
    ]


def deployment_failures(deployments: Sequence[Json]) -> list[list[str]]:
    """Rows (release, device, why) of every device on which a deployment failed."""
    return [
        [_release(one), short(str(failure.get("device", ""))), _why(failure)]
        for one in deployments
        for failure in _objects(one.get("failed"))
    ]


def hub_lines(status: Json) -> list[str]:
    """A hub's ``/v1/status`` in words."""
    devices = _object(status.get("devices"))
    counts = ", ".join(f"{devices.get(name, 0)} {name}" for name in ("known", "connected", "stuck"))
    return _described(
        [
            ("fleet", f"{status.get('fleet_name', '')}  {short(str(status.get('fleet', '')))}"),
            ("hub", f"{status.get('address') or status.get('device', '')}, {_up(status)}"),
            ("metadata", _metadata(status)),
            ("devices", counts),
            ("content", _content(status)),
        ]
    )


def agent_lines(status: Json) -> list[str]:
    """An agent's ``/v1/status`` in words, what is wrong last so that it stands above the prompt."""
    free = human_bytes(_number(status.get("free_bytes")) or 0)
    lines = [
        ("fleet", f"{status.get('fleet_name', '')}  {short(str(status.get('fleet', '')))}"),
        ("device", f"{status.get('device', '')} ({status.get('role', 'agent')}), {_up(status)}"),
        ("connected", f"{status.get('hubs', 0)} hubs, {status.get('neighbours', 0)} neighbours"),
        ("metadata", _metadata(status)),
        ("installed", _installed(status) or "nothing yet"),
        ("labels", _pairs(_object(status.get("labels"))) or "-"),
        ("content", f"{_content(status)}, {free} free on the disk"),
    ]
    refusals = _objects(status.get("refusals"))[:REFUSALS_SHOWN_MAX]
    lines.extend(("refused", _why(refusal)) for refusal in refusals)
    for problem in _objects(status.get("problems")):
        lines.append(("problem", str(problem.get("message", ""))))
        if problem.get("hint"):
            lines.append(("", str(problem["hint"])))
    return _described(lines)


def overlay_lines(overlay: Json) -> list[str]:
    """An agent's ``/v1/overlay`` in words."""
    lines = [
        ("device", str(overlay.get("device", ""))),
        ("listens", _list(overlay.get("addresses"))),
        ("seen at", _list(overlay.get("observed"))),
        ("relay", str(overlay.get("relay") or "-")),
        ("knows", f"{overlay.get('known_devices', 0)} devices"),
    ]
    hubs = (
        f"{short(str(hub.get('device', '')))} at {_list(hub.get('addrs'))}"
        for hub in _objects(overlay.get("hubs"))
    )
    return _described([*lines, *(("hub", hub) for hub in hubs)])


def _list(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) and value else "-"


def _described(lines: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{name:<10} {value}" for name, value in lines]


def _up(status: Json) -> str:
    return f"up {human_seconds(_number(status.get('uptime_s')))}"


def _metadata(status: Json) -> str:
    versions = [f"{name} {status.get(f'{name}_version', '-')}" for name in ("timestamp", "snapshot")]
    return f"{', '.join(versions)}, expires {status.get('metadata_expires', '-')}"


PEER_COLUMNS: Final = (
    "DEVICE",
    "ROLE",
    "STATE",
    "PATH",
    "RTT",
    "ADDRESS",
    "SINCE",
    "DIR",
    "IN",
    "OUT",
    "FOR",
)


def peer_rows(peers: Sequence[Json]) -> list[list[str]]:
    """Rows for ``PEER_COLUMNS``."""
    return [
        [
            short(str(peer.get("device", ""))),
            str(peer.get("role", "")),
            str(peer.get("state", "")),
            str(peer.get("path") or "-"),
            f"{rtt:.0f} ms" if (rtt := _number(peer.get("rtt_ms"))) is not None else "-",
            str(peer.get("address") or "-"),
            human_seconds(_number(peer.get("since_s"))),
            str(peer.get("direction", "")),
            human_bytes(_number(peer.get("bytes_in")) or 0),
            human_bytes(_number(peer.get("bytes_out")) or 0),
            ",".join(str(purpose) for purpose in peer.get("purpose") or ()),
        ]
        for peer in peers
    ]


UPDATE_COLUMNS: Final = ("DEPLOYMENT", "RELEASE", "STATE", "DONE", "WHY", "TRIES", "SECONDS", "BYTES FROM")


def update_rows(updates: Sequence[Json]) -> list[list[str]]:
    """Rows for ``UPDATE_COLUMNS``, in the order given."""
    return [
        [
            str(update.get("deployment", "")),
            _release(update),
            str(update.get("state", "")),
            f"{_number(update.get('progress')) or 0:.0%}",
            _why(update),
            str(update.get("attempts", "")),
            f"{seconds:.1f}" if (seconds := _number(update.get("seconds"))) is not None else "-",
            ", ".join(
                f"{source} {human_bytes(_number(count) or 0)}"
                for source, count in _object(update.get("bytes_from")).items()
            ),
        ]
        for update in updates
    ]


HISTORY_COLUMNS: Final = ("AT", "STATE", "EVENT")


def history_rows(history: Sequence[Json]) -> list[list[str]]:
    """Rows for ``HISTORY_COLUMNS``, in the order given."""
    return [
        [_instant(_number(one.get("at"))), str(one.get("state", "")), str(one.get("event", ""))]
        for one in history
    ]


def _instant(seconds: float | None) -> str:
    if seconds is None or not 0 <= seconds < INSTANT_END:
        return "-"
    return (
        datetime.fromtimestamp(seconds, UTC)
        .isoformat(sep=" ", timespec="milliseconds")
        .removesuffix("+00:00")
    )


def _object(value: object) -> Json:
    return value if isinstance(value, Mapping) else {}


def _objects(value: object) -> list[Json]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _why(value: Json) -> str:
    reason, detail = str(value.get("reason") or ""), str(value.get("detail") or "")
    return f"{reason}: {detail}" if reason and detail else reason or detail


def _release(value: Json) -> str:
    return f"{value.get('release', '')} {value.get('version', '')}".strip()


def _installed(value: Json) -> str:
    installed = _object(value.get("installed"))
    return ", ".join(
        f"{name} {_object(what).get('version', what)}" if isinstance(what, Mapping) else f"{name} {what}"
        for name, what in installed.items()
    )


def _pairs(values: Json) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(values.items()))


def _content(status: Json) -> str:
    content = _object(status.get("content"))
    return (
        f"{content.get('files', 0)} files, {human_bytes(_number(content.get('bytes')) or 0)} "
        f"of {human_bytes(_number(content.get('quota')) or 0)}"
    )
