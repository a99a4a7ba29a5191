"""Pairs that a process preference model learns from: steps after the same beginning, and whole solutions (rStar-Math)."""

from collections import Counter
from collections.abc import Callable, Sequence

from stepladder.data.labels import Evidence, Selection, ValueTarget, gather_evidence, join_prompt, node_values
from stepladder.types import PreferencePair, TreeRecord

_DECIMALS = 12
"""Differences are rounded before they are compared, so that 0.7 - 0.5 reaches a margin of 0.2."""
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
    filter by edit distance: equal samples are one node already.
    """
    rows: list[PreferencePair] = []
    dropped: Counter[str] = Counter()
    for record in records:
        rows += _Pairing(record, node_values(record, target), min_margin, dropped).pairs()
    return Selection(rows=rows, considered=len(rows) + sum(dropped.values()), dropped_by_reason=dict(+dropped))


class _Pairing:
    """One tree."""

    def __init__(self, record: TreeRecord, values: list[float | None], min_margin: float, dropped: Counter[str]) -> None:
        self._record, self._values, self._min_margin, self._dropped = record, values, min_margin, dropped
        self._evidence: Evidence = gather_evidence(record)
        self._children: list[list[int]] = [[] for _ in record.parents]
        for node, parent in enumerate(record.parents[1:], 1):
            self._children[parent].append(node)

    def pairs(self) -> list[PreferencePair]:
        found = []
        # Parents come before their children, so this is the order in which a descent would meet the nodes.
        for node, children in enumerate(self._children):
            mixed = self._evidence.right[node] and self._evidence.wrong[node]
            found += self._at(node, [child for child in children if self._children[child]]) if mixed else []
        return found + self._whole()

    def _at(self, node: int, children: list[int]) -> list[PreferencePair]:
        usable = [child for child in children if self._values[child] is not None and self._record.token_ids[child]]
        value = lambda child: self._values[child] or 0.0  # noqa: E731
        better, worse = _sides(
            [child for child in usable if self._evidence.right[child]], [child for child in usable if self._evidence.wrong[child]], value
        )
        kept = []
        for chosen in better:
            for rejected in worse:
                if chosen != rejected and self._holds(value(chosen), value(rejected)):
                    if self._mean_below(chosen, right=True) > self._mean_below(rejected, right=False):
                        kept.append(self._pair(node, [chosen], [rejected], value(chosen), value(rejected)))
                    else:
                        self._dropped["weaker continuation"] += 1
        return kept

    def _whole(self) -> list[PreferencePair]:
        ended = [leaf for leaf, ids in enumerate(self._record.token_ids) if ids and self._mean(leaf) is not None]
        right, wrong = ([leaf for leaf in ended if self._record.outcomes[leaf] == side] for side in (1.0, 0.0))
        mean = lambda leaf: self._mean(leaf) or 0.0  # noqa: E731
        kept = []
        for chosen in sorted(right, key=lambda leaf: (-mean(leaf), leaf))[:_FEW]:
            for rejected in sorted(wrong, key=lambda leaf: (mean(leaf), leaf))[:_FEW]:
                if self._holds(mean(chosen), mean(rejected)):
                    kept.append(self._pair(0, self._path(chosen), self._path(rejected), mean(chosen), mean(rejected)))
        different = [row for row in kept if row.chosen_ids != row.rejected_ids]
        self._dropped["same tokens"] += len(kept) - len(different)
        return different

    def _holds(self, chosen: float, rejected: float) -> bool:
        margin = round(chosen - rejected, _DECIMALS)
        wide = margin > 0 and margin >= self._min_margin
        self._dropped["below margin"] += not wide
        return wide

    def _path(self, node: int, above: int = 0) -> list[int]:
        """Return the nodes from below ``above`` down to ``node``."""
        path = []
        while node != above:
            path.append(node)
            node = self._record.parents[node]
        return path[::-1]

    def _mean(self, leaf: int, above: int = 0) -> float | None:
        """Return the mean value of the steps from below ``above`` to a leaf, those without a value left out."""
        known = [value for node in self._path(leaf, above) if (value := self._values[node]) is not None]
        return round(sum(known) / len(known), _DECIMALS) if known else None

    def _mean_below(self, node: int, *, right: bool) -> float:
        """Return the mean value of the best right solution through a node, or of the worst wrong one, from the node's step on."""
        means, open_nodes = [], [node]
        while open_nodes:
            each = open_nodes.pop()
            open_nodes += self._children[each]
            if self._record.outcomes[each] == float(right):
                means.append(self._mean(each, self._record.parents[node]))
        known = [mean for mean in means if mean is not None]
        return max(known) if right else min(known)

    def _pair(self, node: int, chosen: list[int], rejected: list[int], chosen_value: float, rejected_value: float) -> PreferencePair:
        record, shared = self._record, self._path(node)
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


def _sides(better: list[int], worse: list[int], value: Callable[[int], float]) -> tuple[list[int], list[int]]:
    """Return the best of the one and the worst of the other, ties to the earlier node."""
    num_better, num_worse = (_MANY if len(other) == 1 else _FEW for other in (worse, better))
    best = sorted(better, key=lambda child: (-value(child), child))[:num_better]
    return best, sorted(worse, key=lambda child: (value(child), child))[:num_worse]
