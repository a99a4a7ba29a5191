"""What the policy's rows of a round are made of, and that no published search leaves it without any."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepladder.data.store import write_trees
from stepladder.lm.training_rows import Replay
from stepladder.loops.config.run import Config
from stepladder.loops.config.schedule import round_config
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.results import LabelCounts, RowCounts
from stepladder.loops.stages.context import BestModels, RoundContext
from stepladder.loops.stages.kinds import ROLLOUTS, SOFT_TARGETS, TREES
from stepladder.loops.stages.label import label
from stepladder.loops.stages.train_prm import balanced
from stepladder.loops.stages.trainings import replayed
from stepladder.loops.stages.tree_rows import LabelSources, rows_of_trees
from stepladder.mcts.methods import METHODS
from stepladder.recipes import find_recipe
from stepladder.types import Budget, LabelledProblem, Problem, StopReason, Trace, TreeRecord, ValueRow
from tests import inline, searches
from tests.report_run import config
from tests.trees import PROVENANCE, tree

SOLVED = tree((-1, 0.5, None), (0, 0.8, 1.0), (0, 0.1, 0.0))
ROLLED_OUT = replace(tree((-1, 0.5, None), (0, 1.0, 1.0), (0, 0.0, 0.0), tokens={1: [7], 2: [8]}))


def sources(folder: Path, trees: list[TreeRecord], *rollouts: list[TreeRecord]) -> LabelSources:
    """Return the sources of a shard with these trees, and rollouts of earlier rounds."""
    paths = [folder / f"{name}.parquet" for name in ("trees", *map(str, range(len(rollouts))))]
    for path, records in zip(paths, (trees, *rollouts), strict=True):
        write_trees(path, records)
    return LabelSources(trees=paths[0], rollouts=tuple(paths[1:]), new_rollouts=tuple(paths[1:][-1:]))


def completions(settings: Config, given: LabelSources) -> list[list[int]]:
    """Return the tokens of the traces."""
    return sorted(row.completion_ids for row in rows_of_trees(settings, given).all_traces)


def test_rollouts_of_the_round_before_are_traces_and_pairs(tmp_path: Path) -> None:
    """The trees give 101 over 102, the last rollouts 7 over 8, older rollouts nothing; the PRM's rows stay those of the trees."""
    given = sources(tmp_path, [SOLVED], [replace(ROLLED_OUT, token_ids=[[], [9], [6]])], [ROLLED_OUT])
    rows = rows_of_trees(config(), given)
    assert sorted(row.completion_ids for row in rows.traces.rows) == [[7], [101]]
    assert sorted((pair.chosen_ids, pair.rejected_ids) for pair in rows.pairs.rows) == [([7], [8]), ([101], [102])]
    assert {tuple(row.step_ids[0]) for row in rows.values.rows} == {(101,), (102,)}
    alone = rows_of_trees(config(labels={"rollouts": False}), given)
    assert [row.completion_ids for row in alone.traces.rows] == [[101]]
    assert [pair.chosen_ids for pair in alone.pairs.rows] == [[101]]


class Noting(inline.InlinePool):
    """Labels nothing, and notes what labelling would read."""

    def run(self, tasks: Any, **_: Any) -> list[LabelCounts]:
        """Note the sources of every task."""
        self.sources = [task.arguments["sources"] for task in tasks]
        return [LabelCounts(**dict.fromkeys(("traces", "pairs", "values"), RowCounts(kept=0))) for _ in tasks]


@pytest.mark.parametrize(
    ("table", "labelled"),
    [
        # The second round makes no rollouts, so the third labels none; those of round 3 wait for round 4.
        ({"round": 2, "prm": {"enabled": False}}, {2: [1], 3: [], 4: [3]}),
        # Samples from before a search are labelled in their own round, and not in the next one again.
        ({"round": 2, "prm": {"when": "before-search", "rollouts": 2}}, {2: [2], 3: [], 4: [3]}),
    ],
)
def test_rollouts_are_labelled_in_one_round(table: dict[str, Any], labelled: dict[int, list[int]], tmp_path: Path) -> None:
    """Whatever a schedule says of the rounds, no rollouts teach the policy twice; windows of recent trees see all of them."""
    pool, run, settings = Noting(), RunDir(root=tmp_path), config(rounds=[table])
    problems = {"train": [LabelledProblem(problem=Problem(id="p", question="q"), answer="1")]}
    context = RoundContext(config=settings, run=run, problems=problems, pool=pool, display=ProgressDisplay())  # type: ignore[arg-type]
    made = [number for number in (1, 2, 3) if number != 2 or "when" in table["prm"]]
    for number in made:
        write_trees(run.shard(number, ROLLOUTS.name, 0), [ROLLED_OUT])
    for number, expected in labelled.items():
        label(context.in_round(round_config(settings, number)), number, BestModels(policy=0, prm=None))
        [found] = pool.sources
        assert found.new_rollouts == tuple(run.shard(each, ROLLOUTS.name, 0) for each in expected)
        assert len(found.rollouts) == sum(each < number + ("when" in table["prm"] and number == 2) for each in made)


