"""A network without UDP, as some companies have it: everything goes through the relay."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support_relay_only import SIZE

# Routing rules that come before the one for local addresses: UDP is answered with "prohibited".
NO_UDP = """
set -e
ip link set lo up
for family in -4 -6; do
  ip $family rule add pref 100 lookup local
  ip $family rule del pref 0
  ip $family rule add pref 10 ipproto udp prohibit
done
exec "$@"
"""
NAMESPACE = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", NO_UDP, "sh"]


def can_make_networks() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.root
def test_devices_without_udp_talk_through_the_relay_and_know_that_they_do() -> None:
    if not can_make_networks():
        pytest.skip("this machine lets us make no network namespace")
    script = Path(__file__).with_name("support_relay_only.py")
    run = subprocess.run(
        [*NAMESPACE, sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["total"] == SIZE
    assert result["whole"]
    assert result["kinds"] == ["relayed", "relayed"]
    assert result["relayed_bytes"] > SIZE
