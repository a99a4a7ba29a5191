"""Functions that grade: what they may return, what may go wrong in them, and what of it the run survives."""

import time
from pathlib import Path

import pytest

from stepladder.data.grading.plugged import TaskVerifier, needs_reference, open_verifier
from stepladder.data.grading.task_worker import as_verdict
from stepladder.errors import BackendError, ConfigError, DataFormatError
from stepladder.loops.assembly.problem_sets import load_split
from stepladder.loops.assembly.problems import build_verifier, check_verifier, vote_keys
from stepladder.loops.config.load import load_config
from stepladder.loops.config.problems import FormatConfig, ProblemsConfig
from stepladder.loops.runs.inputs import check_inputs, input_digests
from stepladder.types import LabelledProblem, Problem, Verdict
from tests.processes import is_running

CODE = '''
import os, subprocess, sys, time


def poem(question, solution):
    """Share of the lines that begin with a letter of the question; no reference anywhere."""
    lines = solution.splitlines()
    hits = sum(line[:1] == letter for line, letter in zip(lines, question))
    return hits / len(question), f"{hits} of {len(question)} lines"


def total(answer, reference, *, base=10):
    return int(answer, base) == int(reference)


total.answer_key = lambda answer: str(int(answer))


def odd(answer):
    print("a line on the way of the protocol", flush=True)
    sys.stdout.write("{}\\n")
    match answer:
        case "raise":
            raise KeyError("numbers")
        case "sleep":
            time.sleep(600)
        case "spin":
            while True:
                pass
        case "die":
            os._exit(3)
        case "exit":
            sys.exit("enough")
        case "read":
            return sys.stdin.read() == ""
        case "fork":
            return os.fork() >= 0
        case "leave":
            return True, str(subprocess.Popen(["sleep", "600"]).pid)
        case "none":
            return None
        case "two":
            return 2
        case "half":
            return 0.5
    return answer == "yes"


def broken(answer):
    return undefined


def strange(text):
    return True
'''
PROBLEMS = [LabelledProblem(problem=Problem(id="p", question="ab"), answer="7")]


@pytest.fixture
def task(tmp_path: Path) -> str:
    """A task's file, as a prefix of names."""
    path = tmp_path / "task.py"
    path.write_text(CODE)
    return f"{path}:"


def problems_config(**settings: object) -> ProblemsConfig:
    """The section with what it requires."""
    return ProblemsConfig.model_validate({"train": "a", "test": "b", **settings})


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (True, Verdict(correct=True, reason="accepted")),
        (False, Verdict(correct=False, reason="rejected")),
        (1, Verdict(correct=True, reason="accepted", credit=1.0)),
        (0.7, Verdict(correct=True, reason="accepted", credit=0.7)),
        (0.6, Verdict(correct=False, reason="partial credit", credit=0.6)),
        (0, Verdict(correct=False, reason="rejected", credit=0.0)),
        ((0.6, "too long"), Verdict(correct=False, reason="too long", credit=0.6)),
        ((True, "fits"), Verdict(correct=True, reason="fits")),
        (Verdict(correct=True, reason="own"), Verdict(correct=True, reason="own")),
        (None, None),
        ("yes", None),
        (1.01, None),
        (-0.1, None),
        (float("nan"), None),
        ((True, 3), None),
        ([True], None),
    ],
)
def test_return_values_stand_for_verdicts(given: object, verdict: Verdict | None) -> None:
    """A truth value, a number with 0.7 as the bar, either with a reason, or a verdict; nothing else."""
    assert as_verdict(given, passing=0.7) == verdict


def test_outcome_one_is_right_and_nothing_else() -> None:
    """Full credit that does not pass stays below 1, and a right solution is worth 1 whatever its credit."""
    assert Verdict(correct=True, reason="", credit=0.7).outcome == 1.0
    assert Verdict(correct=False, reason="", credit=0.6).outcome == 0.6
    assert Verdict(correct=False, reason="", credit=1.0).outcome < 1.0
    assert Verdict(correct=False, reason="").outcome == 0.0
    with pytest.raises(ValueError, match="credit must be in"):
        Verdict(correct=False, reason="", credit=1.5)


