"""Settling waves: what the new nodes are worth, what goes up from them, and where both are written. Many trees at once.

Axes: M new nodes, E expansions (leaves of the waves), P paths to back up. All are ordered by tree and, within a tree, by place in the
wave and by sample, so that nothing depends on the order in which results arrived.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from stepladder.mcts.backup import backup_paths
from stepladder.mcts.expansion import Expansion
from stepladder.mcts.method import SearchMethod
from stepladder.mcts.problem_search import SearchState
from stepladder.mcts.qvalues import NEUTRAL_VALUE
from stepladder.mcts.selection import mix_root_noise, sibling_priors
from stepladder.mcts.tree import NewNodes, Tree, add_nodes, grow, land
from stepladder.types import StopReason


@dataclass(frozen=True, kw_only=True, slots=True)
class Waves:
    """Waves whose results are all in, flat."""

    expansions: list[tuple[SearchState, Expansion]]
    """All expansions with their searches."""
    rows: Int[np.ndarray, "E"]
    """Row of the tree of each expansion."""
    leaves: Int[np.ndarray, "E"]
    """The node that was expanded or, where nothing was asked, visited again."""
    asked: Bool[np.ndarray, "E"]
    """Whether samples were drawn from the leaf."""
    sizes: Int[np.ndarray, "E"]
    """New nodes of each expansion."""
    owners: Int[np.ndarray, "M"]
    """Expansion of each new node."""
    slots: Int[np.ndarray, "M"]
    """Place of each new node in its expansion."""
    counts: Int[np.ndarray, "M"]
    """Samples that were merged into each new node."""
    goes_on: Bool[np.ndarray, "M"]
    """Nodes that can be expanded."""
    terminal: Bool[np.ndarray, "M"]
    """Nodes at which the solution ended by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Paths:
    """Where returns enter the trees, in wave order."""

    rows: Int[np.ndarray, "P"]
    nodes: Int[np.ndarray, "P"]
    returns: Float[np.ndarray, "P"]
    """NaN where nothing is known."""
    opened: Int[np.ndarray, "P"]
    """Change of the number of open leaves on the path."""


def settle_waves(tree: Tree, states: Sequence[SearchState], method: SearchMethod) -> Tree:
    """Write the new nodes of complete waves into the trees, back the waves up and note the answers; return the tree, grown where needed.

    The states' nodes are numbered and their answers graded already (``SearchState.enter_nodes``).
    """
    waves = _gather(states)
    worths = _worths(waves, method)
    priors = np.zeros(len(worths)) if method.samples_solutions else _priors(waves, method)
    _note_answers(waves, priors, method)
    # A root with thousands of draws would need as many slots at every node.
    num_slots = 1 if method.samples_solutions else int(waves.sizes.max())
    tree = grow(tree, num_nodes=max(len(state.table.steps) for state in states), num_slots=num_slots)
    rewards = np.zeros(len(worths)) if method.reward == "none" else _gains(tree, waves, worths)
    best = _best_nodes(waves, worths, method) if method.evaluation == "best" and not method.samples_solutions else None
    _write_nodes(tree, waves, worths, priors, rewards, _born_visited(waves, best, method), method)
    land(tree, waves.rows, waves.leaves)
    paths = _sampled_paths(waves, worths) if method.samples_solutions else _paths(tree, waves, worths + rewards, best, method)
    rule = "mean" if method.samples_solutions else method.backup
    backup_paths(tree, paths.rows, paths.nodes, paths.returns, opened=paths.opened, rule=rule, discount=method.discount)
    for state in states:
        state.end_wave(tree)
        if method.commit is not None and state.may_commit:
            _commit(tree, state, method)
    return tree


def _commit(tree: Tree, state: SearchState, method: SearchMethod) -> None:
    """Move a search to the best child of the node that it searches from; the statistics stay as they are."""
    children = tree.children_index[state.row, state.base]
    children = children[children != Tree.UNVISITED]
    if not children.size:
        return
    merits = tree.visits[state.row, children]
    if method.commit_by == "value":
        qvalues = tree.reward[state.row, children] + np.float32(method.discount) * tree.value[state.row, children]
        merits = np.nan_to_num(qvalues, nan=-np.inf)
    state.commit(int(children[merits.argmax()]))


