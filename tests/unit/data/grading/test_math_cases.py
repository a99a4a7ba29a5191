"""Rule ``math`` on tables of cases: no wrong answer is graded right, and what is refused is refused by a stated rule."""

import json
from collections import Counter
from pathlib import Path

import pytest

from stepladder.data.grading.answers import answer_key, math_match
from stepladder.data.grading.forms import Items, Quantity, Relation
from stepladder.data.grading.reader import read
from stepladder.data.grading.rules import MathOptions
from stepladder.data.grading.verifier import AnswerVerifier
from stepladder.loops.config.problems import GradingConfig
from stepladder.types import LabelledProblem, Problem

HERE = Path(__file__).parent
TABLES = {
    "reported_cases.jsonl": "cases reported in public issue threads of graders and parsers, and siblings of them; kind names the thread",
    "math_cases.jsonl": "one row per spelling or trap, by kind",
}


def rows(table: str) -> list[dict]:
    return [json.loads(line) for line in (HERE / table).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("table", TABLES)
def test_every_case_has_its_verdict(table):
    """All rows of a table, graded in one call."""
    cases = rows(table)
    problems = [LabelledProblem(problem=Problem(id=str(i), question="q"), answer=case["reference"]) for i, case in enumerate(cases)]
    with AnswerVerifier(problems, "math", deadline_s=30.0) as verifier:
        verdicts = verifier.grade([(str(i), case["answer"]) for i, case in enumerate(cases)])
    wrong = [(case, verdict) for case, verdict in zip(cases, verdicts, strict=True) if case["equal"] != verdict.correct]
    assert not wrong
    # A table of verdicts that are all alike would prove little.
    assert all(count > 40 for count in Counter(case["equal"] for case in cases).values())


def states_more(case: dict) -> bool:
    """Whether one side may state what the other does not: a unit, a name, a kind of bracket, a letter whose values are described."""
    reference, answer = read(case["reference"]), read(case["answer"])
    if type(reference) is not type(answer) or isinstance(reference, Quantity | Relation):
        return True
    if isinstance(reference, Items) and isinstance(answer, Items):
        named = any(isinstance(item, Relation) for item in (*reference.items, *answer.items))
        return named or reference.opening != answer.opening
    return False


@pytest.mark.parametrize("table", TABLES)
def test_answers_of_one_key_are_equal_and_the_reverse_as_far_as_no_algebra_is_needed(table):
    """A vote never joins two different answers, and splits equal ones only where that takes algebra or one states more."""
    for case in rows(table):
        reference, answer = case["reference"], case["answer"]
        if answer_key(answer, "math") == answer_key(reference, "math") and math_match(reference, reference):
            assert case["equal"], case
        elif math_match(answer, reference):
            assert states_more(case), case


@pytest.mark.parametrize("table", TABLES)
def test_equal_answers_are_equal_both_ways_unless_one_states_more(table):
    """Equality is symmetric but for what the reference alone may ask for."""
    for case in rows(table):
        there = math_match(case["answer"], case["reference"])
        back = math_match(case["reference"], case["answer"])
        assert there == back or states_more(case), case


def test_configuration_offers_every_option_with_its_default():
    """The settings and the options are one list."""
    assert MathOptions.of(**GradingConfig().model_dump()) == MathOptions()