def test_samples_without_a_tree_teach_the_prm_where_trees_begin_with_samples(tmp_path: Path) -> None:
    """The samples of the searched problem are in its tree already; those of the other one, 7 right and 8 wrong, stand alone."""
    given = sources(tmp_path, [SOLVED], [replace(ROLLED_OUT, problem_id="older")], [ROLLED_OUT, replace(ROLLED_OUT, problem_id="other")])
    rows = rows_of_trees(config(search={"start": "first-samples"}), given).values.rows
    found = {(row.problem_id, row.step_ids[0][0]): row.targets for row in rows}
    assert found == {("p", 101): [1.0], ("p", 102): [0.0], ("other", 7): [1.0], ("other", 8): [0.0]}
    assert len(rows) == 4


def test_caps_and_order_hold_over_trees_and_rollouts(tmp_path: Path) -> None:
    """One trace a problem: the rollout's, whose value is 1.0 against 0.8."""
    assert completions(config(labels={"traces_per_problem": 1}), sources(tmp_path, [SOLVED], [ROLLED_OUT])) == [[7]]


def test_the_policy_window_takes_rollouts_by_their_version(tmp_path: Path) -> None:
    """The trees are of policy 2, the rollouts of policies 1 and 2: a window of one version leaves out the first rollouts."""
    older, newer = (replace(PROVENANCE, policy_version=version) for version in (1, 2))
    given = sources(
        tmp_path,
        [replace(SOLVED, provenance=newer)],
        [replace(ROLLED_OUT, provenance=older)],
        [replace(ROLLED_OUT, token_ids=[[], [9], [6]], provenance=newer)],
    )
    assert completions(config(labels={"data": {"type": "on-policy", "window": 1}}), given) == [[9], [101]]


def test_labels_go_by_the_chosen_value_and_the_prm_by_its_own_target(tmp_path: Path) -> None:
    """By score, step 102 is worth .9 and 101 .2, so no pair has a margin; the PRM still learns from tree values, mapped from [-1, 1]."""
    record = replace(tree((-1, 0.0, None), (0, 1.0, 1.0), (0, -1.0, 0.0)), scores=[None, 0.2, 0.9])
    by_value = rows_of_trees(config(prm={"target": "tree-value"}), sources(tmp_path, [record]))
    assert [(pair.chosen_value, pair.rejected_value) for pair in by_value.pairs.rows] == [(1.0, 0.0)]
    assert sorted(target for row in by_value.values.rows for target in row.targets if target is not None) == [0.0, 1.0]
    by_score = rows_of_trees(config(labels={"value": "score"}, prm={"target": "tree-value"}), sources(tmp_path, [record]))
    assert by_score.pairs.dropped_by_reason == {"below margin": 1}
    assert [row.mean_value for row in by_score.traces.rows] == [0.2]
    assert by_score.values.rows == by_value.values.rows


def deep_steps(prefix_ids: tuple[int, ...], index: int, seed: int) -> Any:
    """Propose one of two letters three times, then an answer; ends differ below every node."""
    lines = "".join(map(chr, prefix_ids)).count("\n")
    if lines < 2:
        return searches.make_step("ab"[index % 2] + "\n", logp=-0.7)
    return searches.make_step(f"={'123'[(index + seed) % 3]}", stop_reason=StopReason.END, logp=-1.1)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scorer", [None, searches.score], ids=["no-prm", "prm"])
def test_every_published_search_that_solves_gives_rows(name: str, scorer: Any, tmp_path: Path) -> None:
    """Whatever a search backs up, its values are usable: every solved problem has a trace, and all values of rows are in [0, 1]."""
    budget = Budget(num_simulations=24, max_depth=6)
    found = searches.run(name, policy=deep_steps, scorer=scorer, answers=searches.ANSWERS, budget=budget, problems=searches.PROBLEMS[:2])
    trees = [result.tree for result in found.values()]
    solved = {tree.problem_id for tree in trees if 1.0 in tree.outcomes}
    assert solved, "the policy is made so that every search finds something"
    TREES.write(tmp_path / "trees.parquet", trees)
    for value in ("tree-value", "q", "score"):
        rows = rows_of_trees(config(labels={"value": value}), LabelSources(trees=tmp_path / "trees.parquet"))
        assert {row.problem_id for row in rows.traces.rows} == solved
        values = [row.mean_value for row in rows.traces.rows]
        values += [value for pair in rows.pairs.rows for value in (pair.chosen_value, pair.rejected_value)]
        assert all(0.0 <= value <= 1.0 for value in values)


