"""Code between the steps: it runs after that of its path, its output is observed, and errors are shown."""

import pytest

from stepladder.data.step_checks.code_blocks import blocks_of
from stepladder.data.step_checks.code_tool import CodeTool
from stepladder.data.step_checks.sandbox import CodeSandbox, check_sandbox, close_servers, run_code, server_for
from stepladder.errors import StepladderError
from stepladder.interfaces import Observation, ToolCall
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import resolve_method
from stepladder.policy.observations import ObservationStore
from stepladder.policy.tools import ToolPolicy, ToolSettings
from stepladder.testing import CharRenderer, ExactVerifier, ScriptedPolicy, make_step
from stepladder.types import Budget, Problem, Step, StopReason
from tests.searches import PROVENANCE


def _locks() -> bool:
    try:
        check_sandbox()
    except StepladderError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _locks(), reason="code cannot be sandboxed here")


def block(code: str) -> str:
    return f"Then:\n```python\n{code}\n```\n"


@pytest.fixture
def tool() -> CodeTool:
    return CodeTool(CodeSandbox(deadline_s=2))


def observe(tool: CodeTool, *steps: str) -> Observation | None:
    """Return the observation after the last of some steps; earlier ones had observations that look like code."""
    turns = (*((step, block("print('never')")) for step in steps[:-1]), ("", ""))
    return tool.observe([ToolCall(question="", turns=turns, step=steps[-1])])[0]


def test_blocks_are_read_as_steps_complete_them() -> None:
    """Fences and tags; a ``<code>`` that steps divide gives a block for each finished one."""
    tagged = "<code>\nx = 1\n<end_of_step>\nprint(x)\n<end_of_step>\ny ="
    assert blocks_of(tagged) == ["x = 1\n", "print(x)\n"]
    assert blocks_of(tagged + " 2\n<end_of_code>") == ["x = 1\n", "print(x)\n", "y = 2\n"]
    assert blocks_of(block("a = 1") + "text" + block("b = 2") + "```python\nc") == ["a = 1\n", "b = 2\n"]
    assert blocks_of("<code>\na\n</code> and <code></code>") == ["a\n"]


def test_a_step_sees_the_names_of_its_path_and_its_own_output_alone(tool: CodeTool) -> None:
    """Earlier output is not repeated; a step without code, or whose code prints nothing, has no observation."""
    first, second = block("x = 20\nprint('first')"), block("x += 1\nprint(2 * x)")
    assert observe(tool, first) == Observation("first")
    assert observe(tool, first, second) == Observation("42")
    assert observe(tool, first, "no code\n") is None
    assert observe(tool, first, block("y = x")) is None
    assert observe(tool, first, second, block("print(x)")) == Observation("21")


def test_errors_are_observations_and_what_failed_is_not_run_again(tool: CodeTool) -> None:
    """What was printed, then the last line of the traceback; the next step goes on as if the failed block had never been."""
    good, bad = block("x = 1"), block("x = 5\nprint('so far')\n1 / 0")
    assert observe(tool, good, bad) == Observation("so far\nZeroDivisionError: division by zero", failed=True)
    assert observe(tool, good, bad, block("print(x)")) == Observation("1")
    assert observe(tool, block("print(")) == Observation("SyntaxError: '(' was never closed", failed=True)
    assert observe(tool, block("while True: pass")) == Observation("error: no result within 2 seconds", failed=True)
    assert observe(tool, block("raise SystemExit(0)")) == Observation("SystemExit: 0", failed=True)
    assert observe(tool, block("import os\nos.kill(os.getpid(), 9)")) == Observation("error: the process ended", failed=True)
    assert observe(tool, block("open('/etc/passwd')")) == Observation(
        "PermissionError: [Errno 13] Permission denied: '/etc/passwd'", failed=True
    )


def test_paths_share_nothing_but_their_code(tool: CodeTool) -> None:
    """A name of one path, a file of another and a changed module are not there in the next; calls of one batch are in order."""
    calls = [
        ToolCall(question="", turns=(("", ""),), step=block(code)) for code in ("x = 1\nopen('f', 'w').close()", "print(x)", "open('f')")
    ]
    found = tool.observe([*calls, calls[1]])
    assert found[0] is None and found[1] == found[3] == Observation("NameError: name 'x' is not defined", failed=True)
    assert found[2] == Observation("FileNotFoundError: [Errno 2] No such file or directory: 'f'", failed=True)


def test_one_server_forks_all_pieces_and_its_end_is_survived() -> None:
    """Pieces have different processes and one parent; a server that was killed is replaced; those that name numpy have their own."""
    code = "import os\nprint(os.getpid(), 'numpy' in __import__('sys').modules)"
    runs = [run_code(f"{code}\n# {i}", deadline_s=5).output.split() for i in range(2)]
    assert runs[0][0] != runs[1][0] and [loaded for _, loaded in runs] == ["True", "True"]
    plain = server_for("1")
    assert plain is server_for("2") is not server_for("import numpy")
    plain._process.kill()
    plain._process.wait()
    assert run_code("print(1)", deadline_s=5).output == "1\n"
    assert server_for("1") is not plain
    plain.close()
    close_servers()
    assert run_code("print(2)", deadline_s=5).passed


def test_a_search_with_code_in_its_steps() -> None:
    """A scripted policy writes code, sees its output, and answers with it; after two errors in a row its path is wrong."""

    def write(prefix_ids: tuple[int, ...], index: int, seed: int) -> Step:
        text = "".join(map(chr, prefix_ids))
        if "<out>" not in text:
            return make_step(block("x = 6 * 7\nprint(x)") if index % 2 == 0 else block("print(y)"))
        outputs = text.split("<out>")[1:]
        if "Error" in outputs[-1]:
            return make_step(block("print(y + 1)"))
        return make_step(f"={outputs[-1].strip()}", stop_reason=StopReason.END)

    class Codec(CharRenderer):
        def encode_text(self, text: str, *, place: str) -> tuple[int, ...]:
            return self.encode(text)

    settings = ToolSettings(form="<out>{output}\n", max_errors=2)
    policy = ToolPolicy(ScriptedPolicy(write), CodeTool(CodeSandbox()), Codec(), settings, ObservationStore())
    engine = SearchEngine(
        policy=policy,
        renderer=Codec(),
        method=resolve_method("mcts", num_children=2),
        budget=Budget(num_simulations=8, max_depth=6),
        provenance=PROVENANCE,
        verifier=ExactVerifier({"p": "42"}),
    )
    (result,) = engine.search([Problem(id="p", question="6 * 7?")])
    policy.end()
    tree = result.tree
    assert result.answer == "42" and 1.0 in tree.outcomes
    assert set(tree.given_texts) == {"", "<out>42\n", "<out>NameError: name 'y' is not defined\n"}
    ended = [node for node, reason in enumerate(tree.stop_reasons) if reason == "tool"]
    assert ended and all(tree.outcomes[node] == 0.0 and tree.depths[node] == 2 for node in ended)
