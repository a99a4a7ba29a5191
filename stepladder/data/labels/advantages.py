"""Advantages of the steps of searched trees: pure functions of outcomes, scores and the shape of a tree.

The reward of a solution is its outcome, 1 right or 0 wrong; a step itself earns nothing and nothing is discounted. The value of a node is
then the chance of a right solution from it, and the value of a step is that of the node it leads to. Only graded leaves count. Rewards of
single steps come from their scores by a process reward model.

``advantage_rules.py`` makes training rows of them, and ``AdvantageForm`` names those that an export can give per node.
"""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

from stepladder.data.labels.values import ValueTarget, best_of_values, node_values
from stepladder.tree_paths import path_below_root
from stepladder.types import TreeRecord

_EPSILON = 1e-6
"""Keeps a standard deviation of zero from dividing."""


class AdvantageForm(StrEnum):
    """Baseline of a step's advantage."""

    PARENT = "parent"
    """Its own value minus that of the node it starts from; see ``parent_advantages``."""
    TREEPO = "treepo"
    """The outcome against those of all groups that share a beginning, whitened over the tree; see ``treepo_advantages``."""
    GROUP = "group"
    """The outcome against those of all solutions of the tree, as GRPO does without a tree; see ``group_advantages``."""

    @property
    def definition(self) -> str:
        """One sentence for a data card."""
        return _DEFINITIONS[self]


_DEFINITIONS = {
    AdvantageForm.PARENT: "V(node) - V(parent): how much more often a right answer follows after the step than before it",
    AdvantageForm.TREEPO: (
        "mean over the nodes a above a solution's end (the root, and those with at least two solutions below) of R - mean R below a, "
        "then whitened over the solutions of the tree; the same for all tokens of a solution; a step that several solutions share has "
        "their mean"
    ),
    AdvantageForm.GROUP: (
        "(R - mean R) / (standard deviation of R + 1e-6) over the graded solutions of the tree, the same for all tokens of a solution; "
        "a step that several solutions share has their mean"
    ),
}


def parent_advantages(values: Sequence[float | None], parents: Sequence[int]) -> list[float | None]:
    """Return the advantage of every step over the node it starts from.

        A(node) = V(node) - V(parent)

    Args:
        values: Value of every node; None if unknown.
        parents: Parent of every node, -1 for the root.

    Returns:
        None for the root, which no step leads into, and where a value is missing. In [-1, 1] for values in [0, 1].

    Source: Kazemnejad et al. 2024, "VinePPO: unlocking RL potential for LLM reasoning through refined credit assignment", with
    reward 0 before the end and no discount. The values come from the searched tree instead of fresh rollouts.
    """
    advantages: list[float | None] = []
    for node, parent in enumerate(parents):
        own, above = values[node], values[parent] if parent >= 0 else None
        advantages.append(None if own is None or above is None else own - above)
    return advantages


def treepo_advantages(rewards: Sequence[float | None], parents: Sequence[int], *, by_size: bool = False) -> list[float | None]:
    """Return the advantage of every solution over the groups of solutions that share a beginning with it, whitened over the tree.

        A'_i = mean over ancestors a of (R_i - mean R below a),   A = (A' - mean A') / (std A' + 1e-6)

    The root is always an ancestor; others count where at least two solutions lie below them, since one alone compares with nothing.

    Args:
        rewards: Outcome of every node at which a solution ends; None elsewhere.
        parents: Parent of every node, -1 for the root.
        by_size: Weigh a group by its solutions; otherwise all groups count the same.

    Returns:
        One number for each reward, None elsewhere; all 0 if every A' is the same.

    Source: Li et al. 2025, "TreePO: bridging the gap of policy optimization and efficacy and inference efficiency with heuristic tree-based
    modeling", and its released code (``verl/trainer/ppo/core_algos.py``), which weighs groups equally in its script, and by size otherwise.
    It whitens over the tokens of a batch of problems, which an export does not have; here it is over the solutions of the tree.
    """
    sums, counts = sums_below(rewards, parents)
    raw: list[float | None] = [None] * len(parents)
    for node, reward in enumerate(rewards):
        gaps, weights, above = [], [], parents[node]
        while reward is not None and above >= 0:
            if above == 0 or counts[above] > 1:
                weights.append(counts[above] if by_size else 1)
                gaps.append(weights[-1] * (reward - sums[above] / counts[above]))
            above = parents[above]
        raw[node] = sum(gaps) / sum(weights) if gaps else None
    mean, spread = _mean_and_spread([value for value in raw if value is not None])
    return [None if value is None else (value - mean) / (spread + _EPSILON) for value in raw]


