"""``solve`` with standard input and output, in a conversation, and with the newest run."""

import io
import json
import os
import signal
import threading
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.commands import converse as converse_module
from stepladder.commands.converse import converse
from stepladder.commands.solve import solve_question
from stepladder.commands.solve_report import Detail
from stepladder.commands.solve_settings import SolveSettings
from stepladder.data.datasets.problems import question_rows, questions_of
from stepladder.errors import CheckpointError, DataFormatError
from stepladder.loops.assembly.search_session import SearchSession
from stepladder.loops.runs.newest import newest_run
from stepladder.policy.prompts import StepFormat
from tests.models import save_tiny_policy

SHORT = ("search.max_step_tokens=100", "search.max_depth=2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a policy whose solutions end with any digit."""
    folder = save_tiny_policy(tmp_path_factory.mktemp("streams") / "policy", max_positions=256)
    StepFormat(answer_pattern=r"(\d)").save(folder)
    return folder


def _solve(model: Path, *words: str, text: str | None = None) -> Result:
    more = ["--policy", str(model), "--simulations", "4", "--method", "mcts", *(f"--set={each}" for each in SHORT)]
    return CliRunner().invoke(app, ["solve", *words, *more], input=text)


def _settings(model: Path, simulations: int = 4) -> SolveSettings:
    return SolveSettings.resolve(
        run=None,
        policy=str(model),
        prm=(),
        method="mcts",
        tokens=None,
        simulations=simulations,
        options=[],
        seed=0,
        overrides=SHORT,
    )


def test_questions_come_from_standard_input_and_answers_go_to_standard_output(model: Path, tmp_path: Path) -> None:
    """In the order of the questions; the rows are those of a file, and everything else is on standard error."""
    done = _solve(model, "--input", "-", text="1+2\n\n2+2\n")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["id"], row["question"]) for row in rows] == [("stdin-1", "1+2"), ("stdin-3", "2+2")]
    assert "2 questions" in done.stderr
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"id": row["id"], "question": row["question"]}) + "\n" for row in rows))
    assert _solve(model, "--input", str(source), "--output", str(output)).exit_code == 0
    assert [json.loads(line)["answer"] for line in output.read_text().splitlines()] == [row["answer"] for row in rows]


def test_quiet_says_nothing_but_answers(model: Path) -> None:
    """One line for a question, and only the rows for several."""
    alone, several = _solve(model, "1+2", "-q"), _solve(model, "--input", "-", "--output", "-", "--quiet", text="1+2\n")
    assert (len(alone.stdout.splitlines()), alone.stderr) == (1, "")
    assert (len(several.stdout.splitlines()), several.stderr) == (1, "")
    assert len(alone.stdout.strip()) == len(json.loads(several.stdout)["answer"]) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"id": "a", "question": "1"}\nplain\n', "stdin:2: must be one JSON object"),
        ('{"question": "1"}\n', "stdin:1: field 'id' must be a non-empty string"),
        ("\n \n", "stdin: must hold at least one question"),
    ],
)
def test_wrong_lines_of_standard_input_are_named(model: Path, text: str, says: str) -> None:
    """The first line decides between JSON and plain text."""
    done = _solve(model, "--input", "-", text=text)
    assert done.exit_code == 2 and says in done.stderr, done.output


def test_plain_lines_may_have_braces() -> None:
    """A question that begins with a brace and is no object is text, and bytes that are no text are named with their line."""
    rows = question_rows(io.BytesIO(b"{1,2} has how many subsets?\n"), "stdin", id_field="id", question_field="question")
    assert [(problem.id, problem.question) for problem in questions_of(rows)] == [("stdin-1", "{1,2} has how many subsets?")]
    with pytest.raises(DataFormatError, match="stdin:2: must be UTF-8"):
        list(question_rows(io.BytesIO(b"one\n\xff\n"), "stdin", id_field="id", question_field="question"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["1+1", "--input", "-"], "one of QUESTION, --input FILE and --interactive"),
        (["--interactive", "1+1"], "one of QUESTION, --input FILE and --interactive"),
        (["1+1", "--output", "-"], "--output: is for the answers to --input"),
        (["1+1", "-q", "-v"], "--quiet and --verbose contradict each other"),
        (["-i", "--json"], "--interactive: prints text"),
        (["-i", "--discriminator", "model"], "--interactive: answers without a second model"),
    ],
)
def test_words_that_contradict_each_other_are_refused(model: Path, words: list[str], says: str) -> None:
    """Before any model is loaded."""
    done = _solve(model, *words)
    assert done.exit_code == 2 and says in done.stderr, done.output


def test_a_conversation_gives_the_answers_of_single_calls(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blank lines ask nothing."""
    questions = iter(["1+2\n", " \n", "2+2", None])
    converse(_settings(model), detail=Detail.QUIET, ask=lambda: next(questions))
    answers = capsys.readouterr().out.splitlines()
    alone = [solve_question(_settings(model), each, tree_path=None, as_json=False, detail=Detail.QUIET).text for each in ("1+2", "2+2")]
    assert answers == alone


def test_a_stopped_search_gives_its_best_answer_and_the_conversation_goes_on(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a search that would take for ever; afterwards Ctrl-C means again what it meant before."""
    before, turn = signal.getsignal(signal.SIGINT), SearchSession.turn

    def pressed(session: SearchSession):
        if threading.current_thread() is threading.main_thread():
            os.kill(os.getpid(), signal.SIGINT)
        return turn(session)

    asked = iter(["1+2", "2+2", None])

    def ask() -> str | None:
        question = next(asked)
        if question == "2+2":
            monkeypatch.undo()
        return question

    monkeypatch.setattr(converse_module.SearchSession, "turn", pressed)
    converse(_settings(model, 300), detail=Detail.NORMAL, ask=ask)
    said = capsys.readouterr().out
    assert said.count("answer:") == 2
    assert said.count("stopped, so this is the best answer so far") == 1
    assert said.count("ended by the cap of 300 simulations") + said.count("nothing was left") == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_the_newest_run_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that finished a round last, whatever was begun after it; without any, the remedy is named."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="must hold a run with a finished round: found none"):
        newest_run()
    _begin(tmp_path / "runs" / "begun")
    with pytest.raises(CheckpointError, match="runs/begun has none yet"):
        newest_run()
    for name, finished in (("new", 300.0), ("old", 100.0)):
        row = _begin(tmp_path / "runs" / name) / "round.json"
        row.write_text("{}")
        os.utime(row, (finished, finished))
    assert newest_run() == Path("runs/new")


def _begin(run: Path) -> Path:
    """Make the files of a run that has begun, and return the folder of its first round."""
    first = run / "rounds" / "000"
    first.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    return first
