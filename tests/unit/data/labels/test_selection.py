"""The rules that choose training rows: hand-worked trees, a slow twin where a formula is shared, and counts that add up."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from stepladder.data.exports.rows import ExportSource, prompted_rows, trace_chats
from stepladder.data.labels.candidates import edit_distance
from stepladder.data.labels.graded import GradedSolutions, GradedSteps
from stepladder.data.labels.pair_rules import (
    PAIR_RULES,
    AgentQPairs,
    AnchoredPairs,
    CommittedPairs,
    ContrastPairs,
    EvidencePairs,
    RStarPairs,
    SolutionPairs,
    ValueMarginPairs,
)
from stepladder.data.labels.pair_weights import order_uncertainty, ranking_agreement
from stepladder.data.labels.pairing import PairSources
from stepladder.data.labels.traces import revision_traces, select_traces, solution_reward, within_window
from stepladder.errors import ConfigError
from stepladder.types import GradedRow, PreferencePair, Provenance, TreeRecord
from tests.trees import PROVENANCE, random_tree, tree


def ids(pairs: list[PreferencePair]) -> list[tuple[int, int]]:
    """The first token of the chosen and of the rejected side, which name the nodes."""
    return [(pair.chosen_ids[0] - 100, pair.rejected_ids[0] - 100) for pair in pairs]


def with_texts(record: TreeRecord, *texts: str) -> TreeRecord:
    """The tree with other texts below the root."""
    return replace(record, texts=["", *texts])


def of_version(record: TreeRecord, version: int) -> TreeRecord:
    """The tree as another policy sampled it."""
    return replace(record, provenance=replace(record.provenance, policy_version=version))


# Steps 1 to 3 below the root, each with two ends: 1 has a right and a wrong one, 2 only wrong ones, 3 only right ones.
#
#   0 -- 1 (.6) -- 4 right (.9)     values of solutions: 1-4 .75, 3-8 .8, 3-9 .7; wrong ones: 1-5 .4, 2-6 .1, 2-7 .2
#     |         `- 5 wrong (.2)
#     |- 2 (.1) -- 6 wrong (.1)
#     |         `- 7 wrong (.3)
#     `- 3 (.7) -- 8 right (.9)
#               `- 9 right (.7)
BUSH = replace(
    tree(
        (-1, 0.5, None),
        (0, 0.6, None),
        (0, 0.1, None),
        (0, 0.7, None),
        (1, 0.9, 1.0),
        (1, 0.2, 0.0),
        (2, 0.1, 0.0),
        (2, 0.3, 0.0),
        (3, 0.9, 1.0),
        (3, 0.7, 1.0),
    ),
    visits=[9, 2, 1, 5, 1, 1, 0, 1, 3, 2],
)


# ---- pairs ----


def test_rstar_pairs_of_the_bush() -> None:
    """Right below 1 and 3, wrong below 1 and 2: 3 over 2, 1 over 2 and 3 over 1 at the root; ends are paired as whole solutions.

    The margin of 3 over 1 is 0.1. At node 1 the ends 4 and 5 would be a pair, but they are final. Of solutions the best two are 3-8 (0.8)
    and 1-4 (0.75), the worst two 2-6 (0.1) and 2-7 (0.2).
    """
    selection = RStarPairs(min_edit_distance=0, pairs_per_problem=99).select([BUSH])
    assert ids(selection.rows) == [(1, 2), (3, 2), (3, 2), (3, 2), (1, 2), (1, 2)]
    assert [pair.chosen_ids for pair in selection.rows] == [[101], [103], [103, 108], [103, 108], [101, 104], [101, 104]]
    assert [pair.rejected_ids for pair in selection.rows[2:]] == [[102, 106], [102, 107], [102, 106], [102, 107]]
    # Candidates: at the root 1-2, 3-1 and 3-2, at node 1 the final 4-5, and 3 right times 3 wrong solutions.
    assert (selection.considered, selection.dropped_by_reason) == (
        3 + 1 + 9,
        {"below margin": 1, "final step": 1, "not among best and worst": 9 - 4},
    )
    whole = selection.rows[2]
    assert (whole.prompt_ids, whole.prompt, whole.chosen, whole.depth) == ([1], "Q?\n", "s3\ns8\n", 1)
    assert (whole.chosen_value, whole.rejected_value, whole.chosen_logps, whole.uncertainty) == (0.8, 0.1, [-0.5, -0.5], 0.0)


def test_rstar_takes_four_against_a_single_one() -> None:
    """Five children succeed and one fails: the best four of the five take part; against two failing ones the best two do."""
    values = (0.9, 0.8, 0.7, 0.6, 0.5)
    right = [(0, value, None) for value in values]
    one = tree((-1, None, None), *right, (0, 0.1, None), *((i, 1.0, 1.0) for i in range(1, 6)), (6, 0.0, 0.0))
    selection = RStarPairs(min_edit_distance=0, pairs_per_problem=99).select([one])
    assert ids([pair for pair in selection.rows if len(pair.chosen_ids) == 1]) == [(1, 6), (2, 6), (3, 6), (4, 6)]
    two = tree(
        (-1, None, None), *right, (0, 0.1, None), (0, 0.0, None), *((i, 1.0, 1.0) for i in range(1, 6)), (6, 0.0, 0.0), (7, 0.0, 0.0)
    )
    selection = RStarPairs(min_edit_distance=0, pairs_per_problem=99).select([two])
    assert ids([pair for pair in selection.rows if len(pair.chosen_ids) == 1]) == [(1, 6), (1, 7), (2, 6), (2, 7)]


def test_a_failed_step_is_no_member_of_a_side() -> None:
    """Four children succeed, one fails and at one the policy failed, which can be in no pair: still the best four take part."""
    right = [(0, value, None) for value in (0.9, 0.8, 0.7, 0.6)]
    record = tree(
        (-1, None, None), *right, (0, 0.1, None), (0, 0.0, 0.0), *((i, 1.0, 1.0) for i in range(1, 5)), (5, 0.0, 0.0), tokens={6: []}
    )
    selection = RStarPairs(min_edit_distance=0, pairs_per_problem=99).select([record])
    assert ids([pair for pair in selection.rows if len(pair.chosen_ids) == 1]) == [(1, 5), (2, 5), (3, 5), (4, 5)]
    assert selection.dropped_by_reason["failed step"] == 4


def test_rstar_asks_for_a_better_continuation_and_other_words() -> None:
    """Step 1 is worth more than step 2, but its right end (mean 0.5) is below the wrong end of 2 (mean 0.6); then words 3 letters apart."""
    record = tree((-1, None, None), (0, 0.9, None), (0, 0.4, None), (1, 0.1, 1.0), (2, 0.8, 0.0))
    selection = RStarPairs(min_margin=0.0, min_edit_distance=0).select([record])
    assert selection.rows == [] and selection.dropped_by_reason["no better continuation"] == 1
    record = tree((-1, None, None), (0, 0.9, None), (0, 0.4, None), (1, 0.9, 1.0), (2, 0.2, 0.0))
    record = with_texts(record, "kitten", "sitting", "x" * 20, "")
    assert ids(RStarPairs(min_edit_distance=3).select([record]).rows) == [(1, 2), (1, 2)]
    selection = RStarPairs(min_edit_distance=4).select([record])
    assert ([pair.chosen for pair in selection.rows], selection.dropped_by_reason) == (["kitten" + "x" * 20], {"too alike": 1})


def test_committed_pairs_follow_the_visits() -> None:
    """The most visited path of the bush is 0-3-8: 3 over 2 with visits 5 and 1, then 8 over 9; outcomes do not matter."""
    selection = CommittedPairs().select([BUSH])
    assert ids(selection.rows) == [(3, 2), (8, 9)]
    assert [(pair.chosen_visits, pair.rejected_visits) for pair in selection.rows] == [(5, 1), (3, 2)]
    assert (selection.considered, selection.dropped_by_reason) == (2, {})
    assert CommittedPairs(min_margin=0.3).select([BUSH]).dropped_by_reason == {"below margin": 1}
    assert ids(CommittedPairs().select([replace(BUSH, outcomes=[None] * 10)]).rows) == [(3, 2), (8, 9)]
    # Equal visits: the first child stands for the committed one.
    assert ids(CommittedPairs().select([replace(BUSH, visits=[1] * 10)]).rows) == [(3, 2), (4, 5)]


def test_committed_pairs_of_right_ends_alone() -> None:
    """The path 0-3-8 of the bush ends right; with 8 graded wrong, its two pairs are dropped."""
    rule = CommittedPairs(right_end=True)
    assert ids(rule.select([BUSH]).rows) == [(3, 2), (8, 9)]
    outcomes = [0.0 if node == 8 else outcome for node, outcome in enumerate(BUSH.outcomes)]
    selection = rule.select([replace(BUSH, outcomes=outcomes)])
    assert (selection.rows, selection.considered, selection.dropped_by_reason) == ([], 2, {"wrong end": 2})


def test_value_margin_pairs_ask_for_no_outcome() -> None:
    """Six pairs of siblings; 3 over 2 and 1 over 2 at the root, then 4 over 5, 7 over 6 and 8 over 9 are 0.2 or more apart."""
    selection = ValueMarginPairs(pairs_per_problem=99).select([replace(BUSH, outcomes=[None] * 10)])
    assert ids(selection.rows) == [(3, 2), (1, 2), (4, 5), (7, 6), (8, 9)]
    assert (selection.considered, selection.dropped_by_reason) == (6, {"below margin": 1})
    assert ValueMarginPairs(pairs_per_node=1).select([BUSH]).dropped_by_reason == {"below margin": 1, "over node cap": 1}


def test_agent_q_mixes_in_the_critic() -> None:
    """Values 0.5 and 0.4 with scores 0.1 and 0.8 are Q of 0.3 and 0.6 at half weight: the second is chosen; no score, no Q."""
    record = replace(tree((-1, None, None), (0, 0.5, None), (0, 0.4, None), (0, 0.9, None)), scores=[None, 0.1, 0.8, None])
    selection = AgentQPairs().select([record])
    assert ids(selection.rows) == [(2, 1)]
    assert (selection.rows[0].chosen_value, selection.rows[0].rejected_value) == (pytest.approx(0.6), pytest.approx(0.3))
    assert selection.dropped_by_reason == {"no value": 2}
    assert ids(AgentQPairs(critic_weight=0.0).select([record]).rows) == [(3, 2), (3, 1)]


def test_contrast_pairs_are_the_most_alike() -> None:
    """Failing step 3 shares two of three tokens with 1 and none with 2, so 1 is its partner although 2 has the wider margin."""
    tokens = {1: [5, 6, 7], 2: [9, 9, 9], 3: [5, 6, 8], 4: [9, 9, 9, 9, 9]}
    record = tree((-1, None, None), (0, 0.6, 1.0), (0, 0.9, 1.0), (0, 0.1, 0.0), (0, 0.2, 0.0), tokens=tokens)
    selection = ContrastPairs().select([record])
    assert [(pair.chosen_ids, pair.rejected_ids) for pair in selection.rows] == [(tokens[1], tokens[3]), (tokens[2], tokens[4])]
    assert (selection.considered, selection.dropped_by_reason) == (4, {"a sibling is more alike": 2})
    # Distances 1 and 2: the cap keeps the more alike pair.
    selection = ContrastPairs(pairs_per_problem=1).select([record])
    assert [pair.rejected_ids for pair in selection.rows] == [tokens[3]]
    assert ContrastPairs(pairs_per_node=1).select([record]).dropped_by_reason == {"a sibling is more alike": 2, "over node cap": 1}


def test_anchored_pairs_reject_what_the_first_policy_did() -> None:
    """Right solutions of the new trees against wrong ones of the old; the pair is of the newer tree."""
    old = of_version(tree((-1, None, None), (0, 0.3, 0.0), (0, 0.9, 1.0)), 0)
    new = of_version(tree((-1, None, None), (0, 0.2, 0.0), (0, 0.8, 1.0), (0, 0.7, 1.0)), 2)
    selection = AnchoredPairs().select([new], PairSources(first_trees=[old]))
    assert [(pair.chosen_value, pair.rejected_value) for pair in selection.rows] == [(0.8, 0.3), (0.7, 0.3)]
    assert {pair.provenance.policy_version for pair in selection.rows} == {2}
    assert (selection.considered, selection.dropped_by_reason) == (2, {})
    assert AnchoredPairs().select([new], PairSources(first_trees=[replace(old, prompt_ids=[8])])).dropped_by_reason == {"other prompt": 2}
    # In the first round both policies are one.
    assert [pair.rejected_ids for pair in AnchoredPairs().select([old]).rows] == [[101]]
    # A limit may have cut what is right now: the same tokens are no pair.
    grown = replace(new, token_ids=[[], [7], [101], [103]])
    same = AnchoredPairs().select([grown], PairSources(first_trees=[old]))
    assert [pair.chosen_ids for pair in same.rows] == [[103]] and same.dropped_by_reason == {"same tokens": 1}
    # A problem without a tree of the first policy has no pair.
    assert AnchoredPairs().select([new], PairSources(first_trees=[replace(old, problem_id="q")])).rows == []


def test_pairs_carry_what_the_objectives_need() -> None:
    """Log-probabilities of the tree, the uncertainty of the leaves, and the agreement of two scorers about the siblings."""
    record = replace(
        tree((-1, None, None), (0, 0.9, 1.0), (0, 0.1, 0.0), (0, 0.5, None), tokens={1: [5, 6]}),
        logps=[[], [-0.1, -0.2], [-0.3], [-0.4]],
        scores=[None, 0.9, 0.1, 0.5],
    )
    (pair,) = EvidencePairs().select([record], PairSources(earlier_scores=[[None, 0.8, 0.3, 0.2]])).rows
    assert (pair.chosen_logps, pair.rejected_logps) == ([-0.1, -0.2], [-0.3])
    # The scorers order 1-2 and 1-3 alike, 2-3 not.
    assert pair.agreement == pytest.approx(2 / 3)
    # One right against one wrong leaf: p = 5/6.
    assert pair.uncertainty == pytest.approx(-(5 / 6) * math.log2(5 / 6) - (1 / 6) * math.log2(1 / 6))
    (pair,) = EvidencePairs().select([record]).rows
    assert pair.agreement is None


def test_pairs_of_whole_solutions_by_hand() -> None:
    """Means of the bush: right 3-8 (0.8), 1-4 (0.75), 3-9 (0.7); wrong 1-5 (0.4), 2-7 (0.2), 2-6 (0.1)."""
    best = SolutionPairs(best_and_worst=1).select([BUSH])
    assert [(pair.chosen_ids, pair.rejected_ids) for pair in best.rows] == [([103, 108], [102, 106])]
    assert (best.considered, best.dropped_by_reason) == (9, {"not among best and worst": 8})
    two = SolutionPairs(pairs_per_problem=2).select([BUSH])
    assert [round(pair.chosen_value - pair.rejected_value, 6) for pair in two.rows] == [0.7, 0.65]
    assert two.dropped_by_reason == {"not among best and worst": 5, "over problem cap": 2}


def test_solutions_by_value_ignore_outcomes() -> None:
    """With two wrong solutions alone, the better of them is chosen once; by outcome there is no pair. Nothing is paired with itself."""
    wrong = tree((-1, 0.5, None), (0, 0.6, 0.0), (0, 0.2, 0.0))
    assert SolutionPairs().select([wrong]).rows == []
    found = SolutionPairs(by="value").select([wrong])
    assert [(pair.chosen_ids, pair.rejected_ids) for pair in found.rows] == [([101], [102])]
    assert (found.considered, found.dropped_by_reason) == (1, {})
    assert SolutionPairs(by="value").select([BUSH]).considered == 15


@pytest.mark.parametrize("rule", PAIR_RULES)
@pytest.mark.parametrize("seed", range(10))
def test_every_rule_adds_up(rule: str, seed: int) -> None:
    """Whatever the trees: kept and dropped make what was considered, margins are above zero, caps hold, other problems do not matter."""
    rng = random.Random(seed)
    records = []
    for i in range(8):
        record = of_version(random_tree(100 * seed + i), rng.randrange(2))
        scores = [None, *(rng.choice([None, rng.random()]) for _ in record.parents[1:])]
        records.append(replace(record, scores=scores, visits=[rng.randrange(5) for _ in record.parents]))
    given = {"pairs_per_problem": 3, "min_margin": 0.1, "min_edit_distance": 1}
    chosen = PAIR_RULES[rule](**{name: value for name, value in given.items() if name in PAIR_RULES[rule].__dataclass_fields__})
    selection = chosen.select(records)
    assert selection.considered == selection.kept + sum(selection.dropped_by_reason.values())
    assert all(pair.chosen_value - pair.rejected_value > 0.09 and pair.chosen_ids != pair.rejected_ids for pair in selection.rows)
    assert max(Counter(pair.problem_id for pair in selection.rows).values(), default=0) <= 3
    if rule != "anchored":
        for problem_id in {record.problem_id for record in records}:
            alone = chosen.select([record for record in records if record.problem_id == problem_id])
            assert [pair for pair in selection.rows if pair.problem_id == problem_id] == alone.rows
    assert chosen.select([]).rows == []


@pytest.mark.parametrize("rule", PAIR_RULES)
@pytest.mark.parametrize("bad", [{"min_margin": 1.1}, {"min_margin": -0.1}, {"pairs_per_problem": 0}])
def test_settings_of_rules_have_bounds(rule: str, bad: dict[str, float]) -> None:
    """A rule that is made by hand refuses what a configuration would refuse."""
    with pytest.raises(ConfigError, match=f"labels.pairs: {next(iter(bad))} must be "):
        PAIR_RULES[rule](**bad)


# ---- what pairs are weighed by ----


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ([1, 2, 3], [2, 3, 4], 2), ("same", "same", 0)],
)
def test_edit_distance_by_hand(first: str, second: str, distance: int) -> None:
    """The textbook cases, the same both ways, and what a limit makes of them."""
    assert edit_distance(first, second) == edit_distance(second, first) == distance
    for limit in range(5):
        assert edit_distance(first, second, limit=limit) == min(limit, distance)


@pytest.mark.parametrize("seed", range(20))
def test_edit_distance_agrees_with_the_recursion(seed: int) -> None:
    """The definition by recursion on random words over two letters."""
    rng = random.Random(seed)
    first, second = ("".join(rng.choices("ab", k=rng.randrange(6))) for _ in range(2))

    def slow(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    assert edit_distance(first, second) == slow(first, second)


def test_ranking_agreement_by_hand() -> None:
    """Equal orders are 1, opposite ones 0, a tie is half; what one of them did not score is left out; one sibling says nothing."""
    assert ranking_agreement([0.1, 0.2, 0.9], [0.0, 0.5, 0.6]) == 1.0
    assert ranking_agreement([0.1, 0.2, 0.9], [0.9, 0.5, 0.1]) == 0.0
    assert ranking_agreement([0.1, 0.2, 0.9], [0.5, 0.5, 0.6]) == pytest.approx((0.5 + 1 + 1) / 3)
    assert ranking_agreement([0.1, None, 0.9, 0.3], [0.5, 0.1, 0.6, None]) == 1.0
    assert ranking_agreement([0.1, None], [0.5, 0.3]) is None


@pytest.mark.parametrize("seed", range(5))
def test_ranking_agreement_is_kendalls_tau(seed: int) -> None:
    """Without ties it is (tau + 1) / 2 with SciPy's tau."""
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random(seed)
    first, second = ([rng.random() for _ in range(7)] for _ in range(2))
    assert ranking_agreement(first, second) == pytest.approx((stats.kendalltau(first, second).statistic + 1) / 2)