def group_advantages(rewards: Sequence[float], *, scale: bool = True, leave_one_out: bool = False) -> list[float]:
    """Return the advantage of every solution over the others of its problem.

        A_i = (R_i - mean R) / (std R + 1e-6)

    Args:
        rewards: One per solution.
        scale: Divide by the standard deviation, as GRPO does and Dr. GRPO does not.
        leave_one_out: Compare with the mean of the others alone (RLOO).

    Returns:
        One per solution; 0 for a solution without others, which compares with nothing.

    Source: Shao et al. 2024, "DeepSeekMath: pushing the limits of mathematical reasoning in open language models", section 4.1.2, with the
    sample standard deviation (n - 1) of the public trainers. A lone solution has advantage 0 here; some trainers give it its reward.
    Without scale: Liu et al. 2025, "Understanding R1-Zero-like training"; the mean of the others: Ahmadian et al. 2024, "Back to basics".
    """
    mean, spread = _mean_and_spread(rewards)
    # R - mean of the others = (R - mean) n / (n - 1).
    factor = len(rewards) / max(len(rewards) - 1, 1) if leave_one_out else 1.0
    return [(reward - mean) * factor / (spread + _EPSILON if scale else 1.0) for reward in rewards]


def treerl_advantages(rewards: Sequence[float | None], parents: Sequence[int], *, released: bool = False) -> list[float | None]:
    """Return the advantage of every step: how much better than all solutions those below it are, and than those below its parent.

        V(node) = mean over the leaves below of (R - mean R of the other leaves)
        A(node) = (V(node) + (V(node) - V(parent))) / sqrt(leaves below)

    A shared step is learned once with every leaf below it, so the root of their number keeps it from weighing too much.

    Args:
        rewards: Outcome of every node at which a solution ends; None elsewhere.
        parents: Parent of every node, -1 for the root.
        released: Divide V by the root before the difference, and repeat the parent's difference where it is 0, as the released code does.

    Returns:
        None for the root and where no leaf is below.

    Source: Hou et al. 2025, "TreeRL: LLM reinforcement learning with on-policy tree search", the global and the local advantage;
        THUDM/TreeRL. Their paper's formula is known to us through others. All leaves count here, there those selected for training.
    """
    of_leaves = iter(group_advantages([reward for reward in rewards if reward is not None], scale=False, leave_one_out=True))
    centred = [None if reward is None else next(of_leaves) for reward in rewards]
    sums, counts = sums_below(centred, parents)
    roots = [math.sqrt(count) if released else 1.0 for count in counts]
    values = [total / count / root if count else 0.0 for total, count, root in zip(sums, counts, roots, strict=True)]
    local, found = [0.0] * len(parents), list[float | None]()
    for node, parent in enumerate(parents):
        if parent < 0 or not counts[node]:
            found.append(None)
            continue
        local[node] = values[node] - values[parent]
        if released and local[node] == 0.0:
            local[node] = local[parent]
        found.append((values[node] + local[node]) / (1.0 if released else math.sqrt(counts[node])))
    return found


