"""Code and tools that answer differently every time, from the command line with a tiny model: whole rounds, and a run that is killed."""

import json
import random
import time
from pathlib import Path

import pytest

from stepladder.data import store
from stepladder.data.step_checks.sandbox import check_sandbox
from stepladder.errors import StepladderError
from stepladder.policy.observations import ObservationStore, path_key
from stepladder.tree_paths import ids_along, path_to
from stepladder.types import TreeRecord
from tests.models import save_tiny_policy
from tests.runs import ANSWERS, called, killed, started, write_tiny_config

RANDOM_TOOL = '''
import random, time

def draw(step):
    """Answer every plus line by a number that nobody can foresee, after a moment."""
    time.sleep(0.2)
    return f"+{random.SystemRandom().randrange(10**6)}" if step.strip() == "+" else None
'''


def trees_of(run: Path) -> list[TreeRecord]:
    return [tree for path in sorted((run / "rounds/001/trees").glob("*.parquet")) for tree in store.read_trees(path)]


def locks() -> bool:
    try:
        check_sandbox()
    except StepladderError:
        return False
    return True


@pytest.mark.skipif(not locks(), reason="code cannot be sandboxed here")
def test_a_round_with_code_in_its_steps(tmp_path: Path) -> None:
    """A model that writes code from a few examples sees what it printed; what was printed is given in the rows that it learns from."""
    config = write_tiny_config(tmp_path, rounds=1, workers=1, num_train=12)
    save_tiny_policy(tmp_path / "model", vocab="bytes")
    rng = random.Random(0)
    # Questions as the problems have them: the model has seen no others.
    rows = [solved(number, rng) for number in range(256)]
    (tmp_path / "warmup.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = config.read_text(encoding="utf-8")
    steps = "steps = \"pattern\"\nstep_pattern = '(?s)<code>.*?</code>\\n|^[^<]*\\n'\nanswer_pattern = '(?:^|\\n)([a-d])\\n'"
    text = text.replace('answer_pattern = "([a-d])"', steps)
    text = text.replace("[search]\n", '[search]\ntool = "code"\nobservation = "[{output}]\\n"\n')
    text = text.replace("max_step_tokens = 3", "max_step_tokens = 32").replace(
        "batch_size = 32, epochs = 4", "batch_size = 16, epochs = 10"
    )
    config.write_text(text, encoding="utf-8")
    done = called("evolve", config, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    printed = 0
    for tree in trees_of(tmp_path / "run"):
        for node in range(1, len(tree.parents)):
            given = tree.given_texts[node] if tree.given_texts else ""
            if tree.texts[node].startswith("<code>\nprint('") and tree.texts[node].endswith("')\n</code>\n"):
                said = tree.texts[node].removeprefix("<code>\nprint('").removesuffix("')\n</code>\n")
                if said.isalnum() and tree.depths[node] == 1:
                    assert given == f"[{said}]\n"
                    printed += 1
            assert not given or "<code>" in tree.texts[node]
    assert printed >= 12
    traces = [row for path in sorted((tmp_path / "run/rounds/001/traces").glob("*.parquet")) for row in store.read_traces(path)]
    assert any(True in row.completion_given for row in traces)
    assert json.loads((tmp_path / "run/rounds/001/round.json").read_text(encoding="utf-8"))["training"]["policy"]["sft"]["rows"] > 0


def solved(number: int, rng: random.Random) -> dict[str, str]:
    """A solved example: code that prints a letter, then a letter."""
    code, answer = f"<code>\nprint('{rng.choice(ANSWERS)}')\n</code>\n", rng.choice(ANSWERS)
    return {"id": f"w{number}", "question": f"train {number} {rng.choice(ANSWERS)}", "solution": f"{code}{answer}\n"}


def test_a_killed_run_keeps_what_a_tool_said_that_never_says_the_same(tmp_path: Path) -> None:
    """After a kill in the middle of a search, every path that had an observation has it in the trees; nothing is asked twice."""
    config = write_tiny_config(tmp_path, rounds=1, workers=1, num_train=6)
    text = config.read_text(encoding="utf-8").replace("[search]\n", '[search]\ntool = "tools.py:draw"\nobservation = "{output}\\n"\n')
    # One tree after the other, so that the kill comes between two of them.
    text = text.replace("max_step_tokens = 3", "max_step_tokens = 3\nmax_observation_tokens = 12\nmax_trees = 1")
    config.write_text(text, encoding="utf-8")
    (tmp_path / "tools.py").write_text(RANDOM_TOOL, encoding="utf-8")
    run = tmp_path / "run"
    kept = run / "rounds/001/trees/shard-0000.observations.jsonl"
    with started("evolve", config, "--run-dir", run) as process:
        until = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < until:
            if kept.exists() and kept.read_bytes().count(b"\n") >= 2:
                break
            time.sleep(0.005)
        assert killed(process)
    assert not list(run.glob("rounds/001/trees/*.parquet"))
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(kept.read_bytes())
    before = ObservationStore(copy)
    done = called("evolve", config, "--run-dir", run)
    assert done.returncode == 0, done.stderr
    found = {}
    for tree in trees_of(run):
        for node in range(1, len(tree.parents)):
            if tree.given_texts and tree.given_texts[node]:
                above = path_to(tree, tree.parents[node])
                key = path_key((*tree.prompt_ids, *ids_along(tree, above), *tree.token_ids[node]))
                found[key] = tree.given_texts[node]
    same = [key for key in found if key in before]
    assert len(same) >= 1
    for key in same:
        known = before[key]
        assert known is not None and found[key] == f"{known.text}\n"
    assert len(set(found.values())) == len(found)
    assert not list(run.rglob("*.observations.jsonl"))
