"""Best-first and depth-first search: the best open node anywhere in the tree is expanded next.

Axes: b searches, B rows of trees, N nodes, n nodes of the largest of some trees, W leaves per tree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from stepladder.mcts.qvalues import NEUTRAL_VALUE
from stepladder.mcts.settings.growth import Sampling, Solutions, Steps, Widening
from stepladder.mcts.settings.setting_checks import check, check_choice, check_flag, check_number
from stepladder.mcts.strategies.strategy import (
    NO_LEAF,
    TERMINAL_RULES,
    RunShape,
    SearchView,
    Selection,
    Strategy,
    check_ends,
    reserve_waves,
    rows_of,
)
from stepladder.mcts.tree import Tree
from stepladder.types import Step

PRIORITIES = ("value", "probability", "deepsearch")
_LEAST_SCORE = 1e-6
"""Keeps the odds of a score of 0 or 1 finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frontier(Selection):
    """The best open node goes on: of all (``best-first``), or of the deepest (``depth-first``)."""

    TYPES: ClassVar[tuple[str, ...]] = ("best-first", "depth-first")
    WIDENS: ClassVar[tuple[str, ...]] = ("power", "gen")

    type: str = "best-first"
    """Name of the rule."""
    priority: str = "value"
    """best-first, depth-first: what ranks nodes. ``value``: the estimate at a node; those without one come last. ``probability``: the
    policy's probability of the path to it, to the power of path_weight, times the odds of its estimate, to the power of score_weight;
    without an estimate the odds are 1.
    With widen = ``gen``, times the probability of everything that was not sampled yet after it. ``deepsearch``:
    value_weight * tanh(value of its parent, in [-1, 1]) + surprisal_weight * mean surprisal of its step's tokens + depth_weight *
    sqrt(depth / max_depth)."""
    path_weight: float = 1.0
    """Power of the path's probability in the priority ``probability``, >= 0."""
    score_weight: float = 0.3
    """Power of the odds in the priority ``probability``, >= 0."""
    value_weight: float = 0.4
    """Weight of the parent's value in the priority ``deepsearch``, >= 0."""
    surprisal_weight: float = 0.0
    """Weight of the step's surprisal, in nats, in the priority ``deepsearch``, >= 0."""
    depth_weight: float = 0.01
    """Weight of the depth in the priority ``deepsearch``, >= 0."""
    least_probability: float = 0.0
    """best-first, depth-first: a step to which the policy gives a lower probability is never expanded, in [0, 1]."""
    min_value: float = 0.0
    """best-first, depth-first: leaves with a lower value are never expanded, >= 0."""
    stop_at_goal: bool = False
    """best-first, depth-first: the search ends when the best open leaf is worth no more than the best solution's path scores. It needs the
    priority ``value``."""
    terminals: str = "skip"
    """As in a descent."""

    def __post_init__(self) -> None:
        Selection.__post_init__(self)
        check_choice("type", self.type, self.TYPES)
        check_choice("priority", self.priority, PRIORITIES)
        for name in ("path_weight", "score_weight", "value_weight", "surprisal_weight", "depth_weight", "min_value"):
            check_number(name, getattr(self, name), ">= 0")
        check_number("least_probability", self.least_probability, "in [0, 1]")
        check_flag("stop_at_goal", self.stop_at_goal)
        check(
            self.priority == "value" or not self.stop_at_goal,
            f"stop_at_goal compares values: got priority {self.priority!r} -- set priority = 'value'",
        )
        check_choice("terminals", self.terminals, TERMINAL_RULES)

    @property
    def type_name(self) -> str:
        """Which of the two it is."""
        return self.type

    @property
    def revisits_terminals(self) -> bool:
        """Whether a terminal may be selected again."""
        return self.terminals == "revisit"

    @property
    def backs_up_ends(self) -> bool:
        """Whether an end with an answer is backed up when it is new."""
        return self.terminals == "once"

    def check_with(self, growth: Steps | Solutions, sampling: Sampling) -> None:
        """Check that ends enter once, and that sampling again has a rank."""
        check_ends(self.terminals, growth)
        widens = isinstance(growth, Steps) and growth.widening is not None and growth.widening.widen == "gen"
        check(
            not widens or self.priority == "probability",
            f"widen = 'gen' ranks nodes by what was not sampled yet: got priority {self.priority!r} -- set priority = 'probability'",
        )

    def strategy(self, run: RunShape) -> Strategy:
        """Return the strategy of a run."""
        return FrontierStrategy(self, run)


