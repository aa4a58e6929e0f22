# ruff: noqa: PLC0415 - a command imports what it needs when it runs: see cli/main.py

"""``driftseed lab``: real agents and hubs behind real NATs, in network namespaces of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from driftseed.cli.options import JsonOption

if TYPE_CHECKING:
    from driftseed.lab.scenario import Scenario

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


@app.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The scenario, in TOML: docs/lab.md.")],
    *,
    json_output: JsonOption = False,
) -> None:
    """Run a scenario: real agents and hubs, a rollout, and what happens meanwhile."""
    from driftseed.lab.scenario import load_scenario

    _roll_out(load_scenario(file), json_output=json_output)


@app.command()
def rollout(
    *,
    sites: Annotated[int, typer.Option("--sites", min=1, max=32, help="Places with devices.")] = 2,
    devices: Annotated[int, typer.Option("--devices", min=1, max=64, help="Devices at each.")] = 3,
    nat: Annotated[
        str, typer.Option("--nat", metavar="KIND", help="What their routers are.")
    ] = "port-restricted",
    up: Annotated[
        float | None, typer.Option("--up", metavar="MBIT", help="Megabits per second to the internet.")
    ] = None,
    down: Annotated[
        float | None, typer.Option("--down", metavar="MBIT", help="Megabits per second from it.")
    ] = None,
    delay: Annotated[float, typer.Option("--delay", metavar="MS", help="Milliseconds each way.")] = 0.0,
    loss: Annotated[float, typer.Option("--loss", metavar="PERCENT", help="Packets lost, each way.")] = 0.0,
    payload: Annotated[int, typer.Option("--bytes", metavar="N", help="Size of the release.")] = 4_000_000,
    within: Annotated[
        float, typer.Option("--within", metavar="S", help="Seconds that the rollout may take.")
    ] = 180.0,
    json_output: JsonOption = False,
) -> None:
    """Update a fleet of several sites over shaped lines, and show what it took."""
    from driftseed.lab.scenario import uniform

    scenario = uniform(
        sites=sites,
        devices=devices,
        nat=nat,
        line={"up": up, "down": down, "delay_ms": delay, "loss_percent": loss},
        payload_bytes=payload,
        within_s=within,
    )
    _roll_out(scenario, json_output=json_output)


def _roll_out(scenario: Scenario, *, json_output: bool) -> None:
    import asyncio

    from driftseed.cli.output import note, print_json, print_table, say
    from driftseed.lab import render
    from driftseed.lab.main import rollout as measure

    figures = asyncio.run(measure(scenario))
    if json_output:
        print_json(figures)
    else:
        for columns, rows in render.rollout_tables(figures):
            print_table(columns, rows)
            say("")
        for line in render.rollout_lines(figures):
            say(line)
    if figures["short_of"]:
        note(f"short of what was expected: {'; '.join(figures['short_of'])}")
        raise typer.Exit(1)


def _lifetime(at_least_s: float, less_than_s: float | None) -> str:
    if less_than_s is None:
        return f"{at_least_s:g} s and more" if at_least_s else ""
    return f"{at_least_s:g} to {less_than_s:g} s"