def _gather(states: Sequence[SearchState]) -> Waves:
    # Looking a member of an enum up takes longer than comparing it.
    step, end = StopReason.STEP, StopReason.END
    expansions = [(state, expansion) for state in states for expansion in state.wave]
    sizes = np.array([len(expansion.steps) for _, expansion in expansions])
    owners = np.repeat(np.arange(len(sizes)), sizes)
    reasons = _flat(expansion.reasons for _, expansion in expansions)
    return Waves(
        expansions=expansions,
        rows=np.array([state.row for state, _ in expansions]),
        leaves=np.array([expansion.leaf for _, expansion in expansions]),
        asked=np.array([expansion.num_samples > 0 for _, expansion in expansions]),
        sizes=sizes,
        owners=owners,
        slots=np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes),
        counts=np.array(_flat(expansion.counts for _, expansion in expansions), np.int64),
        goes_on=np.array([reason is step for reason in reasons], bool),
        terminal=np.array([reason is end for reason in reasons], bool),
    )


def _worths(waves: Waves, method: SearchMethod) -> Float[np.ndarray, "M"]:
    """Return what each new node is worth by itself: its score where the solution goes on, see ``SearchState.worth_of_end`` elsewhere."""
    if method.estimate == "path":
        scores = _flat(
            [state.path_score(expansion.first + i) for i in range(len(expansion.steps))] for state, expansion in waves.expansions
        )
    else:
        scores = _flat(expansion.scores for _, expansion in waves.expansions)
    # A score of None becomes NaN.
    worths = np.array(scores, np.float64)
    if method.rollouts:
        _mix_rollouts(waves, worths, float(method.rollout_mix))
    for new in np.flatnonzero(~waves.goes_on).tolist():
        state, expansion = waves.expansions[waves.owners[new]]
        worth = state.worth_of_end(expansion, expansion.first + int(waves.slots[new]))
        worths[new] = math.nan if worth is None else worth
    return worths


def _mix_rollouts(waves: Waves, worths: Float[np.ndarray, "M"], mix: float) -> None:
    """Mix the mean of a node's rollouts into its own estimate, in place; either stands alone where it is all there is."""
    starts = (np.cumsum(waves.sizes) - waves.sizes).tolist()
    for (state, expansion), start in zip(waves.expansions, starts, strict=True):
        for rollout in expansion.rollouts:
            worth, at = state.rollout_worth(expansion, rollout), start + rollout.place
            if worth is not None:
                worths[at] = worth if np.isnan(worths[at]) else (1 - mix) * worths[at] + mix * worth


def _priors(waves: Waves, method: SearchMethod) -> Float[np.ndarray, "M"]:
    if method.root_noise == 0 and method.prior == "uniform":
        return np.repeat(1.0 / np.maximum(waves.sizes, 1), waves.sizes)
    if method.root_noise == 0 and method.prior == "frequency" and method.prior_temperature == 1:
        return waves.counts / _sums(waves.counts, waves)[waves.owners]
    return np.array(
        _flat(_sibling_priors(state, expansion, method) for state, expansion in waves.expansions if expansion.steps), np.float64
    )


def _sibling_priors(state: SearchState, expansion: Expansion, method: SearchMethod) -> list[float]:
    steps = expansion.steps
    priors = sibling_priors(
        expansion.counts,
        [sum(step.logps) / len(step.logps) if step.logps else -math.inf for step in steps],
        rule=method.prior,
        lengths=[len(step.logps) for step in steps],
        temperature=float(method.prior_temperature),
    )
    if expansion.leaf != Tree.ROOT or method.root_noise == 0:
        return priors
    return mix_root_noise(priors, fraction=float(method.root_noise), alpha=float(method.root_noise_alpha), seed=state.seed_of("root noise"))


def _note_answers(waves: Waves, priors: Float[np.ndarray, "M"], method: SearchMethod) -> None:
    """Count the answers of new terminals, and of terminals that were visited again."""
    if method.answer_rule == "path-vote" and not method.samples_solutions:
        before = np.array([state.masses[expansion.leaf] for state, expansion in waves.expansions])
        masses = (before[waves.owners] * priors).tolist()
        for (state, _), stop, size in zip(waves.expansions, np.cumsum(waves.sizes).tolist(), waves.sizes.tolist(), strict=True):
            state.masses += masses[stop - size : stop]
    ended = np.bincount(waves.owners[waves.terminal], minlength=len(waves.sizes)) > 0
    for at in np.flatnonzero(ended | ~waves.asked).tolist():
        state, expansion = waves.expansions[at]
        state.note_answers(expansion)


def _born_visited(waves: Waves, best: Int[np.ndarray, "E"] | None, method: SearchMethod) -> Bool[np.ndarray, "M"]:
    """Return which new nodes start with a visit, worth their own value."""
    born = np.full(len(waves.owners), method.evaluation == "children" and not method.samples_solutions)
    if best is not None:
        born[best[best >= 0]] = True
    return born


