"""Advantages of the steps of a searched tree, for reinforcement learning elsewhere.

The reward of a solution is its outcome, 1 right or 0 wrong; a step itself earns nothing and nothing is discounted. The value of a node is
then the chance of a right solution from it, and the value of a step is that of the node it leads to. Only graded leaves count.
"""

import math
from collections.abc import Sequence
from enum import StrEnum

from stepladder.data.labels import ValueTarget, gather_evidence, node_values
from stepladder.types import TreeRecord

_EPSILON = 1e-6
"""Keeps a standard deviation of zero from dividing."""


class AdvantageForm(StrEnum):
    """What a step's advantage is compared with."""

    PARENT = "parent"
    """Its own value minus that of the node it starts from; see ``parent_advantages``."""
    TREEPO = "treepo"
    """Mean difference to all nodes above it, whitened over the tree; see ``treepo_advantages``."""
    GROUP = "group"
    """The outcome against those of all solutions of the tree, as GRPO does without a tree; see ``group_advantages``."""

    @property
    def definition(self) -> str:
        """One sentence for a data card."""
        return _DEFINITIONS[self]


_DEFINITIONS = {
    AdvantageForm.PARENT: "V(node) - V(parent): how much more often a right answer follows after the step than before it",
    AdvantageForm.TREEPO: (
        "mean over all ancestors a, the root included, of V(node) - V(a), V the share of right solutions below; "
        "then whitened over the steps of the tree (mean 0, standard deviation 1)"
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
        values: Value of every node; None where not known.
        parents: Parent of every node, -1 for the root.

    Returns:
        None for the root, which no step leads into, and where a value is missing. In [-1, 1] for values in [0, 1].

    Source: Kazemnejad et al. 2024, "VinePPO: unlocking RL potential for LLM reasoning through refined credit assignment", section 4, with
    reward 0 before the end and no discount. The values come from the searched tree instead of fresh rollouts.
    """
    advantages: list[float | None] = []
    for node, parent in enumerate(parents):
        own, above = values[node], values[parent] if parent >= 0 else None
        advantages.append(None if own is None or above is None else own - above)
    return advantages


def treepo_advantages(values: Sequence[float | None], parents: Sequence[int]) -> list[float | None]:
    """Return the advantage of every step over all nodes above it, whitened over the tree.

        A'(node) = mean over ancestors a of (V(node) - V(a)),   A = (A' - mean A') / (std A' + 1e-6)

    Args:
        values: Mean reward of the solutions at and below every node; None where there are none.
        parents: Parent of every node, -1 for the root.

    Returns:
        None for the root and where a value is missing; all 0 where every A' is the same.

    Source: Li et al. 2025, "TreePO: bridging the gap of policy optimization and efficacy and inference efficiency with heuristic tree-based
    modeling", section 3.3. At a leaf, V is its reward, and A' is the paper's mean over subgroups. Inner steps, which the paper reads off
    trajectories, get the same formula with V the mean reward below them. Whitening counts every step once.
    """
    raw: list[float | None] = [None] * len(parents)
    for node in range(1, len(parents)):
        own, above = values[node], parents[node]
        gaps: list[float] = []
        while own is not None and above >= 0:
            value = values[above]
            # Whoever has a graded leaf below has ancestors that have one.
            assert value is not None
            gaps.append(own - value)
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
        form: What it is compared with.
        target: With ``parent``, what the value of a node is; the other forms are defined on the share of right solutions.
    """
    chosen = AdvantageForm(form)
    if chosen is AdvantageForm.PARENT:
        return parent_advantages(node_values(record, target), record.parents)
    shares = node_values(record, ValueTarget.MONTE_CARLO)
    if chosen is AdvantageForm.TREEPO:
        return treepo_advantages(shares, record.parents)
    evidence = gather_evidence(record)
    mean, spread = _mean_and_spread([1.0] * evidence.right[0] + [0.0] * evidence.wrong[0])
    # The mean of an affine function over the solutions below is the function of their mean.
    advantages = [None if share is None else (share - mean) / (spread + _EPSILON) for share in shares]
    return [None, *advantages[1:]]


def path_advantages(advantages: Sequence[float | None], path: Sequence[int], form: AdvantageForm | str) -> list[float | None]:
    """Return the advantages of the steps of one solution, given those of the tree's nodes.

    Args:
        advantages: What ``node_advantages`` returns.
        path: Nodes of the solution, from the root's child to its leaf.
        form: The same form; with ``group``, all steps have the advantage of the solution.
    """
    if AdvantageForm(form) is AdvantageForm.GROUP:
        return [advantages[path[-1]]] * len(path)
    return [advantages[node] for node in path]


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation; without a second value there is no spread."""
    mean = math.fsum(values) / len(values) if values else 0.0
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)) if len(values) > 1 else 0.0
    return mean, spread
