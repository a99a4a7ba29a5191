"""Rules that choose preference pairs from searched trees.

Every rule is a function from trees to a ``Selection``, with the published settings as its defaults; to add one, write the function and a
row of ``PAIR_RULES``. Values are in [0, 1]: a threshold that is published for values in [-1, 1] is halved.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

from stepladder.data.labels.candidates import (
    DECIMALS,
    JudgedTree,
    Ranked,
    Solution,
    best_per_problem,
    edit_distance,
    find_solutions,
    judge_trees,
)
from stepladder.data.labels.pair_weights import order_uncertainty
from stepladder.data.labels.selection import Selection
from stepladder.data.labels.values import ValueTarget
from stepladder.errors import ConfigError
from stepladder.tree_paths import join_prompt, path_to
from stepladder.types import PreferencePair, StopReason, TreeRecord

_Offers = list[Ranked[PreferencePair]]
SideT = TypeVar("SideT", int, Solution)
_EarlierScores = Sequence[Sequence[float | None]] | None


def preference_pairs(
    records: Sequence[TreeRecord],
    *,
    min_margin: float = 0.2,
    pairs_per_node: int = 2,
    pairs_per_problem: int = 8,
    best_and_worst: int = 2,
    rejected_must_fail: bool = True,
    target: ValueTarget | str = ValueTarget.TREE_VALUE,
    earlier_scores: _EarlierScores = None,
) -> Selection[PreferencePair]:
    """Return pairs of sibling steps of which one is clearly better, with outcomes as evidence on both sides.

    Candidates are all ordered pairs of children of one node in which the first has a right leaf at or below it and the second a wrong one
    (and no right one, if ``rejected_must_fail``). The chosen ones come from the children with the highest values among the first, the
    rejected ones from those with the lowest among the second. Within a cap, larger margins go first.

    Args:
        records: Searched trees with outcomes.
        min_margin: Smallest value difference, in [0, 1]; it must also be above zero.
        pairs_per_node: Cap per node, >= 1.
        pairs_per_problem: Cap per problem, >= 1.
        best_and_worst: How many children of each side may take part, >= 1.
        rejected_must_fail: Accept a rejected step only if nothing below it is right.
        target: What the value of a step is.
        earlier_scores: For each tree, scores of its nodes by an earlier process reward model; they give the pairs' ``agreement``.

    Dropped by reason: ``no value``, ``failed step``, ``same tokens``, ``not among best and worst``, ``below margin``, ``over node cap``,
    ``over problem cap``.

    Source: Guan et al. 2025, "rStar-Math", section 3.3 and appendix: evidence on both sides, best 2 against worst 2 by value. We use the
    nodes' own values for the margin, keep several pairs per node under a cap, and by default ask that the rejected step fails;
    ``rstar_pairs`` does neither.
    """
    dropped: Counter[str] = Counter()
    offers: _Offers = []
    considered = 0
    for tree in judge_trees(records, target=target, earlier_scores=earlier_scores):
        for children in tree.children:
            pairs = _with_evidence(tree, children, rejected_must_fail=rejected_must_fail)
            considered += len(pairs)
            margins = _best_against_worst(tree, pairs, best=best_and_worst, worst=best_and_worst, dropped=dropped)
            offers += [_offer(tree, *pair) for pair in _widest(_wide(margins, min_margin, dropped), pairs_per_node, dropped)]
    return _capped(offers, considered, dropped, pairs_per_problem)


def rstar_pairs(
    records: Sequence[TreeRecord],
    *,
    min_margin: float = 0.25,
    min_edit_distance: int = 20,
    pairs_per_problem: int = 8,
    target: ValueTarget | str = ValueTarget.TREE_VALUE,
    earlier_scores: _EarlierScores = None,
) -> Selection[PreferencePair]:
    """Return the pairs that rStar-Math trains its process preference model on.

    Candidates are all ordered pairs of children of one node in which the first has a right leaf at or below it and the second a wrong one.
    The best two of the first are set against the worst two of the second, four where the other side has one child. A pair is kept if its
    margin is large enough and above zero, the best right solution through the chosen step has a higher mean value than the worst wrong one
    through the rejected step, and their texts differ enough. Steps that end a solution are not paired; instead the two right solutions of a
    tree with the highest mean values are set against the two wrong ones with the lowest, whole; solutions without a value are left out.

    Args:
        records: Searched trees with outcomes.
        min_margin: Smallest difference of values, for whole solutions of mean values, in [0, 1].
        min_edit_distance: Fewest characters in which the texts must differ.
        pairs_per_problem: Cap per problem, larger margins first, >= 1; the paper has none.
        target: What the value of a step is.
        earlier_scores: As for ``preference_pairs``.

    Dropped by reason: ``final step``, ``failed step``, ``no value``, ``same tokens``, ``not among best and worst``, ``below margin``,
    ``no better continuation``, ``too alike``, ``over problem cap``.

    Source: Guan et al. 2025, "rStar-Math", section 3.3, and its released code, whose margin of 0.5 is of values in [-1, 1].
    """
    dropped: Counter[str] = Counter()
    offers: _Offers = []
    considered = 0
    for tree in judge_trees(records, target=target, earlier_scores=earlier_scores):
        sides = tuple(find_solutions(tree, right=right, dropped=Counter()) for right in (True, False))
        best_mean, worst_mean = _continuations(tree, *sides)
        for children in tree.children:
            pairs = _with_evidence(tree, children, rejected_must_fail=False)
            considered += len(pairs)
            inner = [pair for pair in pairs if not any(_is_final(tree, node) for node in pair)]
            dropped["final step"] += len(pairs) - len(inner)
            counts = [len(_comparable(tree, [pair[side] for pair in inner])) for side in (0, 1)]
            best, worst = (4 if other == 1 else 2 for other in (counts[1], counts[0]))
            wide = _wide(_best_against_worst(tree, inner, best=best, worst=worst, dropped=dropped), min_margin, dropped)
            better = [pair for pair in wide if best_mean[pair[1]] > worst_mean[pair[2]]]
            dropped["no better continuation"] += len(wide) - len(better)
            texts = tree.record.texts
            apart = [pair for pair in better if _differ(texts[pair[1]], texts[pair[2]], min_edit_distance)]
            dropped["too alike"] += len(better) - len(apart)
            offers += [_offer(tree, *pair) for pair in apart]
        found, count = _solution_pairs(*sides, min_margin=min_margin, best_and_worst=2, dropped=dropped)
        apart = [(right, wrong) for right, wrong in found if _differ(right.text, wrong.text, min_edit_distance)]
        dropped["too alike"] += len(found) - len(apart)
        offers += [_solution_offer(right, wrong) for right, wrong in apart]
        considered += count
    return _capped(offers, considered, dropped, pairs_per_problem)


def committed_pairs(
    records: Sequence[TreeRecord],
    *,
    min_margin: float = 0.0,
    pairs_per_problem: int = 8,
    target: ValueTarget | str = ValueTarget.TREE_VALUE,
    earlier_scores: _EarlierScores = None,
) -> Selection[PreferencePair]:
    """Return the best against the worst child at every node of the path that the search visited most.

    Candidates are the nodes of that path with two or more children that have a value. Visits come with every pair: with
    ``label_smoothing = "visits"`` they say how far to trust it.

    Args:
        records: Searched trees.
        min_margin: Smallest value difference, in [0, 1]; it must also be above zero.
        pairs_per_problem: Cap per problem, larger margins first, >= 1.
        target: What the value of a step is.
        earlier_scores: As for ``preference_pairs``.

    Dropped by reason: ``same tokens``, ``below margin``, ``over problem cap``.

    Source: Xie et al. 2024, "Monte Carlo Tree Search Boosts Reasoning via Iterative Preference Learning", section 2.2. Their search
        commits one step at a time; the most visited child, ties to the first, stands for the committed one.
    """
    dropped: Counter[str] = Counter()
    offers: _Offers = []
    considered = 0
    for tree in judge_trees(records, target=target, earlier_scores=earlier_scores):
        node = 0
        while tree.children[node]:
            known = [child for child in tree.children[node] if tree.comparable(child)]
            known.sort(key=lambda child: -tree.value(child))
            if len(known) > 1:
                considered += 1
                offers += [_offer(tree, *pair) for pair in _wide(_margins(tree, [(known[0], known[-1])], dropped), min_margin, dropped)]
            node = max(tree.children[node], key=lambda child: tree.record.visits[child])
    return _capped(offers, considered, dropped, pairs_per_problem)


def value_margin_pairs(
    records: Sequence[TreeRecord],
    *,
    min_margin: float = 0.2,
    pairs_per_node: int = 2,
    pairs_per_problem: int = 8,
    critic_weight: float = 0.0,
    target: ValueTarget | str = ValueTarget.TREE_VALUE,
    earlier_scores: _EarlierScores = None,
) -> Selection[PreferencePair]:
    """Return pairs of siblings whose values are far apart, whatever the outcomes below them are.

        Q = (1 - w) value + w score

    Candidates are all pairs of children of one node.

    Args:
        records: Searched trees, graded or not.
        min_margin: Smallest difference of Q, in [0, 1]; it must also be above zero.
        pairs_per_node: Cap per node, larger margins first, >= 1.
        pairs_per_problem: Cap per problem, >= 1.
        critic_weight: w, in [0, 1]: share of the process reward model's score of the step.
        target: What the value of a step is.
        earlier_scores: As for ``preference_pairs``.

    Dropped by reason: ``no value``, ``failed step``, ``same tokens``, ``below margin``, ``over node cap``, ``over problem cap``.

    Source: Putta et al. 2024, "Agent Q: Advanced Reasoning and Learning for Autonomous AI Agents", the mixed Q and algorithm 1, with
        w = 0.5; their critic is the policy asked to rank the actions.
    """
    dropped: Counter[str] = Counter()
    offers: _Offers = []
    considered = 0
    for tree in judge_trees(records, target=target, critic_weight=critic_weight, earlier_scores=earlier_scores):
        for children in tree.children:
            pairs = [(first, second) for i, first in enumerate(children) for second in children[i + 1 :]]
            considered += len(pairs)
            margins = _margins(tree, pairs, dropped)
            ordered = [(margin, first, second) if margin > 0 else (-margin, second, first) for margin, first, second in margins]
            offers += [_offer(tree, *pair) for pair in _widest(_wide(ordered, min_margin, dropped), pairs_per_node, dropped)]
    return _capped(offers, considered, dropped, pairs_per_problem)


def agent_q_pairs(records: Sequence[TreeRecord], *, critic_weight: float = 0.5, **settings: Any) -> Selection[PreferencePair]:
    """Return ``value_margin_pairs`` with the critic's share that Agent Q has."""
    return value_margin_pairs(records, critic_weight=critic_weight, **settings)