def test_order_uncertainty_by_hand() -> None:
    """Equal evidence, or none, is 1 bit; 3 right against 3 wrong leaves is P = 1 - 1/70 by hand.

    For Beta(4, 1) and Beta(1, 4), P(X <= Y) is the integral of x^4 times 4 (1 - x)^3, which is 4 B(5, 4) = 4 * 4! 3! / 8! = 1/70.
    """
    assert order_uncertainty((2, 3), (2, 3)) == order_uncertainty((0, 0), (0, 0)) == pytest.approx(1.0)
    wrong = 1 / 70
    assert order_uncertainty((3, 0), (0, 3)) == pytest.approx(-(1 - wrong) * math.log2(1 - wrong) - wrong * math.log2(wrong))
    # One side without leaves: P(X > Y) of Beta(1, 1) and Beta(1, 4) is 1 minus the mean of Y, which is 1/5.
    assert order_uncertainty((0, 0), (0, 3)) == pytest.approx(-0.8 * math.log2(0.8) - 0.2 * math.log2(0.2))
    assert 0 <= order_uncertainty((500, 0), (0, 500)) < 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_order_uncertainty_agrees_with_sampling(seed: int) -> None:
    """The finite sum is the probability that draws of one posterior exceed draws of the other."""
    rng = random.Random(seed)
    chosen, rejected = ((rng.randrange(1, 5), rng.randrange(5)) for _ in range(2))
    draws = 20_000
    share = (
        sum(rng.betavariate(1 + chosen[0], 1 + chosen[1]) > rng.betavariate(1 + rejected[0], 1 + rejected[1]) for _ in range(draws)) / draws
    )
    entropy = -sum(p * math.log2(p) for p in (share, 1 - share) if p)
    assert order_uncertainty(chosen, rejected) == pytest.approx(entropy, abs=0.03)


