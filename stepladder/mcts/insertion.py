"""Settling of waves, for many trees at once: write new nodes into the trees, back up their returns, and record the answers.

Axes: M new nodes, E expansions (leaves of the waves), P paths to back up; ordered as in ``waves``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from stepladder.mcts.backup import backup_paths
from stepladder.mcts.expansion import Expansion
from stepladder.mcts.priors import mix_root_noise, sibling_priors
from stepladder.mcts.problem_search import ProblemSearch
from stepladder.mcts.qvalues import NEUTRAL_VALUE
from stepladder.mcts.search_method import SearchMethod
from stepladder.mcts.settings.growth import Priors, Solutions, Steps
from stepladder.mcts.tree import NewNodes, Tree, add_nodes, add_open, grow, land
from stepladder.mcts.waves import Waves, flat, gather_waves, node_worths
from stepladder.types import Step


@dataclass(frozen=True, kw_only=True, slots=True)
class Paths:
    """The places at which returns enter the trees, in wave order."""

    rows: Int[np.ndarray, "P"]
    nodes: Int[np.ndarray, "P"]
    returns: Float[np.ndarray, "P"]
    """NaN if unknown."""
    opened: Int[np.ndarray, "P"]
    """Change of the number of open leaves on the path."""


def settle_waves(tree: Tree, searches: Sequence[ProblemSearch], method: SearchMethod) -> Tree:
    """Write the new nodes of complete waves into the trees, back up the waves, record the answers, and return the tree, grown if needed.

    The searches' nodes are numbered and their answers graded already (``ProblemSearch.enter_nodes``). Their waves are not forgotten yet.
    """
    waves = gather_waves(searches)
    worths = node_worths(waves, method)
    num_nodes = max(len(search.table.steps) for search in searches)
    if isinstance(method.growth, Solutions):
        return _settle_solutions(tree, waves, worths, num_nodes, method)
    return _settle_steps(tree, waves, worths, num_nodes, method, method.growth)


def _settle_steps(tree: Tree, waves: Waves, worths: Float[np.ndarray, "M"], num_nodes: int, method: SearchMethod, growth: Steps) -> Tree:
    """Settle waves of steps: new nodes are children of the leaves, and each leaf backs up one return."""
    priors = _priors(waves, growth.priors)
    # ``grow`` returns new arrays if these are full, so everything below uses its result.
    tree = grow(tree, num_nodes=num_nodes, num_slots=int(waves.slots.max(initial=0)) + 1)
    if growth.widening is not None:
        _join_families(tree, waves, priors, growth.priors)
    _note_masses(waves, priors)
    _note_answers(waves)
    rewards = _gains(tree, waves, worths) if growth.reward == "gain" else np.zeros(len(worths))
    best = _best_nodes(waves, worths, growth) if growth.evaluation == "best" else None
    enters = growth.evaluation == "ends" or method.selection.backs_up_ends
    ends = _answered(waves) if enters else np.zeros(len(worths), bool)
    added = add_nodes(
        tree,
        NewNodes(
            rows=waves.rows[waves.owners],
            parents=waves.leaves[waves.owners],
            slots=waves.slots,
            depths=tree.depth[waves.rows, waves.leaves].astype(np.int64)[waves.owners] + 1,
            priors=priors.astype(np.float32),
            rewards=rewards.astype(np.float32),
            raw_values=worths.astype(np.float32),
            visited=_born_visited(waves, best, growth, worths) & ~ends,
            selectable=waves.goes_on | method.selection.revisits_terminals,
            terminal=waves.terminal,
            truncated=~waves.goes_on & ~waves.terminal,
        ),
    )
    land(tree, waves.rows, waves.leaves)
    # Rules that revisit terminals can select new nodes that cannot be expanded, so the two counts differ.
    num_open = waves.sums(waves.goes_on).astype(np.int64)
    reopened = np.zeros(len(waves.rows), np.int64) if growth.widening is None else _reopen(tree, waves)
    _count_expandable(waves, num_open + reopened)
    selectable = reopened + (np.where(waves.asked, waves.sizes, 0) if method.selection.revisits_terminals else num_open)
    if growth.reward == "gain":
        # What a node is worth has entered by the gain of its step.
        tree.value[waves.rows[waves.owners], added] *= 0
    settings = {"rule": growth.backup, "discount": float(method.valuation.discount)}
    returns = _returns(tree, waves, _worth_of_new(worths, rewards, growth), best, growth)
    if growth.evaluation == "ends":
        # Of the leaves, only ends that were visited again bring something back.
        add_open(tree, waves.rows, waves.leaves, selectable)
        again, selectable = ~waves.asked, np.zeros_like(selectable)
    else:
        again = np.ones_like(waves.asked)
    backup_paths(tree, waves.rows[again], waves.leaves[again], returns[again], opened=selectable[again], **settings)
    if ends.any():
        own = np.where(np.isnan(worths), np.nan, 0.0) if growth.reward == "gain" else worths
        closed = np.zeros(int(ends.sum()), np.int64)
        backup_paths(tree, waves.rows[waves.owners][ends], added[ends], own[ends], opened=closed, **settings)
    return tree


def _worth_of_new(worths: Float[np.ndarray, "M"], rewards: Float[np.ndarray, "M"], growth: Steps) -> Float[np.ndarray, "M"]:
    """Return what each new node brings back to its parent: its worth, or the gain of its step."""
    return np.where(np.isnan(worths), np.nan, rewards) if growth.reward == "gain" else worths


def _answered(waves: Waves) -> Bool[np.ndarray, "M"]:
    """Return which new nodes are ends with an answer."""
    tables = [search.table.answers for search, _ in waves.expansions]
    firsts = np.array([expansion.first for _, expansion in waves.expansions])
    found = waves.terminal.copy()
    for new in np.flatnonzero(found).tolist():
        owner = waves.owners[new]
        found[new] = int(firsts[owner] + waves.places[new]) in tables[owner]
    return found


def _settle_solutions(tree: Tree, waves: Waves, worths: Float[np.ndarray, "M"], num_nodes: int, method: SearchMethod) -> Tree:
    """Settle waves of solutions: every draw is backed up from its last node, and nothing ever descends below the node it began at."""
    _note_answers(waves)
    # A root with thousands of draws would need as many slots at every node: the tree's slots stay empty.
    tree = grow(tree, num_nodes=num_nodes, num_slots=1)
    new = len(worths)
    tables = [(search.table, slice(expansion.first, expansion.first + len(expansion.steps))) for search, expansion in waves.expansions]
    add_nodes(
        tree,
        NewNodes(
            rows=waves.rows[waves.owners],
            parents=np.array(flat(table.parents[used] for table, used in tables), np.int64),
            slots=np.full(new, Tree.NO_SLOT),
            depths=np.array(flat(table.depths[used] for table, used in tables), np.int64),
            priors=np.zeros(new, np.float32),
            rewards=np.zeros(new, np.float32),
            raw_values=worths.astype(np.float32),
            visited=np.zeros(new, bool),
            selectable=waves.goes_on,
            terminal=waves.terminal,
            truncated=~waves.goes_on & ~waves.terminal,
        ),
    )
    land(tree, waves.rows, waves.leaves)
    paths = _sampled_paths(tree, waves)
    backup_paths(tree, paths.rows, paths.nodes, paths.returns, opened=paths.opened, discount=method.valuation.discount)
    return tree


def _join_families(tree: Tree, waves: Waves, priors: Float[np.ndarray, "M"], settings: Priors) -> None:
    """Replace the priors of the wave's new nodes that have older siblings, in place, and those of the siblings in the tree."""
    for (search, expansion), start, size in zip(waves.expansions, waves.starts.tolist(), waves.sizes.tolist(), strict=True):
        if search.families is None or not expansion.num_known:
            continue
        counts = search.families.counts_of(expansion.leaf)
        steps = [search.table.steps[index] for index in counts]
        family = _family_priors(search, expansion.leaf, steps, list(counts.values()), settings)
        tree.prior[search.row, list(counts)[: expansion.num_known]] = family[: expansion.num_known]
        priors[start : start + size] = family[expansion.num_known :]