def contrast_pairs(
    records: Sequence[TreeRecord],
    *,
    min_margin: float = 0.2,
    pairs_per_node: int = 2,
    pairs_per_problem: int = 8,
    rejected_must_fail: bool = True,
    target: ValueTarget | str = ValueTarget.TREE_VALUE,
    earlier_scores: _EarlierScores = None,
) -> Selection[PreferencePair]:
    """Return, for every step that fails, the sibling that succeeds and is most like it: pairs that differ in what matters.

    Candidates are those of ``preference_pairs``. Likeness is the edit distance of the tokens; within a cap, the most alike go first.

    Args:
        records: Searched trees with outcomes.
        min_margin: Smallest value difference, in [0, 1]; it must also be above zero.
        pairs_per_node: Cap per node, >= 1.
        pairs_per_problem: Cap per problem, >= 1.
        rejected_must_fail: Accept a rejected step only if nothing below it is right.
        target: What the value of a step is.
        earlier_scores: As for ``preference_pairs``.

    Dropped by reason: ``no value``, ``failed step``, ``same tokens``, ``below margin``, ``a sibling is more alike``, ``over node cap``,
    ``over problem cap``.

    Source: Cheng et al. 2024, "SPaR: Self-Play with Tree-Search Refinement to Improve Instruction-Following in Large Language Models",
        whose pairs are a response and its refinement, found by a search over refinements; ours are siblings.
    """
    dropped: Counter[str] = Counter()
    offers: _Offers = []
    considered = 0
    for tree in judge_trees(records, target=target, earlier_scores=earlier_scores):
        for children in tree.children:
            pairs = _with_evidence(tree, children, rejected_must_fail=rejected_must_fail)
            considered += len(pairs)
            ids = tree.record.token_ids
            nearest: dict[int, tuple[int, float, int, int]] = {}
            wide = _wide(_margins(tree, pairs, dropped), min_margin, dropped)
            for margin, first, second in wide:
                entry = (edit_distance(ids[first], ids[second]), -margin, first, second)
                nearest[second] = min(entry, nearest.get(second, entry))
            dropped["a sibling is more alike"] += len(wide) - len(nearest)
            dropped["over node cap"] += max(0, len(nearest) - pairs_per_node)
            for distance, negative, first, second in sorted(nearest.values())[:pairs_per_node]:
                offers.append(Ranked(rank=(-distance, -negative), row=_offer(tree, -negative, first, second).row))
    return _capped(offers, considered, dropped, pairs_per_problem)


