# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed lab``: real agents and hubs behind real NATs, in network namespaces of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from driftseed.cli.options import JsonOption

app = typer.Typer(
    help="Measure how devices reach each other, behind NATs made in network namespaces.", no_args_is_help=True
)


@app.command("nat-matrix")
def nat_matrix(
    *,
    kinds: Annotated[
        str | None, typer.Option("--kinds", metavar="KIND,KIND…", help="Which kinds of NATs; all by default.")
    ] = None,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Draw it, too.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Connect every kind of NAT with every other, from both sides, and measure what comes of it."""
    import asyncio

    from driftseed.cli.output import note, print_json, print_table, say
    from driftseed.lab import render
    from driftseed.lab.main import nat_matrix as measure

    found = asyncio.run(measure(None if kinds is None else kinds.split(",")))
    cells = found["cells"]
    summary = render.summary(cells)
    if svg is not None:
        from driftseed.store.files import atomic_write

        atomic_write(svg, render.svg(cells, "Driftseed behind NATs").encode())
    if json_output:
        print_json({**found, "summary": summary})
    else:
        columns, rows = render.table_rows(cells)
        print_table(tuple(columns), rows)
        say("")
        for name, value in summary.items():
            say(f"{name}: {value}")
    if summary["not_as_expected"]:
        note("marked with !: not connected, or relayed where a direct path is possible")
        raise typer.Exit(1)


@app.command()
def check() -> None:
    """Say whether the laboratory can run here, and what its NATs turn out to be."""
    import asyncio

    from driftseed.cli.output import print_table
    from driftseed.lab.main import classify

    found = asyncio.run(classify())
    print_table(
        ("NAT", "MAPPING", "FILTERING", "HAIRPIN", "OPEN AFTER SILENCE"),
        [
            [
                kind,
                behaviour["mapping"],
                behaviour["filtering"],
                {True: "yes", False: "no", None: ""}[behaviour["hairpin"]],
                _lifetime(behaviour["open_at_least_s"], behaviour["open_less_than_s"]),
            ]
            for kind, behaviour in found.items()
        ],
    )


def _lifetime(at_least_s: float, less_than_s: float | None) -> str:
    if less_than_s is None:
        return f"{at_least_s:g} s and more" if at_least_s else ""
    return f"{at_least_s:g} to {less_than_s:g} s"
