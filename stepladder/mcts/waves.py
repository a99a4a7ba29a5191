"""Complete waves of many searches in flat form: their new nodes, and the worth of each.

Axes: M new nodes, E expansions (leaves of the waves). Both are ordered by tree and, within a tree, by place in the wave and by sample, so
that nothing depends on the order in which results arrived.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from stepladder.mcts.expansion import Expansion
from stepladder.mcts.problem_search import ProblemSearch
from stepladder.mcts.search_method import SearchMethod
from stepladder.mcts.settings.growth import Steps
from stepladder.types import StopReason


@dataclass(frozen=True, kw_only=True, slots=True)
class Waves:
    """Complete waves in flat form."""

    expansions: list[tuple[ProblemSearch, Expansion]]
    """All expansions with their searches."""
    rows: Int[np.ndarray, "E"]
    """Row of the tree of each expansion."""
    leaves: Int[np.ndarray, "E"]
    """The node that was expanded, or revisited without a request."""
    asked: Bool[np.ndarray, "E"]
    """Whether samples were drawn from the leaf."""
    sizes: Int[np.ndarray, "E"]
    """New nodes of each expansion."""
    owners: Int[np.ndarray, "M"]
    """Expansion of each new node."""
    places: Int[np.ndarray, "M"]
    """Place of each new node in its expansion."""
    slots: Int[np.ndarray, "M"]
    """Child slot of each new node: its place, after the children that its parent had before."""
    counts: Int[np.ndarray, "M"]
    """Samples that were merged into each new node."""
    goes_on: Bool[np.ndarray, "M"]
    """Nodes that can be expanded."""
    terminal: Bool[np.ndarray, "M"]
    """Nodes at which the solution ended by itself."""

    @property
    def starts(self) -> Int[np.ndarray, "E"]:
        """First new node of each expansion."""
        return np.cumsum(self.sizes) - self.sizes

    @property
    def num_samples(self) -> Int[np.ndarray, "E"]:
        """Samples of each expansion."""
        return np.array([expansion.num_samples for _, expansion in self.expansions])

    def sums(self, values: np.ndarray) -> Float[np.ndarray, "E"]:
        """Sum values of the new nodes per expansion, in the order of the nodes."""
        # Without new nodes, bincount counts in whole numbers.
        return np.bincount(self.owners, values, minlength=len(self.sizes)).astype(np.float64)


def gather_waves(searches: Sequence[ProblemSearch]) -> Waves:
    """Return the waves of searches; their nodes already have numbers (``ProblemSearch.enter_nodes``)."""
    # Looking a member of an enum up takes longer than comparing it.
    step, end = StopReason.STEP, StopReason.END
    expansions = []
    for search in searches:
        expansions += [(search, expansion) for expansion in search.wave]
    sizes = np.array([len(expansion.steps) for _, expansion in expansions])
    owners = np.repeat(np.arange(len(sizes)), sizes)
    places = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    widened = any([search.families is not None for search in searches])
    reasons = flat(expansion.reasons for _, expansion in expansions)
    return Waves(
        expansions=expansions,
        rows=np.array([search.row for search, _ in expansions]),
        leaves=np.array([expansion.leaf for _, expansion in expansions]),
        asked=np.array([expansion.num_samples > 0 for _, expansion in expansions]),
        sizes=sizes,
        owners=owners,
        places=places,
        slots=places + np.array([expansion.num_known for _, expansion in expansions])[owners] if widened else places,
        counts=np.array(flat(expansion.counts for _, expansion in expansions), np.int64),
        goes_on=np.array([reason is step for reason in reasons], bool),
        terminal=np.array([reason is end for reason in reasons], bool),
    )


def node_worths(waves: Waves, method: SearchMethod) -> Float[np.ndarray, "M"]:
    """Return the worth of each new node: its score if the solution continues, else see ``worth_of_end``."""
    if method.valuation.estimate == "path":
        scores = flat(_path_scores(search, expansion) for search, expansion in waves.expansions)
    else:
        scores = flat(expansion.scores for _, expansion in waves.expansions)
    # A score of None becomes NaN.
    worths = np.array(scores, np.float64)
    if isinstance(method.growth, Steps) and method.growth.rollouts is not None:
        _mix_rollouts(waves, worths, float(method.growth.rollouts.rollout_mix))
    for new in np.flatnonzero(~waves.goes_on).tolist():
        search, expansion = waves.expansions[waves.owners[new]]
        worth = search.worth_of_end(expansion, expansion.first + int(waves.places[new]))
        worths[new] = math.nan if worth is None else worth
    return worths


def _path_scores(search: ProblemSearch, expansion: Expansion) -> list[float | None]:
    nodes = range(expansion.first, expansion.first + len(expansion.steps))
    return [search.scores.of_node(node) for node in nodes]


def _mix_rollouts(waves: Waves, worths: Float[np.ndarray, "M"], mix: float) -> None:
    """Mix the mean of a node's rollouts into its own estimate, in place. If only one of them exists, it counts alone."""
    for (search, expansion), start in zip(waves.expansions, waves.starts.tolist(), strict=True):
        if search.rollouts is None:
            continue
        for rollout in expansion.rollouts:
            worth, at = search.rollouts.worth(expansion, rollout), start + rollout.place
            if worth is not None:
                worths[at] = worth if np.isnan(worths[at]) else (1 - mix) * worths[at] + mix * worth


def flat(lists: Iterable[Sequence[Any]]) -> list[Any]:
    """Return the entries of lists, one list after another."""
    return list(chain.from_iterable(lists))
