"""Counters and gauges, and how Prometheus reads them (text exposition format 0.0.4): pure.

Labels may come from outside (a reason, a path kind), so the label sets of one metric are bounded: beyond
``SERIES_MAX`` everything new is counted under the label value ``other``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

SERIES_MAX: Final = 256
"""Label sets of one metric."""
OTHER: Final = "other"
_LABEL_CHARS_MAX: Final = 128
_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL_NAME: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


class Metric:
    """Numbers under one name, one for each set of label values. Made by ``Metrics``."""

    def __init__(self, name: str, help_text: str, kind: str, labels: Sequence[str]) -> None:
        wrong = [label for label in labels if not _LABEL_NAME.fullmatch(label)]
        if not _NAME.fullmatch(name) or wrong:
            raise ValueError(f"not a metric's name or labels: {name!r} {wrong}")
        self.name = name
        self._help = help_text
        self._kind = kind
        self._labels = tuple(labels)
        self._series: dict[tuple[str, ...], float] = {}

    def add(self, amount: float = 1.0, **labels: str) -> None:
        """Count up.

        Args:
            amount: not negative for a counter.
            labels: a value for each of the metric's labels, and no others.

        Raises:
            ValueError: another set of labels, or a counter that would go down: a fault of ours.
        """
        if self._kind == "counter" and not amount >= 0:
            raise ValueError(f"{self.name} only grows, not by {amount}")
        key = self._key(labels)
        self._series[key] = self._series.get(key, 0.0) + amount

    def set(self, value: float, **labels: str) -> None:
        """Say what a gauge is at. Raises ValueError like ``add``, and for a counter."""
        if self._kind != "gauge":
            raise ValueError(f"{self.name} is no gauge")
        self._series[self._key(labels)] = value

    def value(self, **labels: str) -> float:
        """What it is at; 0 when it was never touched."""
        return self._series.get(self._key(labels), 0.0)

    def by(self, label: str) -> Mapping[str, float]:
        """Sums by one label's values."""
        place = self._labels.index(label)
        sums: dict[str, float] = {}
        for key, value in self._series.items():
            sums[key[place]] = sums.get(key[place], 0.0) + value
        return sums

    def render(self) -> str:
        """Help, type and every series, sorted."""
        lines = [f"# HELP {self.name} {_escape_help(self._help)}", f"# TYPE {self.name} {self._kind}"]
        series = sorted(self._series.items()) if self._labels else [((), self._series.get((), 0.0))]
        for key, value in series:
            labels = ",".join(
                f'{name}="{_escape(text)}"' for name, text in zip(self._labels, key, strict=True)
            )
            lines.append(
                f"{self.name}{{{labels}}} {_number(value)}" if labels else f"{self.name} {_number(value)}"
            )
        return "\n".join(lines) + "\n"

    def _key(self, labels: Mapping[str, str]) -> tuple[str, ...]:
        if labels.keys() != set(self._labels):
            raise ValueError(f"{self.name} has the labels {self._labels}, not {tuple(labels)}")
        key = tuple(labels[name][:_LABEL_CHARS_MAX] for name in self._labels)
        if key in self._series or not key or len(self._series) < SERIES_MAX:
            return key
        return (OTHER,) * len(key)


class Metrics:
    """All metrics of one process."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Metric:
        """Make a counter; its name ends in ``_total``.

        Raises:
            ValueError: the name or a label is not one, or the name is taken: a fault of ours.
        """
        if not name.endswith("_total"):
            raise ValueError(f"a counter's name ends in _total: {name}")
        return self._add(Metric(name, help_text, "counter", labels))

    def gauge(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Metric:
        """Make a gauge. Raises ValueError like ``counter``."""
        return self._add(Metric(name, help_text, "gauge", labels))

    def render(self) -> str:
        """Everything, in Prometheus' text format."""
        return "".join(metric.render() for metric in self._metrics.values())

    def _add(self, metric: Metric) -> Metric:
        if metric.name in self._metrics:
            raise ValueError(f"{metric.name} is there already")
        self._metrics[metric.name] = metric
        return metric


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _escape_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(value)
