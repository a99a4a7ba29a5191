"""Rules of advantages, each worked by hand on one small tree, and the rows that they make."""

import math
from dataclasses import replace

import pytest

from stepladder.data.labels import advantages as formulas
from stepladder.data.labels.advantage_rules import (
    ADVANTAGE_RULES,
    ClippedAdvantages,
    DeltaAdvantages,
    GroupAdvantages,
    MinFormAdvantages,
    ParentAdvantages,
    PreferredAdvantages,
    ProgressAdvantages,
    SegmentAdvantages,
    TreeGroupAdvantages,
    TreePOAdvantages,
    TreeRLAdvantages,
)
from stepladder.errors import ConfigError
from stepladder.types import AdvantageRow, StopReason, TreeRecord
from tests.trees import tree

# Two thirds of the ends are right below 1, none below 2; three of five are wrong in all.
#
#   0 -- 1 -- 3 -- 5 right
#     |    |    `- 6 wrong
#     |    `- 4 right
#     `- 2 -- 7 wrong
#          `- 8 wrong
PARENTS = [-1, 0, 0, 1, 1, 3, 3, 2, 2]
OUTCOMES = {5: 1.0, 6: 0.0, 4: 1.0, 7: 0.0, 8: 0.0}
TOKENS = {1: [11, 12], 3: [13]}
SCORES = {1: 0.75, 2: 0.25, 3: 0.5, 4: 1.0, 5: 0.9, 6: 0.1, 7: 0.25, 8: 0.0}


def scored(record: TreeRecord, scores: dict[int, float]) -> TreeRecord:
    return replace(record, scores=[scores.get(node) for node in range(len(record.parents))])


HAND = scored(tree(*((parent, None, OUTCOMES.get(node)) for node, parent in enumerate(PARENTS)), tokens=TOKENS), SCORES)
# A second tree of the same problem: one right and one wrong chain.
CHAINS = scored(tree((-1, None, None), (0, None, 1.0), (0, None, 0.0), tokens={1: [21], 2: [22, 23]}), {1: 0.8, 2: 0.4})
LEAVES = [4, 5, 6, 7, 8]
PATHS = {4: [1, 4], 5: [1, 3, 5], 6: [1, 3, 6], 7: [2, 7], 8: [2, 8]}


def per_step(rows: list[AdvantageRow]) -> dict[tuple[int, ...], list[float]]:
    """Return the advantages of rows by their tokens."""
    return {tuple(row.completion_ids): row.advantages for row in rows}


def ids_of(path: list[int]) -> tuple[int, ...]:
    return tuple(token for node in path for token in TOKENS.get(node, [100 + node]))


def expected(of_steps: dict[int, list[float]]) -> dict[tuple[int, ...], list[float]]:
    """Return the advantages of tokens, given those of the steps to each leaf."""
    return {
        ids_of(PATHS[leaf]): [value for node, value in zip(PATHS[leaf], values, strict=True) for _ in TOKENS.get(node, [0])]
        for leaf, values in of_steps.items()
    }


def assert_advantages(rows: list[AdvantageRow], of_steps: dict[int, list[float]]) -> None:
    found, wanted = per_step(rows), expected(of_steps)
    assert found.keys() == wanted.keys()
    for ids, values in wanted.items():
        assert found[ids] == pytest.approx(values, abs=1e-5), ids


def same(of_leaves: dict[int, float]) -> dict[int, list[float]]:
    return {leaf: [value] * len(PATHS[leaf]) for leaf, value in of_leaves.items()}


def test_group_by_hand() -> None:
    """Mean 2/5, sample deviation sqrt(0.3); without scale the gaps themselves; against the others alone 5/4 of them."""
    right, wrong = 0.6 / math.sqrt(0.3), -0.4 / math.sqrt(0.3)
    rewards = {4: 1, 5: 1, 6: 0, 7: 0, 8: 0}
    assert_advantages(GroupAdvantages().select([HAND]).rows, same({leaf: right if r else wrong for leaf, r in rewards.items()}))
    assert_advantages(GroupAdvantages(scale=False).select([HAND]).rows, same({leaf: r - 0.4 for leaf, r in rewards.items()}))
    alone = GroupAdvantages(scale=False, leave_one_out=True).select([HAND]).rows
    assert_advantages(alone, same({leaf: (0.75 if r else -0.5) for leaf, r in rewards.items()}))


