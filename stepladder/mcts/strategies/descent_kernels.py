"""The compiled kernels of descent: from the root to a leaf, always into the best-scored open slot.

Axes: b trees, B rows of trees, K child slots, W leaves per tree, P schedules of S simulations. Every formula stands for one child; the
loops over slots, levels and trees are compiled. An edge's value is reward + discount * value of the child, in single precision as it is
stored; what is computed from it is in double precision. Ties go to the first slot.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from stepladder.mcts.compiled import compiled
from stepladder.mcts.qvalues import NEUTRAL_VALUE, UNVISITED_RULES
from stepladder.mcts.settings.growth import Widening
from stepladder.mcts.tree import Nodes, Tree

DESCENTS = ("puct", "puct-mctx", "puct-muzero", "uct", "gumbel")
NORMALISATIONS = ("none", "siblings")

# Compiled code compares numbers and reads constants of modules.
_PUCT, _PUCT_MCTX, _PUCT_MUZERO, _UCT, _GUMBEL = range(len(DESCENTS))
_INF, _ZERO, _PARENT, _RAW = range(len(UNVISITED_RULES))
_WIDENINGS = ("once", "power", "stay")
_ONCE, _POWER, _STAY = range(len(_WIDENINGS))
_ROOT, _UNVISITED = Tree.ROOT, Tree.UNVISITED
# Numbers in single precision make its arithmetic single, too; to type checkers they are no floats.
_UNKNOWN: Any = np.float32(np.nan)
_WORST: Any = np.float32(0.0)
_LEAST_RANGE: Any = np.float32(1e-8)
"""Smallest range of values to divide by."""
_LEAST_WEIGHT = float(np.finfo(np.float32).tiny)
"""Smallest weight of a visited child in ``mixed_value``."""
_LOWEST = -1e9
"""Floor of a score, so that a sole candidate with prior 0 is still taken."""
_NOT_CONSIDERED = -1e12
"""Below every candidate, but above a closed slot: if all candidates are closed, the search continues among the others."""


class DescentRule(NamedTuple):
    """How child slots are scored; the settings are explained in ``descent``."""

    selection: int
    """Place in ``DESCENTS``."""
    unvisited: int
    """Place in ``UNVISITED_RULES``: the value of a child without visits; not read where values are normalised."""
    unvisited_bonus: float
    """Added to that value."""
    critic_mix: float
    """Share of a child's own estimate in its value, see ``with_critic``; not in gumbel."""
    normalises: bool
    """Whether values are rescaled between the parent's and the siblings' (``normalised``)."""
    c: float
    """Exploration constant of puct and uct, c_init of the other two."""
    c_base: float
    """Second constant of puct-mctx and puct-muzero."""
    discount: float
    """Factor per step, in (0, 1]; -1 for games of two players."""
    value_scale: float
    """gumbel: weight of values against logits."""
    maxvisit_init: float
    """gumbel: visits that count before any was made."""
    rescales: bool
    """gumbel: whether completed values are rescaled to [0, 1] between the least and the greatest sibling."""
    noise: Float[np.ndarray, "B K"]
    """gumbel: noise of the root's slots by row, read at every descent, so that rows can be given to other problems."""
    schedule_of: Int[np.ndarray, "B"]
    """gumbel: schedule of each row, as its place in ``schedules``."""
    schedules: Int[np.ndarray, "P K S"]
    """gumbel: entry [p, m - 1] is ``considered_visits`` of a root with m children."""
    widen: int
    """When a node with children is sampled again: ``_ONCE``, ``_POWER`` or ``_STAY``."""
    widen_base: float
    """``power``: samples of a node with one visit."""
    widen_power: float
    """``power``: exponent of the visits."""
    stay_low: float
    """``stay``: upper bound of the low values."""
    stay_high: float
    """``stay``: lower bound of the high values."""


