"""What a device finds out about itself, on fake trees of real boards."""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driftseed.agent.inventory import architecture, detect
from driftseed.core.ids import DeviceId
from driftseed.core.selectors import INVENTORY_KEYS, parse_selector

DEVICE = DeviceId("ab" * 32)
BULLSEYE = """\
PRETTY_NAME="Raspbian GNU/Linux 11 (bullseye)"
NAME="Raspbian GNU/Linux"
VERSION_ID="11"
ID=raspbian
ID_LIKE=debian
"""
ALPINE = "NAME=\"Alpine Linux\"\nID=alpine\nVERSION_ID='3.20.3'\n"


def elf(machine: int, *, bits: int, big_endian: bool = False) -> bytes:
    order = ">" if big_endian else "<"
    return (
        b"\x7fELF"
        + bytes([bits // 32, 2 if big_endian else 1, 1])
        + bytes(9)
        + struct.pack(f"{order}HH", 3, machine)
    )


def uname(machine: str, node: str = "node-1", release: str = "6.6.31+rpt-rpi-v8") -> os.uname_result:
    return os.uname_result(("Linux", node, release, "#1 SMP", machine))


def make(root: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def find(root: Path, machine: str, overrides: Mapping[str, str] | None = None) -> dict[str, str]:
    return detect(root, device=DEVICE, agent_version="0.1.0", uname=uname(machine), overrides=overrides)


@pytest.fixture
def raspberry(tmp_path: Path) -> Path:
    """A Raspberry Pi 4 with a 32-bit system under a 64-bit kernel, as Raspberry Pi OS has it."""
    return make(
        tmp_path,
        {
            "proc/device-tree/model": b"Raspberry Pi 4 Model B Rev 1.4\x00",
            "proc/device-tree/compatible": b"raspberrypi,4-model-b\x00brcm,bcm2711\x00",
            "proc/cpuinfo": "".join(f"processor\t: {n}\nmodel name\t: ARMv7\n\n" for n in range(4)),
            "proc/meminfo": "MemTotal:        3884292 kB\nMemFree:  1 kB\n",
            "etc/os-release": BULLSEYE,
            "bin/sh": elf(40, bits=32),
            "lib/ld-linux-armhf.so.3": b"",
        },
    )


def test_a_raspberry_pi_is_known_by_its_device_tree(raspberry: Path) -> None:
    assert find(raspberry, "aarch64") == {
        "agent.version": "0.1.0",
        "arch": "arm",
        "board": "4-model-b",
        "compatible": "raspberrypi-4-model-b",
        "cpus": "4",
        "device.id": DEVICE,
        "hostname": "node-1",
        "libc": "glibc",
        "memory_mib": "3793",
        "model": "Raspberry-Pi-4-Model-B-Rev-1.4",
        "os.id": "raspbian",
        "os.kernel": "6.6.31-rpt-rpi-v8",
        "os.version_id": "11",
    }
    assert set(find(raspberry, "aarch64")) == INVENTORY_KEYS


def test_a_pc_is_known_by_its_dmi(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        {
            "sys/class/dmi/id/sys_vendor": "LENOVO\n",
            "sys/class/dmi/id/product_name": "20XW0026GE\n",
            "sys/class/dmi/id/board_name": "20XW0026GE\n",
            "sys/devices/system/cpu/present": "0-7,16-17\n",
            "usr/lib/os-release": "ID=fedora\nVERSION_ID=40\n",
            "usr/bin/env": elf(62, bits=64),
            "lib64/ld-linux-x86-64.so.2": b"",
        },
    )
    found = find(root, "x86_64")
    assert (found["arch"], found["libc"], found["cpus"]) == ("amd64", "glibc", "10")
    assert (found["compatible"], found["board"]) == ("lenovo-20xw0026ge", "20XW0026GE")
    assert found["model"] == "LENOVO-20XW0026GE"
    assert (found["os.id"], found["os.version_id"]) == ("fedora", "40")


def test_what_a_vendor_did_not_fill_in_says_nothing(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        {
            "sys/class/dmi/id/sys_vendor": "To Be Filled By O.E.M.\n",
            "sys/class/dmi/id/product_name": "Default string\n",
            "sys/class/dmi/id/board_name": "None\n",
        },
    )
    assert not {"compatible", "board", "model"} & set(find(root, "x86_64"))


def test_alpine_on_riscv_has_musl(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        {
            "lib/ld-musl-riscv64.so.1": b"",
            "bin/busybox": elf(243, bits=64),
            "etc/os-release": ALPINE,
        },
    )
    found = find(root, "riscv64")
    assert (found["arch"], found["libc"]) == ("riscv64", "musl")
    assert (found["os.id"], found["os.version_id"]) == ("alpine", "3.20.3")


@pytest.mark.parametrize(
    ("machine", "arch"),
    [
        ("x86_64", "amd64"),
        ("aarch64", "arm64"),
        ("armv7l", "arm"),
        ("armv6l", "arm"),
        ("i386", "386"),
        ("i686", "386"),
        ("riscv64", "riscv64"),
        ("ppc64le", "ppc64le"),
        ("pdp11", "pdp11"),
    ],
)
def test_without_a_program_to_look_at_the_kernels_word_counts(
    tmp_path: Path, machine: str, arch: str
) -> None:
    assert architecture(tmp_path, machine) == arch


@pytest.mark.parametrize(
    ("header", "arch"),
    [
        (elf(3, bits=32), "386"),
        (elf(183, bits=64), "arm64"),
        (elf(22, bits=64, big_endian=True), "s390x"),
        (elf(9999, bits=64), "amd64"),
        (b"#!/bin/busybox sh\n", "amd64"),
        (b"\x7fELF", "amd64"),
        (b"", "amd64"),
    ],
)
def test_a_programs_header_counts_more_than_the_kernels_word(
    tmp_path: Path, header: bytes, arch: str
) -> None:
    make(tmp_path, {"bin/sh": header})
    assert architecture(tmp_path, "x86_64") == arch


def test_an_empty_machine_is_left_unsaid(tmp_path: Path) -> None:
    assert find(tmp_path, "x86_64") == {
        "agent.version": "0.1.0",
        "arch": "amd64",
        "device.id": DEVICE,
        "hostname": "node-1",
        "os.kernel": "6.6.31-rpt-rpi-v8",
    }


def test_the_operators_values_win_but_not_over_the_key(raspberry: Path) -> None:
    found = find(
        raspberry, "aarch64", {"board": "rev-c", "site": "glasgow", "model": "", "device.id": "cd" * 32}
    )
    assert (found["board"], found["site"], found["device.id"]) == ("rev-c", "glasgow", DEVICE)
    assert "model" not in found


def test_hostile_or_unreadable_files_are_left_unsaid(tmp_path: Path) -> None:
    """A host name or device tree is not ours: no value escapes what a selector can name."""
    root = make(
        tmp_path,
        {
            "proc/device-tree/compatible": b"\xff\xfe" + b"x" * 5000,
            "proc/device-tree/model": b"\x1b[31mred\x00",
            "proc/meminfo": "MemTotal: many kB\n",
            "sys/devices/system/cpu/present": "9-0\n",
            "etc/os-release": 'ID="a b;$(rm -rf /)"\nVERSION_ID\n=\n',
        },
    )
    (root / "proc/cpuinfo").mkdir()
    found = detect(
        root, device=DEVICE, agent_version="0.1.0", uname=uname("x86_64", node="-_.", release="/" * 100)
    )
    assert found["os.id"] == "a-b-rm--rf"
    assert not {"memory_mib", "cpus", "hostname", "os.kernel"} & set(found)
    for key, value in found.items():
        assert parse_selector(f"{key}={value}", known_keys=None).matches(found)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.binary(max_size=200),
    name=st.sampled_from(
        ["proc/device-tree/compatible", "proc/cpuinfo", "proc/meminfo", "etc/os-release", "bin/sh"]
    ),
)
def test_whatever_a_file_holds_every_value_can_be_selected(tmp_path: Path, text: bytes, name: str) -> None:
    found = find(make(tmp_path, {name: text}), "x86_64")
    for key, value in found.items():
        assert parse_selector(f"{key}={value}", known_keys=None).matches(found)


def test_this_machine() -> None:
    found = detect(device=DEVICE, agent_version="0.1.0")
    assert set(found) <= INVENTORY_KEYS
    assert found["os.kernel"].startswith(platform.release()[:3])
    assert int(found["cpus"]) >= 1
    assert int(found["memory_mib"]) >= 64
