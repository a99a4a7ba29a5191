"""Tools of a user's own: whatever the function does, there is an observation or one sentence, and nothing is lost."""

from pathlib import Path

import pytest

from stepladder.data.grading.tools import FunctionTool, load_tool
from stepladder.errors import BackendError, ConfigError, DataFormatError
from stepladder.interfaces import Observation, ToolCall

TOOLS = '''
import os, sys, time

def lookup(step, solution, question="none"):
    """Do what the step says."""
    if step == "raise\\n":
        raise KeyError("no such page")
    if step == "hang\\n":
        while True:
            pass
    if step == "exit\\n":
        sys.exit(3)
    if step == "die\\n":
        os._exit(3)
    if step == "fork\\n":
        if os.fork() == 0:
            return "a second reply"
        return "one reply"
    if step == "number\\n":
        return 7
    if step == "nothing\\n":
        return None
    print("printed")
    sys.stderr.write("printed")
    return f"{question}|{solution}|{step.strip()}<|im_end|>\\x00é"

def short(step):
    return step[::-1]

def broken(step):
    raise RuntimeError("not ready")

def odd(text):
    return text

value = 3
'''


@pytest.fixture
def module(tmp_path: Path) -> str:
    (tmp_path / "tools.py").write_text(TOOLS, encoding="utf-8")
    return str(tmp_path / "tools.py")


def call(step: str) -> ToolCall:
    return ToolCall(question="Q", turns=(("a\n", "[1]\n"), ("b\n", "")), step=f"{step}\n")


def test_whatever_a_function_does_is_an_observation(module: str) -> None:
    """Raising, hanging, ending and dying are errors that say so; printing and forking change nothing; None is no observation."""
    tool = FunctionTool(f"{module}:lookup", deadline_s=1)
    try:
        steps = ["x", "raise", "hang", "exit", "die", "fork", "nothing", "x"]
        found = tool.observe([call(step) for step in steps])
    finally:
        tool.close()
    good = Observation("Q|a\n[1]\nb\n|x<|im_end|>\x00é")
    assert found[:1] + found[-3:] == [good, Observation("one reply"), None, good]
    assert found[1] is not None and found[1].failed and found[1].text.startswith("error: KeyError: 'no such page' (line ")
    assert found[2] == Observation("error: no result within 1 seconds", failed=True)
    assert found[3] is not None and found[3].text.startswith("error: SystemExit: 3")
    assert found[4] == Observation("error: the process ended", failed=True)


def test_something_else_than_text_is_one_sentence(module: str) -> None:
    """A number is no observation: the function is wrong, not the step."""
    tool = FunctionTool(f"{module}:lookup")
    try:
        with pytest.raises(DataFormatError, match=r"search\.tool: '.*:lookup' must return text or None: got 7 of type int -- correct it"):
            tool.observe([call("number")])
        assert tool.observe([call("nothing")]) == [None]
    finally:
        tool.close()


def test_a_function_that_always_raises_is_broken(module: str) -> None:
    """After 32 calls that is one sentence; a function that only takes the step works."""
    tool, short = FunctionTool(f"{module}:broken"), FunctionTool(f"{module}:short")
    try:
        assert all(found is not None and found.failed for found in tool.observe([call("x")] * 31))
        with pytest.raises(
            BackendError, match=r"it raised an exception in each of the first 32 calls, the last time RuntimeError: not ready"
        ):
            tool.observe([call("x")])
        assert short.observe([call("ab")]) == [Observation("\nba")]
    finally:
        tool.close()
        short.close()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("odd", "must take step or solution, perhaps question, and nothing else without a default"),
        ("value", "cannot be called"),
        ("absent", "must name a function that can be imported"),
    ],
)
def test_functions_that_cannot_be_called_are_refused(module: str, name: str, said: str) -> None:
    """Before any call, with the setting's name."""
    with pytest.raises(ConfigError, match=f"^search.tool: {said}|{said}"):
        load_tool(f"{module}:{name}")
