"""Runs benchmarks and says what came of them."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol

from rich import box
from rich.console import Console
from rich.table import Table

from driftseed import __version__
from driftseed.bench.idle import Idle
from driftseed.bench.notice import Notice
from driftseed.bench.results import Aim, Figure, Result
from driftseed.bench.swarm import Swarm
from driftseed.bench.tunnel import Tunnel
from driftseed.core.errors import Misuse


class Benchmark(Protocol):
    """One measurement."""

    async def run(self, directory: Path) -> Result:
        """Measure, in an empty directory. Raises DriftseedError."""


BENCHMARKS: Final[Mapping[str, Callable[[], Benchmark]]] = {
    "tunnel": Tunnel,
    "swarm": Swarm,
    "notice": Notice,
    "idle": Idle,
}
_ENGINES: Final = ("iroh", "libtorrent", "tuf")


def run(*, names: Sequence[str], json_output: bool) -> int:
    """Run benchmarks, one after the other.

    Args:
        names: which; none runs them all.
        json_output: print one JSON object at the end instead of a table for each.

    Returns:
        0, also when an aim is missed: a slow machine is no fault of the program's.

    Raises:
        Misuse: there is no such benchmark.
        DriftseedError: a part failed, so there is nothing to measure.
    """
    for name in names:
        if name not in BENCHMARKS:
            raise Misuse(f"there is no benchmark {name[:40]!r}", hint=f"there are {', '.join(BENCHMARKS)}")
    results = []
    for name in names or BENCHMARKS:
        if not json_output:
            sys.stderr.write(f"running {name}…\n")
        with tempfile.TemporaryDirectory(prefix=f"driftseed-bench-{name}-") as directory:
            result = asyncio.run(BENCHMARKS[name]().run(Path(directory)))
        results.append(result)
        if not json_output:
            show(result)
    if json_output:
        said = {"benchmarks": [result.as_object() for result in results], "machine": machine()}
        sys.stdout.write(json.dumps(said, indent=2) + "\n")
    else:
        sys.stdout.write(f"machine: {json.dumps(machine())}\n")
    return 0


def machine() -> dict[str, Any]:
    """On what the figures were obtained."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
        "versions": {
            "driftseed": __version__,
            **{engine: metadata.version(engine) for engine in _ENGINES},
        },
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def show(result: Result) -> None:
    """Print a benchmark's figures and method for people."""
    table = Table(title=result.name, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("figure", "value", "aim", ""):
        table.add_column(column, justify="right" if column == "value" else "left")
    aims = {aim.figure: aim for aim in result.aims}
    for name, value in result.figures.items():
        aim = aims.get(name)
        table.add_row(name, shown(value), aim.text if aim else "", verdict(aim, result.figures))
    console = Console()
    console.print(table)
    console.print(f"method: {result.method}\n", highlight=False, markup=False)


def shown(value: Figure) -> str:
    """Three significant places are all that a benchmark can tell."""
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else str(value)


def verdict(aim: Aim | None, figures: Mapping[str, Figure]) -> str:
    """Whether an aim was met, in words; nothing for a figure without one."""
    if aim is None:
        return ""
    return "met" if aim.met(figures) else "aim missed"