def test_treepo_by_hand() -> None:
    """Against the problem (2/5), the solutions below 1 (2/3), below 3 (1/2) and below 2 (0), then whitened; by size with their numbers."""
    raw = {4: (0.6 + 1 / 3) / 2, 5: (0.6 + 1 / 3 + 0.5) / 3, 6: (-0.4 - 2 / 3 - 0.5) / 3, 7: -0.2, 8: -0.2}
    sized = {4: (5 * 0.6 + 1) / 8, 5: (3 + 1 + 1) / 10, 6: (-2 - 2 - 1) / 10, 7: -2 / 7, 8: -2 / 7}
    for rule, gaps in ((TreePOAdvantages(), raw), (TreePOAdvantages(by_size=True), sized)):
        mean = sum(gaps.values()) / 5
        spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps.values()) / 4)
        assert_advantages(rule.select([HAND]).rows, same({leaf: (gap - mean) / spread for leaf, gap in gaps.items()}))


def test_treerl_by_hand() -> None:
    """Centred ends are 3/4 and -1/2. V(1) = 1/3, V(3) = 1/8, V(2) = -1/2; A = (2V - V(parent)) / sqrt(ends below)."""
    value = {0: 0.0, 1: 1 / 3, 2: -0.5, 3: 1 / 8, 4: 0.75, 5: 0.75, 6: -0.5, 7: -0.5, 8: -0.5}
    ends = {1: 3, 2: 2, 3: 2}
    step = {node: (2 * value[node] - value[PARENTS[node]]) / math.sqrt(ends.get(node, 1)) for node in range(1, 9)}
    assert step[1] == pytest.approx(2 / 3 / math.sqrt(3)) and step[3] == pytest.approx(-1 / 12 / math.sqrt(2))
    assert_advantages(TreeRLAdvantages().select([HAND]).rows, {leaf: [step[node] for node in path] for leaf, path in PATHS.items()})


def test_treerl_as_released_by_hand() -> None:
    """V is divided by the root first; 7 and 8 are worth what 2 is but for the root, so their differences are not 0 here."""
    value = {0: 0.0, 1: 1 / 3 / math.sqrt(3), 2: -0.5 / math.sqrt(2), 3: 1 / 8 / math.sqrt(2), 4: 0.75, 5: 0.75, 6: -0.5, 7: -0.5, 8: -0.5}
    step = {node: 2 * value[node] - value[PARENTS[node]] for node in range(1, 9)}
    found = TreeRLAdvantages(released=True).select([HAND]).rows
    assert_advantages(found, {leaf: [step[node] for node in path] for leaf, path in PATHS.items()})
    # A chain of one leaf: the second step is worth what the first is, and repeats its difference.
    chain = formulas.treerl_advantages([None, None, 1.0, 0.0], [-1, 0, 1, 0], released=True)
    assert chain == [None, 2.0, 2.0, -2.0]
    assert formulas.treerl_advantages([None, None, 1.0, 0.0], [-1, 0, 1, 0]) == [None, 2.0, 1.0, -2.0]


def test_tree_groups_by_hand() -> None:
    """Two trees: 2 of 5 and 1 of 2 are right, 3 of 7 in all; each solution has the sum of both gaps over their deviations."""
    rows = TreeGroupAdvantages().select([HAND, CHAINS]).rows
    inner, pair, all_ = math.sqrt(0.3), math.sqrt(0.5), math.sqrt((3 * (4 / 7) ** 2 + 4 * (3 / 7) ** 2) / 6)
    up, down = 0.6 / inner + 4 / 7 / all_, -0.4 / inner - 3 / 7 / all_
    found = per_step(rows)
    assert found[ids_of(PATHS[5])] == pytest.approx([up] * 4, abs=1e-5)
    assert found[ids_of(PATHS[7])] == pytest.approx([down] * 2, abs=1e-5)
    assert found[21,] == pytest.approx([0.5 / pair + 4 / 7 / all_], abs=1e-5)
    assert found[22, 23] == pytest.approx([-0.5 / pair - 3 / 7 / all_] * 2, abs=1e-5)


def test_segments_by_hand() -> None:
    """V(3) = 1/2, V(1) = 3/4 (not 2/3), V(2) = 0, V(0) = 3/8; steps that change nothing are left out; each step is one row."""
    selection = SegmentAdvantages().select([HAND])
    found = per_step(selection.rows)
    steps = {1: 3 / 8, 2: -3 / 8, 3: -1 / 4, 4: 1 / 4, 5: 1 / 2, 6: -1 / 2}
    assert {ids[0]: values[0] for ids, values in found.items()} == pytest.approx({ids_of([node])[0]: a for node, a in steps.items()})
    assert found[11, 12] == [3 / 8, 3 / 8]
    assert selection.dropped_by_reason == {"no advantage": 2} and selection.considered == 8
    (third,) = (row for row in selection.rows if row.completion_ids == [13])
    assert third.prompt_ids == [1, 11, 12] and third.logps == [-0.5]
    scaled = {row.completion_ids[0]: row.advantages[0] for row in SegmentAdvantages(scale=True).select([HAND]).rows}
    assert scaled[11] == pytest.approx(3 / 8 / math.sqrt(0.28125), abs=1e-5)


