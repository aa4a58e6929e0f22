"""``driftseed release`` and ``deploy``: what is wrong is said before anything is signed."""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
import time
from pathlib import Path

import pytest

from driftseed.swarm.torrent import check_torrent
from driftseed.trust.repository import FleetRepository
from support_cli import Cli, snapshot
from support_cli_node import FakeNode, on_port


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.delenv("DRIFTSEED_PASSPHRASE", raising=False)
    return Cli(capsys)


@pytest.fixture
def fleet(cli: Cli, tmp_path: Path) -> Path:
    directory = tmp_path / "fleet"
    cli.ok("fleet", "init", directory, "--no-passphrase")
    return directory


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "app.bin"
    path.write_bytes(random.Random(5).randbytes(100_000))
    return path


def repository(directory: Path) -> FleetRepository:
    return FleetRepository.open(directory, lambda _: b"", time.time)


def create(
    fleet: Path, *artifacts: str | Path, version: str = "1.0", module: str = "single-file"
) -> list[str]:
    words = ["release", "create", str(fleet), "app", version, "--module", module]
    for artifact in artifacts:
        words += ["--artifact", str(artifact)]
    return words


# --- create ------------------------------------------------------------------------------------------


def test_a_release_is_signed_with_its_content_and_torrent(
    cli: Cli, fleet: Path, binary: Path, tmp_path: Path
) -> None:
    other = tmp_path / "a:b" / "other.bin"
    other.parent.mkdir()
    other.write_bytes(b"other")
    (tmp_path / "meta.json").write_text('{"a": [1], "b": "file"}')
    made = cli.ok(
        *create(fleet, f"{binary}:arch in (amd64,arm64),site=glasgow", f"{other}:arch=riscv64"),
        "--health-check", "/bin/sh -c 'exit 0'", "--health-timeout", "5s", "--module-timeout", "2m",
        "--meta-file", tmp_path / "meta.json", "--meta", "b=line", "--json",
    ).json  # fmt: skip
    (release,) = repository(fleet).releases()
    manifest = release.manifest
    assert made["manifest_sha256"] == release.digest
    assert [one.selector for one in manifest.artifacts] == [
        "arch in (amd64,arm64),site=glasgow",
        "arch=riscv64",
    ]
    assert [one.filename for one in manifest.artifacts] == ["app.bin", "other.bin"]
    assert manifest.health is not None
    assert (manifest.health.command, manifest.health.timeout_s) == (["/bin/sh", "-c", "exit 0"], 5)
    assert manifest.module_timeout_s == 120
    assert manifest.meta == {"a": [1], "b": "line"}
    found = repository(fleet)
    torrents = {name: data for name, data in found.target_files().items() if name.endswith(".torrent")}
    for artifact in manifest.artifacts:
        assert found.content(artifact).stat().st_size == artifact.length
        (torrent,) = [data for name, data in torrents.items() if f"{artifact.torrent_sha256}." in name]
        check_torrent(torrent, artifact)


def test_an_artifact_may_be_a_url(cli: Cli, fleet: Path) -> None:
    with on_port(FakeNode({("GET", "/build/7/app.bin"): (200, b"built elsewhere")})) as url:
        made = cli.ok(*create(fleet, f"{url}/build/7/app.bin:arch=arm64"), "--json").json
        cli.refused(16, "artifact-unreadable", *create(fleet, f"{url}/build/8/app.bin", version="2"))
    (artifact,) = made["artifacts"]
    assert (artifact["filename"], artifact["selector"]) == ("app.bin", "arch=arm64")
    (release,) = repository(fleet).releases()
    assert repository(fleet).content(release.manifest.artifacts[0]).read_bytes() == b"built elsewhere"


def test_a_dry_run_changes_nothing(cli: Cli, fleet: Path, binary: Path) -> None:
    before = snapshot(fleet)
    shown = cli.ok(*create(fleet, f"{binary}:arch=arm64"), "--dry-run")
    assert "app.bin" in shown.out
    assert "nothing was signed" in shown.out
    assert cli.ok(*create(fleet, binary), "--dry-run", "--json").json["dry_run"] is True
    assert snapshot(fleet) == before


def test_a_release_that_is_there_is_never_replaced(cli: Cli, fleet: Path, binary: Path) -> None:
    cli.ok(*create(fleet, binary))
    before = snapshot(fleet)
    binary.write_bytes(b"something else")
    assert "another version" in cli.refused(17, "would-overwrite", *create(fleet, binary))
    assert snapshot(fleet) == before


