"""All targets by name."""

from __future__ import annotations

from typing import Final

import codecs_targets
import net_targets
import process_targets
import trust_targets
from target import Target

TARGETS: Final[dict[str, Target]] = {
    **codecs_targets.TARGETS,
    **net_targets.TARGETS,
    **process_targets.TARGETS,
    **trust_targets.TARGETS,
}