def tree_group_advantages(rewards: Sequence[float], trees: Sequence[int]) -> list[float]:
    """Return the advantage of every solution over those of its tree, plus that over those of all trees of its problem.

        A_i = (R_i - mean R of its tree) / (std + 1e-6) + (R_i - mean R of all) / (std + 1e-6)

    Args:
        rewards: One per solution.
        trees: Number of the tree of each.

    Returns:
        One per solution. A tree with one solution adds nothing.

    Source: Ji et al. 2025, "Tree search for LLM agent reinforcement learning" (Tree-GRPO), equations 6 and 7.
    """
    found = group_advantages(rewards)
    for tree in set(trees):
        own = [index for index, each in enumerate(trees) if each == tree]
        for index, value in zip(own, group_advantages([rewards[index] for index in own]), strict=True):
            found[index] += value
    return found


def segment_advantages(rewards: Sequence[float | None], parents: Sequence[int], *, scale: bool = False) -> list[float | None]:
    """Return the advantage of every step over its siblings, with values that average over children, level by level.

        V(leaf) = R,   V(node) = mean V(children),   A(node) = V(node) - V(parent)

    Args:
        rewards: Outcome of every node at which a solution ends; None elsewhere.
        parents: Parent of every node, -1 for the root.
        scale: Divide by the standard deviation of V among the siblings.

    Returns:
        None for the root and where no leaf is below. A leaf above others counts as one more child of itself.

    Source: Guo et al. 2025, "Segment policy optimization: effective segment-level credit assignment in RL for large language models", the
        tree variant; AIFrameResearch/SPO.
    """
    below: list[list[float]] = [[] if reward is None else [reward] for reward in rewards]
    values: list[float | None] = [None] * len(parents)
    siblings: list[list[float]] = [[] for _ in parents]
    for node in range(len(parents) - 1, -1, -1):
        values[node] = math.fsum(below[node]) / len(below[node]) if below[node] else None
        if node and (value := values[node]) is not None:
            below[parents[node]].append(value)
            siblings[parents[node]].append(value)
    found = parent_advantages(values, parents)
    if not scale:
        return found
    spreads = [_mean_and_spread(each)[1] + _EPSILON for each in siblings]
    return [None if value is None else value / spreads[parent] for value, parent in zip(found, parents, strict=True)]


def deepsearch_advantages(
    rewards: Sequence[float | None], parents: Sequence[int], surprisals: Mapping[int, float]
) -> dict[int, list[float]]:
    """Return the advantages of the steps on the way to every end that counts: one of those that continue the same beginning.

    Of right ends the least surprising one counts, else that of the wrong ones. Ends count in the order of their nodes. With e = 1 for a
    right end and -1 for another, the node at depth i on the way to an end at depth l changes by g = max(i / l, 0.1):

        q += g e if q e >= 0,   else q = g e if e = 1,   else q stays
        A = tanh(q) on inner steps and e on the last one, less the mean e of all ends that count

    Args:
        rewards: Outcome of every node at which a solution ends; None elsewhere.
        parents: Parent of every node, -1 for the root.
        surprisals: Mean -log p of the tokens on the way to each end that may count.

    Source: Wu et al. 2025, "DeepSearch: overcome the bottleneck of reinforcement learning with verifiable rewards via Monte Carlo tree
        search", equation 15, and its released code. Here an end that a limit cut counts like other wrong ones.
    """
    siblings: dict[int, list[int]] = {}
    for end in surprisals:
        siblings.setdefault(parents[end], []).append(end)
    counting = sorted(min(ends, key=lambda end: (rewards[end] != 1.0, surprisals[end])) for ends in siblings.values())
    signs = {end: 1.0 if rewards[end] == 1.0 else -1.0 for end in counting}
    ways = {end: path_below_root(parents, end) for end in counting}
    values = [0.0] * len(parents)
    for end, sign in signs.items():
        for depth, node in enumerate(ways[end], 1):
            gain = max(depth / len(ways[end]), 0.1) * sign
            if values[node] * sign >= 0:
                values[node] += gain
            elif sign > 0:
                values[node] = gain
    mean = math.fsum(signs.values()) / max(len(signs), 1)
    return {end: [*(math.tanh(values[node]) - mean for node in ways[end][:-1]), signs[end] - mean] for end in counting}