@pytest.mark.parametrize(
    ("selector", "code", "reason", "wrong"),
    [
        ("arch=arm64,sit=x", 12, "selector-unknown-key", "sit=x"),
        ("arch in (arm64", 11, "selector-invalid", ""),
        ("arch=arm64 site=x", 11, "selector-invalid", "site=x"),
        ("arch=='arm64'", 11, "selector-invalid", "'arm64'"),
        ("arch>=3", 11, "selector-invalid", "=3"),
    ],
)
def test_a_selector_that_is_wrong_is_shown_with_a_caret_at_the_place(
    cli: Cli, fleet: Path, binary: Path, selector: str, code: int, reason: str, wrong: str
) -> None:
    before = snapshot(fleet)
    said = cli.refused(code, reason, *create(fleet, f"{binary}:{selector}")).splitlines()
    caret = said[2].index("^")
    assert said[1][caret:] == wrong
    assert said[1].strip() == selector
    assert snapshot(fleet) == before


def test_an_unknown_key_is_accepted_when_it_was_declared_or_is_insisted_on(
    cli: Cli, fleet: Path, binary: Path
) -> None:
    cli.refused(12, "selector-unknown-key", *create(fleet, f"{binary}:rack=7"))
    cli.ok(*create(fleet, f"{binary}:rack=7"), "--allow-unknown-key", "--dry-run")
    cli.ok("fleet", "invite", fleet, "--hub", f"{'5a' * 32}@192.0.2.7:7700", "--label", "rack=7")
    cli.ok(*create(fleet, f"{binary}:rack=7"))


@pytest.mark.parametrize("selectors", [("", ""), (":arch=arm64", ":arch in (arm64)"), (":a,b", ":b,a")])
def test_two_artifacts_that_no_device_could_choose_between_are_refused(
    cli: Cli, fleet: Path, tmp_path: Path, binary: Path, selectors: tuple[str, str]
) -> None:
    (tmp_path / "other.bin").write_bytes(b"other")
    artifacts = [f"{binary}{selectors[0]}", f"{tmp_path / 'other.bin'}{selectors[1]}"]
    said = cli.refused(10, "misuse", *create(fleet, *artifacts), "--allow-unknown-key")
    assert "app.bin" in said
    assert "other.bin" in said


@pytest.mark.parametrize("make", ["missing", "empty", "directory", "fifo"])
def test_what_is_no_artifact_is_refused(cli: Cli, fleet: Path, tmp_path: Path, make: str) -> None:
    path = tmp_path / "thing"
    match make:
        case "empty":
            path.touch()
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
    before = snapshot(fleet)
    assert str(path) in cli.refused(16, "artifact-unreadable", *create(fleet, path))
    assert snapshot(fleet) == before


