"""The tables in docs/ that repeat what the source says: made from the source, compared by a test.

``make docs`` (``python tests/support_docs.py``) writes them anew between their marks
(``<!-- limits:begin -->`` and ``<!-- limits:end -->``), and leaves everything else as people wrote it.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect as shapes

from driftseed.core import errors, lifecycle, limits, model, policy, reports, tickets, wire
from driftseed.trust import admission, envelope, membership

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED_BY = "<!-- written by `make docs` from the source; do not edit here -->"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [list(head), *(list(row) for row in rows)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    lines.insert(1, "|" + "---|" * len(cells[0]))
    return "\n".join(lines)


def first_paragraph(text: str | None) -> str:
    """A docstring's first paragraph on one line, in Markdown's spelling of code."""
    paragraph = " ".join((text or "").strip().split("\n\n", maxsplit=1)[0].split())
    return paragraph.replace("``", "`")


def docstrings(body: Iterable[ast.stmt]) -> dict[str, str]:
    """Names assigned in a module or class, with the string that stands after each."""
    found: dict[str, str] = {}
    name = None
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            continue
        if name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[name] = first_paragraph(str(node.value.value))
        name = None
    return found


# --- limits --------------------------------------------------------------------------------------


def size(value: int) -> str:
    """A number as it is, and in binary units where it is a round number of them."""
    for unit, bytes_each in (("GiB", limits.GIB), ("MiB", limits.MIB), ("KiB", limits.KIB)):
        if value >= bytes_each and value % bytes_each == 0:
            return f"{value} ({value // bytes_each} {unit})"
    return str(value)


def limit_rows() -> Iterator[tuple[str, str, str]]:
    """Name, value, and meaning with its unit. A name without a docstring is a unit (``KIB``) and not a limit."""
    for name, meaning in docstrings(ast.parse(inspect.getsource(limits)).body).items():
        value = getattr(limits, name)
        # Round numbers of bytes get a binary unit; 4096 links do not.
        in_bytes = meaning.startswith(("Bytes", "Characters"))
        yield f"`{name}`", size(value) if in_bytes else _number(value), meaning


def limits_region() -> str:
    return table(("name", "value", "what it bounds, and its unit"), limit_rows())


# --- errors --------------------------------------------------------------------------------------


def error_classes() -> list[type[errors.DriftseedError]]:
    """Every error of ``core/errors.py`` but the base of all, by exit code."""
    found = {
        kind
        for kind in vars(errors).values()
        if inspect.isclass(kind)
        and issubclass(kind, errors.DriftseedError)
        and kind.__module__ == errors.__name__
    }
    return sorted(found - {errors.DriftseedError}, key=lambda kind: kind.exit_code)


def errors_region() -> str:
    return table(
        ("exit code", "reason", "what happened"),
        ((str(k.exit_code), f"`{k.reason}`", first_paragraph(k.__doc__)) for k in error_classes()),
    )


def decisions_region() -> str:
    """Reasons for which a device waits or refuses although nothing went wrong."""
    meanings = docstrings(ast.parse(inspect.getsource(policy)).body)
    return table(
        ("reason", "why nothing is done"),
        (
            (f"`{getattr(policy, name)}`", meaning.removeprefix("Reason: "))
            for name, meaning in meanings.items()
            if meaning.startswith("Reason: ")
        ),
    )


# --- frames and documents ------------------------------------------------------------------------

HEX64 = r"\A[0-9a-f]{64}\Z"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _bounds(shape: Any, word: str, low: str, high: str, unit: str = "") -> str:
    least, most = getattr(shape, low, None), getattr(shape, high, None)
    if least is not None and least == most:
        return f"{word}, exactly {_number(least)}{unit}"
    if least is not None and most is not None:
        return f"{word}, {_number(least)} to {_number(most)}{unit}"
    if most is not None:
        return f"{word}, at most {_number(most)}{unit}"
    return f"{word}, at least {_number(least)}{unit}" if least is not None else word


def type_name(shape: shapes.Type) -> str:  # noqa: C901, PLR0911, PLR0912  one line for each kind of type reads best
    """A field's type in words."""
    match shape:
        case shapes.IntType():
            return _bounds(shape, "integer", "ge", "le")
        case shapes.FloatType():
            return (
                _bounds(shape, "number", "gt", "le")
                if shape.gt is not None
                else _bounds(shape, "number", "ge", "le")
            )
        case shapes.BoolType():
            return "boolean"
        case shapes.StrType(pattern=pattern) if pattern == HEX64:
            return "64 hexadecimal digits"
        case shapes.StrType(pattern=str(pattern), max_length=None):
            return f"text `{pattern.removeprefix(chr(92) + 'A').removesuffix(chr(92) + 'Z')}`"
        case shapes.StrType():
            return _bounds(shape, "text", "min_length", "max_length", " characters")
        case shapes.BytesType():
            return _bounds(shape, "bytes", "min_length", "max_length")
        case shapes.ListType():
            return _bounds(shape, "list", "min_length", "max_length") + f", of {type_name(shape.item_type)}"
        case shapes.DictType():
            return _bounds(shape, "map", "min_length", "max_length")
        case shapes.LiteralType():
            return " or ".join(f"`{value}`" for value in shape.values)
        case shapes.StructType():
            return f"*{shape.cls.__name__}*"
        case shapes.UnionType():
            return " or ".join(type_name(kind) for kind in shape.types)
        case shapes.NoneType():
            return "nil"
        case shapes.AnyType():
            return "anything"
        case _:
            raise TypeError(f"no words for {shape!r}")


