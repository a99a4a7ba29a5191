"""Every command and every Python block of every page runs, on a tiny model and a tiny run that are prepared once.

Each page has a copy of the directory of its own, in which its blocks run in order. A block with a title is a file, which later blocks use.
"""

import contextlib
import importlib.util
import io
import json
import re
import shutil
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.policy.prompts import StepFormat
from tests.models import save_tiny_policy
from tests.pages import PAGES, ROOT, Block, blocks
from tests.runs import write_tiny_config
from tests.served import serving

BLOCKS = [block for page in PAGES for block in blocks(page)]
MOST_NOT_RUN = 18
"""Blocks that cannot run here: raise it only for a block that needs a GPU, the network, or hours."""


def invoke(words: list[str]) -> tuple[int, str]:
    """Run a stepladder command and return its exit code and output."""
    done = CliRunner().invoke(app, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with everything that the pages speak of: settings, problems, a policy, a PRM, a finished run."""
    folder = tmp_path_factory.mktemp("pages") / "desk"
    settings = write_tiny_config(folder, rounds=1, workers=1, num_train=8)
    # Without options of a tree search, any method can be set from the command line.
    text = settings.read_text(encoding="utf-8").replace("options = { num_children = 4, wave = 2 }\n", "", 1)
    (folder / "my.toml").write_text(text, encoding="utf-8")
    StepFormat(answer_pattern=r"(\d)").save(save_tiny_policy(folder / "my-model"))
    shutil.copytree(ROOT / "examples", folder / "examples")
    write(folder / "questions.jsonl", [{"id": "sum", "question": "12+30"}, {"id": "difference", "question": "50-8"}])
    write(folder / "answers.jsonl", [{"id": "sum", "question": "12+30", "answer": "42", "reference": "42.0"}])
    steps = [{"problem_id": str(i), "question": f"{i}+1", "steps": ["+\n", f"{i}\n"], "labels": [True, i % 2 == 0]} for i in range(8)]
    write(folder / "steps.jsonl", steps)
    with contextlib.chdir(folder):
        code, output = invoke(["evolve", "my.toml", "--run-dir", "runs/embedded"])
    assert code == 0, output
    for name in ("mine", "a"):
        shutil.copytree(folder / "runs/embedded", folder / "runs" / name)
    shutil.copytree(folder / "runs/embedded/rounds/001/models/prm", folder / "my-prm")
    return folder.rename(folder.with_name("laboratory"))


def test_notebook_runs(desk: Path) -> None:
    """The cells of the notebook run in order, and the one with the tree alone draws it."""
    notebook = json.loads((ROOT / "examples/first_search.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    drawn = ""
    for number, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        code = "".join(cell["source"])
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        if code == "solver.tree":
            drawn = eval(code, names)._repr_html_()
        else:
            exec(compile(code, f"cell {number}", "exec"), names)
    assert drawn.startswith('<div class="stepladder-tree">')
    assert "25143678" in drawn


def write(path: Path, rows: list[dict]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def desk(laboratory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in the directory as it was prepared. It stays in its place, because a run knows where its files are."""
    folder = laboratory.with_name("desk")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(laboratory, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(not block.reason and block.kind for block in blocks(page))], ids=lambda page: page.name
)
def test_blocks_run(page: Path, desk: Path) -> None:
    """The commands of a page end with exit code 0, its Python ends without an exception and prints what its comments say."""
    names: dict[str, object] = {"__name__": "__main__"}
    with contextlib.ExitStack() as servers:
        for block in blocks(page):
            if block.title and block.kind in {"python", "toml"}:
                Path(block.title).write_text(block.text, encoding="utf-8")
            if block.reason:
                continue
            if block.kind in {"sh", "bash"}:
                run_commands(block)
            elif block.kind == "console":
                show_commands(block)
            elif block.kind == "python":
                run_python(block, names, servers)


def run_commands(block: Block) -> None:
    """Run the commands of stepladder; make, pip and others are only looked at."""
    for words in block.commands:
        if words[0] == "stepladder":
            cut = words.index(">") if ">" in words else len(words)
            code, output = invoke(words[1:cut])
            assert code == 0, f"{block.place}: {' '.join(words)}: {output}"
            for file in words[cut + 1 :]:
                Path(file).write_text(output, encoding="utf-8")
        else:
            check_other(block, words)


def show_commands(block: Block) -> None:
    """Run the commands after the prompts of a session, whose other lines are the output."""
    for session in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = session.partition("\n")
        _, output = invoke(command.split()[1:])
        assert output.strip() == shown.strip(), block.place


def run_python(block: Block, names: dict[str, object], servers: contextlib.ExitStack) -> None:
    """Run Python in the names of the page; the lines that end with a comment of a value print it."""
    code = block.text
    if "http://127.0.0.1:8000" in code:
        code = code.replace("http://127.0.0.1:8000", servers.enter_context(serving()).url)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, block.place, "exec"), names)
    if client := names.pop("client", None):
        servers.callback(client.close)
    expected = re.findall(r"^print\(.*\)  # (.+)$", code, flags=re.MULTILINE)
    if expected:
        assert printed.getvalue().split("\n")[: len(expected)] == expected, block.place


def check_other(block: Block, words: list[str]) -> None:
    """A target of make is in the Makefile, a module and a file exist, and only known programs are named."""
    match words:
        case ["make", *targets]:
            known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert {word for word in targets if "=" not in word} <= set(known), block.place
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), block.place
        case _:
            assert words[0] in {"source", "pip", "lm_eval", "cd", "git"}, f"{block.place}: {words[0]} is unknown"


UNRUN = [block for block in BLOCKS if block.reason]


@pytest.mark.parametrize("block", UNRUN, ids=lambda block: block.place)
def test_blocks_that_cannot_run_are_understood(block: Block, desk: Path) -> None:
    """Commands that need more than a test has are parsed; evolve also checks their settings."""
    if block.kind == "python":
        compile(block.text, block.place, "exec")
        return
    for words in block.commands:
        if words[0] != "stepladder":
            check_other(block, words)
        elif words[1] == "evolve" and not re.search("hub|vLLM", block.reason):
            code, output = invoke([*words[1:], "--dry-run"])
            assert code == 0, f"{block.place}: {' '.join(words)}: {output}"
        else:
            parse(words[1:])


def parse(words: list[str]) -> None:
    """Parse the options of a command as the command line does, without its work."""
    command = typer.main.get_command(app)
    context = click.Context(command)
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        name, command, words = command.resolve_command(context, list(words))
        context = click.Context(command, info_name=name, parent=context)
    command.make_context(context.info_name, words, parent=context.parent)


def test_few_blocks_are_not_run() -> None:
    """A block that is not run gives its reason, and few are not run."""
    assert len(UNRUN) <= MOST_NOT_RUN, [block.place for block in UNRUN]
    assert all(len(block.reason.split()) > 2 for block in UNRUN)


def test_no_command_hides_in_another_block() -> None:
    """What looks like a command or Python is in a block that runs."""
    hidden = [
        block.place
        for block in BLOCKS
        if block.kind not in {"sh", "bash", "console", "python"}
        and re.search(r"^(\$ |stepladder \w|make \w|import |from \w+ import |class \w+)", block.text, flags=re.MULTILINE)
    ]
    assert hidden == []