def anchored_pairs(
    records: Sequence[TreeRecord],
    *,
    anchors: Sequence[TreeRecord] = (),
    min_margin: float = 0.0,
    pairs_per_problem: int = 8,
    best_and_worst: int = 2,
    target: ValueTarget | str = ValueTarget.TREE_VALUE,
) -> Selection[PreferencePair]:
    """Return whole solutions: the best right ones of the trees against the worst wrong ones of other trees, those of the first policy.

    What is rejected stays what the first policy did wrong, round after round. Candidates are the right solutions of a problem in
    ``records`` times its wrong ones in ``anchors``, as far as they have values.

    Args:
        records: Searched trees with outcomes.
        anchors: Trees with outcomes of the same problems by the first policy; ``records`` where there are none, as in the first round.
        min_margin: Smallest difference of mean values, in [0, 1]; it must also be above zero.
        pairs_per_problem: Cap per problem, larger margins first, >= 1.
        best_and_worst: How many solutions of each side may take part, >= 1.
        target: What the value of a step is.

    Dropped by reason: ``other prompt``, ``not among best and worst``, ``below margin``, ``over problem cap``.

    Source: Wang et al. 2025, "Temporal Self-Rewarding Language Models: Decoupling Chosen-Rejected via Past-Future", anchored rejection:
        rejected answers stay those of the initial model. We leave out their other half, answers of a model one step ahead.
    """
    dropped: Counter[str] = Counter()
    right = _solutions_by_problem(records, right=True, target=target)
    wrong = _solutions_by_problem(anchors or records, right=False, target=target)
    offers: _Offers = []
    considered = 0
    for problem, solutions in right.items():
        prompt = solutions[0].tree.record.prompt_ids
        others = [other for other in wrong.get(problem, []) if other.tree.record.prompt_ids == prompt]
        foreign = len(solutions) * (len(wrong.get(problem, [])) - len(others))
        dropped["other prompt"] += foreign
        found, count = _solution_pairs(solutions, others, min_margin=min_margin, best_and_worst=best_and_worst, dropped=dropped)
        considered += count + foreign
        offers += [_solution_offer(*pair) for pair in found]
    return _capped(offers, considered, dropped, pairs_per_problem)


