"""Run a built-in update module once for every instant at which the power could go.

A program, as it forks: ``python support_killer.py PLAN.json``. It runs one state of a module and kills it before
its n-th operation on the file system, for n = 1, 2, 3 and so on until it is not killed any more. Operations
are seen by an audit hook (PEP 578), so the modules themselves know nothing of it. After each kill, and after
a run that was not killed, the states that a device would go on with are run whole.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from driftseed.install.modules import common
from driftseed.install.modules.unpack import unpack

LOADED = (common.load("directory"), common.load("single-file"), unpack)
"""Imported now, so that the processes which are forked below do not open files for that."""
CHANGES = frozenset(
    {
        "open",
        "os.chmod",
        "os.chown",
        "os.link",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.symlink",
        "os.truncate",
        "os.utime",
        "shutil.rmtree",
    }
)
OPERATIONS_MAX = 500


@dataclass
class Plan:
    """Which states to run, and in which one to be killed."""

    module: str
    template: str
    """Directory with ``tree`` (the File API) and ``opt`` (the install root) before the first state."""
    place: str
    """Where each copy of the template is tried, and seen by the oracle."""
    environment: dict[str, str]
    before: list[str]
    killed: str
    after_kill: list[str]
    after_success: list[str]
    seen: str = ""
    """File to which one JSON line is written for each round."""


def write_plan(plan: Plan, path: Path) -> Path:
    path.write_text(json.dumps(asdict(plan)))
    return path


def call(plan: Plan, state: str, kill_before: int | None = None) -> int:
    """Run one state in a process of its own; returns its wait status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    os.environ.update(plan.environment, DRIFTSEED_INSTALL_ROOT=f"{plan.place}/opt")
    count = 0

    def hook(event: str, _arguments: object) -> None:
        nonlocal count
        if event in CHANGES:
            count += 1
            if count == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

    if kill_before is not None:
        sys.addaudithook(hook)
    status = common.run(common.load(plan.module), [state, f"{plan.place}/tree"])
    sys.stdout.flush()
    os._exit(status)


def snapshot(root: Path) -> dict[str, str]:
    """Every name below the install root: links with their targets, files with their content."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_text(errors="replace")[:100]
    return found


def main(plan: Plan) -> None:
    """All rounds."""
    place = Path(plan.place)
    with Path(plan.seen).open("w", encoding="utf-8") as seen:
        for number in range(1, OPERATIONS_MAX):
            if place.exists():
                shutil.rmtree(place)
            shutil.copytree(plan.template, place, symlinks=True)
            for state in plan.before:
                if call(plan, state) != 0:
                    sys.exit(f"{state} failed before the kill")
            status = call(plan, plan.killed, number)
            killed = os.WIFSIGNALED(status)
            at_kill = snapshot(place / "opt")
            rest = plan.after_kill if killed else plan.after_success
            statuses = [os.waitstatus_to_exitcode(call(plan, state)) for state in rest]
            record = {
                "killed": killed,
                "status": 0 if killed else os.waitstatus_to_exitcode(status),
                "rest": statuses,
                "at_kill": at_kill,
                "end": snapshot(place / "opt"),
            }
            seen.write(json.dumps(record) + "\n")
            if not killed:
                return
    sys.exit("it did not come to an end")


if __name__ == "__main__":
    main(Plan(**json.loads(Path(sys.argv[1]).read_text())))
