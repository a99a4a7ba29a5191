"""Several kinds of step from the command line: the same bytes after a restart and with other workers, rows without the prompts."""

import json
import shutil
import time
from pathlib import Path

import pytest

from stepladder.data import store
from tests.folders import contents
from tests.runs import called, killed, started, write_tiny_config

ACTIONS = """
[search.actions.again]
share = 0.25
prompt = "again {question}\\n"
after = ["start"]

[search.actions.step]
share = 0.5

[search.actions.finish]
share = 0.25
to_end = true

[evaluate]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one round whose steps are of three kinds."""
    folder = tmp_path_factory.mktemp("actions")
    config = write_tiny_config(folder, rounds=1, workers=1, num_train=12)
    config.write_text(config.read_text(encoding="utf-8").replace("[evaluate]\n", ACTIONS), encoding="utf-8")
    done = called("evolve", config, "--run-dir", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_rows_have_the_plain_prompt_and_the_tokens_of_the_steps(run: Path) -> None:
    """Two of four samples are usual steps. No stored token belongs to a prompt of an action, and a finished solution is one step."""
    trees = [tree for path in sorted((run / "rounds/001/trees").glob("*.parquet")) for tree in store.read_trees(path)]
    plain = {tree.problem_id: tree.prompt_ids for tree in trees}
    assert all(text == "" or "again" not in text for tree in trees for text in tree.texts)
    kinds = {(tree.depths[node], tree.actions[node]) for tree in trees for node in range(1, len(tree.parents))}
    assert {kind for _, kind in kinds} == {"step", "finish", "again"}
    assert (1, "again") in kinds and {kind for depth, kind in kinds if depth > 1} == {"step", "finish"}
    assert any(tree.texts[node].count("\n") == 2 for tree in trees for node in range(len(tree.parents)) if tree.actions[node] == "finish")
    traces = [row for path in sorted((run / "rounds/001/traces").glob("*.parquet")) for row in store.read_traces(path)]
    assert traces and all(row.prompt_ids == plain[row.problem_id] for row in traces)
    steps = {(tree.problem_id, tuple(ids)) for tree in trees for ids in tree.token_ids}
    pairs = [row for path in sorted((run / "rounds/001/pairs").glob("*.parquet")) for row in store.read_pairs(path)]
    assert pairs and all((row.problem_id, tuple(row.chosen_ids)) in steps for row in pairs)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert '"action":"finish"' in page.replace('"action": "', '"action":"')


def test_killed_and_with_other_workers_the_data_are_the_same(run: Path, tmp_path: Path) -> None:
    """Two workers killed after their first shard of trees, and this process that goes on, make the bytes of a run without a kill.

    They begin with the warm-up of that run, which samples no kinds of steps.
    """
    config, copy = run.parent / "tiny.toml", tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("001", "metrics.jsonl", "report.html"))
    with started("evolve", config, "--run-dir", copy, "--set", "run.workers=2") as process:
        while process.poll() is None and not list(copy.glob("rounds/001/trees/*.parquet")):
            time.sleep(0.005)
        assert killed(process)
    done = called("evolve", config, "--run-dir", copy)
    assert done.returncode == 0, done.stderr
    assert '"round": 0' not in (copy / "events.jsonl").read_text(encoding="utf-8").split('"workers": 2', 1)[1]
    for kind in ("trees", "traces", "pairs", "values"):
        assert contents(copy / "rounds/001" / kind) == contents(run / "rounds/001" / kind)


def test_an_export_of_trees_has_the_kinds(run: Path, tmp_path: Path) -> None:
    """Every row has one kind per node, none for the question; ``solve`` names the kind of each step."""
    done = called("export", run, "--format", "tree", "--to", tmp_path / "tree")
    assert done.returncode == 0, done.stderr
    rows = [row for path in (tmp_path / "tree").rglob("*.parquet") for row in store.read_parquet(path, remedy="").to_pylist()]
    assert rows and all(len(row["actions"]) == len(row["parents"]) and row["actions"][0] == "" for row in rows)
    done = called("solve", "train 3 b", "--run", run, "--json")
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)["steps"]
    assert steps and all(step["action"] in ("step", "finish", "again") for step in steps)