def test_whole_solutions_are_judged_without_a_reference(task: str, tmp_path: Path) -> None:
    """The verifier sees question and text; a problem needs no answer, and a verifier that takes one still does."""
    path = tmp_path / "problems.jsonl"
    path.write_text('{"id": "p", "question": "ab"}\n')
    config = problems_config(verifier=task + "poem", passing=0.9)
    problems = load_split(config, str(path), limit=None, split="train")
    assert problems[0].answer == ""
    with build_verifier(config, problems) as verifier:
        verdicts = verifier.grade([("p", "apple\nbee"), ("p", "apple\ncow"), ("p", None)])
    assert [(verdict.correct, verdict.outcome) for verdict in verdicts] == [(True, 1.0), (False, 0.5), (False, 0.0)]
    assert [verdict.reason for verdict in verdicts] == ["2 of 2 lines", "1 of 2 lines", "unreadable"]
    assert not needs_reference(task + "poem", {})
    with pytest.raises(DataFormatError, match="field 'answer' must be a non-empty string"):
        load_split(problems_config(verifier=task + "total"), str(path), limit=None, split="train")


def test_options_and_keys_are_the_function_s_own(task: str) -> None:
    """Options go by name, votes by ``answer_key``; a key that cannot be made is the normalised text."""
    config = problems_config(verifier=task + "total", verifier_options={"base": 2})
    with build_verifier(config, PROBLEMS) as verifier:
        assert [verdict.correct for verdict in verifier.grade([("p", "111"), ("p", "7")])] == [True, False]
        assert verifier.answer_key("007") == verifier.answer_key(" 7 ") == "7"
        assert verifier.answer_key("no  number") == "no number"
    config = problems_config(verifier=task + "poem")
    with build_verifier(config, []) as verifier:
        assert vote_keys(verifier)("a  b") == vote_keys(verifier)("a b ")


def test_an_odd_answer_costs_that_answer(task: str, caplog: pytest.LogCaptureFixture) -> None:
    """Exceptions, hanging, endless loops and crashes are verdicts with a reason, and printing, reading and forking do no harm."""
    answers = ["yes", "raise", "sleep", "spin", "die", "exit", "read", "fork", "half", "no"]
    with TaskVerifier(PROBLEMS, task + "odd", {}, deadline_s=0.2) as verifier:
        verdicts = dict(zip(answers, verifier.grade([("p", answer) for answer in answers]), strict=True))
    assert {answer for answer, verdict in verdicts.items() if verdict.correct} == {"yes", "read", "fork"}
    assert verdicts["raise"].reason.startswith("raised KeyError: 'numbers' (line ")
    assert verdicts["exit"].reason.startswith("raised SystemExit: enough")
    assert verdicts["sleep"].reason == verdicts["spin"].reason == "timeout"
    assert verdicts["die"].reason == "crashed"
    assert verdicts["half"].outcome == 0.5
    assert "gave no verdict on 5 of 10 answers: timeout (2)" in caplog.text


def test_an_exception_is_placed_in_the_file_of_the_function(tmp_path: Path) -> None:
    """A library that the function calls raises deep inside itself: the line is that of the call, here in a second function."""
    body = "import json\n\ndef grade(answer):\n    return read(answer)\n\ndef read(text):\n    return bool(json.loads(text))\n"
    (tmp_path / "lists.py").write_text(body)
    with TaskVerifier(PROBLEMS, f"{tmp_path / 'lists.py'}:grade", {}) as verifier:
        (verdict,) = verifier.grade([("p", "ten")])
    assert verdict.reason == "raised JSONDecodeError: Expecting value: line 1 column 1 (char 0) (line 7)"


def test_processes_that_a_function_starts_end_with_it(task: str) -> None:
    """What ``leave`` leaves running is gone after the verifier is closed."""
    with TaskVerifier(PROBLEMS, task + "odd", {}) as verifier:
        (verdict,) = verifier.grade([("p", "leave")])
        assert is_running(int(verdict.reason))
    give_up_at = time.monotonic() + 30
    while is_running(int(verdict.reason)):
        assert time.monotonic() < give_up_at, "a process outlived its verifier"
        time.sleep(0.02)


@pytest.mark.parametrize(("answer", "shown"), [("none", "got None of type NoneType"), ("two", "got 2 of type int")])
def test_other_return_values_are_one_sentence(task: str, answer: str, shown: str) -> None:
    """A mistake in the function stops the run, however many answers it is right about."""
    with TaskVerifier(PROBLEMS, task + "odd", {}) as verifier, pytest.raises(DataFormatError, match=shown) as caught:
        verifier.grade([("p", "yes"), ("p", answer)])
    assert "must return True or False, a number in [0, 1], a Verdict" in str(caught.value)


