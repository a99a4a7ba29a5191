"""Pairs of the process preference model: by hand, and against a slow twin on random trees."""

from itertools import product

import pytest

from stepladder.data.labels.rstar_math import StepPairs
from stepladder.data.labels.values import node_values
from stepladder.types import TreeRecord
from tests.trees import HAND, path_to, random_tree, tree


def test_pairs_of_the_drawing():
    """Step 1 against 2; solutions 7 (5/6) and 8 (23/30) against 6 (.1) and 9 (.25): steps that end a solution meet no siblings."""
    selection = StepPairs().select([HAND])
    got = [(row.prompt_ids, row.chosen_ids, row.rejected_ids, row.depth) for row in selection.rows]
    assert got == [
        ([1], [101], [102], 1),
        ([1], [101, 104, 107], [102, 106], 1),
        ([1], [101, 104, 107], [102, 109], 1),
        ([1], [101, 104, 108], [102, 106], 1),
        ([1], [101, 104, 108], [102, 109], 1),
    ]
    values = [(row.chosen_value, row.rejected_value) for row in selection.rows]
    assert values[0] == (0.6, 0.2)
    assert values[4] == (pytest.approx(2.3 / 3), pytest.approx(0.25))
    assert (selection.rows[0].chosen, selection.rows[0].prompt) == ("s1\n", "Q?\n")
    assert StepPairs(min_margin=0.5).select([HAND]).dropped_by_reason == {"below margin": 1}


def test_a_strong_step_with_a_weak_continuation_is_left_out():
    """Below 1 the only right solution has mean (.7 + .1) / 2 = .4, below 2 the only wrong one (.3 + .6) / 2 = .45."""
    record = tree((-1, None, None), (0, 0.7, None), (0, 0.3, None), (1, 0.1, 1.0), (2, 0.6, 0.0))
    selection = StepPairs().select([record])
    assert selection.rows == []
    assert selection.dropped_by_reason == {"weaker continuation": 1, "below margin": 1}


def twin(record: TreeRecord, min_margin: float) -> set[tuple]:
    """All pairs of the definition, by enumeration of paths."""
    values = node_values(record, "tree-value")
    leaves = [(path_to(record, leaf), outcome) for leaf, outcome in enumerate(record.outcomes) if outcome is not None]
    inner = set(record.parents)

    def mean(nodes):
        known = [values[node] for node in nodes if values[node] is not None]
        return sum(known) / len(known) if known else None

    def wide(better, worse):
        return better - worse > 1e-9 and better - worse >= min_margin - 1e-9

    def through(node, outcome):
        means = [mean(path[path.index(node) :]) for path, given in leaves if given == outcome and node in path]
        return [each for each in means if each is not None]

    found = set()
    for node in inner - {-1}:
        children = [n for n, p in enumerate(record.parents) if p == node and n in inner and record.token_ids[n] and values[n] is not None]
        right = [n for n in children if any(n in path for path, given in leaves if given == 1.0)]
        wrong = [n for n in children if any(n in path for path, given in leaves if given == 0.0)]
        best = sorted(right, key=lambda n: (-values[n], n))[: 4 if len(wrong) == 1 else 2]
        worst = sorted(wrong, key=lambda n: (values[n], n))[: 4 if len(right) == 1 else 2]
        for one, two in product(best, worst):
            if one != two and wide(values[one], values[two]) and max(through(one, 1.0)) > min(through(two, 0.0)) + 1e-12:
                found.add(((one,), (two,)))
    ended = [(tuple(path), given) for path, given in leaves if path and record.token_ids[path[-1]] and mean(path) is not None]
    best = sorted((path for path, given in ended if given == 1.0), key=lambda path: (-round(mean(path), 12), path[-1]))[:2]
    worst = sorted((path for path, given in ended if given == 0.0), key=lambda path: (round(mean(path), 12), path[-1]))[:2]
    return found | {(one, two) for one, two in product(best, worst) if wide(mean(one), mean(two))}


@pytest.mark.parametrize("seed", range(60))
def test_pairs_agree_with_the_enumerating_twin(seed):
    """On random trees the pairs are those of the definition, each once, and every candidate is kept or counted."""
    record = random_tree(seed)
    ids = [[1000 + node] if given or not node else [] for node, given in enumerate(record.token_ids)]
    record = TreeRecord.from_dict({**record.to_dict(), "token_ids": ids})
    selection = StepPairs(min_margin=0.1).select([record])
    found = [(tuple(i - 1000 for i in row.chosen_ids), tuple(i - 1000 for i in row.rejected_ids)) for row in selection.rows]
    expected = {tuple(tuple(n for n in path if record.token_ids[n]) for path in pair) for pair in twin(record, 0.1)}
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert selection.considered == selection.kept + sum(selection.dropped_by_reason.values())
