"""The passes of a search: who gets another tree, what a stopped stage keeps, and the table that carries pass rates to the next round."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from stepladder.data.store import write_trees
from stepladder.errors import DataFormatError
from stepladder.files import atomic_write_text
from stepladder.loops.config.run import Config
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.problem_table import Attempt, ProblemRow, next_table, read_problem_table, write_problem_table
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.token_use import TokenUse, use_path
from stepladder.loops.stages import search as search_stage
from stepladder.loops.stages.context import Models, RoundContext
from stepladder.loops.stages.failures import read_failures, write_failures
from stepladder.loops.stages.first_samples import first_samples
from stepladder.loops.stages.kinds import ROLLOUTS, TREES
from stepladder.loops.stages.problem_states import write_problems
from stepladder.types import Budget, Failures, LabelledProblem, Problem, Step, StopReason, TreeRecord
from tests import inline
from tests.folders import contents
from tests.report_run import config
from tests.searches import engine
from tests.trees import PROVENANCE, tree

PROBLEMS = [Problem(id=f"p{index}", question=f"q{index}") for index in range(7)]
# Two problems can be solved at once, one never, the others now and then.
ANSWERS = {"p0": "1", "p1": "9", "p2": "2", "p3": "3", "p4": "1", "p5": "2", "p6": "3"}
USE = TokenUse(unique_tokens=1, forwarded_tokens=2, prefix_tokens=None, cached_tokens=None, prm_forwarded_tokens=None)


class InlinePool(inline.InlinePool):
    """Runs tasks here, in some order, and stops before one of them if it is told to."""

    def __init__(self, *, reverse: bool = False, stop_at: int | None = None) -> None:
        """Take the order, and the number of the task at which a kill is acted out."""
        super().__init__()
        self.reverse, self.stop_at, self.done = reverse, stop_at, 0

    def run(self, tasks: list[Any], *, on_progress: Callable[..., None], **_: Any) -> list[Any]:
        """Return the results in the order of the tasks."""
        results: dict[int, Any] = {}
        for index in sorted(range(len(tasks)), reverse=self.reverse):
            if self.done == self.stop_at:
                raise KeyboardInterrupt
            self.done += 1
            results[index] = tasks[index].function(**tasks[index].arguments)
        return [results[index] for index in range(len(tasks))]


def scripted_trees(
    settings: Config,
    models: Models,
    problems: list[LabelledProblem],
    *,
    budget: Budget | Callable[[Problem], Budget],
    out: Path,
    tree_number: int,
    **_: Any,
) -> None:
    """Search with scripted models, in the place of ``write_labelled_trees``."""
    made = engine(answers=ANSWERS, budget=budget, tree_number=tree_number)
    found = {result.problem_id: result.tree for result in made.search([labelled.problem for labelled in problems])}
    atomic_write_text(use_path(out), json.dumps(asdict(USE)))
    write_failures(out, Failures(num_samples=2, num_failed=1, first_message="lost"))
    TREES.write(out, [found[labelled.problem.id] for labelled in problems])


def context(root: Path, allocation: dict[str, Any], pool: InlinePool, **search: Any) -> RoundContext:
    """Return a run of seven problems in shards of three."""
    root.mkdir(parents=True, exist_ok=True)
    settings = config(run={"seed": 3, "shard_size": 3}, search={"simulations": 4, "max_depth": 6, "allocation": allocation, **search})
    problems = {"train": [LabelledProblem(problem=problem, answer=ANSWERS[problem.id]) for problem in PROBLEMS]}
    return RoundContext(config=settings, run=RunDir(root=root), problems=problems, pool=pool, display=ProgressDisplay())  # type: ignore[arg-type]


def searched(context: RoundContext, monkeypatch: pytest.MonkeyPatch) -> list[TreeRecord]:
    """Search round 1 and return its trees."""
    monkeypatch.setattr(search_stage, "write_labelled_trees", scripted_trees)
    search_stage.search(context, 1, Models(policy="p", prm=None, provenance=PROVENANCE))
    return TREES.read(context.paths(1, TREES))


def data_of(context: RoundContext) -> dict[str, bytes]:
    """Return every file of the round but the events."""
    return contents(context.run.round(1))


UNSOLVED = {"type": "unsolved-first", "trees_per_problem": 4}


def test_unsolved_problems_get_further_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A problem's last tree alone may hold a right end; the impossible one has all four trees; trees of one problem differ."""
    run = context(tmp_path, UNSOLVED, InlinePool())
    trees = searched(run, monkeypatch)
    by_problem: dict[str, list[TreeRecord]] = {}
    for each in trees:
        by_problem.setdefault(each.problem_id, []).append(each)
    assert list(by_problem) == [problem.id for problem in PROBLEMS]
    for own in by_problem.values():
        solved = [1.0 in each.outcomes for each in own]
        assert not any(solved[:-1])
        assert solved[-1] or len(own) == 4
        assert len({str(each.token_ids) for each in own}) == len(own)
    assert len(by_problem["p1"]) == 4
    assert len({len(own) for own in by_problem.values()}) > 1
    assert not (run.run.round(1) / "passes").exists()