def descent_rule(  # noqa: PLR0913 - one per setting
    *,
    selection: str,
    unvisited: str = "raw",
    unvisited_bonus: float = 0.0,
    critic_mix: float = 0.0,
    normalise: str = "none",
    c: float = 0.0,
    c_base: float = 1.0,
    discount: float = 1.0,
    value_scale: float = 0.0,
    maxvisit_init: float = 0.0,
    rescale: bool = False,
    noise: Float[np.ndarray, "B K"] | None = None,
    schedules: Int[np.ndarray, "m S"] | None = None,
    widening: Widening | None = None,
) -> DescentRule:
    """Return the rule that a method's settings describe.

    Those from ``value_scale`` to ``schedules`` are read by gumbel only, which needs them. All rows have one schedule, which is entry m - 1
    of ``schedules`` for a root with m children.
    """
    noise = np.zeros((0, 0)) if noise is None else noise
    return DescentRule(
        selection=DESCENTS.index(selection),
        unvisited=UNVISITED_RULES.index(unvisited),
        unvisited_bonus=float(unvisited_bonus),
        critic_mix=float(critic_mix),
        normalises=normalise == "siblings",
        c=float(c),
        c_base=float(c_base),
        discount=float(discount),
        value_scale=float(value_scale),
        maxvisit_init=float(maxvisit_init),
        rescales=rescale,
        noise=noise,
        schedule_of=np.zeros(len(noise), np.int64),
        schedules=np.zeros((1, 0, 0), np.int64) if schedules is None else schedules[None],
        widen=_ONCE if widening is None else _WIDENINGS.index(widening.widen),
        widen_base=0.0 if widening is None else float(widening.widen_base),
        widen_power=0.0 if widening is None else float(widening.widen_power),
        stay_low=0.0 if widening is None else float(widening.stay_low),
        stay_high=1.0 if widening is None else float(widening.stay_high),
    )


@compiled
def puct(qvalue: float, prior: float, visits: int, sum_visits: int, c: float) -> float:
    """Return the PUCT score of a child: Q + c * P * sqrt(sum_j n_j) / (1 + n); only the value if no sibling was visited.

    Source: Silver et al. 2017, "Mastering the game of Go without human knowledge", Methods. We add no noise at the root.
    """
    return qvalue + c * prior * math.sqrt(sum_visits) / (1 + visits)


@compiled
def puct_muzero(qvalue: float, prior: float, visits: int, parent_visits: int, c_init: float, c_base: float) -> float:
    """Return the PUCT score of a child in MuZero's form: Q + P * sqrt(N) / (1 + n) * (c_init + ln((N + c_base + 1) / c_base)).

    Source: Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a learned model", Appendix B, with the + 1 of
    mctx in the logarithm. The paper's N is the sum of the children's visits (``puct-muzero``); that of mctx counts the node's own
    evaluation, too (``puct-mctx``).
    """
    return qvalue + prior * math.sqrt(parent_visits) / (1 + visits) * (c_init + math.log((parent_visits + c_base + 1) / c_base))


@compiled
def uct(qvalue: float, visits: int, parent_visits: int, c: float) -> float:
    """Return the UCT score of a child: Q + c * sqrt(ln N / n), Q where n = 0; N = 0 counts as 1.

    Source: Kocsis & Szepesvari 2006, "Bandit based Monte-Carlo planning", in the form of rStar-Math (Guan et al. 2025), whose bonus is 0 at
    an unvisited child.
    """
    return qvalue + c * math.sqrt(math.log(max(parent_visits, 1)) / visits) if visits > 0 else qvalue


@compiled
def with_virtual_loss(qvalue: float, visits: int, in_flight: int) -> float:
    """Return an edge value that counts every simulation in flight as a loss, worth 0: Q * max(n, 1) / (max(n, 1) + f).

    Values are in [0, 1], so 0 is the worst return. Infinite values stay infinite.

    Source: Chaslot et al. 2008, "Parallel Monte-Carlo Tree Search".
    """
    weight = max(visits, 1)
    return qvalue * (weight / (weight + in_flight))


