"""A tool between the steps from the command line: a whole round, its rows, a killed run, and an export with masks."""

import json
from pathlib import Path

import pytest

from stepladder.data import store
from stepladder.tree_paths import path_to
from tests.runs import called, stepladder, write_tiny_config

TOOL = '''
def lookup(step, solution):
    """Answer a line with a plus sign by a letter that depends on the solution so far."""
    return f"+{'abcd'[len(solution) % 4]}" if step.strip() == "+" else None
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one round whose steps call a tool."""
    folder = tmp_path_factory.mktemp("tools")
    config = write_tiny_config(folder, rounds=1, workers=1, num_train=12)
    text = config.read_text(encoding="utf-8").replace("[search]\n", '[search]\ntool = "tools.py:lookup"\nobservation = "{output}\\n"\n')
    config.write_text(text, encoding="utf-8")
    (folder / "tools.py").write_text(TOOL, encoding="utf-8")
    done = stepladder("evolve", config, "--run-dir", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_a_round_learns_around_its_observations(run: Path) -> None:
    """Every plus line of a tree is followed by the tool's letter; traces mark it as given; values keep it apart; nothing is left over."""
    trees = [tree for path in sorted((run / "rounds/001/trees").glob("*.parquet")) for tree in store.read_trees(path)]
    seen = 0
    for tree in trees:
        for node in range(1, len(tree.parents)):
            called = tree.texts[node] == "+\n" and tree.stop_reasons[node] in ("step", "depth")
            given = tree.given_texts[node] if tree.given_texts else ""
            assert bool(given) == called
            if called:
                before = "".join(tree.texts[each] + tree.given_texts[each] for each in path_to(tree, tree.parents[node]))
                assert given == f"+{'abcd'[len(before) % 4]}\n"
                seen += 1
    assert seen >= 6
    traces = [row for path in sorted((run / "rounds/001/traces").glob("*.parquet")) for row in store.read_traces(path)]
    marked = [row for row in traces if row.completion_given]
    assert marked and all(len(row.completion_given) == len(row.completion_ids) for row in marked)
    assert all(sum(row.completion_given) % 3 == 0 for row in marked)
    values = [row for path in sorted((run / "rounds/001/values").glob("*.parquet")) for row in store.read_values(path)]
    assert any(row.given_texts and row.given_texts[0].startswith("+") for row in values)
    assert not list(run.rglob("*.observations.jsonl"))
    assert json.loads((run / "rounds/001/round.json").read_text(encoding="utf-8"))["training"]["policy"]["sft"]["rows"] > 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert '"observation":"+' in page.replace('"observation": "', '"observation":"')


def test_an_export_masks_what_was_given(run: Path, tmp_path: Path) -> None:
    """``labels`` are -100 and ``assistant_masks`` 0 on the prompt and on every given token; the mask of verl is 0 there as well."""
    for name in ("sft-ids", "trajectories"):
        done = called("export", run, "--format", name, "--to", tmp_path / name)
        assert done.returncode == 0, done.stderr
    rows = [row for path in (tmp_path / "sft-ids").rglob("*.parquet") for row in store.read_parquet(path, remedy="").to_pylist()]
    assert any(True in row["completion_given"] for row in rows)
    for row in rows:
        given = row["completion_given"] or [False] * len(row["completion_token_ids"])
        assert row["assistant_masks"] == [0] * len(row["prompt_token_ids"]) + [int(not each) for each in given]
        assert [label != -100 for label in row["labels"]] == [bool(each) for each in row["assistant_masks"]]
    rows = [row for path in (tmp_path / "trajectories").rglob("*.parquet") for row in store.read_parquet(path, remedy="").to_pylist()]
    masked = [row for row in rows if 0 in row["response_mask"]]
    assert masked
    for row in masked:
        figures = zip(row["response_mask"], row["old_log_probs"], row["advantages"], strict=True)
        assert all(sampled or (logp == 0 and advantage == 0) for sampled, logp, advantage in figures)
        assert all(row["response_mask"][end] == 1 for end in row["step_ends"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nowhere:f", "search.tool: must name a function that can be imported"),
        ("json:loads", "search.tool: must take step or solution"),
    ],
)
def test_a_tool_that_cannot_be_called_is_refused_before_any_work(run: Path, tmp_path: Path, given: str, said: str) -> None:
    """One sentence, exit code 2, and no run."""
    config = run.parent / "tiny.toml"
    done = called("evolve", config, "--run-dir", tmp_path / "run", "--set", f"search.tool={given}", "--dry-run")
    assert done.returncode == 2 and said in done.stderr.replace("\n", " ") and not (tmp_path / "run" / "rounds").exists()
