"""Pairs that a process preference model learns from: steps after the same beginning, and whole solutions (rStar-Math)."""

from collections import Counter
from collections.abc import Sequence
from itertools import product

from stepladder.data.labels.candidates import DECIMALS, JudgedTree, judge_trees
from stepladder.data.labels.selection import Selection
from stepladder.data.labels.values import ValueTarget
from stepladder.tree_paths import join_prompt, path_to
from stepladder.types import PreferencePair, TreeRecord

_FEW, _MANY = 2, 4
"""Members of a side; the larger number where the other side has one only."""


def step_pairs(
    records: Sequence[TreeRecord], *, min_margin: float = 0.25, target: ValueTarget | str = ValueTarget.TREE_VALUE
) -> Selection[PreferencePair]:
    """Return the pairs of rStar-Math's process preference model.

    At every node, the steps below which something is right (the two of highest value) against those below which something is wrong (the
    two of lowest value; four where the other side has one only). A pair counts if its margin is wide enough and the best right solution
    through the one has a higher mean value, from the step on, than the worst wrong one through the other. Children with right and wrong
    leaves are gone into. Steps that end a solution are not compared with their siblings: whole solutions are, the two right ones of highest
    mean value against the two wrong ones of lowest.

    Args:
        records: Searched trees with outcomes.
        min_margin: Smallest difference of values, in [0, 1]; it must also be above zero.
        target: What the value of a step is.

    Dropped by reason: ``below margin``, ``weaker continuation``, ``same tokens``.

    Source: Guan et al. 2025, "rStar-Math", section 3.3 and appendix A. Their values lie in [-1, 1] and the margin is 0.5. We leave out the
    filter by edit distance: equal samples are one node already. ``pairs.rstar_pairs``, for the policy, has that filter and compares
    continuations by the means of whole solutions.
    """
    rows: list[PreferencePair] = []
    dropped: Counter[str] = Counter()
    for tree in judge_trees(records, target=target):
        rows += _Pairing(tree, min_margin, dropped).pairs()
    return Selection(rows=rows, considered=len(rows) + sum(dropped.values()), dropped_by_reason=dict(+dropped))


class _Pairing:
    """One tree."""

    def __init__(self, tree: JudgedTree, min_margin: float, dropped: Counter[str]) -> None:
        self._tree, self._record, self._min_margin, self._dropped = tree, tree.record, min_margin, dropped

    def pairs(self) -> list[PreferencePair]:
        found = []
        # Parents come before their children, so this is the order in which a descent would meet the nodes.
        for node, children in enumerate(self._tree.children):
            found += self._at(node, [child for child in children if self._tree.children[child]])
        return found + self._whole()

    def _at(self, node: int, children: list[int]) -> list[PreferencePair]:
        tree, evidence = self._tree, self._tree.evidence
        usable = [child for child in children if tree.comparable(child)]
        better, worse = ([child for child in usable if leaves[child]] for leaves in (evidence.right, evidence.wrong))
        num_better, num_worse = (_MANY if len(other) == 1 else _FEW for other in (worse, better))
        best = sorted(better, key=lambda child: (-tree.value(child), child))[:num_better]
        worst = sorted(worse, key=lambda child: (tree.value(child), child))[:num_worse]
        kept = []
        for chosen, rejected in product(best, worst):
            if chosen == rejected or not self._holds(tree.value(chosen), tree.value(rejected)):
                continue
            if self._mean_below(chosen, right=True) > self._mean_below(rejected, right=False):
                kept.append(self._pair(node, [chosen], [rejected], tree.value(chosen), tree.value(rejected)))
            else:
                self._dropped["weaker continuation"] += 1
        return kept

    def _whole(self) -> list[PreferencePair]:
        record = self._record
        ended = [leaf for leaf, outcome in enumerate(record.outcomes) if outcome is not None and record.token_ids[leaf]]
        means = {leaf: mean for leaf in ended if (mean := self._mean(path_to(record, leaf))) is not None}
        right, wrong = ([leaf for leaf in means if record.outcomes[leaf] == side] for side in (1.0, 0.0))
        best = sorted(right, key=lambda leaf: (-means[leaf], leaf))[:_FEW]
        worst = sorted(wrong, key=lambda leaf: (means[leaf], leaf))[:_FEW]
        kept = [
            self._pair(0, path_to(record, chosen), path_to(record, rejected), means[chosen], means[rejected])
            for chosen, rejected in product(best, worst)
            if self._holds(means[chosen], means[rejected])
        ]
        different = [row for row in kept if row.chosen_ids != row.rejected_ids]
        self._dropped["same tokens"] += len(kept) - len(different)
        return different

    def _holds(self, chosen: float, rejected: float) -> bool:
        margin = round(chosen - rejected, DECIMALS)
        wide = margin > 0 and margin >= self._min_margin
        self._dropped["below margin"] += not wide
        return wide

    def _mean(self, nodes: list[int]) -> float | None:
        """Return the mean value of some steps, those without a value left out."""
        known = [value for node in nodes if (value := self._tree.values[node]) is not None]
        return round(sum(known) / len(known), DECIMALS) if known else None

    def _mean_below(self, node: int, *, right: bool) -> float:
        """Return the mean value of the best right solution through a node, or of the worst wrong one, from the node's step on."""
        means, open_nodes = [], [node]
        while open_nodes:
            each = open_nodes.pop()
            open_nodes += self._tree.children[each]
            if self._record.outcomes[each] == float(right):
                path = path_to(self._record, each)
                mean = self._mean(path[path.index(node) :])
                assert mean is not None, "the node itself has a value"
                means.append(mean)
        return (max if right else min)(means)

    def _pair(self, node: int, chosen: list[int], rejected: list[int], chosen_value: float, rejected_value: float) -> PreferencePair:
        record, shared = self._record, path_to(self._record, node)
        ids = lambda path: [token for each in path for token in record.token_ids[each]]  # noqa: E731
        return PreferencePair(
            problem_id=record.problem_id,
            prompt_ids=[*record.prompt_ids, *ids(shared)],
            chosen_ids=ids(chosen),
            rejected_ids=ids(rejected),
            prompt=join_prompt(record.question, [record.texts[each] for each in shared]),
            chosen="".join(record.texts[each] for each in chosen),
            rejected="".join(record.texts[each] for each in rejected),
            chosen_value=chosen_value,
            rejected_value=rejected_value,
            depth=record.depths[chosen[0]],
            provenance=record.provenance,
            chosen_visits=record.visits[chosen[-1]],
            rejected_visits=record.visits[rejected[-1]],
        )