def _best_nodes(waves: Waves, worths: Float[np.ndarray, "M"], method: SearchMethod) -> Int[np.ndarray, "E"]:
    """Return the best new node of each expansion, -1 where it has none: the one rolled out as the best, or of highest worth, the first."""
    best = []
    starts = (np.cumsum(waves.sizes) - waves.sizes).tolist()
    for (_, expansion), start, size in zip(waves.expansions, starts, waves.sizes.tolist(), strict=True):
        if method.rollout_of == "best" and expansion.rollouts:
            best.append(start + expansion.rollouts[0].place)
        else:
            best.append(start + int(np.nan_to_num(worths[start : start + size], nan=-1.0).argmax()) if size else -1)
    return np.array(best)


def _write_nodes(
    tree: Tree,
    waves: Waves,
    worths: Float[np.ndarray, "M"],
    priors: Float[np.ndarray, "M"],
    rewards: Float[np.ndarray, "M"],
    visited: Bool[np.ndarray, "M"],
    method: SearchMethod,
) -> None:
    new = len(worths)
    if method.samples_solutions:
        tables = [(state.table, slice(expansion.first, expansion.first + len(expansion.steps))) for state, expansion in waves.expansions]
        parents = np.array(_flat(table.parents[used] for table, used in tables), np.int64)
        depths = np.array(_flat(table.depths[used] for table, used in tables), np.int64)
    else:
        parents = waves.leaves[waves.owners]
        depths = tree.depth[waves.rows, waves.leaves].astype(np.int64)[waves.owners] + 1
    add_nodes(
        tree,
        NewNodes(
            rows=waves.rows[waves.owners],
            parents=parents,
            slots=np.full(new, Tree.NO_SLOT) if method.samples_solutions else waves.slots,
            depths=depths,
            priors=priors.astype(np.float32),
            rewards=rewards.astype(np.float32),
            raw_values=worths.astype(np.float32),
            visited=visited,
            selectable=waves.goes_on | (method.terminals == "revisit"),
            terminal=waves.terminal,
            truncated=~waves.goes_on & ~waves.terminal,
        ),
    )


def _gains(tree: Tree, waves: Waves, worths: Float[np.ndarray, "M"]) -> Float[np.ndarray, "M"]:
    before = tree.raw_value[waves.rows, waves.leaves].astype(np.float64)
    before = np.where(np.isnan(before), NEUTRAL_VALUE, before)[waves.owners]
    return np.where(np.isnan(worths), 0.0, worths - before)


def _paths(
    tree: Tree, waves: Waves, returns_of_new: Float[np.ndarray, "M"], best: Int[np.ndarray, "E"] | None, method: SearchMethod
) -> Paths:
    """Return one path per expansion, with the mean over its samples, with its best one or with what the leaf itself is worth.

    A new node brings back its worth and the reward on the way to it, ``returns_of_new``.
    """
    returns = tree.raw_value[waves.rows, waves.leaves].astype(np.float64)
    if best is not None:
        # An entry behind the last node for expansions without any.
        returns = np.where(waves.asked, np.append(returns_of_new, math.nan)[best], returns)
    if method.evaluation == "children":
        known = np.where(np.isnan(returns_of_new), 0, waves.counts)
        totals, weights = _sums(known * np.nan_to_num(returns_of_new), waves), _sums(known, waves)
        means = np.where(weights > 0, totals / np.maximum(weights, 1), np.nan)
        returns = np.where(waves.asked, means, returns)
    num_open = _sums(waves.goes_on, waves).astype(np.int64)
    for (state, _), change in zip(waves.expansions, np.where(waves.asked, num_open - 1, 0).tolist(), strict=True):
        state.num_expandable += change
    opened = num_open if method.terminals == "skip" else np.where(waves.asked, waves.sizes, 0)
    return Paths(rows=waves.rows, nodes=waves.leaves, returns=returns, opened=opened)


def _sampled_paths(waves: Waves, worths: Float[np.ndarray, "M"]) -> Paths:
    """Return one path per draw, from its last node."""
    nodes = [expansion.ends for _, expansion in waves.expansions]
    firsts = np.array([expansion.first for _, expansion in waves.expansions])
    owners, ends = np.repeat(np.arange(len(nodes)), [len(ends) for ends in nodes]), np.array(_flat(nodes), np.int64)
    starts = np.cumsum(waves.sizes) - waves.sizes
    return Paths(
        rows=waves.rows[owners], nodes=ends, returns=worths[starts[owners] + ends - firsts[owners]], opened=np.zeros(len(ends), np.int64)
    )


def _sums(values: np.ndarray, waves: Waves) -> Float[np.ndarray, "E"]:
    """Sum per expansion, in the order of the nodes."""
    return np.bincount(waves.owners, values, minlength=len(waves.sizes))


def _flat(lists: Iterable[Sequence[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))
