"""A hub process with a limited uplink: ``python -m driftseed.bench.hub KIT DATA BYTES_PER_SECOND``."""

from __future__ import annotations

import sys
from pathlib import Path

from driftseed.hub.main import HubOptions, run
from driftseed.logs import LogFormat, LogOptions
from driftseed.node.transfer import ContentSettings


def main(kit: str, data: str, upload_limit: str) -> None:
    """Run it until it is stopped. Prints its address as ``driftseed hub run`` does."""
    run(
        HubOptions(
            kit=Path(kit),
            data=Path(data),
            listen="127.0.0.1:0",
            content=ContentSettings(upload_limit=int(upload_limit)),
            json_output=True,
            log=LogOptions(format=LogFormat.JSON),
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
