"""An agent's settings: what is refused and in which words, what is kept, what needs a restart."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftseed.agent.config import (
    CONFIG_FILE,
    KEYS,
    RESTART_KEYS,
    AgentConfig,
    ConfigStore,
    as_object,
    parse_config,
    restart_needed,
)
from driftseed.core import limits
from driftseed.core.errors import ConfigInvalid, StoreDamaged

GOOD: dict[str, Any] = {
    "upload_limit_bytes_s": 4 * limits.MIB,
    "download_limit_bytes_s": 1024,
    "content_quota_bytes": 0,
    "neighbours_max": 64,
    "lan_discovery": False,
    "lan_interfaces": ["eth0", "192.0.2.7"],
    "listen": "[::1]:7700",
    "relay": "auto",
    "relay_listen": "192.0.2.7:7700",
    "relay_url": "https://relay.example.org",
    "relay_budget_bytes_s": 0,
    "inventory": {"board": "rev-b", "example.com/rack": "7", "site": ""},
    "modules_dirs": ["/opt/modules"],
    "install_root": "/srv/app",
    "serve_only": True,
    "reboot_command": ["systemctl", "reboot"],
    "clock_skew_max_s": 60.0,
    "super_seed": "never",
}


def test_the_defaults_are_usable_and_the_good_values_cover_every_setting() -> None:
    assert parse_config({}) == AgentConfig()
    assert set(GOOD) == set(KEYS) >= RESTART_KEYS
    assert as_object(parse_config(GOOD)) == GOOD


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ({"uplod_limit_bytes_s": 1}, "no setting is called 'uplod_limit_bytes_s'", "'upload_limit_bytes_s'"),
        ({"": 1}, "no setting is called ''", "settings: upload"),
        ({"x" * 10_000: 1}, "no setting is called 'x{64}'$", "settings: upload"),
        ({"upload_limit_bytes_s": "1"}, "^upload_limit_bytes_s: expected int, got str$", "api.md"),
        ({"upload_limit_bytes_s": True}, "^upload_limit_bytes_s: expected int, got bool$", "api.md"),
        ({"upload_limit_bytes_s": -1}, "^upload_limit_bytes_s: expected int >= 0$", "api.md"),
        ({"upload_limit_bytes_s": 1023}, "would only stall", "at least 1024"),
        ({"download_limit_bytes_s": 1}, "would only stall", "at least 1024"),
        ({"content_quota_bytes": 1.5}, "^content_quota_bytes: expected int", "api.md"),
        ({"neighbours_max": 65}, "^neighbours_max: expected int <= 64$", "api.md"),
        ({"serve_only": "yes"}, "^serve_only: expected bool, got str$", "api.md"),
        ({"super_seed": "sometimes"}, "super_seed: Invalid enum value 'sometimes'", "api.md"),
        ({"clock_skew_max_s": 0}, "clock_skew_max_s: expected float > 0", "api.md"),
        ({"clock_skew_max_s": float("nan")}, "clock_skew_max_s", ""),
        ({"listen": "localhost:1"}, "not an address to listen at: 'localhost:1'", "0.0.0.0:0"),
        ({"listen": "127.0.0.1"}, "not an address", ""),
        ({"listen": "127.0.0.1:65536"}, "not an address", ""),
        ({"listen": "127.0.0.1:-1"}, "not an address", ""),
        ({"listen": "127.0.0.1:٣"}, "not an address", ""),
        ({"listen": "::1:80"}, "not an address", ""),
        ({"listen": "[127.0.0.1]:80"}, "not an address", ""),
        ({"listen": "[fe80::1%eth0]:80"}, "not an address", ""),
        ({"modules_dirs": ["modules"]}, "modules_dirs: not an absolute path: 'modules'", "begins with /"),
        ({"modules_dirs": ["/a/../b"]}, "not an absolute path", ""),
        ({"modules_dirs": [3]}, r"^modules_dirs\[0\]: expected str, got int$", "api.md"),
        ({"modules_dirs": ["/a"] * 17}, "modules_dirs: expected array of length <= 16", "api.md"),
        ({"install_root": "/a\x00b"}, "not an absolute path", ""),
        ({"reboot_command": "reboot"}, "^reboot_command: expected array, got str$", "api.md"),
        ({"reboot_command": [""]}, "empty or impossible argument", "systemctl"),
        ({"inventory": {"a b": "1"}}, "not a usable key: 'a b'", "letters"),
        ({"inventory": {"a": "b c"}}, "not a usable value of a: 'b c'", "letters"),
        ({"inventory": {"a": 1}}, r"^inventory\[...\]: expected str, got int$", "api.md"),
        ({"inventory": {"x" * 64: "1"}}, "^inventory: expected str of length <= 63$", "api.md"),
        (
            {"inventory": {f"k{n}": "1" for n in range(65)}},
            "^inventory: expected object of length <= 64$",
            "",
        ),
        ({"inventory": {"device.id": "ab"}}, "device.id is the device's key", ""),
        ({"inventory": {"os.idd": "x"}}, "easily taken for 'os.id'", "did you mean 'os.id'"),
    ],
)
def test_what_cannot_be_set_is_refused_in_words(values: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ConfigInvalid, match=message) as caught:
        parse_config(values)
    assert hint in caught.value.hint


def test_a_change_is_kept_and_only_what_differs_is_written(tmp_path: Path) -> None:
    store = ConfigStore(tmp_path)
    assert store.load() == AgentConfig()
    store.change({"neighbours_max": 7, "serve_only": False})
    path = tmp_path / CONFIG_FILE
    assert json.loads(path.read_bytes()) == {"neighbours_max": 7}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ConfigStore(tmp_path).load() == AgentConfig(neighbours_max=7)


def test_null_puts_a_setting_back_to_its_default(tmp_path: Path) -> None:
    store = ConfigStore(tmp_path)
    store.change(GOOD)
    assert store.change({"listen": None, "install_root": None}).listen == AgentConfig().listen
    kept = ConfigStore(tmp_path).load()
    assert (kept.install_root, kept.neighbours_max) == (None, 64)


def test_a_change_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    store = ConfigStore(tmp_path)
    store.change({"neighbours_max": 7})
    before = (tmp_path / CONFIG_FILE).read_bytes()
    for changes in ({"neighbours_max": 8, "listen": "x"}, {"neighbours_max": 8, "nosuch": None}):
        with pytest.raises(ConfigInvalid):
            store.change(changes)
    assert store.config.neighbours_max == 7
    assert (tmp_path / CONFIG_FILE).read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [CONFIG_FILE]


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b" " * (2 * limits.MIB)])
def test_a_file_that_is_no_json_object_says_what_to_do(tmp_path: Path, data: bytes) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(data)
    with pytest.raises(StoreDamaged, match="is not a JSON object") as caught:
        ConfigStore(tmp_path).load()
    assert "remove it for the defaults" in caught.value.hint
    assert (tmp_path / CONFIG_FILE).read_bytes() == data


def test_a_mistake_in_the_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text('{"neighbors_max": 3}')
    with pytest.raises(ConfigInvalid, match=r"config\.json: no setting is called 'neighbors_max'") as caught:
        ConfigStore(tmp_path).load()
    assert "'neighbours_max'" in caught.value.hint


def test_a_directory_in_the_files_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).mkdir()
    with pytest.raises(StoreDamaged, match="cannot read"):
        ConfigStore(tmp_path).load()


def test_settings_that_need_a_restart_are_listed_only_when_they_differ() -> None:
    running = AgentConfig()
    assert restart_needed(running, parse_config({"neighbours_max": 9})) == []
    assert restart_needed(running, parse_config(GOOD)) == sorted(RESTART_KEYS)
    assert restart_needed(parse_config(GOOD), parse_config(GOOD)) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=10), JSON, max_size=4))
def test_any_values_are_taken_or_refused_with_a_message(values: dict[str, Any]) -> None:
    try:
        config = parse_config(values)
    except ConfigInvalid as error:
        assert error.message  # noqa: PT017 - either outcome is right, any other exception is not
    else:
        assert parse_config(as_object(config)) == config
