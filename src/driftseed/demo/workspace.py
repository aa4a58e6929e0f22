"""Where the demo's files are: a directory that is removed, or kept for who asks."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from driftseed.core.errors import DeviceError, WouldOverwrite
from driftseed.node.unixsocket import SOCKET_PATH_BYTES_MAX

_LONGEST: Final = "/devices/00/agent.sock"
_PREFIX: Final = "ds-"
_SHORT: Final = Path("/tmp")  # noqa: S108 - mkdtemp makes a directory of our own in it


class Workspace:
    """The directories of one run.

    Agents listen at Unix sockets in their data directories, and the path of one has 107 bytes at most
    (unix(7)). So a long ``--keep DIR`` is reached through a link with a short name while the demo runs.

    Args:
        keep: left at the end; None for a temporary directory.

    Raises:
        WouldOverwrite: there is something in ``keep`` already.
        DeviceError: it cannot be made.
    """

    def __init__(self, keep: Path | None) -> None:
        self.kept = keep is not None
        self._link: Path | None = None
        try:
            if keep is None:
                self.directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
            else:
                self.directory = keep.absolute()
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                if any(self.directory.iterdir()):
                    raise WouldOverwrite(f"{keep} is not empty", hint="name a directory that is new or empty")
            self.path = self._short(self.directory)
            for each in (self.logs, self.devices, self.scratch):
                each.mkdir()
        except OSError as error:
            raise DeviceError(f"cannot use {keep or tempfile.gettempdir()}: {error.strerror}") from error

    @property
    def linked(self) -> bool:
        """It is reached through a link while the demo runs."""
        return self._link is not None

    @property
    def fleet(self) -> Path:
        """The fleet directory."""
        return self.path / "fleet"

    @property
    def hub(self) -> Path:
        """The hub's data directory."""
        return self.path / "hub"

    @property
    def kit(self) -> Path:
        """The hub's kit."""
        return self.path / "hub.kit"

    @property
    def logs(self) -> Path:
        """What the processes say."""
        return self.path / "logs"

    @property
    def devices(self) -> Path:
        """The agents' data directories."""
        return self.path / "devices"

    @property
    def scratch(self) -> Path:
        """Archives before they are released."""
        return self.path / "packed"

    def close(self) -> None:
        """Remove what is not to be kept."""
        if self._link is not None:
            self._link.unlink(missing_ok=True)
            self._link.parent.rmdir()
        if not self.kept:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _short(self, directory: Path) -> Path:
        if len(os.fsencode(directory)) + len(_LONGEST) <= SOCKET_PATH_BYTES_MAX:
            return directory
        self._link = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_SHORT)) / "w"
        self._link.symlink_to(directory)
        return self._link
