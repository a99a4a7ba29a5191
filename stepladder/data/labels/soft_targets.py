"""Rules that turn a tree's distribution over the steps after a prefix into a target of the policy.

A trace says what to write; a soft target says how often. The loss is the cross-entropy to the tree's distribution over sibling steps,

    L = -sum_k p_k log pi(step_k | prefix)

which imitates one step if all of the distribution lies on it. A rule is a frozen dataclass like those of ``pair_rules``; to add one, write
it here and add it to ``SoftTargetRule``.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from stepladder.data.labels.selection import Selection
from stepladder.data.labels.values import gather_evidence, node_values
from stepladder.settings import Count, NonNegative, Positive, check_bounds
from stepladder.tree_paths import children_of, ids_along, join_prompt, path_to, text_along
from stepladder.types import SoftTarget, TreeRecord

_WHERE = "labels.soft_targets"

Weights = Callable[[int, list[int]], list[float]]
"""Maps a node and some of its children to the weights of these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoSoftTargets:
    """The policy learns from traces and preferences alone."""

    type: Literal["none"] = "none"
    """Name of the rule."""

    def select(self, records: Sequence[TreeRecord]) -> Selection[SoftTarget]:
        """Return nothing."""
        return Selection(rows=[], considered=0, dropped_by_reason={})


@dataclass(frozen=True, kw_only=True, slots=True)
class VisitTargets:
    """The visits of sibling steps, as shares.

    Candidates are the steps after every node with children. Nodes from which no right end was found are left out: their visits only show
    what the search tried. Within the cap, nodes with more visits go first.

    Dropped by reason: ``no right end``, ``failed step``, ``one continuation``, ``few visits``, ``no weight``, ``over problem cap``.

    Source: Silver et al. 2017, "Mastering the game of Go without human knowledge": the policy learns the visit counts of the search. There
        of the root alone.
    """

    type: Literal["visits"] = "visits"
    """Name of the rule."""
    nodes_per_problem: Count = 16
    """Nodes of one problem whose steps become a target, >= 1."""
    least_visits: Count = 4
    """Visits of the steps of a node together, >= 1."""

    def __post_init__(self) -> None:
        check_bounds(self, where=_WHERE)

    def select(self, records: Sequence[TreeRecord]) -> Selection[SoftTarget]:
        """Return the weighted steps of some trees with outcomes."""
        return _select(records, self, lambda record: lambda node, steps: visit_shares([record.visits[child] for child in steps]))


@dataclass(frozen=True, kw_only=True, slots=True)
class ImprovedPolicyTargets:
    """Gumbel's improved policy over sibling steps: the priors, shifted towards the steps of higher value.

    p = softmax(log prior + (visit_offset + max visits) value_scale q), with values q rescaled to [0, 1] among the siblings, and the node's
    own value in place of an unknown one. Candidates and reasons are those of ``visits``.

    Dropped by reason: ``no right end``, ``failed step``, ``one continuation``, ``few visits``, ``no weight``, ``over problem cap``.

    Source: Danihelka et al. 2022, "Policy improvement by planning with Gumbel", equation 10, with the constants of their released code.
        Their mixed value also weighs the network's estimate; we take the value that the search backed up.
    """

    type: Literal["improved-policy"] = "improved-policy"
    """Name of the rule."""
    nodes_per_problem: Count = 16
    """Nodes of one problem whose steps become a target, >= 1."""
    least_visits: Count = 4
    """Visits of the steps of a node together, >= 1."""
    value_scale: Positive = 0.1
    """Factor of the values, > 0."""
    visit_offset: NonNegative = 50.0
    """Visits added to those of the most visited step, >= 0. Values weigh more with it."""

    def __post_init__(self) -> None:
        check_bounds(self, where=_WHERE)

    def select(self, records: Sequence[TreeRecord]) -> Selection[SoftTarget]:
        """Return the weighted steps of some trees with outcomes."""
        return _select(records, self, self._policy)

    def _policy(self, record: TreeRecord) -> Weights:
        values = node_values(record, "tree-value")

        def weights(node: int, children: list[int]) -> list[float]:
            known = [value for child in children if (value := values[child]) is not None]
            own = values[node]
            missing = own if own is not None else sum(known) / len(known) if known else 0.0
            return improved_policy(
                [record.priors[child] for child in children],
                [missing if (value := values[child]) is None else value for child in children],
                scale=(self.visit_offset + max(record.visits[child] for child in children)) * self.value_scale,
            )

        return weights


SoftTargetRule = NoSoftTargets | VisitTargets | ImprovedPolicyTargets
"""Any rule."""


def visit_shares(visits: Sequence[int]) -> list[float]:
    """Return visits as shares of their sum, which must be above 0."""
    total = sum(visits)
    return [count / total for count in visits]


def improved_policy(priors: Sequence[float], values: Sequence[float], *, scale: float) -> list[float]:
    """Return softmax(log prior + scale * value), with values rescaled to [0, 1]; equal values leave the priors.

    Args:
        priors: Probabilities of the steps, not all 0; they need not sum to 1.
        values: Their values.
        scale: Weight of the values, >= 0.
    """
    low, high = min(values), max(values)
    logits = [
        (math.log(prior) if prior > 0 else -math.inf) + (scale * (value - low) / (high - low) if high > low else 0.0)
        for prior, value in zip(priors, values, strict=True)
    ]
    highest = max(logits)
    weights = [math.exp(logit - highest) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def _select(
    records: Sequence[TreeRecord],
    rule: VisitTargets | ImprovedPolicyTargets,
    weights_of: Callable[[TreeRecord], Weights],
) -> Selection[SoftTarget]:
    dropped: Counter[str] = Counter()
    considered = 0
    found: dict[str, list[tuple[int, list[SoftTarget]]]] = {}
    for record in records:
        right, weights_after = gather_evidence(record).right, weights_of(record)
        for node, children in enumerate(children_of(record)):
            considered += len(children)
            usable = [child for child in children if record.token_ids[child]]
            dropped["failed step"] += len(children) - len(usable)
            visits = sum(record.visits[child] for child in usable)
            if reason := _unusable(right[node], usable, visits, rule.least_visits):
                dropped[reason] += len(usable)
                continue
            weights = zip(usable, weights_after(node, usable), strict=True)
            rows = [_row(record, node, child, weight) for child, weight in weights if weight > 0]
            dropped["no weight"] += len(usable) - len(rows)
            found.setdefault(record.problem_id, []).append((visits, rows))
    kept: list[SoftTarget] = []
    for nodes in found.values():
        # Sorting is stable, so ties go to the earlier node.
        ranked = sorted(nodes, key=lambda each: -each[0])
        kept += [row for _, rows in ranked[: rule.nodes_per_problem] for row in rows]
        dropped["over problem cap"] += sum(len(rows) for _, rows in ranked[rule.nodes_per_problem :])
    return Selection(rows=kept, considered=considered, dropped_by_reason=dict(+dropped))


def _unusable(num_right: int, usable: list[int], visits: int, least_visits: int) -> str | None:
    if not num_right:
        return "no right end"
    if len(usable) < 2:
        return "one continuation"
    return "few visits" if visits < least_visits else None


def _row(record: TreeRecord, node: int, child: int, weight: float) -> SoftTarget:
    shared = path_to(record, node)
    return SoftTarget(
        problem_id=record.problem_id,
        prompt_ids=[*record.prompt_ids, *ids_along(record, shared)],
        completion_ids=record.token_ids[child],
        weight=weight,
        prompt=join_prompt(record.question, [text_along(record, shared)]),
        completion=record.texts[child],
        provenance=record.provenance,
    )
