"""The tasks of ``examples/``, from the command line to a finished round, with a tiny model and tiny settings."""

import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from stepladder.cli.app import app
from tests.models import save_tiny_policy

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = """
run.rounds=1 run.workers=1 run.shard_size=8 problems.train_limit=8 problems.held_out_limit=2 problems.test_limit=2 policy.device=cpu
warmup.train={learning_rate=5e-3,batch_size=16,epochs=5} search.simulations=4 search.max_depth=3 search.max_step_tokens=40
search.options={num_children=3,wave=2} evaluate.simulations=2 evaluate.samples=2 evaluate.options={num_children=2,wave=1} format.chat=false
sft={epochs=1,batch_size=8,learning_rate=1e-3} preference={epochs=1,batch_size=8,learning_rate=1e-4} prm.rollouts=2
prm.train={epochs=1,batch_size=8,learning_rate=1e-3}
"""


def load(name: str) -> ModuleType:
    """Import an example as a run does: by its file."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def solution(name: str, question: str, rng: random.Random) -> str:
    """A written solution in the form of the task; whether it is right is left to chance."""
    if name == "story":
        return f"the {question.replace(', ', ' and the ')} met.\nthey were old.\n"
    if name == "lookup":
        return f"open drawer {question.split()[-1].rstrip('?')}\nanswer: {rng.choice('abcd')}\n"
    answers = {
        "countdown": lambda: " ".join(question.split("from ")[1].split(", ")).replace(" ", rng.choice("+-*")),
        "colouring": lambda: " ".join(f"{node}={rng.choice('rgb')}" for node in range(6)),
        "choice": lambda: rng.choice("abcd"),
    }
    return f"so\nanswer: {answers[name]()}\n"


@pytest.mark.parametrize("name", ["countdown", "colouring", "choice", "story", "lookup", "actions"])
def test_an_example_runs_to_a_finished_round(name: str, tmp_path: Path) -> None:
    """The verifier grades every finished solution; partial credit is between 0 and 1; the commands for a run take the task."""
    task = "countdown" if name == "actions" else name
    rng, rows = random.Random(0), load(task).problems("train")[:96]
    lines = [json.dumps({"id": row["id"], "question": row["question"], "solution": solution(task, row["question"], rng)}) for row in rows]
    (tmp_path / "warmup.jsonl").write_text("\n".join(lines) + "\n")
    save_tiny_policy(tmp_path / "model")
    places = [f"policy.model={tmp_path / 'model'}", f"warmup.solutions={tmp_path / 'warmup.jsonl'}"]
    settings = [part for value in [*TINY.split(), *places] for part in ("--set", value)]
    # In this process, so that four runs import the model libraries once.
    command = ["evolve", EXAMPLES / f"{name}.toml", "--run-dir", tmp_path / "run", *settings]
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "rounds" / "001" / "round.json").exists()
    trees = pq.read_table(tmp_path / "run" / "rounds" / "001" / "trees" / "shard-0000.parquet").to_pylist()
    outcomes = [value for tree in trees for value in tree["outcomes"] if value is not None]
    assert outcomes
    assert any(0.0 < value < 1.0 for value in outcomes) == (name in ("colouring", "story"))
    figures = json.loads((tmp_path / "run" / "rounds" / "001" / "round.json").read_text())["test"]
    # A round in which no answer gets a number has no mean.
    assert "credit" not in figures or name in ("colouring", "story")
    if "credit" in figures:
        assert 0.0 <= figures["credit"]["policy"] <= 1.0 and "mean number" in (tmp_path / "run" / "report.html").read_text()
    if task not in ("countdown", "lookup"):
        assert any(outcomes)
    if name == "lookup":
        assert any(given.startswith("(") for tree in trees for given in tree["given_texts"])
    if name == "actions":
        # Three samples after a node, of which some are equal: at the question four actions have a part, below it never the rewording.
        kinds = {(tree["parents"][node] == 0, kind) for tree in trees for node, kind in enumerate(tree["actions"]) if kind}
        assert {kind for _, kind in kinds} >= {"step", "finish"} and (False, "rephrase") not in kinds
        assert not any("Write the remaining" in text for tree in trees for text in tree["texts"])
    assert ("search.tool" if name == "lookup" else "problems.verifier") in json.loads((tmp_path / "run" / "run.json").read_text())["inputs"]