@compiled
def completed(qvalue: float, visits: int, raw_value: float, parent_value: float, unvisited: int, bonus: float) -> float:
    """Return an edge value, or a replacement if it is missing.

    A visited child without a return takes its parent's value. A child without visits takes the value of the rule, plus the bonus:
    ``inf`` (every child once, before any twice), ``zero``, ``parent`` (the parent's value) or ``raw`` (its own estimate, the parent's value
    when it has none). A parent without a value counts as 0.5.
    """
    inherited = NEUTRAL_VALUE if math.isnan(parent_value) else parent_value
    if visits > 0:
        return inherited if math.isnan(qvalue) else qvalue
    if unvisited == _INF:
        return np.inf
    if unvisited == _ZERO:
        return bonus
    return bonus + (inherited if unvisited == _PARENT or math.isnan(raw_value) else raw_value)


@compiled
def normalised(qvalue: float, low: float, high: float) -> float:
    """Return an edge value rescaled to [0, 1] between bounds: (Q - low) / max(high - low, 1e-8); 0 where it is unknown.

    The bounds are the least and the greatest of the parent's value and the visited siblings'.

    Source: Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a learned model", Appendix B (equation 5),
    with the parent's value among the bounds.
    """
    return _WORST if math.isnan(qvalue) else (qvalue - low) / max(high - low, _LEAST_RANGE)


@compiled
def with_critic(qvalue: float, raw_value: float, share: float) -> float:
    """Return the tree's value of an edge mixed with a critic's own estimate of the child: (1 - share) * Q + share * raw.

    Without a critic's estimate (NaN), the edge value counts alone.

    Source: Putta et al. 2024, "Agent Q: Advanced reasoning and learning for autonomous AI agents", whose values mix those of the tree with
    those of a critic. Their critic ranks the siblings; ours scores each of them.
    """
    return qvalue if math.isnan(raw_value) or share == 0 else (1 - share) * qvalue + share * raw_value


@compiled
def mixed_value(qvalues: Float[np.ndarray, "K"], priors: Float[np.ndarray, "K"], visits: Int[np.ndarray, "K"], raw_value: float) -> float:
    """Return the value that replaces the missing values of a node's children.

        v = (raw + n * sum_{known} P_k Q_k / sum_{known} P_k) / (1 + n),   n = sum_{known} n_k

    Args:
        qvalues: Edge values; NaN if unknown.
        priors: Prior probabilities.
        visits: Visit counts.
        raw_value: The node's own estimate.

    Source: Danihelka et al. 2022, "Policy improvement by planning with Gumbel", Appendix D.
    """
    total, weight, num_visits = 0.0, 0.0, 0
    for k in range(len(qvalues)):
        if not math.isnan(qvalues[k]):
            # Known values must have some weight between them, whatever their priors.
            share = max(priors[k], _LEAST_WEIGHT)
            total, weight, num_visits = total + share * qvalues[k], weight + share, num_visits + visits[k]
    return (raw_value + num_visits * total / weight) / (1 + num_visits) if num_visits > 0 else raw_value


@compiled
def halving_score(noise: float, logit: float, value: float, max_logit: float, is_candidate: bool) -> float:
    """Return the score of a root's child: noise + logit + value for a candidate, far less for the others.

    Args:
        noise: Gumbel noise, drawn once per search; 0 makes the search deterministic.
        logit: Logarithm of the prior.
        value: Edge value on the scale of logits (``scale_values``).
        max_logit: Greatest logit among the siblings.
        is_candidate: Whether the child has the visits that the schedule considers now.

    Source: as ``mixed_value``, Section 4.
    """
    score = max(_LOWEST, noise + (logit - max_logit) + value)
    return score if is_candidate else score + _NOT_CONSIDERED


