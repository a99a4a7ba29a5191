"""Prompts and problems from functions of a task, and what may be wrong with them."""

from pathlib import Path

import pytest

from stepladder.errors import ConfigError, DataFormatError
from stepladder.loops.assembly.problem_sets import read_sets
from stepladder.loops.config.load import load_config
from stepladder.loops.runs.inputs import input_digests
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.types import Problem
from tests.models import tiny_tokenizer

CODE = """
def prompt(question):
    if not question:
        raise ValueError("no question")
    return f"q: {question.upper().lower()}?"


def number(question):
    return 7


def problems(split):
    return [{"id": f"{split}-{i}", "question": f"{i}+{i}?", "answer": i + i} for i in range({"train": 6, "held_out": 2, "test": 1}[split])]


def words(split):
    return ["one"]
"""


@pytest.fixture
def task(tmp_path: Path) -> str:
    """A task's file, as a prefix of names."""
    (tmp_path / "task.py").write_text(CODE)
    return f"{tmp_path / 'task.py'}:"


def test_a_function_makes_the_prompt(task: str, tmp_path: Path) -> None:
    """Its text is the prompt; another source is another renderer; the same source elsewhere is the same."""
    tokenizer = tiny_tokenizer()
    renderer = PromptRenderer(tokenizer, StepFormat(prompt=task + "prompt"))
    assert renderer.decode(renderer.prompt_ids(Problem(id="p", question="2+2?"))) == "q: 2+2??"
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "task.py").write_text(CODE)
    copy = StepFormat(prompt=f"{tmp_path / 'copy' / 'task.py'}:prompt")
    assert PromptRenderer(tokenizer, copy).hash == renderer.hash
    (tmp_path / "copy" / "task.py").write_text(CODE + "# another\n")
    assert PromptRenderer(tokenizer, copy).hash != renderer.hash
    assert PromptRenderer(tokenizer, StepFormat()).hash != renderer.hash


def test_a_format_with_a_function_is_stored_with_its_name(task: str, tmp_path: Path) -> None:
    """A model directory names it; formats without one are stored as before."""
    for stated in (StepFormat(prompt=task + "prompt"), StepFormat(answer="solution"), StepFormat()):
        stated.save(tmp_path)
        assert StepFormat.load(tmp_path) == stated
    (stored,) = tmp_path.glob("*format*.json")
    assert '"prompt"' not in stored.read_text()


def test_prompts_that_cannot_be_made_are_one_sentence(task: str) -> None:
    """An exception with the question, another type, and a name that is not there."""
    tokenizer = tiny_tokenizer()
    with pytest.raises(DataFormatError, match="must return a text: got int"):
        PromptRenderer(tokenizer, StepFormat(prompt=task + "number")).prompt_ids(Problem(id="p", question="1"))
    with pytest.raises(ConfigError, match=r"format\.prompt: must name a function"):
        PromptRenderer(tokenizer, StepFormat(prompt=task + "missing"))


def test_a_function_gives_the_problems_of_each_split(task: str, tmp_path: Path) -> None:
    """It is called with the name of the split; questions that a later split repeats leave training; its file is an input of the run."""
    sources = [f"problems.{split}={task}problems" for split in ("train", "held_out", "test")]
    config = load_config(None, [*sources, "policy.model=m"])
    splits = read_sets(config.problems, seed=0).splits
    assert {name: [labelled.answer for labelled in problems] for name, problems in splits.items()} == {
        "train": ["4", "6", "8", "10"],
        "held_out": ["2"],
        "test": ["0"],
    }
    assert splits["train"][0].problem.id == "train-2"
    assert set(input_digests(config)) == {"problems.train", "problems.held_out", "problems.test"}
    with pytest.raises(DataFormatError, match="row 1 must be a dictionary of fields: got str"):
        read_sets(load_config(None, [*sources[1:], f"problems.train={task}words", "policy.model=m"]).problems, seed=0)
    with pytest.raises(DataFormatError, match="it raised TypeError: must be"):
        read_sets(load_config(None, [*sources[1:], "problems.train=math:sqrt", "policy.model=m"]).problems, seed=0)
