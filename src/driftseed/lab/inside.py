"""What runs in the laboratory's own namespaces: ``python -m driftseed.lab.inside EXPERIMENT FD``.

Arguments come as JSON on standard input; the result goes as JSON to the descriptor, and progress to standard
error. Use ``lab.sandbox.run`` to start it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from driftseed.core.errors import DriftseedError
from driftseed.lab import sandbox
from driftseed.lab.matrix import assisted, nat_matrix
from driftseed.lab.nat import parse_kinds
from driftseed.lab.prober import SERVER_SITE, check, probe
from driftseed.lab.rollout import rollout
from driftseed.lab.topology import Site, World


async def classify(arguments: Any) -> Any:
    """Build one site of each kind that is asked for, and say how each behaves."""
    kinds = parse_kinds(arguments["kinds"])
    world = World.build([SERVER_SITE, *(Site(name=kind.value, nat=kind) for kind in kinds)])
    names = {kind.value: kind for kind in kinds}
    try:
        found = await probe(world, names)
    finally:
        world.close()
    check(found, names)
    return {site: dataclasses.asdict(behaviour) for site, behaviour in found.items()}


EXPERIMENTS: Final[Mapping[str, Callable[[Any], Awaitable[Any]]]] = {
    "classify": classify,
    "nat-matrix": nat_matrix,
    "assisted": assisted,
    "rollout": rollout,
}


async def _main(experiment: str, arguments: Any) -> dict[str, Any]:
    try:
        sandbox.prepare()
        return {"result": await EXPERIMENTS[experiment](arguments)}
    except DriftseedError as error:
        return {"failed": error.message, "hint": error.hint}


if __name__ == "__main__":
    answer = asyncio.run(_main(sys.argv[1], json.load(sys.stdin)))
    with os.fdopen(int(sys.argv[2]), "wb") as results:
        results.write(json.dumps(answer).encode())