# ---- traces ----


def test_value_filtered_traces() -> None:
    """Smallest values of the right paths of the bush are 0.6, 0.7 and 0.7: a threshold of 0.65 keeps two."""
    selection = select_traces([BUSH], per_problem=9, min_value=0.65)
    assert [trace.completion_ids for trace in selection.rows] == [[103, 108], [103, 109]]
    assert (selection.considered, selection.dropped_by_reason) == (3, {"below value": 1})


def test_reward_filtered_traces() -> None:
    """1 + 0.5/5 = 1.1 and 1 + 0.1/5 = 1.02; a path without scores has 1; the threshold itself is not above it."""
    scored = replace(BUSH, scores=[None, *([0.5] * (len(BUSH.parents) - 1))])
    scored = replace(scored, scores=[0.1 if node == 9 else score for node, score in enumerate(scored.scores)])
    kept = {
        reward: [trace.completion_ids for trace in select_traces([scored], per_problem=9, min_reward=reward).rows]
        for reward in (1.0, 1.02, 1.1)
    }
    assert [len(rows) for rows in kept.values()] == [3, 2, 0]
    assert [103, 109] not in kept[1.02]
    assert select_traces([scored], per_problem=9, min_reward=1.05).dropped_by_reason == {"below reward": 1}
    assert (solution_reward([None, 0.4, 0.2]), solution_reward([None], right=False)) == (1.04, 0.0)