def _solutions_by_problem(records: Sequence[TreeRecord], *, right: bool, target: ValueTarget | str) -> dict[str, list[Solution]]:
    found: dict[str, list[Solution]] = {}
    for tree in judge_trees(records, target=target):
        if solutions := find_solutions(tree, right=right, dropped=Counter()):
            found.setdefault(tree.record.problem_id, []).extend(solutions)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class PairRule:
    """A named way to choose pairs."""

    select: Callable[..., Selection[PreferencePair]]
    """The function."""
    settings: tuple[str, ...]
    """The settings that it takes."""
    about: str
    """What it does, in a line."""
    source: str
    """Paper or system; ``ours`` for what has none."""


_CAPS = ("pairs_per_node", "pairs_per_problem")
PAIR_RULES: dict[str, PairRule] = {
    "evidence": PairRule(
        select=preference_pairs,
        settings=("min_margin", *_CAPS, "rejected_must_fail", "earlier_scores"),
        about="siblings with a right leaf below one and only wrong ones below the other, best 2 against worst 2, widest margin first",
        source="ours, after rStar-Math",
    ),
    "rstar-math": PairRule(
        select=rstar_pairs,
        settings=("min_margin", "min_edit_distance", "pairs_per_problem", "earlier_scores"),
        about="best 2 against worst 2 with both outcomes, a margin, a better continuation, texts that differ; ends as whole solutions",
        source="Guan et al. 2025, rStar-Math, section 3.3",
    ),
    "mcts-dpo": PairRule(
        select=committed_pairs,
        settings=("min_margin", "pairs_per_problem", "earlier_scores"),
        about="best against worst child at each node of the most visited path, with their visits",
        source="Xie et al. 2024, MCTS-DPO, section 2.2",
    ),
    "agent-q": PairRule(
        select=agent_q_pairs,
        settings=("min_margin", *_CAPS, "critic_weight", "earlier_scores"),
        about="siblings whose mix of tree value and PRM score is a margin apart",
        source="Putta et al. 2024, Agent Q",
    ),
    "value-margin": PairRule(
        select=value_margin_pairs,
        settings=("min_margin", *_CAPS, "earlier_scores"),
        about="siblings whose tree values are a margin apart, whatever the outcomes",
        source="ours; Agent Q without its critic",
    ),
    "minimal-contrast": PairRule(
        select=contrast_pairs,
        settings=("min_margin", *_CAPS, "rejected_must_fail", "earlier_scores"),
        about="for every failing step the most alike sibling that succeeds",
        source="Cheng et al. 2024, SPaR",
    ),
    "anchored": PairRule(
        select=anchored_pairs,
        settings=("anchors", "min_margin", "pairs_per_problem"),
        about="whole solutions: right ones of the round against wrong ones of the first policy",
        source="Wang et al. 2025, Temporal Self-Rewarding",
    ),
}
"""The rules by name."""


