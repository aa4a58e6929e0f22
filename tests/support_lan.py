"""Two agents in networks of their own that one bridge joins; run by ``test_net_lan.py`` in a user namespace.

One has a release from the days when there was a hub; there is no hub any more, no route, no name service. Prints one
JSON object: how long the other took to have it installed, and what it says of its neighbour.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from support_fleet import fleet_in, settled

AGENTS = ("first", "second")


def ip(*arguments: str, pid: int | None = None) -> None:
    """Configure the network here, or in the network of a process."""
    inside = ["nsenter", "--target", str(pid), "--net"] if pid is not None else []
    subprocess.run([*inside, "ip", *arguments], check=True, timeout=10)


def plug_in(number: int, pid: int) -> None:
    """Connect a process's network to the bridge."""
    ip("link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    ip("link", "set", f"port{number}", "master", "bridge", "up")
    ip("link", "set", "lo", "up", pid=pid)
    ip("addr", "add", f"192.168.77.{10 + number}/24", "dev", "eth0", pid=pid)
    ip("link", "set", "eth0", "up", pid=pid)


def ask(directory: Path, *question: str) -> dict[str, Any]:
    """Ask a running agent over its socket; nothing while it does not answer."""
    command = [sys.executable, "-m", "driftseed", "agent", *question, "--data", str(directory), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    answer: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    return answer


async def prepare(directory: Path) -> str:
    """A fleet whose first agent has a release, and whose second has joined and nothing else."""
    async with fleet_in(directory) as fleet:
        await fleet.start_hub()
        first = await fleet.new_agent(AGENTS[0])
        await fleet.join(AGENTS[1])
        payload = directory / "app.bin"
        payload.write_bytes(bytes(range(256)) * 4096)
        deployment = fleet.release("app", "1.0", [str(payload)], meta={"path": "app.bin"})
        await fleet.publish()
        await settled([first], deployment)
        return deployment


def main() -> None:
    """Let the second agent find the first."""
    with tempfile.TemporaryDirectory(prefix="ds-lan-") as text:
        directory = Path(text)
        ip("link", "set", "lo", "up")
        deployment = asyncio.run(prepare(directory))
        ip("link", "add", "bridge", "type", "bridge")
        ip("link", "set", "bridge", "up")
        run = [sys.executable, "-m", "driftseed", "agent", "run", "--log-level", "debug", "--data"]
        agents = []
        for number, name in enumerate(AGENTS):
            log = (directory / f"{name}.log").open("wb")
            command = ["unshare", "--net", "--", *run, str(directory / name)]
            # The network comes when the agent runs already, as with a cable that is plugged in.
            agents.append(subprocess.Popen(command, stdout=log, stderr=log))
            while not (directory / name / "agent.sock").exists():
                time.sleep(0.05)
            plug_in(number, agents[-1].pid)
        began = time.monotonic()
        try:
            row: dict[str, Any] = {}
            while row.get("state") != "succeeded" and time.monotonic() - began < 60:
                updates = ask(directory / AGENTS[1], "updates").get("updates", [])
                row = next((each for each in updates if each["deployment"] == deployment), {})
                time.sleep(0.2)
            result = {
                "state": row.get("state"),
                "seconds": round(time.monotonic() - began, 1),
                "peers": [
                    each for each in ask(directory / AGENTS[1], "peers")["peers"] if each["state"] == "linked"
                ],
                "bytes_from": row.get("bytes_from"),
                "resident_kib": [resident_kib(agent.pid) for agent in agents],
                "installed": [
                    path.read_bytes() == (directory / "app.bin").read_bytes()
                    for path in (directory / AGENTS[1] / "installed").rglob("app.bin")
                ],
            }
        finally:
            for agent in agents:
                agent.send_signal(signal.SIGTERM)
            codes = [agent.wait(20) for agent in agents]
        if row.get("state") != "succeeded":
            for name in AGENTS:
                sys.stderr.write((directory / f"{name}.log").read_text()[-6000:])
        sys.stdout.write(json.dumps(result | {"exit_codes": codes}))


def resident_kib(pid: int) -> int:
    """Memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


if __name__ == "__main__":
    main()