def test_parents_by_hand() -> None:
    """V is the mean over leaves: 2/3 at 1, 2/5 at the root."""
    found = {row.completion_ids[0]: row.advantages[0] for row in ParentAdvantages().select([HAND]).rows}
    assert found == pytest.approx({11: 2 / 3 - 0.4, 102: -0.4, 13: 0.5 - 2 / 3, 104: 1 / 3, 105: 0.5, 106: -0.5})


def test_min_form_by_hand() -> None:
    """Rewards 2s - 1 weighted towards the worst step; from every step on, less what others earn per token; plus the outcome."""
    rewards = {}
    for leaf, path in PATHS.items():
        r = [2 * SCORES[node] - 1 for node in path]
        weights = [math.exp(-each / 0.1) for each in r]
        rewards[leaf] = [each * weight / sum(weights) for each, weight in zip(r, weights, strict=True)]
    assert sum(rewards[6]) == pytest.approx(-0.8, abs=1e-3)
    tokens = {4: [2, 1], 5: [2, 1, 1], 6: [2, 1, 1], 7: [1, 1], 8: [1, 1]}
    wanted = {}
    for leaf in LEAVES:
        others = [other for other in LEAVES if other != leaf]
        base = sum(sum(rewards[other]) for other in others) / sum(sum(tokens[other]) for other in others)
        gain = OUTCOMES[leaf] - sum(OUTCOMES[other] for other in others) / 4
        net = [r - base * n for r, n in zip(rewards[leaf], tokens[leaf], strict=True)]
        wanted[leaf] = [sum(net[k:]) + 0.5 * gain for k in range(len(net))]
    assert_advantages(MinFormAdvantages(outcome_weight=0.5).select([HAND]).rows, wanted)


def test_the_min_form_is_the_worst_step() -> None:
    """Two steps at 0.9 and 0.4 give -0.2, all of it at the second; equal steps share it; a lone solution has no baseline."""
    assert formulas.min_form_rewards([0.9, 0.4], temperature=0.01) == pytest.approx([0.0, -0.2])
    assert formulas.min_form_rewards([0.75, 0.75]) == pytest.approx([0.25, 0.25])
    assert formulas.min_form_advantages([[0.25, 0.25]], [[3, 1]], [1.0]) == [[0.5, 0.25]]


def returns_over_others(returns: dict[int, list[float]]) -> dict[int, list[float]]:
    means = {leaf: sum(each) / len(each) for leaf, each in returns.items()}
    return {leaf: [g - sum(m for other, m in means.items() if other != leaf) / 4 for g in each] for leaf, each in returns.items()}


def test_clip_by_hand() -> None:
    """Only scores below 1/2 count: -0.4 at 6, -1/4 at 2 and 7, -1/2 at 8."""
    returns = {4: [1.0, 1.0], 5: [1.0] * 3, 6: [-0.4] * 3, 7: [-0.5, -0.25], 8: [-0.75, -0.5]}
    assert_advantages(ClippedAdvantages().select([HAND]).rows, returns_over_others(returns))
    assert formulas.clipped_rewards([0.9, 0.5, 0.2]) == pytest.approx([0.0, 0.0, -0.3])


def test_delta_by_hand() -> None:
    """The return of a step is its score and the outcome, however many steps follow."""
    returns = {leaf: [SCORES[node] + OUTCOMES[leaf] for node in path] for leaf, path in PATHS.items()}
    assert_advantages(DeltaAdvantages().select([HAND]).rows, returns_over_others(returns))
    assert formulas.delta_rewards([0.9, 0.5, 0.2]) == pytest.approx([0.4, 0.3, 0.2])
    assert formulas.returns(formulas.delta_rewards([0.9, 0.5, 0.2])) == pytest.approx([0.9, 0.5, 0.2])


def test_par_by_hand() -> None:
    """Scores of 0.8 and 0.4 have odds of 4 and 2/3: the better one wins with 6/7. All steps of a solution have one advantage."""
    rows = per_step(PreferredAdvantages(outcome_weight=0.0).select([CHAINS]).rows)
    assert rows[21,] == pytest.approx([6 / 7 - 1 / 7])
    assert rows[22, 23] == pytest.approx([1 / 7 - 6 / 7] * 2)
    both = per_step(PreferredAdvantages().select([HAND]).rows)
    assert len(set(both[ids_of(PATHS[5])])) == 1


