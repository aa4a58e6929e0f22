"""What a device finds out about itself: the values that selectors compare.

Everything is read from files under a root, so that a fake tree stands for any board. What cannot be found
out is left out: a selector that asks for it then does not match, and the device says so. Values are brought
into the form that a selector can name (``core.selectors.selectable``).
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from driftseed.core import limits
from driftseed.core.ids import DeviceId
from driftseed.core.selectors import selectable

_FILE_BYTES_MAX: Final = 1 * limits.MIB
"""Bytes of any file that is read here; /proc/cpuinfo of a large server has about half."""

_MACHINES: Final = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "riscv64": "riscv64",
    "ppc64le": "ppc64le",
    "ppc64": "ppc64",
    "s390x": "s390x",
    "mips": "mips",
    "mips64": "mips64",
    "loongarch64": "loong64",
}
"""``uname -m`` to Go's and OCI's names."""

_ELF: Final = struct.Struct("4sBB12xH")
"""Identification, class, byte order, and type and machine up to e_machine's place (System V ABI, chapter 4)."""
_ELF_64: Final = 2
_ELF_BIG_ENDIAN: Final = 2
_ELF_MACHINES: Final = {
    (62, True): "amd64",
    (183, True): "arm64",
    (40, False): "arm",
    (3, False): "386",
    (243, True): "riscv64",
    (258, True): "loong64",
    (22, True): "s390x",
}
_PLACEHOLDERS: Final = frozenset(
    {
        "",
        "default-string",
        "n-a",
        "none",
        "not-applicable",
        "not-specified",
        "o.e.m",
        "oem",
        "system-manufacturer",
        "system-product-name",
        "to-be-filled-by-o.e.m",
        "unknown",
    }
)
"""What vendors leave in DMI, in selectable form and lower case."""
_SHELLS: Final = ("bin/sh", "usr/bin/env", "bin/busybox")
_OS_RELEASE: Final = re.compile(r"""^([A-Z_]+)=(["']?)(.*?)\2\s*$""", re.MULTILINE)


def detect(
    root: Path = Path("/"),
    *,
    device: DeviceId,
    agent_version: str,
    uname: os.uname_result | None = None,
    overrides: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Find out what there is to know.

    Args:
        root: where ``/proc``, ``/sys`` and ``/etc`` are.
        device: this device's id.
        agent_version: of this program.
        uname: what the kernel says of itself; asked when None.
        overrides: the operator's own values from the configuration; they win, except over ``device.id``.
            An empty one takes the value away.

    Returns:
        Values by key; keys are those of ``core.selectors.INVENTORY_KEYS`` or the operator's.
    """
    kernel = os.uname() if uname is None else uname
    os_release = {
        key: value
        for key, _, value in _OS_RELEASE.findall(_read(root, "etc/os-release", "usr/lib/os-release"))
    }
    found = {
        "agent.version": agent_version,
        "arch": architecture(root, kernel.machine),
        "cpus": str(_cpus(root) or ""),
        "hostname": kernel.nodename,
        "libc": _libc(root),
        "memory_mib": _memory_mib(root),
        "os.id": os_release.get("ID", ""),
        "os.kernel": kernel.release,
        "os.version_id": os_release.get("VERSION_ID", ""),
        **_board(root),
    }
    found = {key: selectable(value) for key, value in found.items()}
    found |= overrides or {}
    found = {key: value for key, value in found.items() if value}
    # Never clipped or overridden: it is proved by the device's key, and one character too long for a label.
    found["device.id"] = device
    return dict(sorted(found.items()))


def architecture(root: Path, machine: str) -> str:
    """The architecture of programs that run here, by Go's and OCI's names (amd64, arm64, arm, 386 ...).

    A 64-bit kernel under a 32-bit system says ``aarch64``; what counts is what its programs are, so the
    header of one is read first.
    """
    for name in _SHELLS:
        try:
            with (root / name).open("rb") as file:
                header = file.read(_ELF.size + 2)
        except OSError:
            continue
        known = _elf_architecture(header)
        if known:
            return known
    if re.fullmatch(r"i[3-6]86", machine):
        return "386"
    if re.match(r"arm(v[5-9]|$)", machine):
        return "arm"
    return _MACHINES.get(machine, machine)


def _elf_architecture(header: bytes) -> str | None:
    if len(header) < 20 or header[:4] != b"\x7fELF":
        return None
    is_64 = header[4] == _ELF_64
    order = ">" if header[5] == _ELF_BIG_ENDIAN else "<"
    (machine,) = struct.unpack_from(f"{order}H", header, 18)
    return _ELF_MACHINES.get((machine, is_64))


def _read(root: Path, *names: str) -> str:
    """The first of these files that can be read; nothing when none can."""
    for name in names:
        try:
            with (root / name).open("rb") as file:
                return file.read(_FILE_BYTES_MAX).decode("utf-8", "replace")
        except OSError:
            continue
    return ""


def _cpus(root: Path) -> int:
    return len(re.findall(r"^processor\s*:", _read(root, "proc/cpuinfo"), re.MULTILINE)) or _range_length(
        _read(root, "sys/devices/system/cpu/present")
    )


def _range_length(text: str) -> int:
    """``0-3,8`` is five; architectures whose cpuinfo has no ``processor`` lines have this."""
    count = 0
    for first, last in re.findall(r"(\d{1,6})(?:-(\d{1,6}))?", text):
        count += max(0, int(last or first) - int(first) + 1)
    return count


def _memory_mib(root: Path) -> str:
    found = re.search(r"^MemTotal:\s*(\d{1,18}) kB", _read(root, "proc/meminfo"), re.MULTILINE)
    return str(int(found[1]) // 1024) if found else ""


def _libc(root: Path) -> str:
    for pattern, name in (
        ("ld-musl-*.so.1", "musl"),
        ("ld-linux*.so.*", "glibc"),
        ("ld64.so.*", "glibc"),
        ("ld-uClibc.so.*", "uclibc"),
    ):
        if any(next((root / directory).glob(pattern), None) for directory in ("lib", "lib64", "usr/lib")):
            return name
    return ""


def _board(root: Path) -> dict[str, str]:
    """Model, hardware match and board: from the device tree where there is one, else from DMI.

    A device tree's ``compatible`` lists the board from most to least specific (Devicetree Specification,
    2.3.1); the first one is what a release is made for.
    """
    compatible = _read(root, "proc/device-tree/compatible", "sys/firmware/devicetree/base/compatible")
    if compatible:
        first = compatible.split("\x00", 1)[0]
        model = _read(root, "proc/device-tree/model", "sys/firmware/devicetree/base/model")
        return {"compatible": first, "board": first.rpartition(",")[2], "model": model.rstrip("\x00")}
    vendor, product, board = (
        "" if selectable(value).lower() in _PLACEHOLDERS else value
        for value in (
            _read(root, f"sys/class/dmi/id/{name}").strip()
            for name in ("sys_vendor", "product_name", "board_name")
        )
    )
    return {
        "compatible": f"{vendor},{product}".lower() if vendor and product else "",
        "board": board or product,
        "model": f"{vendor} {product}".strip(),
    }