def test_a_truncated_archive_is_refused_where_it_would_be_unpacked(
    cli: Cli, fleet: Path, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(4):
            info = tarfile.TarInfo(f"file{number}")
            info.size = 20_000
            archive.addfile(info, io.BytesIO(random.Random(number).randbytes(20_000)))
    whole = gzip.compress(buffer.getvalue())
    path = tmp_path / "app.tar.gz"
    path.write_bytes(whole[: len(whole) // 2])
    before = snapshot(fleet)
    said = cli.refused(16, "artifact-unreadable", *create(fleet, path, module="directory"))
    assert "after 'file1'" in said
    assert snapshot(fleet) == before
    cli.ok(*create(fleet, path), "--dry-run")  # single-file does not unpack it
    path.write_bytes(whole)
    cli.ok(*create(fleet, path, module="directory"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--health-check", "echo 'x"],
        ["--health-check", ""],
        ["--health-check", "true", "--health-timeout", "25h"],
        ["--module-timeout", "0s"],
        ["--meta", "x"],
        ["--piece-length", "17000"],
        ["--meta-file", __file__],
    ],
)
def test_an_option_that_cannot_be_is_refused(
    cli: Cli, fleet: Path, binary: Path, arguments: list[str]
) -> None:
    before = snapshot(fleet)
    cli.refused(10, "misuse", *create(fleet, binary), *arguments)
    assert snapshot(fleet) == before


@pytest.mark.parametrize("version", ["../1", "", "1 0", "x" * 129])
def test_a_version_that_is_no_path_component_is_refused(
    cli: Cli, fleet: Path, binary: Path, version: str
) -> None:
    cli.refused(10, "misuse", *create(fleet, binary, version=version))


def test_a_wrong_passphrase_is_heard_of_before_files_are_read(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFTSEED_PASSPHRASE", "right")
    fleet = tmp_path / "locked"
    cli.ok("fleet", "init", fleet)
    (tmp_path / "app.bin").touch()  # empty: would be refused, too, if it were looked at first
    monkeypatch.setenv("DRIFTSEED_PASSPHRASE", "wrong")
    before = snapshot(fleet)
    cli.refused(15, "passphrase-wrong", *create(fleet, tmp_path / "app.bin"))
    assert snapshot(fleet) == before


def test_a_build_system_needs_three_keys_only(cli: Cli, fleet: Path, binary: Path) -> None:
    for key in (fleet / "keys").iterdir():
        if key.stem not in {"releases", "snapshot", "timestamp"}:
            key.unlink()
    cli.ok(*create(fleet, binary))
    cli.refused(19, "not-found", "deploy", fleet, "app", "--to", "all")


# --- list and show -----------------------------------------------------------------------------------


def test_releases_are_listed_the_newest_version_first(cli: Cli, fleet: Path, binary: Path) -> None:
    for version in ("1.9", "1.10", "1.10~rc1"):
        cli.ok(*create(fleet, binary, version=version))
    listed = cli.ok("release", "list", fleet, "--json").json["releases"]
    assert [one["version"] for one in listed] == ["1.10", "1.10~rc1", "1.9"]
    assert cli.ok("release", "show", fleet, "app", "1.9", "--json").json["version"] == "1.9"
    assert "app.bin" in cli.ok("release", "show", fleet, "app", "1.9").out
    assert "1.10" in cli.ok("release", "list", fleet).out
    assert "1.10, 1.10~rc1, 1.9" in cli.refused(19, "not-found", "release", "show", fleet, "app", "2")


# --- deploy ------------------------------------------------------------------------------------------


@pytest.fixture
def released(cli: Cli, fleet: Path, binary: Path) -> Path:
    for version in ("1.9", "1.10"):
        cli.ok(*create(fleet, binary, version=version))
    return fleet


@pytest.mark.parametrize(
    ("words", "version"),
    [
        (["app"], "1.10"),
        (["app@1.9"], "1.9"),
        (["app/1.9"], "1.9"),
        (["app", "--version", "1.9"], "1.9"),
        (["app@1.9", "--version", "1.9"], "1.9"),
    ],
)
def test_a_release_is_named_in_several_ways(cli: Cli, released: Path, words: list[str], version: str) -> None:
    made = cli.ok("deploy", released, *words, "--to", "site=glasgow", "--json").json
    (deployment,) = repository(released).deployments()
    assert (made["version"], made["deployment"], made["sequence"]) == (version, deployment.id, 1)
    assert (deployment.version, deployment.selector) == (version, "site=glasgow")
    assert made["manifest_sha256"] == deployment.manifest_sha256


@pytest.mark.parametrize("to", ["all", "", " "])
def test_all_means_every_device(cli: Cli, released: Path, to: str) -> None:
    assert cli.ok("deploy", released, "app", "--to", to, "--json").json["selector"] == ""
    assert "every device" in cli.ok("deploy", released, "app", "--to", to).out


def test_a_deployment_says_what_it_replaces(cli: Cli, released: Path) -> None:
    first = cli.ok("deploy", released, "app@1.9", "--to", "all", "--json").json["deployment"]
    before = snapshot(released)
    shown = cli.ok("deploy", released, "app", "--to", "all", "--dry-run", "--allow-downgrade")
    assert f"instead of app 1.9 (deployment {first})" in shown.out
    assert "nothing was signed" in shown.out
    assert snapshot(released) == before
    assert cli.ok("deploy", released, "app", "--to", "all", "--json").json["supersedes"] == [first]
    assert [one.version for one in repository(released).deployments()] == ["1.10"]


def test_what_cannot_be_deployed_is_refused(cli: Cli, released: Path) -> None:
    before = snapshot(released)
    assert "there are: app" in cli.refused(19, "not-found", "deploy", released, "ap", "--to", "all")
    assert "1.10, 1.9" in cli.refused(19, "not-found", "deploy", released, "app@2", "--to", "all")
    cli.refused(10, "misuse", "deploy", released, "app@1.9", "--version", "1.10", "--to", "all")
    cli.refused(10, "misuse", "deploy", released, "app@", "--to", "all")
    said = cli.refused(12, "selector-unknown-key", "deploy", released, "app", "--to", "ring=1,sit=x")
    assert said.splitlines()[2].index("^") == said.splitlines()[1].index("sit")
    assert snapshot(released) == before


def test_versions_that_are_equally_new_must_be_named(cli: Cli, fleet: Path, binary: Path) -> None:
    for version in ("1.0+a", "1.0+b"):
        cli.ok(*create(fleet, binary, version=version))
    assert "--version" in cli.refused(10, "misuse", "deploy", fleet, "app", "--to", "all")
    cli.ok("deploy", fleet, "app@1.0+b", "--to", "all")
