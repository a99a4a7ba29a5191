"""What a run is doing now: a small file in its directory, which ``stepladder watch`` reads.

The process that works on a run writes ``live.json`` about once a second and removes it at the end. A killed process leaves it. It holds
nothing that a later start needs, and no result depends on it.
"""

import json
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from stepladder.files import atomic_write_text
from stepladder.locks import process_lives
from stepladder.tree_paths import children_of, most_visited
from stepladder.types import TreeRecord

LIVE_FILE = "live.json"
INTERVAL_S = 1.0
"""Seconds between two writings."""
_MOST_NODES, _MOST_TEXT = 40, 120
_SILENCE_S = 300.0
"""Seconds without a sign of life after which a run on another machine counts as dead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveStage:
    """A part of the stage that runs, such as the search of one pass."""

    name: str
    """As shown."""
    items: int = 0
    """Problems or updates done."""
    total: int | None = None
    """Problems or updates in all; None if it is not known yet."""
    tokens: int = 0
    """Tokens sampled or trained on."""
    solved: int = 0
    """Problems with a right answer."""
    seconds: float = 0.0
    """Seconds since its beginning; 0 before it."""

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Seconds to come; None before the first item, and the first hundredth of many: the first updates also load and compile."""
        if self.total is None or self.items < max(1, self.total // 100):
            return None
        return self.seconds / self.items * max(self.total - self.items, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveNode:
    """A node of a tree that grows."""

    parent: int
    """Its parent's place in the list; -1 for the root."""
    text: str
    """Its step, cut."""
    score: float | None
    """By the PRM."""
    value: float | None
    """Mean backed-up return."""
    visits: int
    """Simulations that passed through it."""
    end: str | None
    """Answer or reason, if the solution ended here."""
    is_best: bool
    """Whether it is on the most promising path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveTree:
    """A tree that grows, cut to its most visited nodes."""

    problem_id: str
    """Key of the problem."""
    question: str
    """The question, cut."""
    simulations: int
    """Simulations so far."""
    num_nodes: int
    """Nodes of the whole tree."""
    nodes: tuple[LiveNode, ...]
    """Parents first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Live:
    """What a run is doing."""

    pid: int
    """Process that works on it."""
    host: str
    """Its machine."""
    time: float
    """Unix time of the writing."""
    began: float
    """Unix time at which this call of ``evolve`` began."""
    round: int
    """Round that runs."""
    rounds: int
    """Last round of this call."""
    stage: str
    """Stage that runs."""
    stage_number: int
    """Its number in the round, from 1."""
    num_stages: int
    """Stages of the round."""
    purpose: str
    """What the stage is for."""
    seconds_left: float | None
    """Estimate for all rounds of this call; None if it is not known."""
    parts: tuple[LiveStage, ...]
    """The parts of the stage, in their order."""
    tree: LiveTree | None = None
    """A tree of the search that runs, or ran last."""

    def is_alive(self) -> bool:
        """Say whether the process still works: on this machine by its id, elsewhere by the age of the file."""
        if self.host != socket.gethostname():
            return time.time() - self.time < _SILENCE_S
        return process_lives(self.pid)

    def save(self, root: Path) -> None:
        """Write the file; a full disk or the like must not end a run for it."""
        with suppress(Exception):
            atomic_write_text(root / LIVE_FILE, json.dumps(asdict(self)))


_LIVE = TypeAdapter(Live)


def read_live(root: Path) -> Live | None:
    """Return what a run is doing; None if no process works on it, or the file cannot be read."""
    try:
        return _LIVE.validate_python(json.loads((root / LIVE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, ValidationError):
        return None


def remove_live(root: Path) -> None:
    """Remove the file, if it is there."""
    with suppress(OSError):
        (root / LIVE_FILE).unlink()


def live_tree(tree: TreeRecord) -> LiveTree:
    """Return a tree for the file: the most promising path and the most visited other nodes."""
    best = _promising_path(tree)
    place = {node: index for index, node in enumerate(most_visited(tree, best, _MOST_NODES))}
    nodes = tuple(
        LiveNode(
            parent=place.get(tree.parents[node], -1),
            text=_cut(tree.texts[node]),
            score=_number(tree.scores[node]),
            value=_number(tree.values[node]),
            visits=tree.visits[node],
            end=_end(tree, node),
            is_best=node in best,
        )
        for node in place
    )
    return LiveTree(
        problem_id=tree.problem_id,
        question=_cut(tree.question),
        simulations=tree.num_simulations,
        num_nodes=len(tree.parents),
        nodes=nodes,
    )


def _promising_path(tree: TreeRecord) -> list[int]:
    children, path = children_of(tree), [0]
    while below := children[path[-1]]:
        path.append(max(below, key=lambda node: (_worth(tree, node), tree.visits[node], -node)))
    return path


def _worth(tree: TreeRecord, node: int) -> float:
    known = [value for value in (tree.values[node], tree.scores[node]) if value is not None and value == value]
    return known[0] if known else 0.0


def _end(tree: TreeRecord, node: int) -> str | None:
    reason = str(tree.stop_reasons[node])
    if node == 0 or reason == "step":
        return None
    answer = tree.answers[node]
    outcome = tree.outcomes[node]
    mark = "" if outcome is None else ", right" if outcome == 1.0 else ", wrong"
    return _cut(f"answer {answer}{mark}" if answer is not None else reason)


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else round(value, 4)


def _cut(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _MOST_TEXT else f"{flat[: _MOST_TEXT - 3]}..."


def overall_left(parts: Sequence[LiveStage]) -> float | None:
    """Return the seconds to come of parts that run one after the other; None while one of them has not begun or does not say."""
    left = [part.seconds_left for part in parts if part.total is None or part.items < part.total]
    return None if any(each is None for each in left) else sum(each for each in left if each is not None)
