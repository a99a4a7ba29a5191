"""The puzzle: exact distances, disjoint splits, a verifier that replays every step, and texts that its model can write."""

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.embedded import TASKS, GlyphTask, prepare, settings
from stepladder.embedded.puzzle import (
    END_PATTERN,
    FLIPS,
    GOAL,
    PROMPT_TEMPLATE,
    STEP_END,
    PuzzleTask,
    distances,
    flipped,
    grade,
    rows_at,
    write_step,
)
from stepladder.errors import CheckpointError, ConfigError
from stepladder.loops.assembly.problem_sets import build_problems
from stepladder.loops.assembly.problems import build_verifier
from stepladder.loops.config.load import load_config
from tests.folders import contents

SMALL = PuzzleTask(train_per_distance=6, held_out_per_distance=2, test_per_distance=4, num_solved=40, num_walks=10)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_moves_by_hand() -> None:
    """A move reverses a prefix and undoes itself, and its step states the row that results."""
    assert [flipped("37214586", length) for length in FLIPS] == ["73214586", "27314586", "41273586", "68541273"]
    assert write_step("37214586", 3) == "f3 27314586\n"
    assert all(flipped(flipped("37214586", length), length) == "37214586" for length in FLIPS)


def test_distances_are_those_of_the_shortest_solutions() -> None:
    """Every row can be solved, neighbours differ by at most one move, and every row but the goal has a neighbour that is nearer."""
    found = distances()
    assert len(found) == 40320
    assert [len(rows_at(distance)) for distance in range(18)] == [
        1, 4, 12, 35, 89, 200, 410, 783, 1390, 2397, 3786, 5431, 6648, 6990, 6402, 4214, 1436, 92,
    ]  # fmt: skip
    for row in random.Random(0).sample(sorted(found), 500):
        around = [found[flipped(row, length)] for length in FLIPS]
        assert all(abs(distance - found[row]) <= 1 for distance in around)
        assert row == GOAL or min(around) == found[row] - 1


@pytest.mark.parametrize("seed", [0, 7])
def test_splits_share_no_question_and_lie_deeper_than_the_warm_up(tmp_path: Path, seed: int) -> None:
    """Problems state their exact distance and no answer; the solved examples are short, and the walks never come near the goal's row."""
    task = prepare(tmp_path / "task", seed=seed, task=SMALL)
    asked: set[str] = set()
    for split, size in (("train", 54), ("held_out", 18), ("test", 36)):
        found = rows(getattr(task, split))
        assert len(found) == size and all(set(row) == {"id", "question", "distance"} for row in found)
        assert all(distances()[row["question"]] == row["distance"] for row in found)
        assert {row["distance"] for row in found} == set(range(5, 14))
        assert not asked & {row["question"] for row in found}
        asked |= {row["question"] for row in found}
    examples = rows(task.warmup)
    solved = [row for row in examples if grade(row["question"], row["solution"])[0]]
    walks = [row for row in examples if row not in solved]
    assert (len(solved), len(walks)) == (40, 10)
    assert all(row["finished"] == (row in solved) for row in examples)
    assert {row["solution"].count("\n") for row in solved} == {1, 2, 3, 4}
    for walk in walks:
        assert walk["solution"].count("\n") == 22 and GOAL not in walk["solution"]
        assert grade(walk["question"], walk["solution"]) == (False, "goal not reached")


def test_the_verifier_replays_every_step() -> None:
    """A solution is right only if each step is a move with its result, from the question on, and the last row is the goal."""
    right = write_step("32145678", 3)
    cases = {
        right: "solved",
        right.strip(): "solved",
        "": "goal not reached",
        write_step("32145678", 2): "goal not reached",
        "f5 12345678\n": "step 1 is no move",
        "f4 41235678\n": "step 1 is no move",
        write_step("32145678", 2) + right: "step 2 is no move",
        right + write_step(GOAL, 2): "goal not reached",
        write_step("32145678", 8) + write_step("87654123", 8) + right: "solved",
    }
    assert {solution: grade("32145678", solution) for solution in cases} == {
        solution: (reason == "solved", reason) for solution, reason in cases.items()
    }


