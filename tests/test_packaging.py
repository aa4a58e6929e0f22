"""What is shipped: the wheel, the units, the Makefile's first step, and CI's own rule."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from driftseed.core import errors, limits
from driftseed.install.runner import BUILT_IN

ROOT = Path(__file__).parents[1]
UNITS = ROOT / "packaging" / "systemd"
AGENT = UNITS / "driftseed-agent.service"
HUB = UNITS / "driftseed-hub.service"


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# --- the wheel -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Built from a copy: setuptools leaves files in the tree it builds, and believes those it finds there."""
    directory = tmp_path_factory.mktemp("wheel")
    tree = directory / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", tree / "src", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    options = ("--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--wheel-dir", directory)
    built = run(sys.executable, "-m", "pip", "wheel", *options, tree)
    assert built.returncode == 0, built.stderr
    (path,) = directory.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    source = ROOT / "src"
    wanted = {
        str(path.relative_to(source))
        for path in (source / "driftseed").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == wanted
    assert "driftseed/py.typed" in shipped


@pytest.mark.parametrize("module", sorted(BUILT_IN))
def test_a_built_in_update_module_runs_from_the_wheel(
    module: str, wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    """As the agent starts it, with the standard library alone; a state that it does not know is a success."""
    wheel.extractall(tmp_path)
    program = tmp_path / "driftseed" / "install" / "modules" / "run.py"
    done = run(sys.executable, "-I", "-S", program, module, "ArtifactDance", tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_wheel_carries_the_licence_and_the_command(wheel: zipfile.ZipFile) -> None:
    names = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}
    assert "Apache License" in wheel.read(names["LICENSE"]).decode()
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel.read(names["entry_points.txt"]).decode())
    assert scripts["console_scripts"]["driftseed"] == "driftseed.cli.main:main"


def test_every_dependency_is_pinned_for_ci() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    wanted = {re.split(r"[\[<>=~!; ]", line)[0].lower() for line in lines} - {"driftseed"}
    pinned = re.findall(
        r"^([\w.-]+)==", (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert wanted - {name.lower().replace("_", "-") for name in pinned} == set(), "run: make lock"


# --- the units -----------------------------------------------------------------------------------


def settings(unit: Path) -> dict[str, list[str]]:
    """Every value of every key, in order: systemd allows a key several times."""
    values: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            values.setdefault(key, []).append(value)
    return values


CLOSED = {
    "ProtectSystem": "strict",
    "NoNewPrivileges": "yes",
    "AmbientCapabilities": "",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "SystemCallArchitectures": "native",
    "Restart": "on-failure",
    "TimeoutStopSec": "10",
    "OOMPolicy": "continue",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "ProtectClock": "yes",
    "ProtectControlGroups": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
}


@pytest.mark.parametrize("unit", [AGENT, HUB], ids=lambda unit: unit.stem)
def test_a_unit_is_closed_where_it_can_be(unit: Path) -> None:
    values = settings(unit)
    assert {key: values.get(key) for key in CLOSED} == {key: [value] for key, value in CLOSED.items()}
    assert values["SystemCallFilter"][0] == "@system-service"
    assert values["StateDirectoryMode"] == values["RuntimeDirectoryMode"] == ["0700"]
    assert "MemoryMax" in values


def test_the_agent_keeps_only_the_rights_that_installing_takes() -> None:
    values = settings(AGENT)
    assert set(values["CapabilityBoundingSet"][0].split()) == {
        "CAP_CHOWN",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_DAC_OVERRIDE",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_KILL",
    }
    assert values["ReadWritePaths"] == ["-/opt -/srv -/usr/local"]
    assert values["ReadOnlyPaths"] == ["/opt/driftseed"]
    text = AGENT.read_text(encoding="utf-8")
    for capability in values["CapabilityBoundingSet"][0].split():
        assert re.search(rf"^# .*{capability}", text, re.MULTILINE), f"{capability} is kept without a reason"


def test_the_hub_has_no_rights_and_a_user_of_its_own() -> None:
    values = settings(HUB)
    assert values["DynamicUser"] == ["yes"]
    assert values["CapabilityBoundingSet"] == [""]
    assert values["SystemCallFilter"] == ["@system-service", "~@privileged"]
    assert values["MemoryDenyWriteExecute"] == values["PrivateUsers"] == ["yes"]
    assert "ReadWritePaths" not in values


def test_the_hub_gets_its_keys_without_being_able_to_read_etc() -> None:
    values = settings(HUB)
    assert values["LoadCredential"] == ["hub-kit:/etc/driftseed/hub-kit"]
    assert values["ExecStartPre"] == ["/usr/bin/install -m 0600 %d/hub-kit %t/driftseed-hub/hub-kit"]


def test_the_units_start_the_commands_that_are_documented() -> None:
    assert settings(AGENT)["ExecStart"] == [
        "/opt/driftseed/bin/driftseed agent run --data /var/lib/driftseed --log-format json"
    ]
    (hub,) = settings(HUB)["ExecStart"]
    assert hub.split(" ", 3) == [
        "/opt/driftseed/bin/driftseed",
        "hub",
        "run",
        "--kit %t/driftseed-hub/hub-kit --data /var/lib/driftseed-hub --listen 0.0.0.0:4433 --log-format json",
    ]


def test_systemd_waits_longer_for_the_end_than_the_end_takes() -> None:
    for unit in (AGENT, HUB):
        assert float(settings(unit)["TimeoutStopSec"][0]) > limits.SHUTDOWN_S


def test_a_hub_is_not_restarted_for_what_a_person_must_mend_and_an_agent_always_is() -> None:
    mended_by_people = {
        errors.Misuse,
        errors.WrongFleet,
        errors.NotFound,
        errors.UnsafePermissions,
    }
    codes = {int(code) for code in settings(HUB)["RestartPreventExitStatus"][0].split()}
    assert codes == {2} | {error.exit_code for error in mended_by_people}
    assert "RestartPreventExitStatus" not in settings(AGENT)
    assert settings(AGENT)["StartLimitIntervalSec"] == ["0"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
@pytest.mark.parametrize(("unit", "exposure"), [(AGENT, 35), (HUB, 20)], ids=["agent", "hub"])
def test_systemd_accepts_the_unit_and_finds_it_closed(unit: Path, exposure: int, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    text = unit.read_text(encoding="utf-8")
    copy.write_text(text.replace("/opt/driftseed/bin/driftseed", "/bin/true"), encoding="utf-8")
    verified = run("systemd-analyze", "verify", "--recursive-errors=no", copy)
    assert (verified.returncode, verified.stderr) == (0, "")
    judged = run(
        "systemd-analyze", "security", "--no-pager", "--offline=yes", f"--threshold={exposure}", copy
    )
    assert judged.returncode == 0, judged.stdout[-400:]


# --- the Makefile's first step -------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
@pytest.mark.parametrize(
    ("fails_on", "says"),
    [
        ("version_info", "driftseed needs Python 3.11 or newer; {python} does not run or is older."),
        ("ensurepip", "On Debian and Ubuntu: apt install python3-venv"),
    ],
)
def test_make_says_what_is_missing(fails_on: str, says: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *{fails_on}*) exit 1;; esac\n', encoding="utf-8")
    python.chmod(0o755)
    environment = tmp_path / "venv"
    made = run("make", "test", f"PYTHON={python}", f"VENV={environment}", MAKEFLAGS="")
    assert made.returncode == 2
    assert says.format(python=python) in made.stderr
    assert not environment.exists()


# --- CI's own rule -------------------------------------------------------------------------------

PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")

SKIPPING = """
import pytest

@pytest.mark.root
@pytest.mark.skipif(True, reason="no namespaces here")
def test_by_mark(): ...

@pytest.mark.root
def test_by_call():
    pytest.skip("not root")

@pytest.mark.root
@pytest.mark.xfail(reason="known", strict=True)
def test_that_is_expected_to_fail():
    raise ValueError

@pytest.mark.skip(reason="another system's test")
def test_that_needs_no_root(): ...
"""


@pytest.mark.parametrize(
    ("ci", "workers", "outcome"),
    [("true", 2, "1 failed, 1 skipped, 1 xfailed, 1 error"), ("", 0, "3 skipped, 1 xfailed")],
)
def test_ci_fails_where_a_test_that_needs_root_was_skipped(
    ci: str, workers: int, outcome: str, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_skipping.py").write_text(SKIPPING, encoding="utf-8")
    done = run(*PYTEST, f"-n{workers}", cwd=tmp_path, CI=ci)
    assert outcome in done.stdout
    assert ("CI skips nothing that needs root or namespaces; this was skipped: " in done.stdout) == bool(ci)


def test_ci_fails_where_a_whole_module_was_skipped(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_skipping.py").write_text(
        "import pytest\npytest.skip('not root', allow_module_level=True)\n", encoding="utf-8"
    )
    done = run(*PYTEST, cwd=tmp_path, CI="true")
    assert "1 error" in done.stdout