def _reopen(tree: Tree, waves: Waves) -> Int[np.ndarray, "E"]:
    """Make leaves selectable again that may be sampled again, and return 1 for each of them."""
    reopens = np.array([expansion.reopens for _, expansion in waves.expansions], bool)
    tree.samples[waves.rows, waves.leaves] += waves.num_samples
    tree.growable[waves.rows[reopens], waves.leaves[reopens]] = True
    return reopens.astype(np.int64)


def _priors(waves: Waves, settings: Priors) -> Float[np.ndarray, "M"]:
    # The two common rules are array operations over the whole wave; the others need the steps of each expansion.
    if settings.noise is None and settings.prior == "uniform":
        return np.repeat(1.0 / np.maximum(waves.sizes, 1), waves.sizes)
    if settings.noise is None and settings.prior == "frequency" and settings.prior_temperature == 1:
        return waves.counts / waves.sums(waves.counts)[waves.owners]
    return np.array(
        flat(_sibling_priors(search, expansion, settings) for search, expansion in waves.expansions if expansion.steps), np.float64
    )


def _sibling_priors(search: ProblemSearch, expansion: Expansion, settings: Priors) -> list[float]:
    return _family_priors(search, expansion.leaf, expansion.steps, expansion.counts, settings)


def _family_priors(search: ProblemSearch, parent: int, steps: Sequence[Step], counts: Sequence[int], settings: Priors) -> list[float]:
    priors = sibling_priors(
        counts,
        [sum(step.logps) / len(step.logps) if step.logps else -math.inf for step in steps],
        rule=settings.prior,
        lengths=[len(step.logps) for step in steps],
        temperature=float(settings.prior_temperature),
    )
    noise = settings.noise
    if parent != Tree.ROOT or noise is None:
        return priors
    return mix_root_noise(priors, fraction=float(noise.root_noise), alpha=float(noise.root_noise_alpha), seed=search.seed_of("root noise"))