def min_form_rewards(scores: Sequence[float], *, temperature: float = 0.1) -> list[float]:
    """Return the reward of every step so that their sum is about the worst of them.

        r_k = 2 s_k - 1,   r*_k = r_k softmax(-r / temperature)_k

    Args:
        scores: Scores of the steps of a solution, in [0, 1].
        temperature: > 0; the sum goes to the least r as it goes to 0.

    Returns:
        One reward per step, in [-1, 1].

    Source: Cheng et al. 2025, "Stop summation: min-form credit assignment is all process reward model needs for reasoning" (PURE),
        equation 6; their PRM scores in [-1, 1], to which ours are mapped.
    """
    rewards = [2 * score - 1 for score in scores]
    weights = [math.exp((min(rewards) - reward) / temperature) for reward in rewards]
    return [reward * weight / math.fsum(weights) for reward, weight in zip(rewards, weights, strict=True)]


def min_form_advantages(
    rewards: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]], outcomes: Sequence[float], *, outcome_weight: float = 1.0
) -> list[list[float]]:
    """Return the advantage of every step of every solution of a problem over what the others earn per token.

        A_ik = sum_{j >= k} (r_ij - b_i n_ij) + w (R_i - mean R of the others),   b_i = rewards of the others / tokens of the others

    Args:
        rewards: r: reward of every step of every solution.
        lengths: n: tokens of every step.
        outcomes: R, one per solution.
        outcome_weight: w, >= 0.

    Returns:
        One advantage per step; a lone solution has b = 0 and no share of its outcome.

    Source: Cheng et al. 2025, "Stop summation" (PURE), section 4, and its released code (``reward_baseline = "token"``).
    """
    earned, tokens = [math.fsum(each) for each in rewards], [sum(each) for each in lengths]
    verified = group_advantages(outcomes, scale=False, leave_one_out=True)
    found = []
    for own, sizes, total, size, gain in zip(rewards, lengths, earned, tokens, verified, strict=True):
        others = sum(tokens) - size
        baseline = (math.fsum(earned) - total) / others if others else 0.0
        found.append([togo + outcome_weight * gain for togo in returns([r - baseline * n for r, n in zip(own, sizes, strict=True)])])
    return found


def clipped_rewards(scores: Sequence[float], *, at: float = 0.5) -> list[float]:
    """Return rewards of steps that can only lower a return, so that more steps earn nothing.

        r_k = min(s_k - at, 0)

    Args:
        scores: Scores of the steps of a solution, in [0, 1].
        at: Score from which a step is not punished.

    Source: Gao et al. 2024, "On designing effective RL reward at training time for LLM reasoning", section 4 (clip). Its threshold is not
        known to us.
    """
    return [min(score - at, 0.0) for score in scores]


def delta_rewards(scores: Sequence[float]) -> list[float]:
    """Return rewards of steps whose sums from any step on are the score of this step, so that repeating steps earns nothing.

        r_k = s_k - s_{k+1},   the last step keeps s_K

    Args:
        scores: Scores of the steps of a solution, in [0, 1].

    Source: Gao et al. 2024, "On designing effective RL reward at training time for LLM reasoning", section 4 (delta).
    """
    return [score - after for score, after in zip(scores, [*scores[1:], 0.0], strict=True)]


def preference_rewards(scores: Sequence[float]) -> list[float]:
    """Return the reward of every solution: the chance, by the scores, that it is preferred to another one of its problem.

        r_i = mean over the others j of sigmoid(s_i - s_j)

    Args:
        scores: Scores of the solutions, unbounded.

    Returns:
        Values in (0, 1); 1/2 for a lone solution.

    Source: Fu et al. 2025, "Reward shaping to mitigate reward hacking in RLHF" (PAR). Their references are answers of the model before the
        training; here they are the other solutions.
    """
    found = []
    for index, score in enumerate(scores):
        chances = [1 / (1 + math.exp(other - score)) for place, other in enumerate(scores) if place != index]
        found.append(math.fsum(chances) / len(chances) if chances else 0.5)
    return found


