"""Graders from outside: a package on the path, what it is called with, and sentences for what is wrong with it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from stepladder.data.grading.plugged import PluggedVerifier
from stepladder.errors import ConfigError, DataFormatError
from stepladder.loops.assembly.problem_sets import load_split
from stepladder.loops.assembly.problems import build_verifier, check_verifier, vote_keys
from stepladder.loops.config.load import load_config
from stepladder.loops.config.problems import ProblemsConfig
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import resolve_method
from stepladder.testing import CharRenderer, ScriptedPolicy
from stepladder.types import Budget, LabelledProblem, Problem, Step, StopReason, Verdict
from tests.trees import PROVENANCE

CODE = '''
"""A task whose answers are right when they are close enough."""

from stepladder.types import Verdict

closed = []


class Close:
    def __init__(self, references, tolerance):
        self._references, self._tolerance = references, tolerance

    def grade(self, answers):
        return [self._verdict(problem_id, answer) for problem_id, answer in answers]

    def _verdict(self, problem_id, answer):
        if answer is None:
            return Verdict(correct=False, reason="unreadable")
        correct = abs(float(answer) - self._references[problem_id]) <= self._tolerance
        return Verdict(correct=correct, reason="close" if correct else "far")

    def answer_key(self, answer):
        return str(round(float(answer)))

    def close(self):
        closed.append(True)


def close(problems, tolerance=0.5):
    return Close({labelled.problem.id: float(labelled.answer) for labelled in problems}, tolerance)


class Plain:
    def __init__(self, problems):
        pass

    def grade(self, answers):
        return [Verdict(correct=True, reason="always") for _ in answers]


class Short(Plain):
    def grade(self, answers):
        return [True]


def nothing(problems):
    return problems


value = 3
'''
PROBLEMS = [LabelledProblem(problem=Problem(id="p", question="1+1"), answer="2")]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of somebody else, on the path."""
    folder = tmp_path / "elsewhere" / "their_task"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "grader.py").write_text(CODE)
    (folder / "broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(folder.parent)
    yield folder.parent
    for name in [name for name in sys.modules if name.startswith("their_task")]:
        del sys.modules[name]


def problems_config(**settings: object) -> ProblemsConfig:
    """The section with what it requires."""
    return ProblemsConfig.model_validate({"train": "a", "test": "b", **settings})


def test_a_search_is_graded_by_a_verifier_from_outside(package: Path) -> None:
    """In label mode the leaves of a tree have its verdicts: 1.6 and 2.4 are near enough to 2, 3 is not."""
    answers = ["=1.6", "=2.4", "=3"]
    steps = [Step(text=text, token_ids=tuple(map(ord, text)), logps=(0.0,) * len(text), stop_reason=StopReason.END) for text in answers]
    policy = ScriptedPolicy(lambda prefix, index, seed: steps[index % 3])
    config = problems_config(verifier="their_task.grader:close", verifier_options={"tolerance": 0.4})
    with build_verifier(config, PROBLEMS) as verifier:
        budget = Budget(num_simulations=3, max_tokens=None, max_depth=2, max_step_tokens=8)
        engine = SearchEngine(
            policy=policy,
            renderer=CharRenderer(),
            method=resolve_method("majority"),
            budget=budget,
            provenance=PROVENANCE,
            verifier=verifier,
        )
        (result,) = engine.search([PROBLEMS[0].problem])
        assert [verifier.answer_key(answer) for answer in ("1.6", "2.4", "3")] == ["2", "2", "3"]
    outcomes = dict(zip(result.tree.texts, result.tree.outcomes, strict=True))
    assert {text: outcomes[text] for text in answers} == {"=1.6": 1.0, "=2.4": 1.0, "=3": 0.0}
    assert sys.modules["their_task.grader"].closed == [True]


def test_keys_are_normalised_texts_where_the_verifier_has_none(package: Path) -> None:
    """Votes are counted all the same, and what cannot be closed is left alone."""
    config = problems_config(verifier="their_task.grader:Plain")
    with build_verifier(config, PROBLEMS) as verifier:
        assert verifier.grade([("p", "x")]) == [Verdict(correct=True, reason="always")]
        assert verifier.answer_key("  a   b ") == verifier.answer_key("a b") != verifier.answer_key("ab")
        assert vote_keys(verifier)(" a  b") == vote_keys(verifier)("a b")
    close = problems_config(verifier="their_task.grader:close")
    with build_verifier(close, []) as verifier:
        assert vote_keys(verifier)("1.9") == "2"
    with build_verifier(problems_config(), []) as verifier:
        assert vote_keys(verifier)("0.50") == "1/2"


def test_another_process_imports_it_by_its_path(package: Path) -> None:
    """Workers know nothing but the settings and where packages are."""
    code = (
        "from stepladder.loops.assembly.problems import build_verifier\n"
        "from stepladder.loops.config.problems import ProblemsConfig\n"
        "from stepladder.types import LabelledProblem, Problem\n"
        "config = ProblemsConfig(train='a', test='b', verifier='their_task.grader:close')\n"
        "problems = [LabelledProblem(problem=Problem(id='p', question='1+1'), answer='2')]\n"
        "print(build_verifier(config, problems).grade([('p', '2.1')])[0].reason)\n"
    )
    root = str(Path(__file__).parents[4])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={"PYTHONPATH": f"{package}:{root}"}
    )
    assert done.stdout == "close\n", done.stderr


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        ("their_tsk.grader:close", {}, "got 'their_tsk.grader:close': ModuleNotFoundError"),
        ("their_task.grader:clos", {}, "AttributeError"),
        ("their_task.broken:close", {}, "ZeroDivisionError: division by zero"),
        ("their_task.grader:value", {}, "of type int, which cannot be called"),
        (
            "their_task.grader:close",
            {"tolerence": 1},
            "problems.verifier_options: must be what 'their_task.grader:close' takes beside the problem",
        ),
    ],
)
def test_what_cannot_be_imported_is_one_sentence(package: Path, path: str, options: dict[str, object], words: str) -> None:
    """Before any work, with the path and the reason."""
    with pytest.raises(ConfigError) as caught:
        check_verifier(problems_config(verifier=path, verifier_options=options))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_verifier_is_named(package: Path) -> None:
    """A factory must make something that grades, and a grade is one verdict for each answer."""
    with pytest.raises(ConfigError, match="must make something with a method grade: got list"):
        PluggedVerifier(PROBLEMS, "their_task.grader:nothing", {})
    with pytest.raises(DataFormatError, match="one Verdict for each of 2 answers: got 1 of type bool"):
        PluggedVerifier(PROBLEMS, "their_task.grader:Short", {}).grade([("p", "1"), ("p", "2")])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("problems.verifier=a:b:c", "'problems.verifier'"),
        ("problems.verifier_options.x=1", "verifier_options need a verifier"),
        ("problems.grading.case=ignored", "rule and grading are not for a verifier from outside"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(override: str, words: str) -> None:
    """A path without a factory, options of nothing, and options of the built-in rule beside a verifier."""
    required = ["problems.train=a", "problems.test=b", "policy.model=m"]
    beside = ["problems.verifier=a.b:c"] if "grading" in override else []
    with pytest.raises(ConfigError) as caught:
        load_config(None, [*required, *beside, override])
    assert words in str(caught.value)


def test_the_verifier_of_the_documentation_grades(package: Path) -> None:
    """The examples on the page are modules as they stand."""
    page = (Path(__file__).parents[4] / "docs" / "tasks.md").read_text(encoding="utf-8")
    function, _, code = re.findall(r"```python[^\n]*\n(.*?)```", page, flags=re.DOTALL)
    (package / "their_task" / "documented.py").write_text(code)
    (package / "their_task" / "numbers.py").write_text(function)
    with build_verifier(problems_config(verifier="their_task.numbers:grade"), PROBLEMS) as verifier:
        verdicts = verifier.grade([("p", "2.0"), ("p", "-2"), ("p", "3")])
        assert [(verdict.outcome, verdict.reason) for verdict in verdicts] == [(1.0, "equal"), (0.5, "wrong sign"), (0.0, "another number")]
        assert verifier.answer_key("2") == verifier.answer_key("2.00")
    config = problems_config(verifier="their_task.documented:close", verifier_options={"tolerance": 0.1})
    with build_verifier(config, PROBLEMS) as verifier:
        verdicts = verifier.grade([("p", "2.05"), ("p", "3"), ("p", "two"), ("p", None)])
        assert [verdict.reason for verdict in verdicts] == ["close", "far", "unreadable", "unreadable"]
        assert verifier.answer_key(" 2 ") == "2"


def test_references_are_the_business_of_the_verifier(package: Path, tmp_path: Path) -> None:
    """What rule ``math`` could not read is loaded for a grader that may."""
    path = tmp_path / "problems.jsonl"
    path.write_text('{"id": "p", "question": "Which?", "answer": "\\\\frac{{{"}\n')
    (labelled,) = load_split(problems_config(verifier="their_task.grader:close"), str(path), limit=None, split="train")
    assert labelled.answer == "\\frac{{{"
    with pytest.raises(DataFormatError, match="no answer can equal the reference"):
        load_split(problems_config(), str(path), limit=None, split="train")