def test_revisions_go_back_to_the_first_wrong_step() -> None:
    """In the bush the first wrong steps are 2, whose siblings succeed, and 5; the best right path goes on from where they left it."""
    selection = revision_traces([BUSH], revision_ids=[7, 7], revision="no!\n", per_problem=9)
    assert [(trace.prompt_ids, trace.completion_ids) for trace in selection.rows] == [
        ([1, 102], [7, 7, 103, 108]),
        ([1, 101, 105], [7, 7, 104]),
    ]
    first = selection.rows[0]
    assert (first.prompt, first.completion, first.mean_value) == ("Q?\ns2\n", "no!\ns3\ns8\n", 0.8)
    assert (selection.considered, selection.dropped_by_reason) == (2, {})
    capped = revision_traces([BUSH], revision_ids=[], revision="", per_problem=1)
    assert ([trace.completion_ids for trace in capped.rows], capped.dropped_by_reason) == ([[103, 108]], {"over problem cap": 1})


def test_revisions_of_whole_solutions() -> None:
    """Every wrong solution is followed by the best right one; the token that ended it is taken off; cut solutions are no attempts."""
    record = replace(BUSH, token_ids=[*BUSH.token_ids[:6], [106, 2], *BUSH.token_ids[7:]])
    record = replace(record, stop_reasons=[*record.stop_reasons[:7], "length", *record.stop_reasons[8:]])
    selection = revision_traces([record], revision_ids=[7], revision="no!\n", of_solution=True, end_ids={2}, per_problem=9)
    assert [(trace.prompt_ids, trace.completion_ids) for trace in selection.rows] == [
        ([1, 101, 105], [7, 103, 108]),
        ([1, 102, 106], [7, 103, 108]),
    ]
    assert (selection.considered, selection.dropped_by_reason) == (2, {})