def _note_masses(waves: Waves, priors: Float[np.ndarray, "M"]) -> None:
    """Record the prior mass of the paths to new nodes, if the answer rule weighs by it."""
    if not waves.expansions[0][0].answers.is_weighed_by_mass:
        return
    # New nodes are numbered in wave order, so appending keeps entry i of ``masses`` at node i.
    before = np.array([search.answers.masses[expansion.leaf] for search, expansion in waves.expansions])
    masses = (before[waves.owners] * priors).tolist()
    for (search, _), stop, size in zip(waves.expansions, np.cumsum(waves.sizes).tolist(), waves.sizes.tolist(), strict=True):
        search.answers.masses += masses[stop - size : stop]


def _note_answers(waves: Waves) -> None:
    """Count the answers of new terminals, and of terminals that were visited again."""
    ended = np.bincount(waves.owners[waves.terminal], minlength=len(waves.sizes)) > 0
    noted = ended | ~waves.asked
    if waves.expansions[0][0].families is not None:
        noted |= np.array([bool(expansion.repeats) for _, expansion in waves.expansions])
    for at in np.flatnonzero(noted).tolist():
        search, expansion = waves.expansions[at]
        search.answers.note(expansion)


def _born_visited(waves: Waves, best: Int[np.ndarray, "E"] | None, growth: Steps, worths: Float[np.ndarray, "M"]) -> Bool[np.ndarray, "M"]:
    """Return which new nodes start with a visit that is worth their own value."""
    if growth.evaluation == "ends":
        return ~np.isnan(worths)
    born = np.full(len(waves.owners), growth.evaluation == "children")
    if best is not None:
        born[best[best >= 0]] = True
    return born


