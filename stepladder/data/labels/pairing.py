"""Common parts of the rules of preference pairs: candidates among siblings, margins, caps, and rows made from two nodes.

A rule (``pair_rules``) lists candidates, drops some by name of reason, and turns the others into rows with ``step_offer`` or
``solution_offer``. Values are in [0, 1]: a threshold that is published for values in [-1, 1] is halved.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from operator import attrgetter
from typing import Any, TypeVar

from stepladder.data.labels.candidates import DECIMALS, JudgedTree, Ranked, Solution, best_per_problem
from stepladder.data.labels.pair_weights import order_uncertainty
from stepladder.data.labels.selection import Selection
from stepladder.tree_paths import ids_along, join_prompt, path_to, text_along
from stepladder.types import PreferencePair, TreeRecord

Offers = list[Ranked[PreferencePair]]
"""Pairs that compete for the places of their problem."""
SideT = TypeVar("SideT", int, Solution)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSources:
    """Other inputs of a rule than the trees from which it makes pairs."""

    earlier_scores: Sequence[Sequence[float | None]] | None = None
    """For each tree, scores of its nodes by an earlier process reward model, for the pairs' ``agreement``. None without one."""
    first_trees: Sequence[TreeRecord] = ()
    """Trees with outcomes of the same problems by the first policy."""


NO_SOURCES = PairSources()
"""Nothing but the trees."""


def evidence_pairs(tree: JudgedTree, children: list[int], *, rejected_must_fail: bool) -> list[tuple[int, int]]:
    """Return all ordered pairs with a right leaf below the first and a wrong one below the second."""
    right, wrong = tree.evidence.right, tree.evidence.wrong
    chosen = [child for child in children if right[child]]
    rejected = [child for child in children if wrong[child] and not (rejected_must_fail and right[child])]
    return [(first, second) for first, second in product(chosen, rejected) if first != second]


def comparable_margins(tree: JudgedTree, pairs: Iterable[tuple[int, int]], dropped: Counter[str]) -> list[tuple[float, int, int]]:
    """Return (margin, first, second) of the comparable pairs; count the others."""
    record, values = tree.record, tree.values
    margins = []
    for first, second in pairs:
        high, low = values[first], values[second]
        if not record.token_ids[first] or not record.token_ids[second]:
            dropped["failed step"] += 1
        elif high is None or low is None:
            dropped["no value"] += 1
        elif record.token_ids[first] == record.token_ids[second]:
            dropped["same tokens"] += 1
        else:
            margins.append((round(high - low, DECIMALS), first, second))
    return margins


def wide_enough(margins: list[tuple[float, SideT, SideT]], min_margin: float, dropped: Counter[str]) -> list[tuple[float, SideT, SideT]]:
    """Return the pairs with a margin above zero that is wide enough; count the others."""
    wide = [pair for pair in margins if pair[0] > 0 and pair[0] >= min_margin]
    dropped["below margin"] += len(margins) - len(wide)
    return wide


def widest(wide: list[tuple[float, int, int]], cap: int, dropped: Counter[str]) -> list[tuple[float, int, int]]:
    """Return the pairs of a node with the largest margins; ties go to the earlier nodes. Count the others."""
    dropped["over node cap"] += max(0, len(wide) - cap)
    return sorted(wide, key=lambda pair: (-pair[0], pair[1], pair[2]))[:cap]


def extremes(tree: JudgedTree, better: Iterable[int], worse: Iterable[int], *, best: int, worst: int) -> tuple[list[int], list[int]]:
    """Return the ``best`` nodes of highest value among the first and the ``worst`` ones of lowest among the second, ties to the earlier."""
    high = sorted(comparable_nodes(tree, better), key=lambda node: (-tree.value(node), node))[:best]
    low = sorted(comparable_nodes(tree, worse), key=lambda node: (tree.value(node), node))[:worst]
    return high, low


def comparable_nodes(tree: JudgedTree, nodes: Iterable[int]) -> set[int]:
    """Return the nodes whose steps can be compared with others."""
    return {node for node in nodes if tree.comparable(node)}


