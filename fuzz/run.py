"""Fuzzes the decoders and the local API, guided by coverage (atheris, libFuzzer).

::

    python fuzz/run.py TARGET [-runs=N] [-max_total_time=S] [-seed=N]   one target, libFuzzer's own options
    python fuzz/run.py --all [--time S]                                 every target, one after the other
    python fuzz/run.py --replay [TARGET ...]                            the kept corpus once, without atheris
    python fuzz/run.py --seeds                                          write the corpus' seeds anew
    python fuzz/run.py --list

New inputs that reach new code go to ``build/fuzz/TARGET`` (or ``$FUZZ_FOUND/TARGET``), not to the kept corpus. An input that finds something is
written beside them as ``TARGET-crash-HASH``: put it into ``fuzz/corpus/TARGET`` with the fix, where every run begins
with it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
CORPUS: Final = HERE / "corpus"
FOUND: Final = Path(os.environ.get("FUZZ_FOUND") or HERE.parent / "build" / "fuzz")
_EXECUTED: Final = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_INPUT_TIMEOUT_S: Final = 60
"""Seconds after which an input counts as hanging; a busy machine is slow."""

sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """In memory where that is possible: targets write small files all the time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="driftseed-fuzz-", dir=memory if os.access(memory, os.W_OK) else None
    ) as directory:
        yield Path(directory)


def fuzz(name: str, options: list[str]) -> None:
    """Run one target until libFuzzer ends the process."""
    import atheris  # noqa: PLC0415  # replaying a corpus does without

    with atheris.instrument_imports(include=["driftseed"]):
        from registry import TARGETS  # noqa: PLC0415  # imported under instrumentation
    logging.disable(logging.WARNING)
    target = TARGETS[name]
    (FOUND / name).mkdir(parents=True, exist_ok=True)
    with scratch_directory() as scratch:
        atheris.Setup(
            [
                sys.argv[0],
                f"-max_len={target.max_length}",
                f"-timeout={_INPUT_TIMEOUT_S}",
                f"-artifact_prefix={FOUND}/{name}-",
                "-print_final_stats=1",
                "-rss_limit_mb=4096",
                *options,
                str(FOUND / name),
                str(CORPUS / name),
            ],
            target.prepare(scratch),
        )
        atheris.Fuzz()


def replay(names: list[str]) -> int:
    """Run every input of the kept corpus once; returns how many."""
    from registry import TARGETS  # noqa: PLC0415  # see fuzz

    logging.disable(logging.WARNING)
    ran = 0
    for name in names or sorted(TARGETS):
        with scratch_directory() as scratch:
            one = TARGETS[name].prepare(scratch)
            for path in sorted((CORPUS / name).iterdir()):
                one(path.read_bytes())
                ran += 1
    return ran


def write_seeds() -> None:
    """Write the seeds of every target; what is in the corpus besides stays."""
    from registry import TARGETS  # noqa: PLC0415  # see fuzz

    for name, target in TARGETS.items():
        directory = CORPUS / name
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob("seed-*"):
            old.unlink()
        for number, seed in enumerate(target.seeds()):
            digest = hashlib.sha256(seed).hexdigest()[:8]
            (directory / f"seed-{number:02}-{digest}").write_bytes(seed)


def fuzz_all(names: list[str], seconds: int) -> int:
    """Every target in a process of its own; returns the exit status."""
    FOUND.mkdir(parents=True, exist_ok=True)
    total, failed = 0, []
    for name in names:
        started = time.monotonic()
        log = FOUND / f"{name}.log"
        with log.open("wb") as output:
            status = subprocess.run(
                [sys.executable, __file__, name, f"-max_total_time={seconds}"],
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        found = _EXECUTED.findall(log.read_text(encoding="utf-8", errors="replace"))
        executed = int(found[-1]) if found else 0
        total += executed
        if status:
            failed.append(name)
        print(
            f"{name:16} {executed:>12,} inputs  {time.monotonic() - started:6.0f} s  "
            f"{'FOUND SOMETHING: ' + str(log) if status else 'nothing found'}",
            flush=True,
        )
    print(f"{'all':16} {total:>12,} inputs; {len(failed)} of {len(names)} targets found something")
    return 1 if failed else 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", nargs="*")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--time", type=int, default=60, metavar="S")
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--seeds", action="store_true")
    parser.add_argument("--list", action="store_true")
    known, options = parser.parse_known_args()
    if known.seeds:
        write_seeds()
        return 0
    if known.replay:
        print(f"{replay(known.target)} inputs, nothing found")
        return 0
    if known.list or known.all:
        names = known.target or sorted(path.name for path in CORPUS.iterdir())
        if known.all:
            return fuzz_all(names, known.time)
        print("\n".join(names))
        return 0
    if len(known.target) != 1:
        parser.error("name one target, or --all")
    name = known.target[0]
    if not (CORPUS / name).is_dir():
        parser.error(f"no such target: {name}")
    fuzz(name, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