def test_revisions_need_a_right_path_and_a_step() -> None:
    """A tree without a right solution has no way back; a step that failed shows nothing; the same mistake twice is one row."""
    assert revision_traces([tree((-1, None, None), (0, 0.1, 0.0))], revision_ids=[], revision="").considered == 0
    record = tree((-1, None, None), (0, 0.9, 1.0), (0, 0.1, 0.0), (0, 0.0, 0.0), tokens={3: []})
    selection = revision_traces([record, record], revision_ids=[], revision="")
    assert ([trace.prompt_ids for trace in selection.rows], selection.considered) == ([[1, 102]], 4)
    assert selection.dropped_by_reason == {"failed step": 2, "same tokens": 1}
    unvalued = tree((-1, None, None), (0, None, 1.0), (0, 0.1, 0.0))
    assert revision_traces([unvalued], revision_ids=[], revision="").dropped_by_reason == {"no value": 1}


def test_graded_steps_of_the_bush() -> None:
    """Against their parents the good steps are 3, 4 and 8 (+.2, +.3, +.2), the bad ones 2 and 5 (-.4, -.4); the rest moves less than 0.2.

    Node 7 is 0.2 above node 2, but nothing right is below it.
    """
    selection = GradedSteps().select([BUSH])
    assert [(row.completion_ids, row.good) for row in selection.rows] == [
        ([103], True),
        ([104], True),
        ([108], True),
        ([102], False),
        ([105], False),
    ]
    row = selection.rows[1]
    assert (row.prompt_ids, row.prompt, row.completion, row.value, row.prompt_value) == ([1, 101], "Q?\ns1\n", "s4\n", 0.9, 0.6)
    assert (selection.considered, selection.dropped_by_reason) == (9, {"below margin": 3, "no evidence": 1})
    assert [row.completion_ids for row in GradedSteps(per_problem=1).select([BUSH]).rows] == [[104], [102]]