def select_pairs(rule: str, records: Sequence[TreeRecord], **settings: Any) -> Selection[PreferencePair]:
    """Return the pairs of a named rule.

    Args:
        rule: A name in ``PAIR_RULES``.
        records: Searched trees.
        settings: Settings of any rule; those that this one does not take, and those that are None, are left out.

    Raises:
        ConfigError: If the rule is unknown.
    """
    if rule not in PAIR_RULES:
        raise ConfigError(f"pairs: must be one of {', '.join(PAIR_RULES)}: got {rule!r} -- choose one of these")
    chosen = PAIR_RULES[rule]
    return chosen.select(records, **{name: value for name, value in settings.items() if name in chosen.settings and value is not None})


def _with_evidence(tree: JudgedTree, children: list[int], *, rejected_must_fail: bool) -> list[tuple[int, int]]:
    """Return all ordered pairs with a right leaf below the first and a wrong one below the second."""
    right, wrong = tree.evidence.right, tree.evidence.wrong
    chosen = [child for child in children if right[child]]
    rejected = [child for child in children if wrong[child] and not (rejected_must_fail and right[child])]
    return [(first, second) for first, second in product(chosen, rejected) if first != second]


def _margins(tree: JudgedTree, pairs: Iterable[tuple[int, int]], dropped: Counter[str]) -> list[tuple[float, int, int]]:
    """Return (margin, first, second) of the pairs that can be compared; count the others."""
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


def _best_against_worst(
    tree: JudgedTree, pairs: list[tuple[int, int]], *, best: int, worst: int, dropped: Counter[str]
) -> list[tuple[float, int, int]]:
    """Return ``_margins`` of the pairs of the best of the first and the worst of the second; count the others."""
    high = sorted(_comparable(tree, [first for first, _ in pairs]), key=lambda node: (-tree.value(node), node))[:best]
    low = sorted(_comparable(tree, [second for _, second in pairs]), key=lambda node: (tree.value(node), node))[:worst]
    margins = _margins(tree, pairs, dropped)
    kept = [pair for pair in margins if pair[1] in high and pair[2] in low]
    dropped["not among best and worst"] += len(margins) - len(kept)
    return kept


def _comparable(tree: JudgedTree, nodes: list[int]) -> set[int]:
    return {node for node in nodes if tree.comparable(node)}


def _wide(margins: list[tuple[float, SideT, SideT]], min_margin: float, dropped: Counter[str]) -> list[tuple[float, SideT, SideT]]:
    """Return the pairs whose margin is above zero and wide enough; count the others."""
    wide = [pair for pair in margins if pair[0] > 0 and pair[0] >= min_margin]
    dropped["below margin"] += len(margins) - len(wide)
    return wide


