"""``solve --input``, ``prm score`` and ``prm eval`` with workers: what one process writes, in the order of the input, and never twice."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.commands import prm_scoring, solve_search
from stepladder.errors import BackendError
from stepladder.loops.runs.workers import Task, Workers, forget_result, prepare_worker, worker_pool
from tests.inline import InlinePool
from tests.spread_work import NUM_QUESTIONS, NUM_SOLUTIONS, Place


class Backwards(InlinePool):
    """Does the last task first, and dies after some tasks, as a killed worker does."""

    def __init__(self, survives: int = 100) -> None:
        self.survives, self.done = survives, 0

    def run(self, tasks: Sequence[Task], *, on_progress: Any, on_result: Any = forget_result) -> list[Any]:
        results = {}
        for number, task in reversed([*enumerate(tasks)]):
            if self.done == self.survives:
                raise BackendError("a worker process was killed")
            self.done += 1
            results[number] = task.function(**task.arguments)
            on_result(number, results[number])
        return [results[number] for number in range(len(tasks))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Models and inputs for all tests."""
    return Place(tmp_path_factory.mktemp("spread"))


def use(monkeypatch: pytest.MonkeyPatch, workers: Workers) -> None:
    """Have the commands use some workers."""

    @contextmanager
    def given(*_: Any, **__: Any) -> Iterator[Workers]:
        yield workers

    for module in (solve_search, prm_scoring):
        monkeypatch.setattr(module, "open_workers", given)


def test_a_solution_in_one_piece_is_cut_where_the_model_ends_steps(place: Place) -> None:
    """The model reads a policy's tokens, whose steps are lines, and no blank lines separate them. Its library shows no bars of its own."""
    rows = [{"question": "1+1", "steps": ["is", "2"]}, {"question": "1+1", "solution": "is\n2"}]
    (place.path / "pieces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["prm", "score", str(place.path / "pieces.jsonl"), "--model", str(place.prm), "--output", str(place.path / "pieces.out")]
    done = CliRunner().invoke(app, [*words, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    listed, whole = (json.loads(line)["scores"] for line in place.read("pieces.out").splitlines())
    assert len(listed) == 2 and listed == whole
    assert "Loading weights" not in done.stderr


ONE = ("--set", "run.workers=1")


def test_a_killed_worker_costs_the_open_shards_of_a_file_of_questions(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three shards are kept, and only the third is asked again; answers and trees are in the order of the questions."""
    use(monkeypatch, InlinePool())
    assert place.solve("whole.jsonl", *ONE, "--tree", str(place.path / "whole.json")).exit_code == 0
    tree = ("--tree", str(place.path / "killed.json"))
    use(monkeypatch, Backwards(survives=2))
    killed = place.solve("killed.jsonl", *ONE, *tree)
    assert (killed.exit_code, killed.stderr.splitlines()[-1]) == (1, "error: a worker process was killed")
    kept = [json.loads(line)["answer"]["id"] for line in place.read("killed.jsonl.part").splitlines()[1:]]
    assert sorted(kept) == ["q2", "q3", "q4"]
    use(monkeypatch, rest := Backwards())
    done = place.solve("killed.jsonl", "--set", "run.workers=4", *tree)
    # One shard alone is searched in this process.
    assert (done.exit_code, rest.done) == (0, 0)
    assert place.read("killed.jsonl") == place.read("whole.jsonl")
    assert place.read("killed.json") == place.read("whole.json")
    assert [row["id"] for row in map(json.loads, place.read("whole.jsonl").splitlines())] == [f"q{n}" for n in range(NUM_QUESTIONS)]
    assert not (place.path / "killed.jsonl.part").exists()


def test_answers_are_printed_in_order(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever shard is finished first."""
    use(monkeypatch, Backwards())
    rows = [json.loads(line) for line in place.solve(None, *ONE).stdout.splitlines()]
    assert [row["id"] for row in rows] == [f"q{n}" for n in range(NUM_QUESTIONS)]


def test_scores_do_not_depend_on_who_scores_and_are_kept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, workers, and workers of which one is killed write the same bytes; other inputs do not continue the call."""
    assert place.score("whole.scores").exit_code == 0
    use(monkeypatch, Backwards(survives=2))
    killed = place.score("killed.scores", *ONE)
    assert (killed.exit_code, killed.stderr.splitlines()[-1]) == (1, "error: a worker process was killed")
    assert [json.loads(line)["chunk"] for line in place.read("killed.scores.part").splitlines()[1:]] == [2, 1]
    other = place.score("killed.scores", *ONE, "--dtype", "bfloat16")
    assert (other.exit_code, "--dtype was 'auto' and is 'bfloat16'" in other.stderr) == (2, True)
    use(monkeypatch, rest := Backwards())
    assert place.score("killed.scores", *ONE).exit_code == 0
    # One chunk alone is scored in this process.
    assert rest.done == 0
    assert place.read("killed.scores") == place.read("whole.scores")
    assert [json.loads(line)["question"] for line in place.read("whole.scores").splitlines()] == [f"{n}+1" for n in range(NUM_SOLUTIONS)]
    assert not (place.path / "killed.scores.part").exists()


def test_figures_of_workers_are_those_of_one_process(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """``prm eval`` prints and writes the same."""
    alone = place.evaluate("alone.json")
    use(monkeypatch, Backwards())
    spread = place.evaluate("spread.json", *ONE)
    assert (alone.exit_code, spread.exit_code) == (0, 0)
    assert spread.stdout == alone.stdout
    assert place.read("spread.json") == place.read("alone.json")


@pytest.mark.slow
def test_two_processes_write_what_one_writes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes, which all commands share here since each imports torch."""
    prepare_worker(1)
    use(monkeypatch, InlinePool())
    assert place.solve("one.jsonl", *ONE).exit_code == 0
    assert place.score("one.scores").exit_code == 0
    assert place.evaluate("one.json").exit_code == 0
    with worker_pool(2, threads=1) as pool:
        use(monkeypatch, pool)
        for call, output in ((place.solve, "two.jsonl"), (place.score, "two.scores"), (place.evaluate, "two.json")):
            done = call(output, "--set", "run.workers=2")
            assert done.exit_code == 0, done.output
    for suffix in ("jsonl", "scores", "json"):
        assert place.read(f"two.{suffix}") == place.read(f"one.{suffix}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("search.simulations=4", "--set: says who does the work, by run.workers, run.threads, run.cluster or run.ray: got"),
        ("run.workers=-1", "run.workers"),
        ("run.cluster=slurm", "run.cluster"),
    ],
)
def test_settings_that_score_nothing_are_refused_before_the_work(place: Place, change: str, said: str) -> None:
    """One sentence, and nothing is written."""
    refused = place.score("refused.scores", "--set", change)
    assert (refused.exit_code, said in refused.stderr) == (2, True), refused.output
    assert not list(place.path.glob("refused*"))


def test_a_cluster_without_ray_is_refused_before_the_work(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both commands say what to install."""
    monkeypatch.setattr("stepladder.loops.runs.ray_cluster.find_spec", lambda name: None)
    for call in (place.solve, place.score, place.evaluate):
        refused = call("absent.out", "--set", "run.cluster=ray")
        assert (refused.exit_code, "pip install 'stepladder[ray]'" in refused.stderr) == (2, True), refused.output
    assert not list(place.path.glob("absent*"))