def test_bytes_do_not_depend_on_order_or_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks in the other order, and a stage stopped before each of its tasks and continued, give the bytes of an undisturbed one."""
    pool = InlinePool()
    whole = context(tmp_path / "whole", UNSOLVED, pool)
    searched(whole, monkeypatch)
    expected = data_of(whole)
    other = context(tmp_path / "other", UNSOLVED, InlinePool(reverse=True))
    searched(other, monkeypatch)
    assert data_of(other) == expected
    for stop in range(1, pool.done, 4):
        stopped = context(tmp_path / f"stopped-{stop}", UNSOLVED, InlinePool(stop_at=stop))
        with pytest.raises(KeyboardInterrupt):
            searched(stopped, monkeypatch)
        again = context(tmp_path / f"stopped-{stop}", UNSOLVED, InlinePool())
        searched(again, monkeypatch)
        assert again.pool.done < pool.done  # type: ignore[attr-defined]
        assert data_of(again) == expected


def test_figures_of_passes_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens forwarded and failed samples of a shard are sums over its passes; passes without a problem of the shard add none."""
    run = context(tmp_path, UNSOLVED, InlinePool())
    trees = searched(run, monkeypatch)
    shard = run.paths(1, TREES)[0]
    passes = max(Counter(each.problem_id for each in trees if each.problem_id in ("p0", "p1", "p2")).values())
    assert TokenUse.load(use_path(shard)).forwarded_tokens == 2 * passes
    assert read_failures([shard]) == Failures(num_samples=2 * passes, num_failed=passes, first_message="lost")


def test_only_the_first_trees_begin_with_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A problem's first tree goes on from the round's sample of it; its further trees draw anew, as a tree without a sample does."""
    given: list[tuple[int, set[str]]] = []

    def noted(*positional: Any, tree_number: int, samples: Any, **named: Any) -> None:
        given.append((tree_number, set(samples or {})))
        scripted_trees(*positional, tree_number=tree_number, **named)

    run = context(tmp_path, UNSOLVED, InlinePool(), start="first-samples")
    for index, path in enumerate(run.paths(1, ROLLOUTS)):
        ROLLOUTS.write(path, [tree((-1, None, None), (0, None, 0.0), problem_id=f"p{3 * index}")])
    monkeypatch.setattr(search_stage, "write_labelled_trees", noted)
    search_stage.search(run, 1, Models(policy="p", prm=None, provenance=PROVENANCE))
    assert given[:3] == [(0, {"p0"}), (0, {"p3"}), (0, {"p6"})]
    assert given[3:] and not any(samples for _, samples in given[3:])


def test_first_samples_are_the_draws_of_a_tree() -> None:
    """Two draws share their first step. One ends, the depth limit cuts the other after a whole step, and a third one failed."""
    sampled = tree((-1, None, None), (0, None, None), (1, None, 1.0), (1, None, 0.0), (0, None, 0.0))
    sampled = replace(sampled, stop_reasons=["step", "step", "end", "depth", "error"])
    assert first_samples([sampled]) == {
        "p": (
            (_step(101, "s1\n", StopReason.STEP), _step(102, "s2\n", StopReason.END)),
            (_step(101, "s1\n", StopReason.STEP), _step(103, "s3\n", StopReason.STEP)),
        )
    }
    assert first_samples([replace(sampled, stop_reasons=["step", "step", "error", "error", "error"])]) == {}


def _step(token: int, text: str, reason: StopReason) -> Step:
    return Step(token_ids=(token,), logps=(-0.5,), text=text, stop_reason=reason)


def test_a_pool_bounds_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 90 tokens a problem the impossible problem gets fewer trees than without a bound, and the sum stays near the pool."""
    free = searched(context(tmp_path / "free", {**UNSOLVED, "trees_per_problem": 10}, InlinePool(), max_tokens=60), monkeypatch)
    pooled = context(tmp_path / "pool", {**UNSOLVED, "trees_per_problem": 10, "pool_tokens": 90}, InlinePool(), max_tokens=60)
    trees = searched(pooled, monkeypatch)
    assert len(trees) < len(free)
    assert sum(each.generated_tokens for each in trees) <= 1.1 * 90 * len(PROBLEMS)


