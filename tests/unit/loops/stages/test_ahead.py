"""Rounds that overlap: which models the next round begins with, when, and what is thrown away."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepladder.errors import ConfigError
from stepladder.loops.assembly.checks import check_overlap
from stepladder.loops.config.load import load_config
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.results import OverlapFigures, RoundRow
from stepladder.loops.stages.ahead import begin_next_round, end_round, overlap_figures
from stepladder.loops.stages.context import BestModels, RoundContext
from stepladder.loops.stages.rollouts import roll_out_shard
from stepladder.loops.stages.search import search_shard
from stepladder.types import LabelledProblem, Problem
from tests.inline import InlinePool
from tests.report_run import row

REQUIRED = ["problems.train=a", "problems.test=b", "policy.model=m", "policy.device=cpu"]
PROBLEMS = [LabelledProblem(problem=Problem(id=f"p{number}", question="q"), answer="1") for number in range(3)]
BEFORE_SEARCH = ("prm.when=before-search", "prm.rollouts=4")


class Pool(InlinePool):
    """Takes tasks of the next round and does none."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Any] = []

    def ahead(self, tasks: Any) -> None:
        self.taken = list(tasks)

    def drop_ahead(self) -> None:
        self.taken = []


def context_of(root: Path, *overrides: str, last: int = 4) -> tuple[RoundContext, Pool]:
    """A run without finished rounds, whose problems make two shards."""
    config, pool = load_config(None, [*REQUIRED, "run.overlap=true", "run.shard_size=2", *overrides]), Pool()
    problems = {"train": PROBLEMS}
    context = RoundContext(config=config, run=RunDir(root=root), problems=problems, pool=pool, display=ProgressDisplay(), last=last)
    return context, pool


def finished(number: int, *, policy: int | None = None, prm: int | None = None, measured: int | None = None) -> RoundRow:
    """A finished round that left these as the best models, after measuring ``measured``, by default a policy of its own."""
    plain = row(number, policy=0.3, search=0.3, majority=0.3)
    policy = number if policy is None else policy
    return replace(plain, best_policy=policy, best_prm=prm, policy_version=number if measured is None else measured)


def trained(context: RoundContext, number: int, *models: str) -> None:
    """Leave models of a round, which nobody loads."""
    for model in models:
        (context.run.round(number) / "models" / model).mkdir(parents=True)


def versions(pool: Pool) -> set[tuple[int, int, int | None]]:
    """Return round, policy and PRM of all tasks that the pool took."""
    found = [task.arguments["models"].provenance for task in pool.taken]
    return {(each.round, each.policy_version, each.scorer_version) for each in found}


def test_the_search_begins_with_the_new_policy_and_the_prm_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Round 3 searches both shards with policy 2 and PRM 1, before PRM 2 is trained; a shard that is there is left out."""
    monkeypatch.setattr("stepladder.loops.runs.directory.check_trained", lambda model: None)
    context, pool = context_of(tmp_path)
    trained(context, 2, "policy")
    assert begin_next_round(context, 2, BestModels(policy=1, prm=1), has_prm=False)
    assert [task.function for task in pool.taken] == [search_shard, search_shard]
    assert versions(pool) == {(3, 2, 1)}
    shard = context.run.shard(3, "trees", 0)
    shard.parent.mkdir(parents=True)
    shard.touch()
    begin_next_round(context, 2, BestModels(policy=1, prm=1), has_prm=False)
    assert [task.arguments["out"] for task in pool.taken] == [context.run.shard(3, "trees", 1)]


def test_without_an_earlier_prm_the_search_waits_for_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is searched without a PRM for the sake of time; so it is where the policy's training trains the PRM."""
    monkeypatch.setattr("stepladder.loops.runs.directory.check_trained", lambda model: None)
    joint = ("prm.body=joint", "preference.enabled=false")
    for name, best, overrides in (("none", None, ()), ("joint", 1, joint)):
        context, pool = context_of(tmp_path / name, *overrides)
        trained(context, 2, "policy", "prm")
        assert not begin_next_round(context, 2, BestModels(policy=1, prm=best), has_prm=False)
        assert not pool.taken
        assert begin_next_round(context, 2, BestModels(policy=1, prm=best), has_prm=True)
        assert versions(pool) == {(3, 2, 2)}


def test_a_round_that_samples_first_begins_with_samples(tmp_path: Path) -> None:
    """With ``prm.when = "before-search"`` the samples of the next round come early, and no PRM is old."""
    context, pool = context_of(tmp_path, *BEFORE_SEARCH)
    trained(context, 1, "policy")
    assert begin_next_round(context, 2, BestModels(policy=1, prm=1), has_prm=False)
    assert [task.function for task in pool.taken] == [roll_out_shard, roll_out_shard]
    assert versions(pool) == {(3, 1, None)}


def test_a_search_in_passes_begins_with_its_first(tmp_path: Path) -> None:
    """Later passes wait for what the first one finds."""
    context, pool = context_of(tmp_path, "search.allocation={type='unsolved-first', trees_per_problem=3}")
    assert begin_next_round(context, 0, BestModels(policy=0, prm=None), has_prm=True)
    assert [task.arguments["out"].parent.name for task in pool.taken] == ["00", "00"]