@compiled
def scale_values(
    values: Float[np.ndarray, "K"], visits: Int[np.ndarray, "K"], value_scale: float, maxvisit_init: float, rescales: bool
) -> None:
    """Bring completed edge values to the scale of logits, in place: (maxvisit_init + max_k n_k) * value_scale * Q_k.

    With ``rescales``, values are first rescaled to [0, 1] between the least and the greatest of them.

    Source: as ``mixed_value``, Section 4 and Appendix D.
    """
    low, high, most = np.inf, -np.inf, 0
    for k in range(len(values)):
        low, high, most = min(low, values[k]), max(high, values[k]), max(most, visits[k])
    for k in range(len(values)):
        value = (values[k] - low) / max(high - low, float(_LEAST_RANGE)) if rescales else values[k]
        values[k] = (maxvisit_init + most) * value_scale * value


@compiled
def improve_policy(logits: Float[np.ndarray, "K"], values: Float[np.ndarray, "K"]) -> None:
    """Replace logits, in place, by the improved policy softmax(logits + values).

    Below the root, a child's score is its share of it minus its share of the visits, n_k / (1 + sum_j n_j).

    Source: as ``mixed_value``, Section 5.
    """
    # The greatest exponent is 0, so nothing overflows.
    highest, total = -np.inf, 0.0
    for k in range(len(logits)):
        highest = max(highest, logits[k] + values[k])
    for k in range(len(logits)):
        logits[k] = math.exp(logits[k] + values[k] - highest)
        total += logits[k]
    for k in range(len(logits)):
        logits[k] /= total


@compiled
def descend(tree: Tree, rows: Int[np.ndarray, "b"], starts: Int[np.ndarray, "b"], rule: DescentRule) -> Int[np.ndarray, "b"]:
    """Return the node at which each row's descent ends. Every node on the way must have an open node at or below it."""
    leaves = np.empty(len(rows), np.int64)
    # One buffer for all nodes: a node has at most as many children as there are slots.
    scores = np.empty(tree.children_index.shape[2])
    for i in range(len(rows)):
        nodes, at = tree.nodes[rows[i]], starts[i]
        while tree.children_index[rows[i], at, 0] != _UNVISITED:
            children = tree.children_index[rows[i], at]
            # Slots are filled from the first on, so the children end at the first empty one.
            num_children = 1
            while num_children < len(children) and children[num_children] != _UNVISITED:
                num_children += 1
            children = children[:num_children]
            if nodes[at].growable and (_is_widened(nodes[at], rule) or not _has_open(nodes, children)):
                break
            if rule.selection == _GUMBEL:
                _score_by_gumbel(nodes, at, children, rule, rows[i], scores)
            else:
                _score_by_bounds(nodes, at, children, rule, scores)
            at = children[_best_open(nodes, children, scores)]
        leaves[i] = at
    return leaves


@compiled
def _is_widened(node: Any, rule: DescentRule) -> bool:
    """Say whether a descent stops at a node that has children, to sample it again.

    ``power``: while its samples are fewer than widen_base * N^widen_power, N its visits with those in flight. ``stay``: while its value
    lies in (0, stay_low] or [stay_high, 1).

    Source: power: Coulom 2007, "Computing Elo ratings of move patterns in the game of Go"; Couetoux et al. 2011, "Continuous upper
    confidence trees"; stay: Li et al. 2025, "FastMCTS: A simple sampling strategy for data synthesis", whose bounds are not published.
    """
    if rule.widen == _POWER:
        return node.samples < rule.widen_base * float(max(node.visits + node.in_flight, 1)) ** rule.widen_power
    if rule.widen == _STAY:
        return 0 < node.value <= rule.stay_low or rule.stay_high <= node.value < 1
    return False


@compiled
def _has_open(nodes: Nodes, children: Int[np.ndarray, "K"]) -> bool:
    num_open = 0
    for child in children:
        num_open += nodes[child].open_leaves
    return num_open > 0


@compiled
def _best_open(nodes: Nodes, children: Int[np.ndarray, "K"], scores: Float[np.ndarray, "K"]) -> int:
    best = -1
    for k in range(len(children)):
        # Strictly greater: ties go to the first slot.
        if nodes[children[k]].open_leaves > 0 and (best < 0 or scores[k] > scores[best]):
            best = k
    return best