def test_the_recipe_of_mcts_dpo_compares_reward_and_value(tmp_path: Path) -> None:
    """The second tree of ``test_mcts_dpo_by_hand``: a gained 0.2 and loses 0.1 below, b lost 0.1 and has nothing below.

    By reward + value, a is better (0.1 against -0.1); by value alone b would be, just because nothing was lost after it.
    """
    scores = {"a": 0.7, "b": 0.4, "aa": 0.9, "ab": 0.3}

    def known(prefix_ids: tuple[int, ...]) -> float:
        return scores["".join(map(chr, prefix_ids)).split("\n", 1)[1]]

    made = searches.one(
        "mcts-dpo",
        policy=lambda prefix_ids, index, seed: searches.make_step("ab"[index]),
        scorer=known,
        num_children=2,
        budget=Budget(num_simulations=2),
    ).tree
    pairs = {"type": "mcts-dpo", "right_end": False}
    for value, expected in ((find_recipe("mcts-dpo").settings["labels"]["value"], ("a", "b")), ("tree-value", ("b", "a"))):
        rows = rows_of_trees(config(labels={"value": value, "pairs": pairs}), sources(tmp_path, [made])).pairs.rows
        assert (rows[0].chosen, rows[0].rejected) == expected


def test_solved_examples_are_replayed_in_their_share() -> None:
    """A third of nine rows is three of them; six of four examples come once or twice each; the same seed draws the same."""
    examples = [
        Trace(
            problem_id=str(index), prompt_ids=[1], completion_ids=[index], prompt="", completion="", mean_value=1.0, provenance=PROVENANCE
        )
        for index in range(4)
    ]
    drawn = replayed(Replay(rows=examples, share=1 / 3), num_rows=6, seed=5)
    assert len({row.problem_id for row in drawn}) == len(drawn) == 3
    assert replayed(Replay(rows=examples, share=1 / 3), num_rows=6, seed=5) == drawn
    twice = [row.problem_id for row in replayed(Replay(rows=examples, share=0.5), num_rows=6, seed=5)]
    assert {twice.count(name) for name in "0123"} == {1, 2}
    assert len(twice) == 6
    assert replayed(Replay(rows=examples, share=0.0), num_rows=6, seed=5) == []


@pytest.mark.parametrize(
    ("right_share", "expected"),
    [(0.0, ["r0", "w", "w", "r1", "w", "w", "w"]), (0.5, ["r0", "w", "w", "r1", "w", "w", "w", "r0", "r1", "r0"]), (0.25, None)],
)
def test_right_solutions_are_repeated_up_to_their_share(right_share: float, expected: list[str] | None) -> None:
    """Two of seven are right: for a half, five of ten must be, so three are repeated in turn; a quarter is reached already."""
    rows = [
        ValueRow(
            problem_id=name, prompt_ids=[1], step_ids=[[2]], targets=[float(name != "w")], prompt="", steps=[""], provenance=PROVENANCE
        )
        for name in ("r0", "w", "w", "r1", "w", "w", "w")
    ]
    made = [row.problem_id for row in balanced(rows, right_share=right_share)]
    assert made == (expected or [row.problem_id for row in rows])
    wrong = [row for row in rows if row.problem_id == "w"]
    assert balanced(wrong, right_share=right_share) == wrong


def test_soft_targets_come_from_the_rounds_own_trees(tmp_path: Path) -> None:
    """The root's two steps with their visits; samples give none; without the setting there are none."""
    given = sources(tmp_path, [replace(SOLVED, visits=[9, 6, 2])], [replace(ROLLED_OUT, visits=[8, 4, 4])])
    rows = rows_of_trees(config(labels={"soft_targets": "visits"}), given)
    assert rows.soft_targets is not None
    assert [(row.completion_ids, row.weight) for row in rows.soft_targets.rows] == [([101], 0.75), ([102], 0.25)]
    assert rows.counts().by_kind["soft_targets"].kept == 2
    SOFT_TARGETS.write(tmp_path / "soft.parquet", rows.soft_targets.rows)
    assert SOFT_TARGETS.read([tmp_path / "soft.parquet"]) == rows.soft_targets.rows
    assert rows_of_trees(config(), given).soft_targets is None


def test_rollouts_are_stored_as_trees_are() -> None:
    """Labelling reads both kinds by one schema."""
    assert ROLLOUTS.stored is TREES.stored
