"""The embedded task: disjoint splits, reproducible bytes, a teacher that executes rightly and believes wrongly."""

import itertools
import json
import random
from pathlib import Path

import pytest

from stepladder.embedded import prepare, settings
from stepladder.embedded.glyphs import (
    ANSWER_PATTERN,
    FUNCTIONS,
    LIST_LENGTH,
    PROMPT_TEMPLATE,
    STEP_END,
    GlyphProblem,
    GlyphTask,
    check_steps,
    is_clean,
    make_world,
    split_of,
    teacher_solution,
    write_solution,
)
from stepladder.errors import CheckpointError, ConfigError
from tests.folders import contents

SMALL = GlyphTask(num_warmup=40, num_train=30, num_held_out=20, num_test=20)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_functions_by_hand() -> None:
    """Every function does to 47193 what its name says."""
    expected = {
        "reverse": "39174", "left": "71934", "right": "34719", "ends": "37194", "inner": "49173", "front": "74193",
        "back": "47139", "middle": "41793", "up": "58204", "down": "36082", "flip": "52806", "triple": "21379",
    }  # fmt: skip
    assert {name: "".join(map(str, function((4, 7, 1, 9, 3)))) for name, function in FUNCTIONS.items()} == expected


def test_one_wrong_step_never_ends_in_the_right_answer() -> None:
    """On every list of different digits no two functions agree, none maps two lists to one, and the digits stay different."""
    lists = list(itertools.permutations(range(10), LIST_LENGTH))
    images = {name: [function(digits) for digits in lists] for name, function in FUNCTIONS.items()}
    for found in images.values():
        assert set(found) == set(lists)
    for first, second in itertools.combinations(images, 2):
        assert all(one != other for one, other in zip(images[first], images[second], strict=True)), (first, second)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_splits_are_disjoint_by_program(tmp_path: Path, seed: int) -> None:
    """No question and no program of one split occurs in another, the warm-up included."""
    task = prepare(tmp_path / "task", seed=seed, task=SMALL)
    files = {"train": task.train, "held_out": task.held_out, "test": task.test, "warmup": task.warmup}
    programs = {split: {GlyphProblem.from_question(row["question"]).program for row in rows(path)} for split, path in files.items()}
    for split, found in programs.items():
        assert all(split_of(program, seed=seed) == split for program in found)
        for other in programs:
            assert other == split or not found & programs[other]
    ids = [row["id"] for path in files.values() for row in rows(path)]
    assert len(ids) == len(set(ids))
    assert [len(rows(path)) for path in files.values()] == [30, 20, 20, 40]


def test_answers_follow_from_the_hidden_meanings(tmp_path: Path) -> None:
    """The label is what the true functions make of the digits, and no file says what they are."""
    task, world = prepare(tmp_path / "task", seed=3, task=SMALL), make_world(SMALL, seed=3)
    for row in rows(task.train):
        problem = GlyphProblem.from_question(row["question"])
        digits = problem.digits
        for glyph in problem.program:
            digits = FUNCTIONS[world.meanings[glyph]](digits)
        assert row["answer"] == "".join(map(str, digits))
        assert set(row) == {"id", "question", "answer"}


def test_teacher_executes_rightly_and_believes_wrongly() -> None:
    """Over many solutions each misread glyph is read rightly as often as its share says, and every list follows from the function named."""
    task, rng = GlyphTask(), random.Random(0)
    world = make_world(task, seed=5)
    right = dict.fromkeys(world.misread, 0)
    draws = 2000
    for glyph in world.misread:
        others = [other for other in task.glyphs if other not in world.misread][: task.program_length - 1]
        problem = GlyphProblem(digits=(1, 2, 3, 4, 5), program="".join([glyph, *others]))
        for _ in range(draws):
            steps = teacher_solution(world, problem, rng).splitlines(keepends=True)
            digits = problem.digits
            for step in steps:
                name, text = step.split(" ")[1], step.strip().rpartition(" ")[2]
                digits = FUNCTIONS[name](digits)
                assert text == "".join(map(str, digits))
            right[glyph] += steps[0].split(" ")[1] == world.meanings[glyph]
    for glyph, share in zip(world.misread, task.right_shares, strict=True):
        # Four standard deviations of a binomial share.
        assert right[glyph] / draws == pytest.approx(share, abs=4 * (share * (1 - share) / draws) ** 0.5)