def _class_body(kind: type) -> list[ast.stmt]:
    (node,) = ast.parse(inspect.getsource(kind)).body
    if not isinstance(node, ast.ClassDef):
        raise TypeError(f"{kind} is not a class of its own")
    return node.body


def struct_region(kind: type[msgspec.Struct]) -> str:
    """What a struct is for, and its fields."""
    shape = shapes.type_info(kind)
    if not isinstance(shape, shapes.StructType):
        raise TypeError(f"{kind} is not a struct")
    meanings = docstrings(_class_body(kind))
    rows = [
        (
            f"`{field.encode_name}`" + ("" if field.required else " ?"),
            type_name(field.type),
            meanings.get(field.name, ""),
        )
        for field in shape.fields
    ]
    return first_paragraph(kind.__doc__) + "\n\n" + table(("field", "type", "meaning"), rows)


def frames_region() -> str:
    overview = table(
        ("type", "frame", "what it says"),
        (
            (f"`{number:#04x}`", kind.__name__, first_paragraph(kind.__doc__))
            for number, kind in wire.TYPES.items()
        ),
    )
    parts = [
        f"#### {number:#04x} {kind.__name__}\n\n{struct_region(kind)}" for number, kind in wire.TYPES.items()
    ]
    parts.append(f"#### DirectoryEntry\n\n{struct_region(wire.DirectoryEntry)}")
    parts.append(f"#### NodeAddress\n\n{struct_region(model.NodeAddress)}")
    return "\n\n".join([overview, *parts])


def structs(*kinds: type[msgspec.Struct]) -> Callable[[], str]:
    return lambda: "\n\n".join(f"#### {kind.__name__}\n\n{struct_region(kind)}" for kind in kinds)


# --- lifecycle -----------------------------------------------------------------------------------


def state_diagram() -> str:
    """The lifecycle's table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {_identifier(lifecycle.State.WAITING)}"]
    lines += [
        f'    state "{each.state}" as {_identifier(each.state)}'
        for each in lifecycle.DEFINITIONS
        if _identifier(each.state) != each.state
    ]
    for each in lifecycle.DEFINITIONS:
        targets: dict[lifecycle.State, list[str]] = {}
        for event, following in each.on.items():
            if event is not lifecycle.Event.ABORTED:
                targets.setdefault(following, []).append(event)
        if each.resume is not None and each.resume is not each.state:
            targets.setdefault(each.resume, []).append("power cut")
        lines += [
            f"    {_identifier(each.state)} --> {_identifier(following)}: {', '.join(events)}"
            for following, events in targets.items()
        ]
        if each.phase is lifecycle.Phase.OVER:
            lines.append(f"    {_identifier(each.state)} --> [*]")
    return "\n".join(lines) + "\n"


def _identifier(state: lifecycle.State) -> str:
    return state.replace("-", "_")


def lifecycle_region() -> str:
    return f"```mermaid\n{state_diagram().strip()}\n```"


REGIONS: dict[str, dict[str, Callable[[], str]]] = {
    "protocol.md": {
        "frames": frames_region,
        "envelopes": structs(
            envelope.Envelope,
            membership.Certificate,
            admission.Invitation,
            admission.Entry,
            admission.Receipt,
            admission.Application,
            admission.Chain,
            admission.TicketSecret,
            tickets.Ticket,
        ),
        "reports": structs(reports.Report, reports.UpdateReport, reports.InstalledReport),
        "documents": structs(
            model.ReleaseManifest,
            model.Artifact,
            model.HealthCheck,
            model.Deployment,
            model.EnrolmentKeys,
            model.Hubs,
            model.Devices,
            model.Revocation,
            model.Approval,
        ),
        "limits": limits_region,
    },
    "architecture.md": {"lifecycle": lifecycle_region},
    "errors.md": {"errors": errors_region, "decisions": decisions_region},
}


def _span(text: str, name: str) -> tuple[int, int]:
    found = re.search(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"no region {name}")
    return found.span(1)


def region(text: str, name: str) -> str:
    """What stands between a region's marks."""
    begin, end = _span(text, name)
    return text[begin:end]


def rendered(make: Callable[[], str]) -> str:
    return f"{GENERATED_BY}\n\n{make()}\n\n"


def main() -> None:
    for file, named in REGIONS.items():
        path = DOCS / file
        text = path.read_text(encoding="utf-8")
        for name, make in named.items():
            begin, end = _span(text, name)
            text = text[:begin] + rendered(make) + text[end:]
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