def test_graded_solutions_of_the_bush() -> None:
    """Half of the six leaves are right. Of each side the two of the highest mean values stay: right .8, .75, wrong .4 and .2."""
    selection = GradedSolutions().select([BUSH])
    found = [(row.completion_ids, row.good, row.value) for row in selection.rows]
    assert found == [([101, 104], True, 0.75), ([103, 108], True, 0.8), ([101, 105], False, 0.4), ([102, 107], False, 0.2)]
    assert {row.prompt_value for row in selection.rows} == {0.5}
    assert (selection.considered, selection.dropped_by_reason) == (6, {"over problem cap": 2})


def test_unsolved_problems_have_no_graded_solutions() -> None:
    """The share of right ones is over all trees of a problem, and without a right one nothing is learned from it."""
    wrong = tree((-1, None, None), (0, 0.1, 0.0))
    assert GradedSolutions().select([wrong]).dropped_by_reason == {"no right solution": 1}
    right = tree((-1, None, None), (0, 0.9, 1.0), tokens={1: [55]})
    assert [(row.good, row.prompt_value) for row in GradedSolutions().select([wrong, right]).rows] == [(True, 0.5), (False, 0.5)]


def test_window_counts_versions_and_not_rounds() -> None:
    """Rounds 1 to 3 searched with versions 0, 2 and 2: the newest version alone has the last two rounds."""
    records = [replace(BUSH, provenance=provenance(number, version)) for number, version in ((1, 0), (2, 2), (3, 2))]
    selection = within_window(records, versions=1)
    assert [record.provenance.round for record in selection.rows] == [2, 3]
    assert (selection.considered, selection.dropped_by_reason) == (3, {"outside the policy window": 1})
    for versions in (2, 9, None):
        assert within_window(records, versions=versions).rows == records
    assert within_window([], versions=1).rows == []