def test_a_function_that_always_raises_stops_the_run(task: str) -> None:
    """A few exceptions may be the answers' fault, 32 of 32 are the function's."""
    with TaskVerifier(PROBLEMS, task + "broken", {}) as verifier:
        assert not any(verdict.correct for verdict in verifier.grade([("p", str(number)) for number in range(31)]))
        with pytest.raises(BackendError, match="each of the first 32, most often NameError: name 'undefined' is not defined"):
            verifier.grade([("p", "31")])


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("strange", {}, "must take some of question, answer, solution, reference, or a factory problems"),
        ("total", {"verifier_options": {"bass": 2}}, "got an unexpected keyword argument 'bass'"),
        ("total", {"verifier_options": {"answer": "2"}}, "which come from the problem: got 'answer'"),
        ("missing", {}, "AttributeError"),
        ("poem", {}, 'set format.answer = "solution"'),
    ],
)
def test_what_cannot_grade_is_one_sentence(task: str, name: str, settings: dict[str, object], words: str) -> None:
    """Before any work: arguments, options, names, and an answer where the whole solution is wanted."""
    with pytest.raises(ConfigError) as caught:
        check_verifier(problems_config(verifier=task + name, **settings), FormatConfig())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_of_entry_points_and_files_are_checked(tmp_path: Path) -> None:
    """An unknown entry point, a missing file, and a file that cannot be run."""
    (tmp_path / "wrong.py").write_text("def grade(answer:\n")
    for name, words in [("countdown", "entry point of the group stepladder.tasks"), ("none.py:f", "FileNotFoundError")]:
        with pytest.raises(ConfigError, match=words):
            check_verifier(problems_config(verifier=name))
    with pytest.raises(ConfigError, match="SyntaxError"):
        check_verifier(problems_config(verifier=f"{tmp_path / 'wrong.py'}:grade"))


def test_entry_points_name_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package's entry point may be a module, whose ``grade`` is the verifier."""
    (tmp_path / "their_tasks.py").write_text("def grade(answer):\n    return answer == 'yes'\n")
    info = tmp_path / "their_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-tasks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[stepladder.tasks]\nyes = their_tasks\n")
    monkeypatch.syspath_prepend(tmp_path)
    with open_verifier(PROBLEMS, "yes", {}) as verifier:
        assert [verdict.correct for verdict in verifier.grade([("p", "yes"), ("p", "no")])] == [True, False]
    with pytest.raises(ConfigError, match="did you mean 'yes'"):
        check_verifier(problems_config(verifier="yess"))


def test_the_source_is_part_of_the_run(task: str, tmp_path: Path) -> None:
    """A changed verifier is noticed like a changed problem file; the folder of its file does not count in the hash."""
    required = ["problems.train=a", "problems.test=b", "policy.model=m"]
    config = load_config(None, [*required, f"problems.verifier={task}total"])
    digests = input_digests(config)
    assert list(digests) == ["problems.verifier"]
    check_inputs(config, digests, place=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "task.py").write_text(CODE)
    assert load_config(None, [*required, f"problems.verifier={elsewhere / 'task.py'}:total"]).hash() == config.hash()
    (tmp_path / "task.py").write_text(CODE + "\n# changed\n")
    with pytest.raises(Exception, match=r"problems\.verifier must stay what it was when the run began"):
        check_inputs(config, digests, place=tmp_path)


def test_files_are_found_beside_the_configuration(task: str, tmp_path: Path) -> None:
    """``task.py:total`` in a file of settings is the file next to it, from wherever the command is given."""
    settings = tmp_path / "settings.toml"
    settings.write_text('[problems]\ntrain = "a"\ntest = "b"\nverifier = "task.py:total"\n[policy]\nmodel = "m"\n')
    assert load_config(settings, []).problems.verifier == f"{tmp_path / 'task.py'}:total"


def test_old_keys_are_forgotten(task, monkeypatch):
    """The newest stay, so that the memory of a server does not grow for ever."""
    monkeypatch.setattr("stepladder.data.grading.plugged._MAX_REMEMBERED", 2)
    with TaskVerifier(PROBLEMS, task + "odd", {}) as verifier:
        assert [verifier.answer_key(f" {number} ") for number in range(9)] == [str(number) for number in range(9)]
        assert len(verifier._keys) <= 3