def log_odds(score: float) -> float:
    """Return log(p / (1 - p)) of a score in [0, 1], which is bounded away from 0 and 1 by 1e-6."""
    bounded = min(max(score, _EPSILON), 1 - _EPSILON)
    return math.log(bounded / (1 - bounded))


def prover_gains(values: Sequence[float | None], parents: Sequence[int], *, attempts: int = 4) -> list[float | None]:
    """Return the gain of every step for a prover that keeps the best of several attempts.

        A_mu(node) = (1 - (1 - V(node))^K) - (1 - (1 - V(parent))^K)

    Args:
        values: Values of the nodes under the policy, in [0, 1]; None if unknown.
        parents: Parent of every node, -1 for the root.
        attempts: K, >= 1.

    Source: Setlur et al. 2024, "Rewarding progress: scaling automated process verifiers for LLM reasoning", equations 4 and 5, K = 4. Their
        prover is sampled; here its values follow from the policy's.
    """
    return parent_advantages(best_of_values(values, attempts=attempts), parents)


def returns(rewards: Sequence[float]) -> list[float]:
    """Return the sum of the rewards from every step on, undiscounted: one per reward."""
    found, total = [], 0.0
    for reward in reversed(rewards):
        total += reward
        found.append(total)
    return found[::-1]


def over_others(returns_of_steps: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the returns of the steps of every solution less the mean return of a step of the other solutions.

        A_ik = G_ik - mean over the others j of mean_l G_jl

    Args:
        returns_of_steps: G: for every solution of a problem, one return per step, of which it has at least one.

    Returns:
        One advantage per step; a lone solution compares with itself.
    """
    means = [math.fsum(each) / len(each) for each in returns_of_steps]
    found = []
    for index, own in enumerate(returns_of_steps):
        others = [mean for place, mean in enumerate(means) if place != index] or [means[index]]
        found.append([value - math.fsum(others) / len(others) for value in own])
    return found


def node_advantages(
    record: TreeRecord, form: AdvantageForm | str, *, target: ValueTarget | str = ValueTarget.MONTE_CARLO
) -> list[float | None]:
    """Return the advantage of the step into every node; None for the root and where nothing is known.

    Args:
        record: Searched tree with outcomes.
        form: Baseline of the advantages.
        target: With ``parent``, what the value of a node is; the other forms compare outcomes. A step that several solutions share has
            the mean of their advantages: the same gradient as each of them with its own.
    """
    chosen = AdvantageForm(form)
    if chosen is AdvantageForm.PARENT:
        return parent_advantages(node_values(record, target), record.parents)
    if chosen is AdvantageForm.TREEPO:
        of_solutions = treepo_advantages(record.outcomes, record.parents)
    else:
        found = iter(group_advantages([outcome for outcome in record.outcomes if outcome is not None]))
        of_solutions = [None if outcome is None else next(found) for outcome in record.outcomes]
    sums, counts = sums_below(of_solutions, record.parents)
    means = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
    return [None, *means[1:]]


def path_advantages(advantages: Sequence[float | None], path: Sequence[int], form: AdvantageForm | str) -> list[float | None]:
    """Return the advantages of the steps of one solution, given those of the tree's nodes.

    Args:
        advantages: The result of ``node_advantages``.
        path: Nodes of the solution, from the root's child to its leaf.
        form: The same form. Except with ``parent``, all steps have the advantage of the solution.
    """
    if AdvantageForm(form) is AdvantageForm.PARENT:
        return [advantages[node] for node in path]
    return [advantages[path[-1]]] * len(path)


def sums_below(values: Sequence[float | None], parents: Sequence[int]) -> tuple[list[float], list[int]]:
    """Return, for every node, sum and number of the values at and below it."""
    sums, counts = [value or 0.0 for value in values], [int(value is not None) for value in values]
    for node in range(len(parents) - 1, 0, -1):
        sums[parents[node]] += sums[node]
        counts[parents[node]] += counts[node]
    return sums, counts


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation; with fewer than two values the deviation is 0."""
    mean = math.fsum(values) / len(values) if values else 0.0
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)) if len(values) > 1 else 0.0
    return mean, spread