def provenance(number: int, version: int) -> Provenance:
    """The provenance of a tree of a round."""
    return replace(PROVENANCE, round=number, policy_version=version)


@pytest.mark.parametrize("seed", range(10))
def test_traces_and_graded_rows_add_up(seed: int) -> None:
    """Kept and dropped make what was considered, and good and bad rows are capped each."""
    records = [random_tree(100 * seed + i) for i in range(6)]
    for selection in (
        select_traces(records, min_value=0.3),
        revision_traces(records, revision_ids=[9], revision="x"),
        revision_traces(records, revision_ids=[9], revision="x", of_solution=True),
        GradedSteps(per_problem=2).select(records),
        GradedSolutions(per_problem=1).select(records),
    ):
        assert selection.considered == selection.kept + sum(selection.dropped_by_reason.values())
        sides = Counter((row.problem_id, row.good) for row in selection.rows if isinstance(row, GradedRow))
        assert max(sides.values(), default=0) <= 2


def test_revisions_are_exported_behind_their_mistake() -> None:
    """As text the template surrounds the question alone and the mistake follows; as a chat, whose reply would teach it, it is left out."""
    (revision,) = revision_traces([BUSH], revision_ids=[7], revision="no!\n", per_problem=1).rows
    (plain, *_) = select_traces([BUSH]).rows
    source, dropped = ExportSource(questions={"p": "Q?"}, prompt_template="<{question}>\n"), Counter[str]()
    prompts = [row["prompt"] for _, row in prompted_rows([revision, plain], source, dropped)]
    assert prompts == ["<Q?>\ns2\n", "<Q?>\n"] and not dropped
    assert [record for record, _ in trace_chats([revision, plain], source, dropped)] == [plain]
    assert dropped == {"revision, which needs text or token ids": 1}
