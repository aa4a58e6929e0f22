"""Run a built-in update module: ``run.py NAME STATE DIRECTORY``.

Started as ``python -I -S``, so that nothing of the environment, and no start-up file of the interpreter's
site, has a say in it. The modules use the standard library and this package, found beside this file.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from driftseed.install.modules.common import load, run

if __name__ == "__main__":
    sys.exit(run(load(sys.argv[1]), sys.argv[2:]))
