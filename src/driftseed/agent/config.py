"""What an operator may set on one agent, checked when it is set and kept in ``DATA/config.json``.

The file holds only what differs from the defaults, so that a later version may choose better ones.
Everything else about an agent is in its command line (where its data is, how it logs) or signed.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from driftseed.core import limits
from driftseed.core.addresses import parse_host_port, parse_relay_url
from driftseed.core.errors import ConfigInvalid, Misuse, StoreDamaged
from driftseed.core.selectors import INVENTORY_KEYS
from driftseed.store.files import atomic_write

CONFIG_FILE: Final = "config.json"
NEIGHBOURS_CONFIGURED_MAX: Final = 64
"""Most neighbours that a configuration may ask for."""
RATE_BYTES_S_MIN: Final = 1 * limits.KIB
"""Bytes per second below which a rate limit would only stall (0 means no limit)."""
_FILE_BYTES_MAX: Final = 1 * limits.MIB
_INVENTORY_MAX: Final = 64

ByteRate = Annotated[int, Meta(ge=0, le=2**40)]
AbsolutePath = Annotated[str, Meta(min_length=1, max_length=1024)]
InventoryKey = Annotated[str, Meta(min_length=1, max_length=limits.LABEL_CHARS_MAX)]
InventoryValue = Annotated[str, Meta(max_length=limits.LABEL_CHARS_MAX)]

_KEY = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_MESSAGE = re.compile(r"(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<where>.*)`)?", re.DOTALL)


class AgentConfig(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """An agent's settings, units in their names."""

    upload_limit_bytes_s: ByteRate = 0
    """Bytes per second of content that others may take from this device; 0: no limit."""
    download_limit_bytes_s: ByteRate = 0
    """Bytes per second at which content is fetched; 0: no limit."""
    content_quota_bytes: Annotated[int, Meta(ge=0, le=2**50)] = limits.CONTENT_QUOTA_DEFAULT
    """Bytes of content that are kept to serve to others; what is installed or being fetched stays in any case."""
    neighbours_max: Annotated[int, Meta(ge=0, le=NEIGHBOURS_CONFIGURED_MAX)] = limits.NEIGHBOURS_ACTIVE_MAX
    """Neighbours to dial and keep, besides hubs."""
    listen: Annotated[str, Meta(max_length=64)] = "0.0.0.0:0"
    """UDP address of this device, ``IP:PORT`` or ``[IPv6]:PORT``; port 0 lets the system choose."""
    lan_discovery: bool = True
    """Announce this device on its own networks by mDNS (``_driftseed._udp``), and find others there."""
    lan_interfaces: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=16)
    ] = []
    """Interfaces for that, by name or address; none: all but loopback."""
    relay: Literal["told", "auto"] = "told"
    """When this device relays for others that cannot reach each other: if ``relay_listen`` is set, or ("auto") whenever
    other members find that they can connect to it from outside; needs the extra "hub"."""
    relay_listen: Annotated[str, Meta(max_length=64)] = ""
    """TCP address of that relay; with relay=auto none means 0.0.0.0:7700."""
    relay_url: Annotated[str, Meta(max_length=256)] = ""
    """URL under which others reach that relay; none: http:// and ``relay_listen``, or the address that was found out."""
    relay_budget_bytes_s: ByteRate = 0
    """Bytes per second of content, each way, that may go through relays when nothing else has it; 0: no limit."""
    inventory: Annotated[dict[InventoryKey, InventoryValue], Meta(max_length=_INVENTORY_MAX)] = {}
    """What the device says of itself, over what it finds out; an empty value takes one away. Labels that
    operators signed win over both."""
    modules_dirs: Annotated[list[AbsolutePath], Meta(max_length=16)] = []
    """Directories with more update modules; the first one that has a name counts."""
    install_root: AbsolutePath | None = None
    """Directory under which the built-in modules install; none: ``DATA/installed``."""
    serve_only: bool = False
    """Fetch and serve everything, install nothing ("proxy mode")."""
    reboot_command: Annotated[list[str], Meta(max_length=64)] = []
    """Command that reboots the device when a module asks for it; none: it is reported as not possible."""
    clock_skew_max_s: Annotated[float, Meta(gt=0, le=86400.0)] = limits.CLOCK_SKEW_MAX_S
    """Seconds between this clock and a hub's from which on the difference is reported as a problem."""
    super_seed: Literal["auto", "always", "never"] = "auto"
    """Whether contents are super-seeded (BEP 16), which spares a scarce uplink a tenth of a copy and costs each
    new peer ten seconds; auto: no, the members divide the pieces among themselves."""


KEYS: Final = AgentConfig.__struct_fields__
RESTART_KEYS: Final = frozenset(
    {
        "lan_discovery",
        "lan_interfaces",
        "listen",
        "relay",
        "relay_listen",
        "relay_url",
        "install_root",
        "modules_dirs",
        "serve_only",
    }
)
"""Settings that a running agent takes over only when it starts again."""


def parse_config(values: Mapping[str, Any]) -> AgentConfig:
    """Make a configuration from untyped values.

    Raises:
        ConfigInvalid: an unknown key (with the nearest known one), or a value of the wrong type or range.
    """
    _check_keys(values)
    try:
        config = msgspec.convert(dict(values), AgentConfig)
    except msgspec.ValidationError as error:
        raise ConfigInvalid(_explain(str(error)), hint="docs/api.md lists the settings") from None
    _check_meaning(config)
    return config


