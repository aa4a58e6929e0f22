"""The rules that keep the parts apart, read from the source itself.

Each rule is a function from modules to findings, in words. It is run over ``src`` and must find nothing; and
over a snippet that breaks the rule, where it must find that, so that no rule can rot into one that passes all.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

SRC: Final = Path(__file__).parent.parent / "src" / "driftseed"
LINES_MAX: Final = 420


@dataclass(frozen=True)
class Module:
    """A module of ours."""

    name: str
    """Dotted, such as ``driftseed.core.wire``."""
    source: str

    @property
    def part(self) -> str:
        """The package under ``driftseed``; empty for modules that stand beside the packages."""
        names = self.name.split(".")
        return names[1] if len(names) > 2 or (len(names) == 2 and (SRC / names[1]).is_dir()) else ""

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)


def all_modules() -> list[Module]:
    found = []
    for path in sorted(SRC.rglob("*.py")):
        names = ("driftseed", *path.relative_to(SRC).with_suffix("").parts)
        found.append(Module(".".join(names).removesuffix(".__init__"), path.read_text(encoding="utf-8")))
    return found


MODULES: Final = all_modules()


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported, wherever in the module it stands."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.name.split(".")[: -node.level]
                base = ".".join([*package, base] if base else package)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def calls(module: Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.Call))


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of an expression that is one; the last names of any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".removeprefix(".")
    return ""


# --- (i) core is pure ---------------------------------------------------------------------------

IMPURE: Final[Mapping[str, str]] = {
    "aiohttp": "it is a network",
    "asyncio": "decisions do not wait; whoever carries them out does",
    "ctypes": "it reaches out of the process",
    "driftseed.logs": "a decision is returned, not logged",
    "h11": "parsing HTTP belongs where it is spoken",
    "http": "it is a network",
    "io": "files belong to store/",
    "iroh": "the network engine belongs to net/",
    "libtorrent": "the content engine belongs to swarm/",
    "logging": "a decision is returned, not logged",
    "multiprocessing": "it starts processes",
    "os": "files, environment and randomness are given as arguments",
    "pathlib": "only PurePath: a name of a file, not the file",
    "random": "chance is an argument, so that a test can repeat it",
    "secrets": "chance is an argument",
    "select": "it is a network",
    "shutil": "files belong to store/",
    "signal": "it belongs to a process's main",
    "socket": "it is a network",
    "sqlite3": "the journal belongs to store/",
    "ssl": "it is a network",
    "subprocess": "processes belong to install/ and swarm/",
    "sys": "the interpreter's state is ambient",
    "tempfile": "files belong to store/",
    "threading": "nothing here is shared",
    "time": "the clock is an argument, so that tests need not wait",
    "tuf": "verifying belongs to trust/",
    "uuid": "chance is an argument",
}
PURE_NAMES: Final = frozenset({"pathlib.PurePath", "pathlib.PurePosixPath"})
IMPURE_CALLS: Final[Mapping[str, str]] = {
    "open": "files belong to store/",
    "print": "output belongs to cli/",
    "input": "input belongs to cli/",
    "datetime.now": "the clock is an argument",
    "datetime.utcnow": "the clock is an argument",
    "datetime.today": "the clock is an argument",
    "date.today": "the clock is an argument",
}


def impurities(modules: list[Module]) -> list[str]:
    found = []
    for module in modules:
        if module.part != "core":
            continue
        for line, name in imports(module):
            if name in PURE_NAMES:
                continue
            reason = next(
                (why for ban, why in IMPURE.items() if name == ban or name.startswith(f"{ban}.")), None
            )
            if reason is not None:
                found.append(f"{module.name}:{line} imports {name}: {reason}")
        for call in calls(module):
            name = ".".join(dotted(call.func).split(".")[-2:])
            if name in IMPURE_CALLS:
                found.append(f"{module.name}:{call.lineno} calls {name}: {IMPURE_CALLS[name]}")
    return found


# --- (ii) imports point one way -----------------------------------------------------------------

MIDDLE: Final = frozenset({"trust", "net", "swarm", "install", "store"})
MAINS: Final = frozenset({"agent", "hub", "publish"})
MAY_IMPORT: Final[Mapping[str, frozenset[str]]] = {
    "core": frozenset(),
    **{middle: frozenset({"core"}) for middle in MIDDLE},
    "node": MIDDLE | {"core"},
    **{main: MIDDLE | {"core", "node"} for main in MAINS},
    # What drives a whole fleet of the real parts, to show, to measure and to try them: nothing of the product
    # imports these, only the command line starts them. The laboratory asks its agents as the benchmarks do.
    "demo": MIDDLE | MAINS | {"core", "node"},
    "bench": MIDDLE | MAINS | {"core", "node"},
    "lab": MIDDLE | MAINS | {"core", "node", "bench"},
    "cli": MIDDLE | MAINS | {"core", "node", "demo", "bench", "lab"},
}
ACROSS: Final[Mapping[tuple[str, str], str]] = {
    ("trust", "driftseed.store.files"): "one atomic_write: nobody else renames files",
    ("net", "driftseed.store.files"): "one atomic_write: nobody else renames files",
    ("swarm", "driftseed.store.files"): "one atomic_write: nobody else renames files",
    ("install", "driftseed.store.files"): "one atomic_write: nobody else renames files",
    ("install", "driftseed.store.journal"): "a state is in the journal before its effect",
}
"""Ways between the packages in the middle, each with what it is for."""


def wrong_directions(modules: list[Module]) -> list[str]:
    found = []
    for module in modules:
        if not module.part:
            continue
        if module.part not in MAY_IMPORT:
            found.append(f"{module.name}: nobody has said what the package {module.part} may import")
            continue
        for line, name in imports(module):
            names = name.split(".")
            if names[0] != "driftseed" or len(names) < 3 or names[1] == module.part:
                continue  # not ours, or driftseed itself and what stands beside the packages, or within one
            allowed = names[1] in MAY_IMPORT[module.part] or any(
                module.part == part and (name == other or name.startswith(f"{other}."))
                for part, other in ACROSS
            )
            if not allowed and (SRC / names[1]).is_dir():
                found.append(
                    f"{module.name}:{line} imports {name}: {module.part} -> {names[1]} is against the stream"
                )
    return found


# --- (iii) only trust/ says that something is verified ------------------------------------------


def forged_trust(modules: list[Module]) -> list[str]:
    return [
        f"{module.name}:{call.lineno} makes a {dotted(call.func)}: only trust/ verifies"
        for module in modules
        if module.part != "trust"
        for call in calls(module)
        if dotted(call.func).rpartition(".")[2].startswith("Verified")
    ]


# --- (iv) only store/files.py renames -----------------------------------------------------------

RENAMING: Final = frozenset({"os.rename", "os.renames", "os.replace", "os.link", "shutil.move"})
RENAMERS: Final[Mapping[str, str]] = {
    "driftseed.store.files": "the one place",
    "driftseed.install.modules": "update modules are programs of their own, and to switch what is installed is their work",
    "driftseed.trust.founding": "a fleet directory comes to be whole, with its lock, or not at all",
}


def renames(modules: list[Module]) -> list[str]:
    found = []
    for module in modules:
        if any(module.name == each or module.name.startswith(f"{each}.") for each in RENAMERS):
            continue
        for call in calls(module):
            name = dotted(call.func)
            # Path.rename and Path.replace take the target and nothing else; str.replace takes two, and the
            # replace of dataclasses, msgspec and datetime takes keywords.
            as_path = (
                isinstance(call.func, ast.Attribute)
                and call.func.attr in {"rename", "replace"}
                and len(call.args) == 1
                and not call.keywords
            )
            if name in RENAMING or as_path:
                found.append(f"{module.name}:{call.lineno} renames: store/files.py does that, durably")
        found += [
            f"{module.name}:{line} imports {name}: store/files.py renames, durably"
            for line, name in imports(module)
            if name in RENAMING
        ]
    return found


# --- (v) one package for each engine ------------------------------------------------------------

ENGINES: Final[Mapping[str, str]] = {
    "libtorrent": "swarm",
    "iroh": "net",
    "tuf": "trust",
    "securesystemslib": "trust",
}


def strayed_engines(modules: list[Module]) -> list[str]:
    return [
        f"{module.name}:{line} imports {name}: only {ENGINES[name.split('.')[0]]}/ does"
        for module in modules
        for line, name in imports(module)
        if ENGINES.get(name.split(".")[0], module.part) != module.part
    ]


# --- (vi) each error has its own code and token -------------------------------------------------

GROUPS: Final[Mapping[str, range]] = {
    "Misuse": range(10, 30),
    "TrustError": range(30, 50),
    "TransportError": range(50, 70),
    "DeviceError": range(70, 128),
}
BORROWERS: Final[Mapping[str, str]] = {
    "RequestRefused": "its kinds are told apart by their HTTP status, and never reach a report",
}
"""Errors whose subclasses have the code and token of the base."""
OWN_CODES_AT_RUN_TIME: Final[Mapping[str, str]] = {
    "RemoteError": "carries the code and token that the other side gave",
    "Usage": "has the code of the command line's own library",
}


def shared_codes(modules: list[Module]) -> list[str]:
    classes = {
        node.name: (node, [dotted(base).rpartition(".")[2] for base in node.bases], module.name)
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    }

    def ancestors(name: str) -> set[str]:
        bases = classes[name][1] if name in classes else []
        return {*bases, *(each for base in bases for each in ancestors(base))}

    found: list[str] = []
    taken: dict[object, str] = {}
    for name, (node, _, where) in classes.items():
        above = ancestors(name)
        is_error = name == "DriftseedError" or "DriftseedError" in above
        if not is_error or name in OWN_CODES_AT_RUN_TIME or above & BORROWERS.keys():
            continue
        said = dict(_constants(node))
        for field in ("exit_code", "reason"):
            value = said.get(field)
            if value is None:
                found.append(f"{where}: {name} has no {field} of its own")
            elif value in taken:
                found.append(f"{where}: {name} has the {field} {value!r} of {taken[value]}")
            else:
                taken[value] = name
        code = said.get("exit_code")
        found += [
            f"{where}: {name} is a {group} and has the exit code {code}"
            for group, codes in GROUPS.items()
            if group in above | {name} and isinstance(code, int) and code not in codes
        ]
    return found


def _constants(node: ast.ClassDef) -> Iterator[tuple[str, object]]:
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Constant):
            yield from ((target.id, value.value) for target in targets if isinstance(target, ast.Name))


# --- (vii) no module grows past reading ---------------------------------------------------------


LISTS: Final[Mapping[str, str]] = {
    "driftseed.core.errors": "every error there is, by exit code: one list, so that no code is given twice",
}
"""Modules that may be long, each with the reason: they are looked up in, and not read through."""


def long_modules(modules: list[Module]) -> list[str]:
    return [
        f"{module.name} has {lines} lines: split it by its reasons to change"
        for module in modules
        if (lines := len(module.source.splitlines())) >= LINES_MAX and module.name not in LISTS
    ]


RULES: Final[tuple[Callable[[list[Module]], list[str]], ...]] = (
    impurities,
    wrong_directions,
    forged_trust,
    renames,
    strayed_engines,
    shared_codes,
    long_modules,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_source_keeps_the_rule(rule: Callable[[list[Module]], list[str]]) -> None:
    assert rule(MODULES) == []


def broken(rule: Callable[[list[Module]], list[str]], name: str, source: str) -> list[str]:
    return rule([Module(name, source)])


@pytest.mark.parametrize(
    "source",
    [
        *[f"import {ban}" for ban in IMPURE],
        "def later():\n    import os.path",
        "from time import monotonic",
        "from pathlib import Path",
        "from pathlib import PurePath, Path",
        "import asyncio as harmless",
        "open('/etc/passwd')",
        "print('hello')",
        "from datetime import datetime\ndatetime.now()",
        "import datetime\ndatetime.datetime.now()",
        "from datetime import date\ndate.today()",
    ],
)
def test_impurity_in_core_is_found(source: str) -> None:
    assert broken(impurities, "driftseed.core.bad", source)
    assert not broken(impurities, "driftseed.node.good", source)


def test_names_of_files_are_pure() -> None:
    assert not broken(
        impurities, "driftseed.core.good", "from pathlib import PurePath\nimport timeit_like, osprey"
    )


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("driftseed.core.bad", "from driftseed.trust import keys"),
        ("driftseed.core.bad", "import driftseed.net.endpoint"),
        ("driftseed.core.bad", "from ..store.files import adopt"),
        ("driftseed.trust.bad", "from driftseed.net.endpoint import Endpoint"),
        ("driftseed.store.bad", "from driftseed.trust.keys import create_key"),
        ("driftseed.swarm.bad", "from driftseed.store.journal import Journal"),
        ("driftseed.net.bad", "from driftseed.store import files, journal"),
        ("driftseed.node.bad", "def f():\n    from driftseed.agent import config"),
        ("driftseed.hub.bad", "from driftseed.agent.config import Config"),
        ("driftseed.agent.bad", "from driftseed.cli.output import say"),
        ("driftseed.install.bad", "if TYPE_CHECKING:\n    from driftseed.swarm.client import Engine"),
        ("driftseed.unheard.of", "import re"),
    ],
)
def test_an_import_against_the_stream_is_found(name: str, source: str) -> None:
    assert len(broken(wrong_directions, name, source)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("driftseed.core.good", "from driftseed.core import limits"),
        ("driftseed.trust.good", "from driftseed.store.files import atomic_write"),
        ("driftseed.swarm.good", "from driftseed.store import files"),
        ("driftseed.node.good", "from driftseed.net.link import Link"),
        (
            "driftseed.cli.good",
            "from driftseed.hub.main import main\nfrom driftseed import __version__, logs",
        ),
    ],
)
def test_an_import_with_the_stream_is_not(name: str, source: str) -> None:
    assert broken(wrong_directions, name, source) == []


@pytest.mark.parametrize("source", ["VerifiedRelease(m, d)", "verified.VerifiedArtifact(artifact=a, path=p)"])
def test_forged_trust_is_found(source: str) -> None:
    for name in ("driftseed.install.bad", "driftseed.core.bad", "driftseed.cli.bad", "driftseed.bad"):
        assert len(broken(forged_trust, name, source)) == 1
    assert broken(forged_trust, "driftseed.trust.good", source) == []


@pytest.mark.parametrize(
    "source",
    [
        "os.rename(a, b)",
        "os.replace(a, b)",
        "from os import replace",
        "shutil.move(a, b)",
        "path.rename(other)",
        "(directory / 'x').replace(directory / 'y')",
    ],
)
def test_renaming_elsewhere_is_found(source: str) -> None:
    assert len(broken(renames, "driftseed.swarm.bad", source)) == 1
    assert len(broken(renames, "driftseed.store.filesystem", source)) == 1
    assert broken(renames, "driftseed.store.files", source) == []
    assert broken(renames, "driftseed.install.modules.directory", source) == []


@pytest.mark.parametrize(
    "source",
    [
        "text.replace('a', 'b')",
        "moment.replace(microsecond=0)",
        "replace(row, state=s)",
        "handle.rename_file(0, n)",
    ],
)
def test_other_replacing_is_not(source: str) -> None:
    assert broken(renames, "driftseed.swarm.good", source) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("driftseed.net.bad", "import libtorrent as lt"),
        ("driftseed.node.bad", "def f():\n    import libtorrent"),
        ("driftseed.node.bad", "from iroh import Endpoint"),
        ("driftseed.swarm.bad", "import iroh.iroh_ffi"),
        ("driftseed.publish.bad", "from tuf.api.metadata import Root"),
    ],
)
def test_a_strayed_engine_is_found(name: str, source: str) -> None:
    assert len(broken(strayed_engines, name, source)) == 1
    assert broken(strayed_engines, "driftseed.swarm.good", "import libtorrent") == []


ROOT: Final = "class DriftseedError(Exception):\n    exit_code: ClassVar[int] = 1\n    reason: ClassVar[str] = 'error'\n"


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        ("class A(DriftseedError):\n    reason = 'a'\n", "A has no exit_code of its own"),
        ("class A(DriftseedError):\n    exit_code = 90\n", "A has no reason of its own"),
        (
            "class A(DriftseedError):\n    exit_code = 1\n    reason = 'a'\n",
            "A has the exit_code 1 of DriftseedError",
        ),
        (
            "class A(DriftseedError):\n exit_code = 90\n reason = 'a'\nclass B(A):\n exit_code = 91\n reason = 'a'\n",
            "B has the reason 'a' of A",
        ),
        (
            "class Misuse(DriftseedError):\n    exit_code = 70\n    reason = 'm'\n",
            "Misuse and has the exit code 70",
        ),
    ],
)
def test_a_shared_code_is_found(source: str, finding: str) -> None:
    (found,) = broken(shared_codes, "driftseed.core.bad", ROOT + source)
    assert finding in found


def test_a_long_module_is_found() -> None:
    assert broken(long_modules, "driftseed.core.bad", "\n" * LINES_MAX)
    assert broken(long_modules, "driftseed.core.good", "\n" * (LINES_MAX - 1)) == []


def test_the_rules_see_the_source() -> None:
    parts = {module.part for module in MODULES}
    assert parts - {""} == MAY_IMPORT.keys()
    assert {*RENAMERS, *LISTS} <= {module.name for module in MODULES}