def test_pav_by_hand() -> None:
    """The outcome against the others' (3/4, -1/2), plus a half of 1 - (1 - V)^2 of the step less that of its parent."""
    value = {0: 0.4, 1: 2 / 3, 2: 0.0, 3: 0.5, 4: 1.0, 5: 1.0, 6: 0.0, 7: 0.0, 8: 0.0}
    prover = {node: 1 - (1 - v) ** 2 for node, v in value.items()}
    wanted = {
        leaf: [(0.75 if OUTCOMES[leaf] else -0.5) + 0.5 * (prover[node] - prover[PARENTS[node]]) for node in path]
        for leaf, path in PATHS.items()
    }
    assert_advantages(ProgressAdvantages(alpha=0.5, attempts=2).select([HAND]).rows, wanted)
    scores = {**SCORES, 0: 0.4}
    prover = {node: 1 - (1 - v) ** 4 for node, v in scores.items()}
    wanted = {
        leaf: [(0.75 if OUTCOMES[leaf] else -0.5) + prover[node] - prover[PARENTS[node]] for node in path] for leaf, path in PATHS.items()
    }
    assert_advantages(ProgressAdvantages(by="score").select([HAND]).rows, wanted)


@pytest.mark.parametrize("name", ADVANTAGE_RULES)
def test_every_rule_counts_what_it_leaves_out(name: str) -> None:
    """Rows have one advantage and one stored log-probability per token; problems without a difference give none unless asked for."""
    rule = ADVANTAGE_RULES[name]
    even = replace(tree((-1, None, None), (0, None, 1.0), (0, None, 1.0), problem_id="even"), scores=[None, 0.5, 0.5])
    selection = rule().select([HAND, CHAINS, even])
    assert selection.considered == selection.kept + sum(selection.dropped_by_reason.values())
    assert selection.rows and {row.problem_id for row in selection.rows} == {"p"}
    for row in selection.rows:
        assert len(row.advantages) == len(row.logps) == len(row.completion_ids)
        assert row.provenance == HAND.provenance and row.staleness == 0
    with_even = rule(skip_even=False).select([HAND, CHAINS, even])
    assert rule.of_steps or {row.problem_id for row in with_even.rows} == {"p", "even"}


def test_failed_cut_and_unscored_solutions_are_left_out_by_reason() -> None:
    """A failed step is never learned; a cut solution only if wanted, though the others are compared with it; a PRM rule needs scores."""
    failed = replace(HAND, token_ids=[ids if node != 6 else [] for node, ids in enumerate(HAND.token_ids)])
    assert GroupAdvantages().select([failed]).dropped_by_reason == {"failed step": 1}
    reasons = [StopReason.LENGTH if node == 8 else reason for node, reason in enumerate(HAND.stop_reasons)]
    cut = replace(HAND, stop_reasons=reasons)
    kept = GroupAdvantages(learn_cut=False, scale=False).select([cut])
    assert kept.dropped_by_reason == {"cut": 1} and kept.kept == 4
    assert per_step(kept.rows)[ids_of(PATHS[7])] == pytest.approx([-0.4] * 2)
    unscored = scored(HAND, {**SCORES, 3: None})  # pyright: ignore[reportArgumentType]
    assert DeltaAdvantages().select([unscored]).dropped_by_reason == {"no score": 2}


def test_observations_have_no_advantage() -> None:
    """A given token lies between the steps of a row, without an advantage and without a log-probability."""
    given = [[] if node != 1 else [77] for node in range(9)]
    record = replace(HAND, given_ids=given, given_texts=["" if not ids else "!" for ids in given])
    row = next(row for row in GroupAdvantages(scale=False).select([record]).rows if row.completion_ids[-1] == 104)
    assert row.completion_ids == [11, 12, 77, 104] and row.completion_given == [False, False, True, False]
    assert row.advantages == pytest.approx([0.6, 0.6, 0.0, 0.6]) and row.logps == [-0.5, -0.5, 0.0, -0.5]


def test_impossible_settings_are_refused() -> None:
    """Bounds hold in Python, too."""
    with pytest.raises(ConfigError, match=r"labels.advantages: temperature must be > 0: got 0.0"):
        MinFormAdvantages(temperature=0.0)
    with pytest.raises(ConfigError, match=r"labels.advantages: at must be in \[0, 1\]: got 1.5"):
        ClippedAdvantages(at=1.5)