@compiled
def _qvalue(node: Any, discount: float) -> float:
    """Return the value of the edge into a node, in single precision; NaN if no visit had a return."""
    return node.reward + np.float32(discount) * node.value if node.visits > 0 else _UNKNOWN


@compiled
def _score_by_bounds(nodes: Nodes, at: int, children: Int[np.ndarray, "K"], rule: DescentRule, scores: Float[np.ndarray, "K"]) -> None:
    """Fill in the scores of puct in all its forms and of uct."""
    parent_value, parent_visits, sum_visits = nodes[at].value, nodes[at].visits + nodes[at].in_flight, 0
    low, high = parent_value, parent_value
    for child in children:
        sum_visits += nodes[child].visits + nodes[child].in_flight
        qvalue = _qvalue(nodes[child], rule.discount)
        # The first value replaces a bound that is still NaN.
        if not math.isnan(qvalue):
            low, high = (low if low < qvalue else qvalue), (high if high > qvalue else qvalue)
    for k in range(len(children)):
        child = nodes[children[k]]
        qvalue = _qvalue(child, rule.discount)
        if rule.normalises:
            value = float(normalised(qvalue, low, high))
        else:
            value = completed(qvalue, child.visits, child.raw_value, parent_value, unvisited=rule.unvisited, bonus=rule.unvisited_bonus)
        value = with_critic(value, child.raw_value, share=rule.critic_mix)
        # A leaf in flight is a lost simulation to the value and one more visit to the bonus.
        value, visits = with_virtual_loss(value, child.visits, child.in_flight), child.visits + child.in_flight
        if rule.selection == _PUCT:
            scores[k] = puct(value, child.prior, visits, sum_visits=sum_visits, c=rule.c)
        elif rule.selection == _UCT:
            scores[k] = uct(value, visits, parent_visits=parent_visits, c=rule.c)
        else:
            total = parent_visits if rule.selection == _PUCT_MCTX else sum_visits
            scores[k] = puct_muzero(value, child.prior, visits, parent_visits=total, c_init=rule.c, c_base=rule.c_base)


@compiled
def _score_by_gumbel(
    nodes: Nodes,
    at: int,
    children: Int[np.ndarray, "K"],
    rule: DescentRule,
    row: int,
    scores: Float[np.ndarray, "K"],
) -> None:
    """Fill in the scores of a Gumbel search; leaves in flight count as visits and leave the values alone."""
    num = len(children)
    # ``logits`` holds priors until ``mixed_value`` has read them.
    logits, values, visits = np.empty(num), np.empty(num), np.empty(num, np.int64)
    for k in range(num):
        child = nodes[children[k]]
        logits[k], values[k], visits[k] = child.prior, _qvalue(child, rule.discount), child.visits
    own = nodes[at].value if math.isnan(nodes[at].raw_value) else nodes[at].raw_value
    mixed = mixed_value(values, logits, visits, raw_value=NEUTRAL_VALUE if math.isnan(own) else float(own))
    sum_visits, max_logit = 0, -np.inf
    for k in range(num):
        # A sole child with prior 0 is still taken: ``halving_score`` has a floor.
        logits[k] = math.log(logits[k]) if logits[k] > 0 else -np.inf
        values[k] = mixed if math.isnan(values[k]) else values[k]
        visits[k] += nodes[children[k]].in_flight
        sum_visits, max_logit = sum_visits + visits[k], max(max_logit, logits[k])
    scale_values(values, visits, value_scale=rule.value_scale, maxvisit_init=rule.maxvisit_init, rescales=rule.rescales)
    if at != _ROOT:
        improve_policy(logits, values)
        for k in range(num):
            scores[k] = logits[k] - visits[k] / (1 + sum_visits)
        return
    noise, schedule = rule.noise[row], rule.schedules[rule.schedule_of[row], num - 1]
    # If there are more visits than entries of the schedule, the last entry counts for all of them.
    considered = schedule[min(sum_visits, len(schedule) - 1)]
    for k in range(num):
        scores[k] = halving_score(noise[k], logits[k], values[k], max_logit=max_logit, is_candidate=visits[k] == considered)
