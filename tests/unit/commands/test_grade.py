"""The command that grades files: what it reads, what it writes, what it counts, and what it refuses."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.commands.grade import GradeSettings, grade_file
from stepladder.errors import ConfigError, DataFormatError

CASES = Path(__file__).parents[1] / "data" / "grading" / "reported_cases.jsonl"
ROWS = [
    {"id": "a", "reference": "1/2", "answer": "0.5", "equal": True},
    {"id": "b", "reference": "3", "text": "First \\boxed{2}, then \\boxed{3}."},
    {"id": "c", "reference": "x", "answer": "X", "equal": True},
    {"id": "d", "reference": "5 6", "answer": "5 6"},
    {"id": "e", "reference": 7, "answer": None},
    {"id": "f", "reference": "7", "text": "It is \\boxed{7"},
    {"id": "g", "reference": "\\sin 2x", "answer": "2\\sin x\\cos x", "equal": False},
]


def settings(*options: str, rule: str = "math", pattern: str | None = None) -> GradeSettings:
    return GradeSettings.parse(rule=rule, options=options, answer_pattern=pattern, deadline_s=30.0)


def written(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_every_row_has_its_verdict_reason_answer_and_both_normal_forms(tmp_path):
    """Fields of its own are kept, and the summary counts verdicts, reasons and disagreements."""
    summary = grade_file(written(tmp_path / "rows.jsonl", ROWS), str(tmp_path / "out.jsonl"), settings())
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["correct"], row["reason"]) for row in rows] == [
        ("a", True, "equivalent"),
        ("b", True, "exact match"),
        ("c", False, "differs"),
        ("d", False, "unreadable reference"),
        ("e", False, "unreadable"),
        ("f", False, "unreadable"),
        ("g", True, "equivalent"),
    ]
    assert (rows[0]["answer"], rows[0]["answer_key"], rows[0]["reference_key"]) == ("0.5", "1/2", "1/2")
    assert rows[1]["answer"] == "3" and rows[4]["answer_key"] is None and rows[4]["reference"] == "7"
    assert summary == (
        "7 answers: 3 right, 4 wrong (unreadable: 2, differs: 1, unreadable reference: 1); "
        "3 with a stated verdict: 1 wrong graded right, 1 right graded wrong"
    )


def test_reported_cases_have_no_wrong_answer_graded_right(tmp_path):
    """The table of cases, by the command."""
    summary = grade_file(str(CASES), str(tmp_path / "out.jsonl"), settings())
    assert summary.endswith("142 with a stated verdict: 0 wrong graded right, 0 right graded wrong")


def test_rule_options_and_pattern_are_taken(tmp_path):
    """Each changes the verdict of one row."""
    source = written(tmp_path / "rows.jsonl", [{"reference": "5 cm", "text": "#### 5"}])
    assert "0 right" in grade_file(source, str(tmp_path / "out"), settings(pattern="#### (.*)"))
    assert "1 right" in grade_file(source, str(tmp_path / "out"), settings("units=optional", pattern="#### (.*)"))
    assert "1 right" in grade_file(source, str(tmp_path / "out"), settings(rule="number", pattern="#### (.*)"))
    assert "(unreadable: 1)" in grade_file(source, str(tmp_path / "out"), settings())


VERIFIER = """
def near(question, answer, reference, scale=10.0):
    return max(0.0, 1 - abs(float(answer) - float(reference)) / scale), question

def long(solution):
    return len(solution) > 3
