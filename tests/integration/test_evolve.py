"""Whole runs from the command line: every stage, stopping and continuing, and what can go wrong."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs import called, files_below, killed, started, stepladder, write_tiny_config

METRICS = (
    "round",
    "policy_pass_at_1",
    "search_accuracy",
    "majority_accuracy",
    "best_of_n_accuracy",
    "prm_within_problem_auc",
    "generated_tokens",
    "seconds",
    "accepted",
)


def data_digests(run: Path) -> dict[str, str]:
    """Return a digest of every data and model file of a run; wall-clock facts (events, seconds) are left out."""
    files = [
        path
        for path in (run / "rounds").rglob("*")
        if path.suffix in (".parquet", ".safetensors") or path.parent.parent.name == "evaluation"
    ]
    files += list((run / "rounds").glob("*/labels.json")) + list((run / "rounds").glob("*/evaluation/*/*/shard-*.json"))
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run of two rounds and its configuration."""
    folder = tmp_path_factory.mktemp("evolve")
    config = write_tiny_config(folder)
    done = stepladder("evolve", config, "--run-dir", folder / "run")
    assert done.returncode == 0, done.stderr
    return config, folder / "run"


def test_evolve_writes_every_round(finished: tuple[Path, Path]) -> None:
    """metrics.jsonl has one object a round with the promised figures, and each round's data and models are on disk."""
    _, run = finished
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert set(METRICS) <= set(row)
    assert rows[1]["search"]["problems"] == 24
    # Rounds 1 and 2 without and with a PRM; steps of at most three tokens that are sampled again and again are merged, but forwarded.
    assert rows[1]["search"]["prm_forwarded_tokens"] is None and rows[1]["search"]["cached_share"] > 0.8
    assert 0.5 < rows[2]["search"]["prm_forwarded_per_unique_token"] <= 1.05
    assert rows[1]["labels"]["values"]["kept"] > 0
    assert (run / "rounds/001/models/prm/model.safetensors").exists()
    assert (run / "report.html").exists()


def wait_for_new_files(run: Path, count: int, process: subprocess.Popen) -> None:
    """Wait until a run has so many more files of rounds than now, or its process has ended."""
    before = len(files_below(run / "rounds"))
    wait_for(lambda: len(files_below(run / "rounds")) >= before + count, process)