def _check_keys(keys: Iterable[str]) -> None:
    for key in keys:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            raise ConfigInvalid(
                f"no setting is called {key[:64]!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"settings: {', '.join(KEYS)}",
            )


def restart_needed(running: AgentConfig, wanted: AgentConfig) -> list[str]:
    """Settings of a running agent that differ from the wanted ones and need a restart, sorted."""
    return sorted(key for key in RESTART_KEYS if getattr(running, key) != getattr(wanted, key))


def as_object(config: AgentConfig) -> dict[str, Any]:
    """Every setting by name, defaults included."""
    return {key: getattr(config, key) for key in KEYS}


class ConfigStore:
    """The configuration of one data directory.

    Args:
        directory: the agent's data directory, whose lock the caller holds.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / CONFIG_FILE
        self._config = AgentConfig()

    @property
    def config(self) -> AgentConfig:
        """What ``load`` or ``change`` made last."""
        return self._config

    def load(self) -> AgentConfig:
        """Read the file; defaults when there is none.

        Raises:
            StoreDamaged: it is not a JSON object.
            ConfigInvalid: it holds what cannot be set.
        """
        try:
            with self._path.open("rb") as file:
                data = file.read(_FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return self._config
        except OSError as error:
            raise StoreDamaged(f"cannot read {self._path}: {error.strerror}") from error
        try:
            values = msgspec.json.decode(data) if len(data) <= _FILE_BYTES_MAX else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise StoreDamaged(
                f"{self._path} is not a JSON object", hint="mend it, or remove it for the defaults"
            )
        try:
            self._config = parse_config(values)
        except ConfigInvalid as error:
            raise ConfigInvalid(f"{self._path}: {error.message}", hint=error.hint) from None
        return self._config

    def change(self, changes: Mapping[str, Any]) -> AgentConfig:
        """Change settings, all or none, and keep them.

        Args:
            changes: new values by name; None puts a setting back to its default.

        Raises:
            ConfigInvalid: nothing changed.
            DiskFull: likewise.
        """
        _check_keys(changes)
        values = as_object(self._config) | dict(changes)
        wanted = parse_config({key: value for key, value in values.items() if value is not None})
        atomic_write(
            self._path, msgspec.json.format(msgspec.json.encode(wanted), indent=2) + b"\n", mode=0o600
        )
        self._config = wanted
        return wanted


def _explain(message: str) -> str:
    """The words of msgspec, with the setting's name in front instead of a JSON path behind."""
    found = _MESSAGE.fullmatch(message)
    if found is None or not found["where"]:
        return message
    what = found["what"].replace("Expected", "expected").replace("`", "")
    return f"{found['where']}: {what}"


def _check_meaning(config: AgentConfig) -> None:
    """What types and ranges do not say. Raises ConfigInvalid."""
    for key in ("upload_limit_bytes_s", "download_limit_bytes_s", "relay_budget_bytes_s"):
        if 0 < getattr(config, key) < RATE_BYTES_S_MIN:
            raise ConfigInvalid(
                f"{key}: {getattr(config, key)} bytes a second would only stall",
                hint=f"0 for no limit, or at least {RATE_BYTES_S_MIN}",
            )
    _check_listen(config.listen)
    _check_relay(config)
    for key, paths in (("modules_dirs", config.modules_dirs), ("install_root", [config.install_root or "/"])):
        for path in paths:
            if "\x00" in path or not PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ConfigInvalid(
                    f"{key}: not an absolute path: {path[:160]!r}", hint="it begins with / and has no .."
                )
    if any(not part or "\x00" in part or len(part) > 4096 for part in config.reboot_command):
        raise ConfigInvalid(
            "reboot_command: an empty or impossible argument", hint='such as ["systemctl", "reboot"]'
        )
    for key, value in config.inventory.items():
        _check_inventory(key, value)


def _check_relay(config: AgentConfig) -> None:
    for key, parse in (("relay_listen", _parse_relay_listen), ("relay_url", parse_relay_url)):
        text = getattr(config, key)
        try:
            if text:
                parse(text)
        except Misuse as error:
            raise ConfigInvalid(f"{key}: {error.message}", hint=error.hint) from None


def _parse_relay_listen(text: str) -> object:
    return parse_host_port(text, "an address to relay at")


def _check_listen(listen: str) -> None:
    host, colon, port = listen.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
        usable = bool(colon) and bracketed == (address.version == 6) and "%" not in host
    except ValueError:
        usable = False
    if not usable or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ConfigInvalid(
            f"listen: not an address to listen at: {listen!r}",
            hint="such as 0.0.0.0:0, 192.0.2.7:7700 or [::]:7700",
        )


def _check_inventory(key: str, value: str) -> None:
    if not _KEY.fullmatch(key):
        raise ConfigInvalid(
            f"inventory: not a usable key: {key!r}",
            hint="letters, digits, - _ . / inside; the first and last one a letter or digit",
        )
    if key == "device.id":
        raise ConfigInvalid("inventory: device.id is the device's key and cannot be set")
    if not _VALUE.fullmatch(value):
        raise ConfigInvalid(
            f"inventory: not a usable value of {key}: {value!r}",
            hint="letters, digits, - _ . inside; the first and last one a letter or digit",
        )
    near = difflib.get_close_matches(key, INVENTORY_KEYS, n=1, cutoff=0.9)
    if near and key not in INVENTORY_KEYS:
        raise ConfigInvalid(
            f"inventory: {key!r} is easily taken for {near[0]!r}", hint=f"did you mean {near[0]!r}?"
        )
