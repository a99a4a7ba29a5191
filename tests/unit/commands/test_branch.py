"""Branches of runs: what they take over, what they may change, and runs side by side."""

import json
from pathlib import Path

import pytest

from stepladder.commands.branch import make_branch, plan_branch
from stepladder.errors import CheckpointError, ConfigError
from stepladder.loops.runs.directory import Branch, RunDir, load_run
from stepladder.loops.runs.side_by_side import compare_runs, differing_settings
from stepladder.report.runs import write_comparison_of_runs
from tests.folders import contents
from tests.report_run import config, full_rows, write_run
from tests.runs import called


@pytest.fixture
def source(tmp_path: Path) -> RunDir:
    """A run of three rounds with a problem file of its own."""
    start = tmp_path / "a" / "start"
    start.mkdir(parents=True)
    (start / "train.jsonl").write_text("{}\n")
    problems = {"train": str(start / "train.jsonl"), "test": "test.jsonl", "rule": "exact"}
    return write_run(tmp_path / "a", full_rows(), settings=config(problems=problems, run={"seed": 7, "rounds": 3}))


def test_a_branch_has_the_rounds_up_to_its_own(source: RunDir, tmp_path: Path) -> None:
    """Rounds 0 and 1, files that the run holds, metrics and settings; the changes; where it comes from. The run is left as it was."""
    before = contents(source.root)
    planned = plan_branch(source.root, 1, tmp_path / "b", ["search.simulations=99", "run.rounds=5"])
    make_branch(planned)
    branch = load_run(tmp_path / "b")
    assert branch.rows() == source.rows()[:2]
    assert sorted(path.name for path in (tmp_path / "b" / "rounds").iterdir()) == ["000", "001"]
    assert len((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()) == 2
    assert branch.config() == planned.config
    assert (branch.config().search.simulations, branch.config().run.rounds) == (99, 5)
    assert branch.config().problems.train == str(tmp_path / "b" / "start" / "train.jsonl")
    assert branch.branch() == Branch(run=str(source.root), round=1)
    assert source.branch() is None
    assert branch.inputs() == source.inputs()
    assert contents(source.root) == before
    # The same command again goes on with the branch; a file that it has written since stays.
    (tmp_path / "b" / "rounds" / "002").mkdir()
    make_branch(plan_branch(source.root, 1, tmp_path / "b", ["search.simulations=99", "run.rounds=5"]))
    assert (tmp_path / "b" / "rounds" / "002").exists()


def test_a_refused_branch_leaves_nothing(source: RunDir, tmp_path: Path) -> None:
    """Its rounds are copied before the policy is looked for, which is missing; a branch that was there stays."""
    arguments = ("evolve", source.root, "--from-round", "1", "--run-dir", tmp_path / "b", "--set", "run.rounds=5")
    done = called(*arguments)
    assert done.returncode == 2 and "there is no such" in done.stderr, done.stderr
    assert not (tmp_path / "b").exists()
    make_branch(plan_branch(source.root, 1, tmp_path / "b", ["run.rounds=5"]))
    before = contents(tmp_path / "b")
    assert called(*arguments).returncode == 2
    assert contents(tmp_path / "b") == before


def test_a_branch_is_a_copy_where_links_are_not_allowed(source: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another disk takes no hard links."""

    def refuse(*_: object) -> None:
        raise OSError("another device")

    monkeypatch.setattr("stepladder.commands.branch.os.link", refuse)
    make_branch(plan_branch(source.root, 0, tmp_path / "b", []))
    assert load_run(tmp_path / "b").rows() == source.rows()[:1]


@pytest.mark.parametrize(
    ("number", "root", "overrides", "kind", "sentence"),
    [
        (4, "b", [], CheckpointError, "round 4 must be finished to leave from it: 4 rounds are, from 0 on"),
        (1, "a/inside", [], CheckpointError, "a branch must lie outside of its run"),
        (1, "full", [], CheckpointError, "must be empty or not exist: it holds files"),
        (1, "other", [], CheckpointError, "must not exist, or be the same branch: it is another run"),
        (
            1,
            "b",
            ["problems.rule=math"],
            ConfigError,
            "a branch keeps what its finished rounds were made with: problems.rule: 'math' != 'exact'",
        ),
        (1, "b", ["run.seed=8"], ConfigError, "run.seed: 8 != 7"),
        (1, "b", ["search.simulatoins=8"], ConfigError, "did you mean 'search.simulations'?"),
    ],
)
def test_an_impossible_branch_is_one_sentence(
    source: RunDir, tmp_path: Path, number: int, root: str, overrides: list[str], kind: type[Exception], sentence: str
) -> None:
    """The sentence names the round, the directory or the setting, and nothing is written."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    write_run(tmp_path / "other", full_rows()[:1])
    with pytest.raises(kind) as caught:
        plan_branch(source.root, number, tmp_path / root, overrides)
    assert sentence in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_runs_side_by_side(source: RunDir, tmp_path: Path) -> None:
    """Figures of both, what differs, and a paired test on the eight problems that both answered; the text and the page say the same."""
    make_branch(plan_branch(source.root, 1, tmp_path / "b", ["search.simulations=99"]))
    other = load_run(tmp_path / "b")
    first, second = compare_runs([source, other])
    assert (first.name, second.name) == ("a", "b")
    assert (first.best.round, second.best.round) == (2, 1)
    assert first.against_first is None
    assert second.against_first is not None and second.num_shared == 8
    assert (second.against_first.difference, second.against_first.p_value) == (0.0, 1.0)
    # Per round 90 updates: one training in the warm-up, two in each round.
    assert (first.updates, second.updates) == (90 * 7, 90 * 3)
    assert differing_settings([source, other])["search.simulations"] == [32, 99]
    text = write_comparison_of_runs([source, other], tmp_path / "page.html")
    assert "search.simulations  32" in text and "+0.0 (+0.0 to +0.0) on 8 problems" in text
    page = (tmp_path / "page.html").read_text()
    assert "Runs side by side" in page and "search.simulations" in page
    with pytest.raises(CheckpointError, match="must be new: it holds an earlier result"):
        write_comparison_of_runs([source, other], tmp_path / "page.html")
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(CheckpointError):
        write_comparison_of_runs([source, other], tmp_path / "mine.html", overwrite=True)


def test_problems_with_the_same_ids_and_other_questions_are_not_paired(tmp_path: Path) -> None:
    """Another seed of a task makes other problems under the same names: only the seven that ask the same are common."""
    runs = [write_run(tmp_path / name, full_rows(), question=question) for name, question in (("a", "one"), ("b", "another"))]
    assert [each.num_shared for each in compare_runs(runs)][1] == 7


def test_runs_that_cannot_be_compared(source: RunDir, tmp_path: Path) -> None:
    """One run twice, and a run without a round."""
    with pytest.raises(ConfigError, match="two or more different ones"):
        compare_runs([source, source])
    empty = write_run(tmp_path / "c", [])
    with pytest.raises(ConfigError, match="must have a finished round"):
        compare_runs([source, empty])


def test_names_of_runs_tell_them_apart(tmp_path: Path) -> None:
    """Runs of the same name in different directories are shown with their directories."""
    runs = [write_run(tmp_path / folder / "run", full_rows()[:1]) for folder in ("x", "y")]
    assert [each.name for each in compare_runs(runs)] == ["x/run", "y/run"]
    assert json.dumps(differing_settings(runs)) == "{}"
