"""Gates: only a model that is not worse on held-out problems replaces the best one."""

import json
from dataclasses import replace
from typing import Any

import pytest

from stepladder.data.metrics.answers import mcnemar_p_value, sign_test_p_value
from stepladder.loops.config.run import Config
from stepladder.loops.config.search import GateConfig
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.results import FailedTraining, RoundTraining
from stepladder.loops.runs.split_figures import PoolFigures, SplitFigures
from stepladder.loops.stages import judge
from stepladder.loops.stages.context import RoundContext
from stepladder.loops.stages.gate import GateEvidence, fails, fall_back, gate_policy, gate_prm
from stepladder.types import LabelledProblem, Problem
from tests.inline import InlinePool
from tests.report_run import row, unmeasured


@pytest.mark.parametrize(
    ("candidate", "best", "max_drop", "accepted"),
    [
        (0.5, 0.4, 0.0, True),
        (0.4, 0.4, 0.0, True),
        (0.39, 0.4, 0.0, False),
        (0.39, 0.4, 0.02, True),
        (None, 0.4, 0.0, False),
        (0.1, None, 0.0, True),
    ],
)
def test_policy_gate(candidate: float | None, best: float | None, max_drop: float, accepted: bool) -> None:
    """Equal or better passes, worse by more than the tolerance does not, and an untrained policy never does."""
    decision = gate_policy(candidate, best, GateConfig(max_drop=max_drop), GateEvidence(problems=10))
    assert decision.accepted is accepted
    assert decision.reason


@pytest.mark.parametrize(
    ("candidate", "best", "accepted"), [(0.5, None, False), (0.51, None, True), (0.7, 0.8, False), (0.8, 0.8, True), (None, None, False)]
)
def test_prm_gate_asks_for_more_than_chance(candidate: float | None, best: float | None, accepted: bool) -> None:
    """A PRM at chance is never adopted, not even as the first."""
    assert gate_prm(candidate, best, GateConfig(), GateEvidence(problems=10)).accepted is accepted


def test_sign_test_by_hand() -> None:
    """Of 5 problems all in favour: 1/32; 4 of 5: 6/32; none: 1; without problems: 1."""
    assert (sign_test_p_value(5, 0), sign_test_p_value(4, 1), sign_test_p_value(0, 5), sign_test_p_value(0, 0)) == (
        1 / 32,
        6 / 32,
        1.0,
        1.0,
    )
    assert mcnemar_p_value(5, 0) == 2 * sign_test_p_value(5, 0)


@pytest.mark.parametrize(
    ("rule", "better", "worse", "accepted", "reason"),
    [
        ("not-worse", 3, 9, True, "3 problems better, 9 worse, p = 0.073 of being worse"),
        ("not-worse", 3, 10, False, "3 problems better, 10 worse, worse with p = 0.046 < 0.05"),
        ("better", 9, 3, False, "9 problems better, 3 worse, p = 0.073 of being better"),
        ("better", 10, 3, True, "10 problems better, 3 worse, better with p = 0.046 < 0.05"),
        ("better", 0, 0, False, "0 problems better, 0 worse, p = 1.000 of being better"),
    ],
)
def test_the_paired_test_decides_at_its_confidence(rule: Any, better: int, worse: int, accepted: bool, reason: str) -> None:
    """P(X >= 9 | 12) = 299/4096 = 0.073, P(X >= 10 | 13) = 378/8192 = 0.046: the second is below 0.05."""
    decision = gate_policy(0.5, 0.5, GateConfig(rule=rule), GateEvidence(problems=100, better=better, worse=worse))
    assert decision.accepted is accepted
    assert decision.reason == f"held-out pass@1 50.0 %, best before 50.0 %: {reason}"


def test_too_little_evidence_is_a_rejection() -> None:
    """Fewer problems or rows than the gate asks for, whatever the figures; equal numbers are enough."""
    few = gate_prm(0.9, None, GateConfig(), GateEvidence(problems=4, rows=100))
    assert (few.accepted, few.reason) == (
        False,
        "held-out within-problem AUC 0.900 was measured on 4 problems, fewer than gate.min_problems = 5",
    )
    poor = gate_prm(0.9, None, GateConfig(), GateEvidence(problems=5, rows=1))
    assert (poor.accepted, poor.reason) == (False, "it learned from 1 rows, fewer than gate.min_rows = 2")
    assert gate_prm(0.9, None, GateConfig(), GateEvidence(problems=5, rows=2)).accepted


