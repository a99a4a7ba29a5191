"""Counters and histograms in Prometheus' text form."""

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_HELP = {
    "stepladder_requests_total": "HTTP requests by path and status.",
    "stepladder_rejected_total": "Requests that were refused before they were read, by reason.",
    "stepladder_searches_total": "Searches that are over, by method and reason.",
    "stepladder_generated_tokens_total": "Tokens that searches generated.",
    "stepladder_simulations_total": "Simulations of searches.",
    "stepladder_engine_failures_total": "Failures of the models as a whole.",
    "stepladder_engine_restarts_total": "Times that the models were loaded again.",
    "stepladder_search_seconds": "Seconds from the arrival of a search to its end.",
}
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Figures of a server. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._histograms: dict[str, list[float]] = {}
        self._read_late: dict[str, tuple[str, str, Callable[[], float]]] = {}
        """Figures that are read when the metrics are, by name: kind, help, and how."""

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._counters[name][tuple(sorted(labels.items()))] += amount

    def observe(self, name: str, value: float) -> None:
        """Add a value to a histogram."""
        with self._lock:
            # A count for each bucket, one for those above, and the sum.
            counts = self._histograms.setdefault(name, [0.0] * (len(_BUCKETS) + 2))
            counts[bisect_left(_BUCKETS, value)] += 1
            counts[-1] += value

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a figure that is read when the metrics are."""
        self._read_late[name] = ("gauge", help_text, read)

    def counter(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a figure that is read when the metrics are, and never falls."""
        self._read_late[name] = ("counter", help_text, read)

    def render(self) -> str:
        """Return all figures as text."""
        lines: list[str] = []
        with self._lock:
            for name, values in sorted(self._counters.items()):
                lines += _head(name, "counter", _HELP[name])
                lines += [f"{name}{_labels(dict(labels))} {_number(value)}" for labels, value in sorted(values.items())]
            for name, counts in sorted(self._histograms.items()):
                lines += _head(name, "histogram", _HELP[name])
                total = 0.0
                for bound, count in zip((*map(str, _BUCKETS), "+Inf"), counts[:-1], strict=True):
                    total += count
                    lines.append(f'{name}_bucket{{le="{bound}"}} {_number(total)}')
                lines += [f"{name}_sum {_number(counts[-1])}", f"{name}_count {_number(total)}"]
        for name, (kind, help_text, read) in sorted(self._read_late.items()):
            lines += [*_head(name, kind, help_text), f"{name} {_number(read())}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, help_text: str) -> list[str]:
    return [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    quoted = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(quoted) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
