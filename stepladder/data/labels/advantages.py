"""Advantages of the steps of a searched tree, for reinforcement learning elsewhere.

The reward of a solution is its outcome, 1 right or 0 wrong; a step itself earns nothing and nothing is discounted. The value of a node is
then the chance of a right solution from it, and the value of a step is that of the node it leads to. Only graded leaves count.
"""

import math
from collections.abc import Sequence
from enum import StrEnum

from stepladder.data.labels.values import ValueTarget, node_values
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


def treepo_advantages(rewards: Sequence[float | None], parents: Sequence[int]) -> list[float | None]:
    """Return the advantage of every solution over the groups of solutions that share a beginning with it, whitened over the tree.

        A'_i = mean over ancestors a of (R_i - mean R below a),   A = (A' - mean A') / (std A' + 1e-6)

    The root is always an ancestor; others count where at least two solutions lie below them, since one alone compares with nothing.

    Args:
        rewards: Outcome of every node at which a solution ends; None elsewhere.
        parents: Parent of every node, -1 for the root.

    Returns:
        One number for each reward, None elsewhere; all 0 if every A' is the same.

    Source: Li et al. 2025, "TreePO: bridging the gap of policy optimization and efficacy and inference efficiency with heuristic tree-based
    modeling", and its released code (``verl/trainer/ppo/core_algos.py``), which weighs groups equally or by size, as one chooses; equally
    here. It whitens over the tokens of a batch of problems, which an export does not have; here it is over the solutions of the tree.
    """
    sums, counts = _sums_below(rewards, parents)
    raw: list[float | None] = [None] * len(parents)
    for node, reward in enumerate(rewards):
        gaps, above = [], parents[node]
        while reward is not None and above >= 0:
            if above == 0 or counts[above] > 1:
                gaps.append(reward - sums[above] / counts[above])
            above = parents[above]
        raw[node] = sum(gaps) / len(gaps) if gaps else None
    mean, spread = _mean_and_spread([value for value in raw if value is not None])
    return [None if value is None else (value - mean) / (spread + _EPSILON) for value in raw]


def group_advantages(rewards: Sequence[float]) -> list[float]:
    """Return the advantage of every solution over the others of its problem.

        A_i = (R_i - mean R) / (std R + 1e-6)

    Args:
        rewards: One per solution.

    Returns:
        One per solution; 0 for a solution without others, which compares with nothing.

    Source: Shao et al. 2024, "DeepSeekMath: pushing the limits of mathematical reasoning in open language models", section 4.1.2, with the
    sample standard deviation (n - 1) of the public trainers. A lone solution has advantage 0 here; some trainers give it its reward.
    """
    mean, spread = _mean_and_spread(rewards)
    return [(reward - mean) / (spread + _EPSILON) for reward in rewards]


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
    sums, counts = _sums_below(of_solutions, record.parents)
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


def _sums_below(values: Sequence[float | None], parents: Sequence[int]) -> tuple[list[float], list[int]]:
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