def test_evidence_counts_problems_that_both_have() -> None:
    """Better on b, worse on c, equal on a; d was measured for one of them only."""
    found = judge._evidence({"a": 1, "b": 1, "c": 0, "d": 1}, {"a": 1, "b": 0, "c": 1}, rows=7)
    assert found == GateEvidence(problems=4, better=1, worse=1, rows=7)


def test_a_failing_prm_gives_way_to_the_best_earlier_one() -> None:
    """The highest AUC above chance, the newest of equals; none where all are at chance or could not be measured."""
    assert fall_back({1: 0.6, 2: 0.7, 3: 0.5}) == 2
    assert fall_back({1: 0.6, 2: 0.6}) == 2
    assert fall_back({1: 0.5, 2: None}) is None
    assert fall_back({}) is None
    assert (fails(0.5), fails(0.51), fails(None)) == (True, False, False)


def run_with_history(root, aucs):
    """Write a run whose rounds 1 to 3 had PRMs accepted, and the samples of round 4 as the earlier ones score them."""
    run = RunDir(root=root)
    for number in range(4):
        run.finish_round(replace(row(number, policy=0.5, search=0.5, majority=0.5), prm_accepted=number > 0))
    for earlier, auc in aucs.items():
        right, wrong = (0.9, 0.1) if auc == 1.0 else (0.5, 0.5)
        samples = [{"num_tokens": 1, "answer_key": "a", "score": right, "correct": True}]
        samples += [{"num_tokens": 1, "answer_key": "b", "score": wrong, "correct": False}]
        folder = run.round(4) / "evaluation" / "held_out" / f"samples-prm-{earlier}"
        folder.mkdir(parents=True)
        (folder / "shard-0000.json").write_text(json.dumps({"rows": [{"problem_id": "p", "samples": samples}]}))
    config = Config.model_validate({"policy": {"model": "m"}, "problems": {"train": "a", "test": "b"}})
    problems = {"held_out": [LabelledProblem(problem=Problem(id="p", question="?"), answer="a")]}
    return RoundContext(config=config, run=run, problems=problems, pool=InlinePool(), display=ProgressDisplay())


def held_out(candidate: float | None, best: float | None) -> SplitFigures:
    return replace(unmeasured(), pool=PoolFigures(prm_within_problem_auc=candidate), best_prm_within_problem_auc=best)


def test_a_round_without_a_new_prm_keeps_the_best_one_unless_it_fails(tmp_path) -> None:
    """At 0.6 it stays; at 0.48 the best of rounds 1 and 2 takes its place, or none; the clause says which."""
    context = run_with_history(tmp_path / "a", {1: 1.0, 2: 0.5})
    assert judge.kept_prm(context, 4, 4, 3, held_out(0.55, 0.6)) == (3, "; the PRM of round 3 stays")
    assert judge.kept_prm(context, 4, 4, 3, held_out(0.6, None)) == (3, "; the PRM of round 3 stays")
    assert judge.kept_prm(context, 4, 4, None, held_out(0.4, None)) == (None, "")
    chosen, clause = judge.kept_prm(context, 4, 4, 3, held_out(0.45, 0.48))
    assert chosen == 1
    assert clause == "; the PRM of round 3 has 0.480 on the new policy's solutions and is given up for that of round 1"
    chosen, clause = judge.kept_prm(run_with_history(tmp_path / "b", {1: 0.5, 2: 0.5}), 4, 4, 3, held_out(0.45, 0.48))
    assert chosen is None
    assert clause.endswith("is given up, the search goes on without one")


def test_a_training_that_fails_is_a_rejection_with_its_reason(tmp_path) -> None:
    """A loss that is not finite, or nothing to compare, leaves the earlier PRM in place."""
    context = run_with_history(tmp_path, {})
    decision = judge._prm_decision(
        context, 4, 3, 3, held_out(0.6, None), RoundTraining(prm=FailedTraining(failed="the loss must be finite"))
    )
    assert not decision.accepted
    assert decision.reason == "training failed: the loss must be finite"
