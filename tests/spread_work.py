"""A folder in which commands that may spread their work are called: ``solve --input``, ``prm score`` and ``prm eval``."""

import json
from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.prm.specs import PRMSpec
from tests.models import save_tiny_policy, save_tiny_scorer, tiny_scorer

NUM_QUESTIONS, NUM_SOLUTIONS = 5, 150


class Place:
    """A folder with models, questions and solutions, in which commands are called with given workers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.policy = save_tiny_policy(path / "policy", max_positions=256)
        StepFormat(answer_pattern=r"(\d)").save(self.policy)
        self.prm = save_tiny_scorer(path / "prm")
        StepFormat().save(self.prm)
        PRMSpec(renderer_hash=PromptRenderer(tiny_scorer()[1], StepFormat()).hash).save(self.prm)
        self._write("questions", [{"id": f"q{number}", "question": f"{number}+{number}"} for number in range(NUM_QUESTIONS)])
        rows = [{"question": f"{n}+1", "steps": ["is", f"{n % 7}"], "labels": [1, n % 2]} for n in range(NUM_SOLUTIONS)]
        self._write("solutions", rows)

    def _write(self, name: str, rows: list[dict[str, Any]]) -> None:
        (self.path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def solve(self, output: str | None, *more: str) -> Result:
        words = ["solve", "--input", str(self.path / "questions.jsonl"), "--policy", str(self.policy)]
        words += [] if output is None else ["--output", str(self.path / output)]
        words += ["--simulations", "4", "--method", "mcts", "--set", "search.max_step_tokens=8", "--set", "run.shard_size=2", *more]
        return CliRunner().invoke(app, words)

    def score(self, output: str, *more: str) -> Result:
        words = ["prm", "score", str(self.path / "solutions.jsonl"), "--model", str(self.prm), "--output", str(self.path / output)]
        return CliRunner().invoke(app, [*words, "--device", "cpu", *more])

    def evaluate(self, output: str, *more: str) -> Result:
        words = ["prm", "eval", str(self.path / "solutions.jsonl"), "--model", str(self.prm), "--json", str(self.path / output)]
        return CliRunner().invoke(app, [*words, "--device", "cpu", *more])

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()
