"""The threat model's table names code and tests that are there: who audits it finds each promise by name."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
TEXT: Final = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
SECTION: Final = TEXT.partition("## Attacks, one by one")[2].partition("\n## ")[0]
ROWS: Final = [line for line in SECTION.splitlines() if line.startswith("| ")][1:]
TUF: Final = (
    "arbitrary software",
    "endless data",
    "extraneous dependencies",
    "fast-forward",
    "indefinite freeze",
    "malicious mirror",
    "mix and match",
    "rollback",
    "slow retrieval",
    "wrong software",
)
"""TUF specification 1.5.2; vulnerability to key compromises is a row of its own."""


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+\.py(?:::\w+)?)`", SECTION))))
def test_every_test_that_is_named_exists(name: str) -> None:
    module, _, function = name.partition("::")
    tree = ast.parse((ROOT / "tests" / module).read_text(encoding="utf-8"))
    tests = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assert not function or function in tests


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:\w+/)+\w+\.py)`", SECTION))))
def test_every_module_that_is_named_exists(name: str) -> None:
    assert (ROOT / "src" / "driftseed" / name).is_file()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_every_attack_has_an_outcome_code_and_a_test(row: str) -> None:
    _attack, outcome, code, test = (cell.strip() for cell in row.strip("|").split("|"))
    assert outcome
    assert code
    assert "`test_" in test


@pytest.mark.parametrize("attack", TUF)
def test_every_attack_that_tuf_names_is_there(attack: str) -> None:
    assert any(row.startswith(f"| {attack} |") for row in ROWS)