def test_checker_finds_the_wrong_step() -> None:
    """A solution with one wrong meaning is wrong in that step alone, and clean only when all are right."""
    world = make_world(GlyphTask(), seed=1)
    problem = GlyphProblem.from_question("47193 ABCD")
    meanings = [world.meanings[glyph] for glyph in problem.program]
    good = write_solution(problem, meanings).splitlines(keepends=True)
    assert is_clean(world, problem.question, good)
    assert not is_clean(world, problem.question, good[:-1])
    wrong = next(name for name in FUNCTIONS if name != meanings[1])
    bad = write_solution(problem, [meanings[0], wrong, *meanings[2:]]).splitlines(keepends=True)
    assert check_steps(world, problem.question, bad) == [True, False, True, True]


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """Problems, solved examples and weights are the same bytes for the same seed and others for another."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare(tmp_path / name, seed=seed, task=SMALL)
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert first == again
    for name in ("problems/train.jsonl", "warmup.jsonl", "base-model/model.safetensors"):
        assert first[name] != other[name]


def test_directory_of_another_task_is_refused(tmp_path: Path) -> None:
    """What exists is used only if it is the same task; anything else is left alone."""
    prepare(tmp_path / "task", seed=0, task=SMALL)
    with pytest.raises(CheckpointError, match="another embedded task"):
        prepare(tmp_path / "task", seed=1, task=SMALL)
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match=r"task\.json"):
        prepare(tmp_path / "mine", seed=0, task=SMALL)
    for wrong in ({"num_glyphs": 3}, {"right_shares": (0.3,) * 21}, {"right_shares": (0.5,), "wrong_share": 0.6}):
        with pytest.raises(ConfigError):
            GlyphTask(**wrong)


def test_tokenizer_and_model(tmp_path: Path) -> None:
    """One token per symbol, text survives encoding and decoding, and the model is small enough and wide enough for every engine."""
    from stepladder.lm.loading import load_causal_lm, load_tokenizer
    from stepladder.policy.prompts import PromptRenderer, StepFormat

    task = prepare(tmp_path / "task", seed=0, task=SMALL)
    tokenizer = load_tokenizer(task.base_model)
    renderer = PromptRenderer(tokenizer, StepFormat(prompt_template=PROMPT_TEMPLATE, step_end=STEP_END, answer_pattern=ANSWER_PATTERN))
    for row in rows(task.warmup):
        steps = renderer.encode_solution(row["solution"])
        assert [len(step) for step in steps] == [8, 8, 8, 9]
        assert "".join(renderer.decode(step) for step in steps) == row["solution"]
        assert renderer.extract_answer(row["solution"]) == row["solution"].strip()[-LIST_LENGTH:]
    model = load_causal_lm(task.base_model, device="cpu")
    assert model.config.hidden_size // model.config.num_attention_heads >= 32
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


def test_settings_are_an_ordinary_configuration(tmp_path: Path) -> None:
    """What evolve gets without a file passes the checks of a file, and names the files that were prepared."""
    from stepladder.loops.assembly.checks import check_model, check_searches
    from stepladder.loops.config.load import load_config

    base = settings(tmp_path / "start")
    assert not (tmp_path / "start").exists()
    prepare(tmp_path / "start", seed=4, task=SMALL)
    config = load_config(None, ["run.seed=4"], base=base)
    check_searches(config)
    check_model(config.policy)
    for path in (config.problems.train, config.problems.held_out, config.problems.test, config.warmup.solutions):
        assert Path(str(path)).is_file()