def _widest(wide: list[tuple[float, int, int]], cap: int, dropped: Counter[str]) -> list[tuple[float, int, int]]:
    """Return the pairs of a node with the largest margins, ties to the earlier nodes; count the others."""
    dropped["over node cap"] += max(0, len(wide) - cap)
    return sorted(wide, key=lambda pair: (-pair[0], pair[1], pair[2]))[:cap]


def _is_final(tree: JudgedTree, node: int) -> bool:
    """Say whether a step ended its solution by itself or was cut; one that failed has no tokens and is counted as failed."""
    return tree.record.stop_reasons[node] != StopReason.STEP and bool(tree.record.token_ids[node])


def _continuations(tree: JudgedTree, right: list[Solution], wrong: list[Solution]) -> tuple[list[float], list[float]]:
    """Return, for every node, the highest mean value of a right solution through it and the lowest of a wrong one."""
    highest, lowest = ([default] * len(tree.children) for default in (float("-inf"), float("inf")))
    for solution in right:
        for node in solution.path:
            highest[node] = max(highest[node], solution.mean)
    for solution in wrong:
        for node in solution.path:
            lowest[node] = min(lowest[node], solution.mean)
    return highest, lowest


def _differ(first: str, second: str, distance: int) -> bool:
    return edit_distance(first, second, limit=distance) >= distance


def _solution_pairs(
    right: list[Solution], wrong: list[Solution], *, min_margin: float, best_and_worst: int, dropped: Counter[str]
) -> tuple[list[tuple[Solution, Solution]], int]:
    """Return the best right solutions against the worst wrong ones where the margin is wide, and how many pairs there were."""
    best = sorted(right, key=lambda solution: solution.rank, reverse=True)[:best_and_worst]
    worst = sorted(wrong, key=lambda solution: solution.rank)[:best_and_worst]
    count = len(right) * len(wrong)
    dropped["not among best and worst"] += count - len(best) * len(worst)
    margins = [(_margin(*pair), *pair) for pair in product(best, worst)]
    return [(chosen, rejected) for _, chosen, rejected in _wide(margins, min_margin, dropped)], count


def _margin(right: Solution, wrong: Solution) -> float:
    return round(right.mean - wrong.mean, DECIMALS)


def _capped(offers: _Offers, considered: int, dropped: Counter[str], cap: int) -> Selection[PreferencePair]:
    rows = best_per_problem(offers, cap)
    dropped["over problem cap"] += len(offers) - len(rows)
    return Selection(rows=rows, considered=considered, dropped_by_reason=dict(+dropped))


def _offer(tree: JudgedTree, margin: float, chosen: int, rejected: int) -> Ranked[PreferencePair]:
    """Return a pair of siblings, ranked by its margin."""
    record = tree.record
    parent = record.parents[chosen]
    shared = path_to(record, parent)
    row = PreferencePair(
        problem_id=record.problem_id,
        prompt_ids=[*record.prompt_ids, *(token for node in shared for token in record.token_ids[node])],
        chosen_ids=record.token_ids[chosen],
        rejected_ids=record.token_ids[rejected],
        prompt=join_prompt(record.question, [record.texts[node] for node in shared]),
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


def _solution_offer(right: Solution, wrong: Solution) -> Ranked[PreferencePair]:
    """Return a pair of whole solutions, ranked by its margin."""
    record, other = right.tree.record, wrong.tree.record
    row = PreferencePair(
        problem_id=record.problem_id,
        prompt_ids=record.prompt_ids,
        chosen_ids=right.token_ids,
        rejected_ids=wrong.token_ids,
        prompt=join_prompt(record.question, []),
        chosen=right.text,
        rejected=wrong.text,
        chosen_value=right.mean,
        rejected_value=wrong.mean,
        depth=1,
        provenance=record.provenance,
        chosen_visits=record.visits[right.path[-1]],
        rejected_visits=other.visits[wrong.path[-1]],
        chosen_logps=right.logps,
        rejected_logps=wrong.logps,
        uncertainty=0.0,
    )
    return Ranked(rank=(_margin(right, wrong),), row=row)


def _leaves(tree: JudgedTree, node: int) -> tuple[int, int]:
    return tree.evidence.right[node], tree.evidence.wrong[node]
