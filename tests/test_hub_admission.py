"""An invitation for K devices lets K in, whoever asks however often at once."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from driftseed.core.errors import TicketRefused
from driftseed.core.ids import DeviceId
from driftseed.hub.admission import Admissions
from support_hub import NOW, MadeUpFleet

FLEET = MadeUpFleet()


def device(number: int) -> DeviceId:
    return DeviceId(f"{number:064x}")


def test_the_last_use_counts_and_the_next_device_is_refused(tmp_path: Path) -> None:
    admissions = Admissions(tmp_path / "a")
    invitation = FLEET.invitation(2)
    assert admissions.admit(invitation, device(1), NOW)
    assert admissions.admit(invitation, device(2), NOW)
    with pytest.raises(TicketRefused, match="was for 2 devices, and as many have joined") as caught:
        admissions.admit(invitation, device(3), NOW)
    assert "fleet invite" in caught.value.hint
    assert admissions.used(invitation.id) == 2
    admissions.close()


def test_a_device_that_asks_again_uses_it_no_further_even_when_it_is_used_up(tmp_path: Path) -> None:
    admissions = Admissions(tmp_path / "a")
    invitation = FLEET.invitation(1)
    assert admissions.admit(invitation, device(1), NOW)
    assert not admissions.admit(invitation, device(1), NOW + 1)
    with pytest.raises(TicketRefused, match="for 1 device, and"):
        admissions.admit(invitation, device(2), NOW)
    assert not admissions.admit(invitation, device(1), NOW + 2)
    admissions.close()


def test_invitations_are_counted_apart(tmp_path: Path) -> None:
    admissions = Admissions(tmp_path / "a")
    assert admissions.admit(FLEET.invitation(1, "a"), device(1), NOW)
    assert admissions.admit(FLEET.invitation(1, "b"), device(1), NOW)
    assert admissions.admit(FLEET.invitation(1, "c"), device(2), NOW)
    admissions.close()


def test_uses_outlive_the_hub(tmp_path: Path) -> None:
    invitation = FLEET.invitation(1)
    first = Admissions(tmp_path / "a")
    first.admit(invitation, device(1), NOW)
    first.close()
    second = Admissions(tmp_path / "a")
    with pytest.raises(TicketRefused):
        second.admit(invitation, device(2), NOW)
    assert not second.admit(invitation, device(1), NOW)
    second.close()


def test_exactly_as_many_get_in_when_all_ask_at_once(tmp_path: Path) -> None:
    """Four connections to one file, eight devices each twice: five uses are five devices."""
    Admissions(tmp_path / "a").close()
    invitation = FLEET.invitation(5)
    start = threading.Barrier(4)
    let_in: set[DeviceId] = set()
    first_times: list[DeviceId] = []
    refused: list[DeviceId] = []

    def ask(worker: int) -> None:
        admissions = Admissions(tmp_path / "a")
        start.wait(30)
        for number in range(8):
            who = device((number + worker * 2) % 8)
            try:
                if admissions.admit(invitation, who, NOW):
                    first_times.append(who)
                let_in.add(who)
            except TicketRefused:
                refused.append(who)
        admissions.close()

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(let_in) == len(first_times) == len(set(first_times)) == 5
    assert len(refused) == 4 * 3
    assert not let_in & set(refused)
    check = Admissions(tmp_path / "a")
    assert check.used(invitation.id) == 5
    check.close()


def test_a_use_that_was_answered_survives_kill_9(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from driftseed.hub.admission import Admissions\n"
        "from driftseed.trust.admission import Invitation\n"
        f"one = Invitation(fleet={'f1' * 32!r}, id={'0' * 31 + '1'!r}, key={'aa' * 32!r}, uses=1, expires={NOW + 3600})\n"
        f"assert Admissions(Path(sys.argv[1])).admit(one, {device(1)!r}, {NOW})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, tmp_path / "a"], check=False, timeout=60)
    assert result.returncode == -9
    admissions = Admissions(tmp_path / "a")
    with pytest.raises(TicketRefused):
        admissions.admit(FLEET.invitation(1), device(2), NOW)
    admissions.close()