def _best_nodes(waves: Waves, worths: Float[np.ndarray, "M"], growth: Steps) -> Int[np.ndarray, "E"]:
    """Return the best new node of each expansion, or -1: the node rolled out as the best, or the first with the highest worth."""
    best = []
    rolls_out_best = growth.rollouts is not None and growth.rollouts.rollout_of == "best"
    for (_, expansion), start, size in zip(waves.expansions, waves.starts.tolist(), waves.sizes.tolist(), strict=True):
        if rolls_out_best and expansion.rollouts:
            best.append(start + expansion.rollouts[0].place)
        else:
            # Worths are in [0, 1], so -1 ranks unknown ones last; argmax takes the first of equals.
            best.append(start + int(np.nan_to_num(worths[start : start + size], nan=-1.0).argmax()) if size else -1)
    return np.array(best)


def _gains(tree: Tree, waves: Waves, worths: Float[np.ndarray, "M"]) -> Float[np.ndarray, "M"]:
    """Return the rewards of the edges into new nodes: the estimate of each minus that of its parent."""
    before = tree.raw_value[waves.rows, waves.leaves].astype(np.float64)
    before = np.where(np.isnan(before), NEUTRAL_VALUE, before)[waves.owners]
    return np.where(np.isnan(worths), 0.0, worths - before)


def _count_expandable(waves: Waves, num_open: Int[np.ndarray, "E"]) -> None:
    """Count the nodes that each search can expand: an expansion closes one and opens ``num_open``, which may be itself again."""
    changes = np.where(waves.asked, num_open - 1, 0).tolist()
    for (search, _), change in zip(waves.expansions, changes, strict=True):
        search.num_expandable += change


def _returns(
    tree: Tree, waves: Waves, returns_of_new: Float[np.ndarray, "M"], best: Int[np.ndarray, "E"] | None, growth: Steps
) -> Float[np.ndarray, "E"]:
    """Return the return of each leaf: the mean over its samples, its best sample, or its own worth.

    A new node brings back ``returns_of_new``. A leaf that was only visited again brings its own worth; with gains, nothing more.
    """
    returns = tree.raw_value[waves.rows, waves.leaves].astype(np.float64)
    if growth.reward == "gain":
        returns *= 0
    if best is not None:
        # An entry after the last node for expansions without any.
        return np.where(waves.asked, np.append(returns_of_new, math.nan)[best], returns)
    if growth.evaluation == "leaf":
        return returns
    # Samples without a known worth have no part in the mean.
    known = np.where(np.isnan(returns_of_new), 0, waves.counts)
    totals, weights = waves.sums(known * np.nan_to_num(returns_of_new)), waves.sums(known)
    if growth.widening is not None:
        _add_repeats(tree, waves, totals, weights, by_gain=growth.reward == "gain")
    means = np.where(weights > 0, totals / np.maximum(weights, 1), np.nan)
    return np.where(waves.asked, means, returns)


def _add_repeats(tree: Tree, waves: Waves, totals: Float[np.ndarray, "E"], weights: Float[np.ndarray, "E"], *, by_gain: bool) -> None:
    """Add the samples of children that exist: each brings back what its child did when it was new."""
    for at, (search, expansion) in enumerate(waves.expansions):
        for node, count in expansion.repeats:
            if not math.isnan(tree.raw_value[search.row, node]):
                totals[at] += count * float((tree.reward if by_gain else tree.raw_value)[search.row, node])
                weights[at] += count


def _sampled_paths(tree: Tree, waves: Waves) -> Paths:
    """Return one path per draw, from its last node, which may be an older one. The new nodes are in the tree already."""
    ends = [expansion.ends for _, expansion in waves.expansions]
    rows, nodes = waves.rows[np.repeat(np.arange(len(ends)), list(map(len, ends)))], np.array(flat(ends), np.int64)
    return Paths(rows=rows, nodes=nodes, returns=tree.raw_value[rows, nodes], opened=np.zeros(len(nodes), np.int64))
