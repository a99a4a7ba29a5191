"""Which model a training begins with: base, best, last or another, the policy and the PRM each by itself."""

from pathlib import Path

import pytest

from stepladder.loops.config.load import load_config
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.stages import train_policy, train_prm
from stepladder.loops.stages.context import BestModels, RoundContext


def context_of(root: Path, *overrides: str) -> RoundContext:
    """A run in its round 4: policies of rounds 0 to 2, PRMs of rounds 1 and 3."""
    config = load_config(None, ["problems.train=a", "problems.test=b", "policy.model=given", *overrides])
    run = RunDir(root=root)
    for model in (run.policy(0), run.policy(1), run.policy(2), run.prm(1), run.prm(3)):
        model.mkdir(parents=True)
    return RoundContext(config=config, run=run, problems={}, pool=None, display=ProgressDisplay())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("start", "expected"), [("best", "001/models/policy"), ("base", "000/models/policy"), ("last", "002/models/policy"), ("model", "other")]
)
def test_the_policy_starts_from_what_is_configured(tmp_path: Path, start: str, expected: str) -> None:
    """Round 2 trained the last policy, round 1 the best one, round 0 the base."""
    given = ["start_model=other"] if start == "model" else []
    context = context_of(tmp_path, f"start_from={start}", *given)
    found = train_policy._start(context, 4, 1)
    assert found.removeprefix(f"{tmp_path}/rounds/") == expected


@pytest.mark.parametrize(
    ("start", "given", "best", "expected"),
    [
        ("policy", None, 1, "002/models/policy"),
        ("policy", "judge", 1, "judge"),
        ("base", None, 1, "000/models/policy"),
        ("base", "judge", 1, "judge"),
        ("best", None, 1, "001/models/prm"),
        ("best", "judge", None, "judge"),
        ("last", None, 1, "003/models/prm"),
        ("last", "judge", 1, "003/models/prm"),
    ],
)
def test_the_prm_starts_from_what_is_configured(tmp_path: Path, start: str, given: str | None, best: int | None, expected: str) -> None:
    """The best PRM is that of round 1, the last one that of round 3; a given model goes before a policy."""
    context = context_of(tmp_path, f"prm.start={start}", *([] if given is None else [f"prm.model={given}"]))
    found = train_prm._start(context, 4, BestModels(policy=2, prm=best), 2, context.run.prm(4))
    assert found.removeprefix(f"{tmp_path}/rounds/") == expected


def test_members_start_from_their_own_earlier_selves(tmp_path: Path) -> None:
    """Member 1 of an ensemble goes on from member 1."""
    context = context_of(tmp_path, "prm.start=last", "prm.ensemble=2")
    found = train_prm._start(context, 4, BestModels(policy=2, prm=1), 2, context.run.prm(4) / "member-01")
    assert found == str(tmp_path / "rounds/003/models/prm/member-01")


def test_without_an_earlier_prm_the_policy_gets_a_head(tmp_path: Path) -> None:
    """The first PRM has none to go on from."""
    context = context_of(tmp_path, "prm.start=last")
    found = train_prm._start(context, 1, BestModels(policy=0, prm=None), 1, context.run.prm(1))
    assert found == str(tmp_path / "rounds/001/models/policy")