def test_nothing_begins_after_the_last_round_or_without_overlap(tmp_path: Path) -> None:
    """The last round of a call, which may be stopped there, begins nothing; neither does any other run."""
    context, pool = context_of(tmp_path, last=2)
    assert not begin_next_round(context, 2, BestModels(policy=1, prm=1), has_prm=True)
    plain = replace(context, config=load_config(None, REQUIRED))
    assert not begin_next_round(plain, 1, BestModels(policy=1, prm=1), has_prm=True)
    assert not pool.taken
    assert overlap_figures(plain, 1, BestModels(policy=0, prm=None)) is None


CASES = {
    "the new PRM is better: the search used one that is one round old": (
        (finished(1, prm=1), finished(2, prm=2)),
        OverlapFigures(policy_version=2, scorer_version=1, prm_rounds_old=1, began_early=True),
    ),
    "the new PRM is refused: the best one has searched": (
        (finished(1, prm=1), finished(2, prm=1)),
        OverlapFigures(policy_version=2, scorer_version=1, prm_rounds_old=0, began_early=True),
    ),
    "the policy is refused": (
        (finished(1, prm=1), finished(2, policy=1, prm=2)),
        OverlapFigures(policy_version=1, scorer_version=2, prm_rounds_old=0, began_early=False),
    ),
    "no policy was trained": (
        (finished(1, prm=1), finished(2, policy=1, prm=1, measured=1)),
        OverlapFigures(policy_version=1, scorer_version=1, prm_rounds_old=0, began_early=True),
    ),
    "both PRMs fail": (
        (finished(1, prm=1), finished(2, prm=None)),
        OverlapFigures(policy_version=2, scorer_version=None, prm_rounds_old=0, began_early=False),
    ),
    "there was no PRM before": (
        (finished(1, prm=None), finished(2, prm=2)),
        OverlapFigures(policy_version=2, scorer_version=2, prm_rounds_old=0, began_early=True),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_age_and_refusal_follow_from_the_rounds_before(tmp_path: Path, case: str) -> None:
    """Round 3 knows from the figures of rounds 1 and 2 alone which models it began with, and what stands."""
    rows, expected = CASES[case]
    context, _ = context_of(tmp_path)
    trained(context, 2, "prm")
    for done in rows:
        context.run.finish_round(done)
    before, last = rows
    assert overlap_figures(context, 3, BestModels(policy=last.best_policy, prm=last.best_prm)) == expected
    # The same decision throws away, or keeps, what was sampled ahead.
    shard = context.run.shard(3, "trees", 0)
    shard.parent.mkdir(parents=True)
    shard.touch()
    end_round(context, last, BestModels(policy=before.best_policy, prm=before.best_prm))
    assert shard.exists() == expected.began_early
    events = [json.loads(line)["event"] for line in (tmp_path / "events.jsonl").read_text().splitlines()] if not shard.exists() else []
    assert events == ([] if expected.began_early else ["thrown_away"])


def test_rounds_before_their_prm_never_throw_away_for_it(tmp_path: Path) -> None:
    """A round that samples first needs the policy alone, so what becomes of PRMs does not matter."""
    context, _ = context_of(tmp_path, *BEFORE_SEARCH)
    for done in (finished(1, prm=1), finished(2, prm=None)):
        context.run.finish_round(done)
    assert overlap_figures(context, 3, BestModels(policy=2, prm=None)) == OverlapFigures(
        policy_version=2, scorer_version=None, prm_rounds_old=0, began_early=True
    )


def test_a_run_that_ends_early_keeps_nothing_of_the_next_round(tmp_path: Path) -> None:
    """What was sampled for a round that never comes is removed."""
    context, _ = context_of(tmp_path, "rules.early_stop.patience=1")
    context.run.finish_round(finished(0))
    shard = context.run.shard(2, "trees", 0)
    shard.parent.mkdir(parents=True)
    end_round(context, finished(1), BestModels(policy=0, prm=None))
    assert not context.run.round(2).exists()


def test_figures_of_overlap_are_stored(tmp_path: Path) -> None:
    """They come back from round.json; other rounds have none."""
    figures = OverlapFigures(policy_version=2, scorer_version=1, prm_rounds_old=1, began_early=True)
    run = RunDir(root=tmp_path)
    run.finish_round(replace(finished(0), overlap=figures))
    run.finish_round(finished(1))
    assert [done.overlap for done in run.rows()] == [figures, None]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.update_every=2", "run.update_every trains the policy during the search"),
        ('rules.hill_climb={setting="search.simulations", start=8, step=4}', "rules.hill_climb chooses the settings of a round"),
        ("rules.balance.temperatures={low=0.5, high=1.5, step=0.5}", "rules.balance samples with the best policy"),
    ],
)
def test_settings_that_need_the_gate_are_refused(override: str, words: str) -> None:
    """What a round decides from the one before cannot be decided before that has ended."""
    config = load_config(None, [*REQUIRED, override])
    check_overlap(config)
    with pytest.raises(ConfigError, match=rf"^run\.overlap: the next round begins before the gate decides, and {words}"):
        check_overlap(load_config(None, [*REQUIRED, override, "run.overlap=true"]))


def test_overlap_belongs_to_the_results_of_a_run() -> None:
    """It changes the data, so a run keeps it."""
    base, other = (load_config(None, [*REQUIRED, f"run.overlap={value}"]) for value in ("false", "true"))
    assert base.differences(other) == ["run.overlap: False != True"]
