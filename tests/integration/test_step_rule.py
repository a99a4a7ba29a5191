"""A step rule of the user's own from the command line: the example of the documentation in a whole round of two workers."""

import json
import re
from pathlib import Path

from stepladder.data import store
from tests.runs import stepladder, write_solutions, write_tiny_config

DOCS = Path(__file__).parents[2] / "docs" / "tasks.md"


def test_the_documented_rule_ends_the_steps_of_a_run(tmp_path: Path) -> None:
    """Lines that end with an equals sign go on; every worker imports the file; a changed file ends the run; a missing one stops before."""
    (code,) = re.findall(r"```python[^\n]*\n(def ends.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    config = write_tiny_config(tmp_path, rounds=1, workers=2, num_train=12)
    (tmp_path / "rules.py").write_text(code, encoding="utf-8")
    written = write_solutions(tmp_path / "warmup.jsonl", count=256)
    written.write_text(written.read_text(encoding="utf-8").replace('"+\\n', '"+=\\n+\\n'), encoding="utf-8")
    text = config.read_text(encoding="utf-8").replace("[format]\n", '[format]\nsteps = "rules.py:ends"\n')
    config.write_text(text.replace("max_step_tokens = 3", "max_step_tokens = 6"), encoding="utf-8")
    done = stepladder("evolve", config, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    trees = [tree for path in sorted((tmp_path / "run/rounds/001/trees").glob("*.parquet")) for tree in store.read_trees(path)]
    steps = [tree.texts[node] for tree in trees for node in range(1, len(tree.parents)) if tree.stop_reasons[node] == "step"]
    assert steps and all(step.endswith("\n") and not step.rstrip().endswith(("=", ",")) for step in steps)
    assert any("=\n" in step for step in steps)
    assert "format.steps" in json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))["inputs"]
    (tmp_path / "rules.py").write_text(code.replace('"="', '"-"'), encoding="utf-8")
    done = stepladder("evolve", config, "--run-dir", tmp_path / "run", "--set", "run.rounds=2")
    assert done.returncode == 2 and "format.steps must stay what it was when the run began" in done.stderr.replace("\n", " ")
    (tmp_path / "rules.py").unlink()
    done = stepladder("evolve", config, "--run-dir", tmp_path / "new", "--dry-run")
    assert done.returncode == 2 and "format.steps: must name a function that can be imported" in done.stderr.replace("\n", " ")