def test_the_table_counts_and_carries() -> None:
    """Trees of a are right once in four; b is not searched and keeps what was known; c's rollouts stand for it; d is new."""
    before = {
        "a": ProblemRow(problem_id="a", pass_rate=0.9, solved_round=None),
        "b": ProblemRow(problem_id="b", trees=2, generated_tokens=9, ends=4, right=1, pass_rate=0.25, solved_round=1),
    }
    trees = [Attempt(problem_id="a", tokens=5, outcomes=[1.0, 0.0]), Attempt(problem_id="a", tokens=6, outcomes=[0.0, 0.0])]
    trees.append(Attempt(problem_id="c", tokens=7, outcomes=[1.0]))
    table = next_table(
        ["a", "b", "c", "d"], before, number=3, trees=trees, rollouts=[Attempt(problem_id="c", tokens=2, outcomes=[0.0, 0.0])]
    )
    assert table == [
        ProblemRow(problem_id="a", trees=2, generated_tokens=11, ends=4, right=1, pass_rate=0.25, solved_round=3),
        ProblemRow(problem_id="b", pass_rate=0.25, solved_round=1),
        ProblemRow(problem_id="c", trees=1, generated_tokens=9, ends=2, right=0, pass_rate=0.0, solved_round=3),
        ProblemRow(problem_id="d"),
    ]


def test_the_next_round_reads_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Round 1 finds the rates of round 0's table: the curriculum searches the two problems in the middle, and the table goes on."""
    run = context(tmp_path, {"type": "prompt-curriculum", "share": 0.25}, InlinePool())
    rates = [0.0, 0.45, 1.0, 0.9, 0.1, 0.52, 0.8]
    write_problem_table(
        run.run.round(0) / "problems.parquet",
        [ProblemRow(problem_id=problem.id, pass_rate=rate) for problem, rate in zip(PROBLEMS, rates, strict=True)],
    )
    assert [each.problem_id for each in searched(run, monkeypatch)] == ["p1", "p5"]
    write_problems(run, 1)
    table = read_problem_table(run.run.round(1) / "problems.parquet")
    assert [table[problem.id].trees for problem in PROBLEMS] == [0, 1, 0, 0, 0, 1, 0]
    assert (table["p6"].pass_rate, table["p1"].pass_rate) == (0.8, 0.0)


def test_a_round_may_search_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every rate is filtered out, all shards are empty, and the table carries the rates on."""
    run = context(tmp_path, {"type": "by-pass-rate", "trees": [0, 1, 0]}, InlinePool())
    path = run.run.round(0) / "problems.parquet"
    write_problem_table(path, [ProblemRow(problem_id=problem.id, pass_rate=index % 2) for index, problem in enumerate(PROBLEMS)])
    assert searched(run, monkeypatch) == [] and len(run.run.shards(TREES.name, rounds=[1])) == 3
    write_problems(run, 1)
    table = read_problem_table(run.run.round(1) / "problems.parquet")
    assert [table[problem.id].pass_rate for problem in PROBLEMS] == [0, 1, 0, 1, 0, 1, 0]


def test_a_damaged_table_is_one_sentence(tmp_path: Path) -> None:
    """Other bytes, and another kind of file, name the file and the remedy."""
    path = tmp_path / "problems.parquet"
    assert read_problem_table(path) == {}
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(DataFormatError, match=r"problems\.parquet.*remove the round's directory"):
        read_problem_table(path)
    write_trees(path, [tree((-1, None, None))])
    with pytest.raises(DataFormatError, match="must be a table of problems, schema version 1: got columns"):
        read_problem_table(path)