"""


def test_a_tasks_verifier_grades_with_its_arguments(tmp_path):
    """Partial credit, its mean, what passes, reasons and options as in a run; a whole text where the function takes it."""
    (tmp_path / "task.py").write_text(VERIFIER)
    near = f"{tmp_path / 'task.py'}:near"
    rows = [
        {"question": "one", "reference": "5", "text": "\\boxed{5}"},
        {"question": "two", "reference": 5, "answer": "7.5"},
        {"question": "three", "reference": "5", "answer": None},
    ]
    source, out = written(tmp_path / "rows.jsonl", rows), str(tmp_path / "out.jsonl")
    done = CliRunner().invoke(app, ["grade", source, "--output", out, "--verifier", near, "--option", "scale=5"])
    assert done.exit_code == 0, done.output
    # 1, 1 - 2.5 / 5, and nothing for no answer.
    assert "3 answers: 1 right, 2 wrong (two: 1, unreadable: 1); mean credit 0.500" in done.output
    graded = [json.loads(line) for line in Path(out).read_text().splitlines()]
    assert [(row["correct"], row.get("credit"), row["reason"]) for row in graded] == [
        (True, 1.0, "one"),
        (False, 0.5, "two"),
        (False, None, "unreadable"),
    ]
    assert graded[0] == {
        "question": "one",
        "reference": "5",
        "answer": "5",
        "correct": True,
        "reason": "one",
        "answer_key": "5",
        "credit": 1.0,
    }
    again = CliRunner().invoke(
        app, ["grade", source, "--output", out, "--verifier", near, "--option", "scale=5", "--passing", "0.5", "--overwrite"]
    )
    assert "3 answers: 2 right, 1 wrong" in again.output
    source = written(tmp_path / "texts.jsonl", [{"text": "abc"}, {"text": "abcd"}])
    done = CliRunner().invoke(app, ["grade", source, "--verifier", f"{tmp_path / 'task.py'}:long"])
    assert "2 answers: 1 right, 1 wrong (rejected: 1)" in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--verifier", "nowhere:f"], "--verifier: must name a function that can be imported"),
        (["--verifier", "TASK:near", "--option", "size=2"], "--option: must be what"),
        (["--verifier", "TASK:near"], "field 'question' must be a string or a number: got nothing -- add it"),
        (["--verifier", "countdown"], "--verifier: must name an entry point of the group stepladder.tasks"),
    ],
)
def test_a_verifier_that_cannot_grade_is_one_sentence(tmp_path, words, said):
    """With the option of the command line, before anything is graded."""
    (tmp_path / "task.py").write_text(VERIFIER)
    source = written(tmp_path / "rows.jsonl", [{"reference": "1", "answer": "1"}])
    done = CliRunner().invoke(app, ["grade", source, *(word.replace("TASK", str(tmp_path / "task.py")) for word in words)])
    assert done.exit_code != 0 and said in " ".join(done.output.split()) and "problems.verifier" not in done.output


def test_standard_input_and_output(monkeypatch, capsys):
    """Both are called by a dash."""
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b'{"reference": "1", "answer": "1.0"}\n')))
    assert grade_file("-", "-", settings()) == "1 answer: 1 right, 0 wrong"
    assert json.loads(capsys.readouterr().out)["correct"] is True


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"answer": "1"}], "rows.jsonl:1: field 'reference' must be"),
        ([{"reference": "1", "answer": "1"}, {"reference": "1"}], "rows.jsonl:2: must have a field 'answer' or 'text'"),
        ([{"reference": ["1"], "answer": "1"}], "rows.jsonl:1: field 'reference' must be a string or a number: got list"),
        ([], "must hold at least one row"),
        ([3], "rows.jsonl:1: must be one JSON object"),
    ],
)
def test_malformed_rows_are_named(tmp_path, rows, message):
    """The message has file and line."""
    with pytest.raises(DataFormatError, match=message):
        grade_file(written(tmp_path / "rows.jsonl", rows), "-", settings())


def test_unknown_rules_and_options_are_refused():
    """One sentence each."""
    for wrong, message in (({"rule": "fuzzy"}, "--rule: must be one of"), ({"pattern": "("}, "must be a regular expression")):
        with pytest.raises(ConfigError, match=message):
            settings(**wrong)
    for option in ("units", "colour=red"):
        with pytest.raises(ConfigError, match="option"):
            settings(option)


def test_the_command_replaces_nothing_that_it_did_not_write(tmp_path):
    """Its own results with --overwrite, foreign files never, the input never."""
    source, notes, output = written(tmp_path / "rows.jsonl", ROWS[:1]), tmp_path / "notes.txt", tmp_path / "out.jsonl"
    notes.write_text("mine")
    run = CliRunner().invoke
    assert run(app, ["grade", source, "--output", str(output)]).exit_code == 0
    for target, flags in ((output, []), (notes, []), (notes, ["--overwrite"]), (Path(source), ["--overwrite"])):
        assert run(app, ["grade", source, "--output", str(target), *flags]).exit_code == 2
    assert run(app, ["grade", source, "--output", str(output), "--overwrite"]).exit_code == 0
    assert notes.read_text() == "mine" and json.loads(Path(source).read_text()) == ROWS[0]
    shown = run(app, ["grade", source])
    assert shown.exit_code == 0 and "1 answer: 1 right" in shown.output
