"""Rows of every kind from a tree with observations: what is context, what is learned, and what is left out."""

from collections.abc import Sequence
from dataclasses import replace

from stepladder.data.labels.graded import GradedSolutions, GradedSteps
from stepladder.data.labels.pair_rules import EvidencePairs
from stepladder.data.labels.rollouts import Estimate, Prefix, rollout_values
from stepladder.data.labels.rstar_math import StepPairs
from stepladder.data.labels.traces import revision_traces, select_traces
from stepladder.data.labels.value_rows import value_rows
from tests.trees import HAND, tree

GIVEN = {1: [901], 2: [902, 903], 4: [904], 7: [907]}
"""Observations after steps of ``HAND``; that after the last step of a right solution is context of nothing."""
OBSERVED = replace(
    HAND,
    given_ids=[GIVEN.get(node, []) for node in range(10)],
    given_texts=[f"<{node}>" if node in GIVEN else "" for node in range(10)],
)


def test_traces_hold_observations_between_steps_and_mark_them() -> None:
    """0-1-4-7: the steps 101, 104, 107 with 901 and 904 between, not 907 after the end."""
    (best, other) = select_traces([OBSERVED]).rows
    assert best.completion_ids == [101, 901, 104, 904, 107]
    assert best.completion_given == [False, True, False, True, False]
    assert best.completion == "s1\n<1>s4\n<4>s7\n"
    assert other.completion_ids == [101, 901, 104, 904, 108]
    (plain, _) = select_traces([HAND]).rows
    assert plain.completion_ids == [101, 104, 107] and plain.completion_given == []


def test_a_revision_shows_the_observations_of_the_mistake() -> None:
    """The mistake 2 with its observation is context; the sentence and the right way are learned, but for what was given on it."""
    rows = revision_traces([OBSERVED], revision_ids=[50], revision="!").rows
    row = next(row for row in rows if row.prompt_ids == [1, 102, 902, 903])
    assert row.completion_ids == [50, 101, 901, 104, 904, 107]
    assert row.completion_given == [False, False, True, False, True, False]
    assert row.prompt == "Q?\ns2\n<2>" and row.completion == "!s1\n<1>s4\n<4>s7\n"


def test_pairs_of_steps_share_observations_and_end_before_their_own() -> None:
    """Children of the root differ in their steps alone; children of 4 come after both observations of the way."""
    rows = EvidencePairs(min_margin=0.0).select([OBSERVED]).rows
    assert [(row.prompt_ids, row.chosen_ids, row.rejected_ids) for row in rows] == [([1], [101], [102]), ([1, 101, 901], [104], [105])]
    assert rows[1].prompt == "Q?\ns1\n<1>"
    assert all(row.chosen_given == row.rejected_given == [] for row in rows)


def test_pairs_of_solutions_mark_both_sides() -> None:
    """Whole solutions hold what was given between their steps; its log-probability is 0."""
    rows = [row for row in StepPairs().select([OBSERVED]).rows if len(row.chosen_ids) > 1]
    row = next(row for row in rows if row.rejected_ids == [102, 902, 903, 106])
    assert row.chosen_ids == [101, 901, 104, 904, 107] and row.chosen_given == [False, True, False, True, False]
    assert row.rejected_given == [False, True, True, False]


def test_graded_rows_mark_solutions_and_put_observations_before_steps() -> None:
    """Steps come after all observations on their way; solutions hold them with log-probability 0."""
    steps = GradedSteps(min_margin=0.0).select([OBSERVED]).rows
    assert {tuple(row.prompt_ids) for row in steps} == {(1,), (1, 101, 901), (1, 102, 902, 903), (1, 101, 901, 104, 904)}
    solutions = GradedSolutions().select([OBSERVED]).rows
    row = next(row for row in solutions if row.completion_ids == [102, 902, 903, 109])
    assert row.completion_given == [False, True, True, False] and row.logps == [-0.5, 0.0, 0.0, -0.5]
    assert row.completion == "s2\n<2>s9\n"


def test_value_rows_keep_observations_apart_from_steps() -> None:
    """Each step is followed by its observation, the last by none; a tree without observations has no lists."""
    rows = value_rows([OBSERVED]).rows
    row = next(row for row in rows if row.step_ids == [[101], [104], [107]])
    assert row.given_ids == [[901], [904], []] and row.given_texts == ["<1>", "<4>", ""]
    assert next(row for row in rows if row.step_ids == [[101], [105]]).given_ids == [[901], []]
    assert all(row.given_ids == [] for row in value_rows([HAND]).rows)


def test_rollouts_start_after_the_observation_of_their_node() -> None:
    """A prefix holds every observation up to and after its node, with their ranges."""
    bare = tree((-1, None, None), (0, None, None), (1, None, None))
    record = replace(bare, given_ids=[[], [901, 902], [903]], given_texts=["", "a", "b"])
    asked: list[Prefix] = []

    def ask(prefixes: Sequence[Prefix]) -> list[Estimate]:
        asked.extend(prefixes)
        return [Estimate(1, 2)] * len(prefixes)

    assert rollout_values([record], ask) == [[None, 0.5, 0.5]]
    assert [(prefix.token_ids, prefix.observations) for prefix in asked] == [
        ((101, 901, 902), ((1, 3),)),
        ((101, 901, 902, 102, 903), ((1, 3), (4, 5))),
    ]