def among_extremes(
    margins: list[tuple[float, int, int]], high: list[int], low: list[int], dropped: Counter[str]
) -> list[tuple[float, int, int]]:
    """Return the pairs of a high and a low node; count the others."""
    kept = [pair for pair in margins if pair[1] in high and pair[2] in low]
    dropped["not among best and worst"] += len(margins) - len(kept)
    return kept


def solution_margins(
    right: list[Solution], wrong: list[Solution], *, few: int, rank: Callable[[Solution], Any] = attrgetter("rank")
) -> list[tuple[float, Solution, Solution]]:
    """Return (margin, right, wrong) of the ``few`` best right solutions against the ``few`` worst wrong ones."""
    best, worst = sorted(right, key=rank, reverse=True)[:few], sorted(wrong, key=rank)[:few]
    return [(_solution_margin(*pair), *pair) for pair in product(best, worst)]


def unlike(pairs: list[tuple[float, Solution, Solution]], dropped: Counter[str]) -> list[tuple[float, Solution, Solution]]:
    """Return the pairs of solutions that differ in their tokens; count the others, which a limit or an inexact grade has set apart."""
    different = [pair for pair in pairs if pair[1].tokens.ids != pair[2].tokens.ids]
    dropped["same tokens"] += len(pairs) - len(different)
    return different


def _solution_margin(right: Solution, wrong: Solution) -> float:
    return round(right.mean - wrong.mean, DECIMALS)


def capped(offers: Offers, considered: int, dropped: Counter[str], cap: int) -> Selection[PreferencePair]:
    """Return the best offers of every problem, ``cap`` at most; count the others."""
    rows = best_per_problem(offers, cap)
    dropped["over problem cap"] += len(offers) - len(rows)
    return Selection(rows=rows, considered=considered, dropped_by_reason=dict(+dropped))


def step_offer(tree: JudgedTree, margin: float, chosen: int, rejected: int) -> Ranked[PreferencePair]:
    """Return a pair of siblings, ranked by its margin."""
    record = tree.record
    parent = record.parents[chosen]
    shared = path_to(record, parent)
    row = PreferencePair(
        problem_id=record.problem_id,
        prompt_ids=[*record.prompt_ids, *ids_along(record, shared)],
        chosen_ids=record.token_ids[chosen],
        rejected_ids=record.token_ids[rejected],
        prompt=join_prompt(record.question, [text_along(record, shared)]),
        chosen=record.texts[chosen],
        rejected=record.texts[rejected],
        chosen_value=tree.value(chosen),
        rejected_value=tree.value(rejected),
        depth=record.depths[chosen],
        provenance=record.provenance,
        chosen_visits=record.visits[chosen],
        rejected_visits=record.visits[rejected],
        chosen_logps=record.logps[chosen],
        rejected_logps=record.logps[rejected],
        agreement=tree.agreement(parent),
        uncertainty=order_uncertainty(_leaves(tree, chosen), _leaves(tree, rejected)),
    )
    return Ranked(rank=(margin,), row=row)


def solution_offer(right: Solution, wrong: Solution) -> Ranked[PreferencePair]:
    """Return a pair of whole solutions, ranked by its margin."""
    record, other = right.tree.record, wrong.tree.record
    chosen, rejected = right.tokens, wrong.tokens
    row = PreferencePair(
        problem_id=record.problem_id,
        prompt_ids=record.prompt_ids,
        chosen_ids=chosen.ids,
        rejected_ids=rejected.ids,
        prompt=join_prompt(record.question, []),
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_value=right.mean,
        rejected_value=wrong.mean,
        depth=1,
        provenance=record.provenance,
        chosen_visits=record.visits[right.path[-1]],
        rejected_visits=other.visits[wrong.path[-1]],
        chosen_logps=chosen.logps,
        rejected_logps=rejected.logps,
        uncertainty=0.0,
        chosen_given=chosen.given,
        rejected_given=rejected.given,
    )
    return Ranked(rank=(_solution_margin(right, wrong),), row=row)


def _leaves(tree: JudgedTree, node: int) -> tuple[int, int]:
    return tree.evidence.right[node], tree.evidence.wrong[node]