class FrontierStrategy(Strategy):
    """Ranks all open nodes of a tree anew for every wave."""

    def __init__(self, settings: Frontier, run: RunShape) -> None:
        """Select by some settings."""
        self._settings, self._widening = settings, run.widening
        self._reads_steps = settings.priority != "value" or settings.least_probability > 0
        self._facts = StepFacts(run.num_rows)

    def begin(self, search: SearchView) -> None:
        """Forget the steps of the search that had the row before."""
        self._facts.reset(search.row)

    def select(self, tree: Tree, searches: Sequence[SearchView], sizes: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b W"]:
        """Select the best open nodes."""
        settings, rows = self._settings, rows_of(searches)
        used = int(tree.num_nodes[rows].max())
        # A long step may be less likely than any positive number that a float can hold.
        lowest = math.log(settings.least_probability) if settings.least_probability > 0 else -math.inf
        # What is never expanded is below every value.
        bars = np.where(self._step_logps(rows, used) < lowest, np.inf, float(settings.min_value))
        return select_frontier(
            tree,
            rows,
            sizes,
            deepest_first=settings.type == "depth-first",
            min_value=bars,
            widening=self._widening,
            scores=self._scores(tree, searches, rows, used),
        )

    def _step_logps(self, rows: Int[np.ndarray, "b"], used: int) -> Float[np.ndarray, "b n"]:
        return self._facts.step_logps(rows, used) if self._reads_steps else np.zeros((len(rows), used))

    def _scores(self, tree: Tree, searches: Sequence[SearchView], rows: Int[np.ndarray, "b"], used: int) -> Any:
        """Return the priority of every node, [b, n]; None if it is the estimate."""
        settings, facts = self._settings, self._facts
        if settings.priority == "value":
            return None
        if settings.priority == "probability":
            return probability_scores(
                facts.path_logps(rows, used),
                tree.raw_value[rows, :used].astype(np.float64),
                facts.unseen(rows, used) if self._widening is not None and self._widening.widen == "gen" else np.ones((len(rows), used)),
                path_weight=float(settings.path_weight),
                score_weight=float(settings.score_weight),
            )
        most = np.array([search.budget.max_depth for search in searches])[:, None]
        parents = np.maximum(tree.parent[rows, :used], Tree.ROOT)
        return deepsearch_scores(
            np.take_along_axis(tree.value[rows, :used], parents, axis=1).astype(np.float64),
            facts.surprisals(rows, used),
            tree.depth[rows, :used] / most,
            value_weight=float(settings.value_weight),
            surprisal_weight=float(settings.surprisal_weight),
            depth_weight=float(settings.depth_weight),
        )

    def has_reached_goal(self, tree: Tree, search: SearchView, leaves: list[int]) -> bool:
        """Say whether a solution scores at least what the best leaf is worth; an unscored leaf may be worth anything."""
        return self._settings.stop_at_goal and bool(np.float32(search.best_score) >= tree.raw_value[search.row, leaves[0]])

    def end_waves(self, tree: Tree, searches: Sequence[SearchView]) -> None:
        """Note the probabilities of the new steps, if they are read."""
        if self._reads_steps:
            self._facts.grow(tree.nodes.shape[1])
            for search in searches:
                for expansion in search.wave:
                    self._facts.note(search.row, expansion.leaf, expansion.first, expansion.steps, expansion.unseen)


class StepFacts:
    """What the policy said of every step in the trees of a run, [B, N] each."""

    def __init__(self, num_rows: int) -> None:
        """Begin with the roots."""
        # Logarithm of the path's probability, of the step's, minus the mean of its tokens', and the probability not sampled yet below.
        self._path, self._step, self._surprisal = (np.zeros((num_rows, 1)) for _ in range(3))
        self._unseen = np.ones((num_rows, 1))

    def reset(self, row: int) -> None:
        """Begin a row anew."""
        self._unseen[row] = 1.0

    def grow(self, num_nodes: int) -> None:
        """Make room for so many nodes."""
        missing = num_nodes - self._path.shape[1]
        if missing > 0:
            self._path, self._step, self._surprisal = (
                np.pad(facts, ((0, 0), (0, missing))) for facts in (self._path, self._step, self._surprisal)
            )
            self._unseen = np.pad(self._unseen, ((0, 0), (0, missing)), constant_values=1.0)

    def note(self, row: int, parent: int, first: int, steps: Sequence[Step], unseen: float) -> None:
        """Note the new children of a node, which are numbered from ``first`` on, and what their samples left there."""
        self._unseen[row, parent] = unseen
        for node, step in enumerate(steps, first):
            logp = sum(step.logps)
            self._path[row, node], self._step[row, node] = self._path[row, parent] + logp, logp
            self._surprisal[row, node] = -logp / max(len(step.logps), 1)

    def path_logps(self, rows: Int[np.ndarray, "b"], used: int) -> Float[np.ndarray, "b n"]:
        """Return the logarithm of the probability of the path to each node."""
        return self._path[rows, :used]

    def step_logps(self, rows: Int[np.ndarray, "b"], used: int) -> Float[np.ndarray, "b n"]:
        """Return the logarithm of the probability of the step into each node."""
        return self._step[rows, :used]

    def surprisals(self, rows: Int[np.ndarray, "b"], used: int) -> Float[np.ndarray, "b n"]:
        """Return the mean surprisal of the tokens of the step into each node, in nats."""
        return self._surprisal[rows, :used]

    def unseen(self, rows: Int[np.ndarray, "b"], used: int) -> Float[np.ndarray, "b n"]:
        """Return the probability of the steps that were not sampled yet after each node."""
        return self._unseen[rows, :used]


def probability_scores(
    path_logps: Float[np.ndarray, "b n"],
    values: Float[np.ndarray, "b n"],
    unseen: Float[np.ndarray, "b n"],
    *,
    path_weight: float,
    score_weight: float,
) -> Float[np.ndarray, "b n"]:
    """Return the logarithm of a priority: path probability^a * (value odds)^b * what was not sampled yet.

        a * log P(path) + b * log(v / (1 - v)) + log(unseen)

    Args:
        path_logps: Logarithm of the policy's probability of the path to each node.
        values: Estimate at each node, in [0, 1]; NaN counts as 0.5.
        unseen: Probability of the steps that were not sampled yet after each node; 1 without children.
        path_weight: a.
        score_weight: b.

    Source: ours; the last factor is a "generate" arm as in Inoue et al. 2025, "Wider or deeper? Scaling LLM inference-time compute with
    adaptive branching tree search".
    """
    known = np.where(np.isnan(values), NEUTRAL_VALUE, values).clip(_LEAST_SCORE, 1 - _LEAST_SCORE)
    return path_weight * path_logps + score_weight * (np.log(known) - np.log1p(-known)) + np.log(np.maximum(unseen, 1e-300))


def deepsearch_scores(
    parent_values: Float[np.ndarray, "b n"],
    surprisals: Float[np.ndarray, "b n"],
    depths: Float[np.ndarray, "b n"],
    *,
    value_weight: float,
    surprisal_weight: float,
    depth_weight: float,
) -> Float[np.ndarray, "b n"]:
    """Return DeepSearch's frontier score: l1 * tanh(Q) + l2 * H + l3 * sqrt(d).

    Args:
        parent_values: Value of each node's parent, in [0, 1]; Q is 2 * value - 1, and 0 if unknown.
        surprisals: H, the mean of -log p over the tokens of the step into each node.
        depths: d, depth as a share of the depth limit.
        value_weight: l1.
        surprisal_weight: l2.
        depth_weight: l3.

    Source: Wu et al. 2025, "DeepSearch: Overcome the bottleneck of reinforcement learning with verifiable rewards via Monte Carlo tree
    search", equations 6 and 7.
    """
    known = np.where(np.isnan(parent_values), NEUTRAL_VALUE, parent_values)
    return value_weight * np.tanh(2 * known - 1) + surprisal_weight * surprisals + depth_weight * np.sqrt(depths)


def select_frontier(
    tree: Tree,
    rows: Int[np.ndarray, "b"],
    num_leaves: Int[np.ndarray, "b"],
    *,
    deepest_first: bool,
    min_value: "float | Float[np.ndarray, 'b n']",
    widening: Widening | None = None,
    scores: "Float[np.ndarray, 'b n'] | None" = None,
) -> Int[np.ndarray, "b W"]:
    """Select the best open nodes of the whole tree, wherever they are, and reserve them.

    Nodes are ranked by score, then by index; with ``deepest_first`` by depth before anything else.

    Args:
        tree: The trees.
        rows: Rows.
        num_leaves: Requested nodes per row.
        deepest_first: Depth-first instead of best-first search.
        min_value: Nodes with a lower raw value are never selected; unscored ones pass, unless their bar is infinite.
        widening: When a node with children counts as a leaf again. Without any leaf, every node that may be sampled again is one.
        scores: Rank of each node; None is its raw value, unscored ones last.

    Returns:
        The nodes, best first, ``NO_LEAF`` after the last one of a row.

    Source: Yao et al. 2023, "Tree of thoughts" (depth-first with pruning); Hart et al. 1968, A*, with the estimate as the whole priority.
    """
    used = int(tree.num_nodes[rows].max())
    raw, index = tree.raw_value[rows, :used], np.arange(used)
    leaf = (tree.open_leaves[rows, :used] > 0) & (tree.children_index[rows, :used, 0] == Tree.UNVISITED)
    allowed = (index < tree.num_nodes[rows][:, None]) & ~(raw < min_value) & np.isfinite(min_value)
    leaf &= allowed
    if widening is not None:
        leaf = _with_inner_nodes(tree, rows, leaf, allowed, widening)
    depth = tree.depth[rows, :used] if deepest_first else np.zeros_like(leaf, np.int32)
    if scores is None:
        scores = np.where(np.isnan(raw), -np.inf, raw)
    order: np.ndarray = np.lexsort((np.broadcast_to(index, raw.shape), -scores, -depth, ~leaf), axis=-1)
    order = order[:, : max(int(num_leaves.max()), 1)]
    taken = np.take_along_axis(leaf, order, axis=-1) & (np.arange(order.shape[1]) < num_leaves[:, None])
    waves = np.where(taken, order, NO_LEAF)
    reserve_waves(tree, rows, waves)
    return waves


def _with_inner_nodes(tree: Tree, rows: Int[np.ndarray, "b"], leaf: np.ndarray, allowed: np.ndarray, widening: Widening) -> np.ndarray:
    """Return the leaves, [b, n], with the allowed nodes that are to be sampled again."""
    used = leaf.shape[1]
    again = tree.growable[rows, :used] & allowed
    if widening.widen == "gen":
        return leaf | again
    most = widening.widen_base * np.maximum(tree.visits[rows, :used], 1) ** widening.widen_power
    leaf = leaf | (again & (tree.samples[rows, :used] < most))
    return leaf | (again & ~leaf.any(axis=-1, keepdims=True))