def test_killed_and_interrupted_run_ends_with_the_same_bytes(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """Kill -9 at two random moments, then Ctrl-C in a search, with another number of workers: the data of the run that went through.

    Ctrl-C ends with exit code 130 and one sentence.
    """
    config, reference = finished
    run, rng = tmp_path / "run", random.Random(0)
    command = ("evolve", config, "--run-dir", run, "--set", "run.workers=1")
    for _ in range(2):
        with started(*command) as process:
            # Moments are counted in files, not seconds, so that a slow machine is killed in the same stages as a fast one.
            wait_for_new_files(run, rng.randint(1, 12), process)
            time.sleep(rng.uniform(0.0, 0.1))
            assert killed(process)
    with started(*command) as process:
        wait_for(lambda: any(path.suffix == ".parquet" for path in files_below(run / "rounds/001/trees")), process)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command continues" in err
    assert "Traceback" not in err
    done = stepladder(*command)
    assert done.returncode == 0, done.stderr
    assert run_facts(run) == run_facts(reference)


def run_facts(run: Path) -> dict[str, str]:
    """Return a digest of every file of the rounds, figures included; only wall-clock times are left out."""
    facts = {}
    for path in (run / "rounds").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.name == "round.json":
                content = json.dumps({**json.loads(content), "seconds": None}).encode()
            facts[str(path.relative_to(run))] = hashlib.sha256(content).hexdigest()
    rows = [{**json.loads(line), "seconds": None} for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {**facts, "metrics.jsonl": json.dumps(rows)}


def has_begun(run: Path, stage: str) -> bool:
    """Say whether a stage of round 1 has begun."""
    # The last line may not be whole yet.
    events = (run / "events.jsonl").read_text().split("\n")[:-1] if (run / "events.jsonl").exists() else []
    begun = [event for event in map(json.loads, events) if event["event"] == "stage_begin"]
    return any(event["round"] == 1 and event["stage"] == stage for event in begun)


def wait_for(happened: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait until something has happened, or a process has ended."""
    while process.poll() is None and not happened():
        time.sleep(0.005)


def test_kills_in_every_stage_lose_no_figures_and_leave_nothing(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """Kill -9 in labelling, in every training and between them: all bytes and figures, and no file more.

    The run begins after the warm-up of the run that went through, which had more workers.
    """
    config, reference = finished
    run, rng = tmp_path / "run", random.Random(1)
    shutil.copytree(reference, run, ignore=shutil.ignore_patterns("001", "002", "metrics.jsonl", "report.html", "events.jsonl"))
    models = run / "rounds" / "001" / "models"
    # Both stages of the policy are one training, which begins anew: its leftovers matter only if nothing stops the next attempt.
    moments: list[Callable[[], bool]] = [
        lambda: has_begun(run, "label"),
        (models / "sft").exists,
        (models / "sft.work").exists,
        lambda: has_begun(run, "train prm"),
        (models / "prm").exists,
    ]
    command, kills = ("evolve", config, "--run-dir", run, "--set", "run.workers=1"), 0
    for happened in moments:
        with started(*command) as process:
            wait_for(happened, process)
            time.sleep(rng.choice((0.0, 0.02, 0.2)))
            kills += killed(process)
    assert kills >= 4
    done = stepladder(*command)
    assert done.returncode == 0, done.stderr
    assert run_facts(run) == run_facts(reference)


def test_finished_run_is_not_repeated(finished: tuple[Path, Path]) -> None:
    """Running a finished run again computes nothing and prints its table."""
    config, run = finished
    before = data_digests(run)
    done = called("evolve", config, "--run-dir", run)
    assert done.returncode == 0
    assert "report:" in done.stdout
    assert data_digests(run) == before


def test_a_branch_without_changes_makes_the_same_rounds(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """It takes round 1 over and trains round 2 itself: the same bytes. Runs side by side are equal; another setting is a refused branch."""
    _, run = finished
    done = called("evolve", run, "--from-round", 1, "--run-dir", tmp_path / "branch")
    assert done.returncode == 0, done.stderr
    assert data_digests(tmp_path / "branch") == data_digests(run)
    shown = called("report", run, tmp_path / "branch")
    assert shown.returncode == 0, shown.stderr
    assert "+0.0 (+0.0 to +0.0) on 10 problems" in shown.stdout and "Settings that differ" not in shown.stdout
    refused = called("evolve", run, "--from-round", 1, "--run-dir", tmp_path / "other", "--set", "problems.rule=math")
    assert refused.returncode == 2 and "a branch keeps" in refused.stderr and not (tmp_path / "other").exists()


def test_solve_with_a_run(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """Solve answers one question and a file, with any method, within the token budget, and writes the tree."""
    config, run = finished
    tree = tmp_path / "tree.json"
    done = called("solve", "test 1 a", "--run", run, "--method", "beam", "--tokens", 40, "--tree", tree, "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["method"] == "beam"
    nodes = json.loads(tree.read_text())
    assert nodes["generated_tokens"] == row["generated_tokens"]
    assert len(nodes["parents"]) == len(nodes["texts"])
    questions = config.parent / "test.jsonl"
    done = called("solve", "--input", questions, "--output", tmp_path / "out.jsonl", "--run", run, "--method", "majority", "--tokens", 30)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [json.loads(line)["id"] for line in questions.read_text().splitlines()]


def test_shuffled_answers_change_no_prediction(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """Solve reads no answer: with the answers of the file shuffled, or gone, every prediction stays as it is."""
    config, run = finished
    rows = [json.loads(line) for line in (config.parent / "test.jsonl").read_text().splitlines()]
    answers = [row["answer"] for row in rows]
    random.Random(1).shuffle(answers)
    variants = {
        "as they are": rows,
        "shuffled": [{**row, "answer": answer} for row, answer in zip(rows, answers, strict=True)],
        "gone": [{"id": row["id"], "question": row["question"]} for row in rows],
    }
    outputs = []
    for name, variant in variants.items():
        source, output = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-out.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in variant))
        done = called("solve", "--input", source, "--output", output, "--run", run)
        assert done.returncode == 0, done.stderr
        outputs.append(output.read_text())
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "search.simulation=3"], "did you mean 'search.simulations'"),
        (["--set", "search.simulations=0"], "greater than or equal to 1"),
        (["--set", "search.options.num_children=0"], "num_children"),
        (["--set", "search.options.wave=99"], "wave"),
        (["--set", "search.method=mtcs"], "mcts"),
        (["--set", "policy.model=/nowhere/model"], "/nowhere/model"),
        (["--set", "problems.train=/nowhere/train.jsonl"], "/nowhere/train.jsonl"),
        (["--set", "nonsense"], "section.key=value"),
    ],
)
def test_bad_settings_are_one_sentence(finished: tuple[Path, Path], tmp_path: Path, arguments: list[str], words: str) -> None:
    """A wrong setting ends with exit code 2 and one sentence that names it, before anything is written."""
    config, _ = finished
    done = called("evolve", config, "--run-dir", tmp_path / "run", *arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "run").exists()


def test_foreign_directories_are_refused(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """A run with other settings, of another version, or a directory of something else is left alone with exit code 2."""
    config, run = finished
    done = called("evolve", config, "--run-dir", run, "--set", "search.simulations=9")
    assert done.returncode == 2
    assert "search.simulations" in done.stderr
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    done = called("evolve", config, "--run-dir", tmp_path / "other")
    assert done.returncode == 2
    assert "must be empty" in done.stderr
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").write_text(json.dumps({"schema_version": 0, "stepladder": "0.0.1"}))
    done = called("report", tmp_path / "old")
    assert done.returncode == 2
    assert "schema_version" in done.stderr