def test_one_token_per_symbol_and_whole_solutions_as_answers(tmp_path: Path) -> None:
    """Every step has ten tokens, text survives, a goal ends a solution, and the answer is all of it."""
    from stepladder.lm.loading import load_causal_lm, load_tokenizer
    from stepladder.policy.prompts import PromptRenderer, StepFormat

    task = prepare(tmp_path / "task", seed=0, task=SMALL)
    step_format = StepFormat(prompt_template=PROMPT_TEMPLATE, step_end=STEP_END, answer="solution", answer_pattern=END_PATTERN)
    renderer = PromptRenderer(load_tokenizer(task.base_model), step_format)
    for row in rows(task.warmup):
        steps = renderer.encode_solution(row["solution"])
        is_solved = row["solution"].endswith(f"{GOAL}\n")
        assert [len(step) for step in steps] == [10] * row["solution"].count("\n") + ([] if is_solved else [1])
        assert "".join(renderer.decode(step) for step in steps) == row["solution"]
        assert renderer.extract_answer(row["solution"]) == row["solution"].strip()
        texts = [renderer.decode(step) for step in steps]
        assert [step_format.is_final(text) for text in texts] == [False] * (len(texts) - 1) + [is_solved]
    model = load_causal_lm(task.base_model, device="cpu")
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


def test_same_seed_same_bytes_and_another_task_is_refused(tmp_path: Path) -> None:
    """The same seed gives the same files, another seed others, and a directory of glyph programs is left alone."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare(tmp_path / name, seed=seed, task=SMALL)
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert first == again
    for name in ("problems/train.jsonl", "warmup.jsonl", "base-model/model.safetensors"):
        assert first[name] != other[name]
    prepare(tmp_path / "glyphs", seed=0, task=GlyphTask(num_warmup=4, num_train=3, num_held_out=2, num_test=2))
    with pytest.raises(CheckpointError, match="another embedded task"):
        prepare(tmp_path / "glyphs", seed=0, task=SMALL)


@pytest.mark.parametrize(
    "wrong", [{"warmup_distance": 5}, {"most_distance": 17}, {"test_per_distance": 200}, {"held_out_per_distance": 0}], ids=str
)
def test_impossible_sizes_are_refused(wrong: dict[str, int]) -> None:
    """A size that the puzzle cannot have is one sentence."""
    with pytest.raises(ConfigError, match="puzzle task"):
        PuzzleTask(**wrong)


def test_settings_are_an_ordinary_configuration_with_a_verifier_of_its_own(tmp_path: Path) -> None:
    """The library loads the problems without answers and with their levels, and grades them by the dotted path alone."""
    prepare(tmp_path / "start", seed=4, task=SMALL)
    config = load_config(None, ["run.seed=4"], base=settings(tmp_path / "start", "puzzle"))
    problems = build_problems(config.problems, seed=4)["test"]
    assert {labelled.level for labelled in problems} == set(map(str, range(5, 14)))
    assert {labelled.answer for labelled in problems} == {""}
    with build_verifier(config.problems, problems) as grader:
        verdicts = grader.grade([(problems[0].problem.id, None), (problems[0].problem.id, f"f8 {GOAL}")])
        assert [verdict.correct for verdict in verdicts] == [False, False]


def test_the_task_is_chosen_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a name it is the default task; a wrong name, or a name beside a file, is one sentence."""
    monkeypatch.chdir(tmp_path)
    verifiers = {}
    for name, arguments in {"default": [], **{name: ["--task", name] for name in TASKS}}.items():
        result = CliRunner().invoke(app, ["evolve", "--dry-run", *arguments])
        assert result.exit_code == 0, result.output
        verifiers[name] = "stepladder.embedded.puzzle:grade" in result.output
    assert verifiers == {"default": True, "puzzle": True, "glyphs": False}
    result = CliRunner().invoke(app, ["evolve", "--task", "glyph"])
    assert result.exit_code == 2 and "--task: must be one of puzzle, glyphs: got 'glyph'" in result.output
    result = CliRunner().invoke(app, ["evolve", "mine.toml", "--task", "glyphs"])
    assert result.exit_code == 2 and "leave one out" in result.output
    assert not list(tmp_path.iterdir())
