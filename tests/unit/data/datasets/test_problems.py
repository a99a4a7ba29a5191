"""Reading, splitting and separating problems."""

import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stepladder.data.datasets.problems import (
    check_disjoint,
    load_seed_solutions,
    normalise_question,
    question_rows,
    read_problems,
    split_problems,
)
from stepladder.errors import ConfigError, DataFormatError
from stepladder.types import LabelledProblem, Problem

GSM8K_PATTERN = r"####\s*(.+)"


def oracle_path(*parts: str) -> Path:
    root = Path(os.environ.get("STEPLADDER_ORACLES", Path(__file__).parents[5] / "shared" / "oracles"))
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path}: set STEPLADDER_ORACLES to a directory with {'/'.join(parts)}")
    return path


def make(id: str, question: str, answer: str = "1") -> LabelledProblem:
    return LabelledProblem(problem=Problem(id=id, question=question), answer=answer)


def write_lines(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return path


def row(**fields: object) -> str:
    return json.dumps({"id": "a", "question": "q?", "answer": "1", **fields})


def test_jsonl_is_read_in_order_with_text_verbatim(tmp_path):
    """Ids, questions and answers come back as they stand, blank lines and a byte order mark aside."""
    long = "ß" * 200_000
    path = write_lines(
        tmp_path / "p.jsonl",
        b"\xef\xbb\xbf" + row(id="z", question="  1+1? ").encode(),
        "",
        row(id=7, question="Größe 𝒳 \u2028 \x00?", answer=12),
        row(id="long", question=long, answer=" 2.5 "),
    )
    assert read_problems(path).problems == [make("z", "  1+1? "), make("7", "Größe 𝒳 \u2028 \x00?", "12"), make("long", long, "2.5")]


def test_plain_questions_are_read_without_a_byte_order_mark():
    """A file that an editor saved with one asks its first question as it stands, and is still seen to be JSON."""
    for text in (b"1+1?\n2+2?\n", b'{"id": "1", "question": "1+1?"}\n{"id": "2", "question": "2+2?"}\n'):
        rows = list(question_rows(io.BytesIO(b"\xef\xbb\xbf" + text), "stdin", id_field="id", question_field="question"))
        assert [row.fields["question"] for row in rows] == ["1+1?", "2+2?"]


def test_limit_stops_reading(tmp_path):
    """What lies behind the limit is not even parsed."""
    path = write_lines(tmp_path / "p.jsonl", row(id="a"), row(id="b"), "broken")
    assert [labelled.problem.id for labelled in read_problems(path, limit=2).problems] == ["a", "b"]


def test_answer_pattern_takes_its_last_match_and_ids_come_from_the_line(tmp_path):
    """GSM8K's form: the answer is behind the last ####, and a row without an id is named after file and line."""
    path = write_lines(
        tmp_path / "gsm.jsonl", row(question="first", answer="#### 3\n2+2=4\n#### 1,004"), "", row(question="second", answer="x #### -2")
    )
    loaded = read_problems(path, id_field=None, answer_pattern=GSM8K_PATTERN).problems
    assert loaded == [make("gsm-1", "first", "1,004"), make("gsm-3", "second", "-2")]


@pytest.mark.parametrize("split", ["train", "test"])
def test_gsm8k_is_read_whole(split):
    """The real file has an answer in every row, and every answer is a number."""
    from stepladder.data.grading.numbers import parse_number

    path = oracle_path("gsm8k", f"{split}.jsonl")
    loaded = read_problems(path, id_field=None, answer_pattern=GSM8K_PATTERN).problems
    assert len(loaded) == path.read_bytes().count(b"\n")
    assert all(parse_number(labelled.answer) is not None for labelled in loaded)


def test_gsm8k_splits_share_nothing():
    """Train and test of the real data set are disjoint under our own check."""
    splits = {
        split: read_problems(oracle_path("gsm8k", f"{split}.jsonl"), id_field=None, answer_pattern=GSM8K_PATTERN).problems
        for split in ("train", "test")
    }
    check_disjoint(**splits)


def test_parquet_and_data_set_directories_give_the_same_problems(tmp_path):
    """A source's container does not change its problems; ids made from places name the split."""
    import datasets

    fields = {"id": ["a", "b"], "question": ["one", "two"], "answer": [1, 2]}
    pq.write_table(pa.table(fields), tmp_path / "p.parquet")
    expected = [make("a", "one", "1"), make("b", "two", "2")]
    assert read_problems(tmp_path / "p.parquet").problems == expected
    datasets.Dataset.from_dict(fields).save_to_disk(str(tmp_path / "flat"))
    assert read_problems(tmp_path / "flat").problems == expected
    datasets.DatasetDict({"dev": datasets.Dataset.from_dict(fields)}).save_to_disk(str(tmp_path / "splits"))
    assert read_problems(tmp_path / "splits", split="dev").problems == expected
    assert [labelled.problem.id for labelled in read_problems(tmp_path / "splits", split="dev", id_field=None).problems] == [
        "splits-dev-1",
        "splits-dev-2",
    ]
    with pytest.raises(DataFormatError, match=r"splits: must be .* data set with split 'train'"):
        read_problems(tmp_path / "splits")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"p\.jsonl:2: must be one JSON object: .*correct or remove the line"),
        ("[1]", r"p\.jsonl:2: must be one JSON object: got list"),
        (b'{"id": "\xff"}', r"p\.jsonl:2: must be UTF-8: got byte 0xff"),
        (row(id="b", question=None), r"p\.jsonl:2: field 'question' must be a non-empty string: got None"),
        (row(id="b", question=" \n"), r"p\.jsonl:2: field 'question' must be a non-empty string: got ' \\n'"),
        (row(id="b", question=["q"]), r"p\.jsonl:2: field 'question' must be a non-empty string: got \['q'\]"),
        ('{"id": "b", "prompt": "q", "answer": "1"}', r"p\.jsonl:2: field 'question' .*the row has 'id', 'prompt', 'answer'"),
        (row(id=True), r"p\.jsonl:2: field 'id' must be a non-empty string: got True"),
        (row(id="b", answer=""), r"p\.jsonl:2: field 'answer' must be a non-empty string: got ''"),
        (row(id="b", answer=True), r"p\.jsonl:2: field 'answer' must be a non-empty string: got True"),
        (row(id="b", answer="x" * 500), r"p\.jsonl:2: field 'answer' must match answer_pattern .*got 'x+\.\.\. --"),
        (row(id="a", answer="#### 1"), r"p\.jsonl:2: id must be unique: 'a' is also at .*p\.jsonl:1"),
        ('{"id": "b", "question": "\\ud800", "answer": "1"}', r"p\.jsonl:2: field 'question' must be valid Unicode"),
        ("[" * 100_000, r"p\.jsonl:2: must be one JSON object"),
    ],
)
def test_malformed_rows_are_one_sentence_with_file_and_line(tmp_path, line, message):
    """Every malformed row names its file and line, the rule, what it got and a remedy."""
    path = write_lines(tmp_path / "p.jsonl", row(answer="#### 1"), line)
    with pytest.raises(DataFormatError, match=message) as caught:
        read_problems(path, answer_pattern=GSM8K_PATTERN)
    assert " -- " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_empty_and_foreign_sources_are_refused(tmp_path):
    """A source that is no problem file is one sentence."""
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "p.csv").write_text("id,question\n")
    (tmp_path / "bad.parquet").write_text("no parquet")
    (tmp_path / "dir.jsonl").mkdir()
    for name, message in [
        ("missing.jsonl", "there is no such file"),
        ("missing.parquet", "there is no such file"),
        ("empty.jsonl", "at least one problem"),
        ("p.csv", r"must be a \.jsonl or \.parquet file: got '\.csv'"),
        ("bad.parquet", "must be a Parquet file: Parquet magic bytes not found"),
        ("dir.jsonl", "it is a directory"),
    ]:
        with pytest.raises(DataFormatError, match=message):
            read_problems(tmp_path / name)


def test_unlabelled_rows_are_accepted_only_on_request(tmp_path):
    """Without an answer the answer is empty; a wrong type stays an error."""
    path = write_lines(tmp_path / "p.jsonl", '{"id": "a", "question": "q"}', row(id="b", answer="none here"))
    assert read_problems(path, allow_unlabelled=True, answer_pattern=GSM8K_PATTERN).problems == [make("a", "q", ""), make("b", "q?", "")]
    write_lines(path, row(answer=[1]))
    with pytest.raises(DataFormatError, match="got \\[1\\]"):
        read_problems(path, allow_unlabelled=True)


@pytest.mark.parametrize("pattern", ["(", "no group", "(two) (groups)"])
def test_answer_pattern_must_have_one_group(tmp_path, pattern):
    """A pattern that cannot say which part is the answer is a configuration error."""
    with pytest.raises(ConfigError, match="answer_pattern: must"):
        read_problems(tmp_path / "p.jsonl", answer_pattern=pattern)


def test_seed_solutions_are_read_with_line_errors(tmp_path):
    """Solutions keep their line breaks; a missing one names its line."""
    path = write_lines(tmp_path / "s.jsonl", json.dumps({"id": "a", "question": "q", "solution": "x\ny = 3\n"}))
    (solution,) = load_seed_solutions(path)
    assert (solution.id, solution.question, solution.solution) == ("a", "q", "x\ny = 3\n")
    write_lines(path, json.dumps({"id": "a", "question": "q", "solution": "s"}), json.dumps({"id": "b", "question": "q"}))
    with pytest.raises(DataFormatError, match=r"s\.jsonl:2: field 'solution'"):
        load_seed_solutions(path)


def test_normalised_questions_ignore_case_width_and_white_space():
    """The contamination check sees through what changes only the look."""
    assert normalise_question(" ＡBC\n1  straße") == normalise_question("abc 1 STRASSE")
    assert normalise_question("a b") != normalise_question("ab")


def test_disjointness_is_by_id_and_by_question():
    """The first clash is named; repetition within a split is none."""
    train = [make("a", "One?"), make("b", "one ?"), make("c", "ONE?")]
    check_disjoint(train=train, test=[make("d", "Two?")], held_out=[])
    with pytest.raises(DataFormatError, match="id 'b' is in 'train' and in 'test'"):
        check_disjoint(train=train, test=[make("b", "new")])
    with pytest.raises(DataFormatError, match="'t' in 'test' asks the same as 'a' in 'train'"):
        check_disjoint(train=train, held_out=[make("h", "x")], test=[make("t", " one?")])


def test_split_depends_on_seed_and_ids_alone():
    """Another order of the problems gives the same sides, another seed other ones, and both sides keep their order."""
    problems = [make(f"p{i}", f"question {i}") for i in range(50)]
    train, held_out = split_problems(problems, held_out=10, seed=3)
    assert (len(train), len(held_out)) == (40, 10)
    assert sorted(train + held_out, key=problems.index) == problems
    assert held_out == sorted(held_out, key=problems.index)
    backwards = split_problems(problems[::-1], held_out=10, seed=3)
    assert {labelled.problem.id for labelled in backwards[1]} == {labelled.problem.id for labelled in held_out}
    assert split_problems(problems, held_out=10, seed=4)[1] != held_out
    assert split_problems(problems, held_out=0, seed=3) == (problems, [])


@pytest.mark.parametrize("seed", range(10))
def test_split_keeps_repeated_questions_together(seed):
    """Two problems with one question never stand on both sides, so the split passes the disjointness check."""
    problems = [make(f"p{i}", f"question {i // 2 if i < 20 else i}") for i in range(40)]
    train, held_out = split_problems(problems, held_out=7, seed=seed)
    assert len(held_out) == 7
    check_disjoint(train=train, held_out=held_out)


def test_impossible_splits_are_refused():
    """Nothing left to train on, or no choice of the asked size."""
    twins = [make("a", "q"), make("b", "q"), make("c", "r"), make("d", "r")]
    with pytest.raises(ConfigError, match="must leave problems to train on: got 4 of 4"):
        split_problems(twins, held_out=4, seed=0)
    with pytest.raises(ConfigError, match="no choice of whole questions has exactly 3"):
        split_problems(twins, held_out=3, seed=0)


def test_answers_are_read_out_of_boxes_by_default(tmp_path):
    """A written solution as the answer field gives its last box; any other text is the answer itself."""
    path = write(tmp_path, [("a", "So $x = \\boxed{\\frac{1}{2}}$ as $2^{2}=4$."), ("b", "\\boxed{1}, \\boxed{2}"), ("c", "4")])
    assert [labelled.answer for labelled in read_problems(path).problems] == ["\\frac{1}{2}", "1, 2", "4"]
    path = write(tmp_path, [("a", "so \\boxed{4")])
    with pytest.raises(DataFormatError, match=r"p\.jsonl:1: field 'answer' must state an answer in its last box"):
        read_problems(path)


@pytest.mark.parametrize(("answer", "reason"), [("5 6", "side by side"), ("\\frac{{{", "not closed"), ("x" * 1200, "longer than")])
def test_references_that_nothing_can_equal_are_refused_before_any_work(tmp_path, caplog, answer, reason):
    """The first one is named with its reason and their number; they can be dropped instead, which is logged."""
    path = write(tmp_path, [("a", "1"), ("b", answer), ("c", answer), ("d", "\\text{yes}")])
    with pytest.raises(DataFormatError, match=rf"p\.jsonl:2: no answer can equal .* under rule 'math': .*{reason}.*\(2 of 4 rows"):
        read_problems(path, rule="math")
    assert [labelled.problem.id for labelled in read_problems(path, rule="math", drop_unreadable=True).problems] == ["a", "d"]
    assert "2 of 4 rows are like this) -- dropped" in caplog.text
    assert len(read_problems(path).problems) == 4, "without a rule nothing is known about answers"


@pytest.mark.parametrize("gap", ["NaN", "Infinity", "-Infinity"])
def test_gaps_are_refused(tmp_path, gap):
    """A missing number, which pandas writes as NaN, is no answer."""
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"id": "a", "question": "q", "answer": {gap}}}\n')
    with pytest.raises(DataFormatError, match=r"p\.jsonl:1: field 'answer' must be a finite number: got -?(nan|inf)"):
        read_problems(path)


def write(directory: Path, answers: list[tuple[str, str]]) -> Path:
    path = directory / "p.jsonl"
    path.write_text("".join(json.dumps({"id": id, "question": f"q {id}", "answer": answer}) + "\n" for id, answer in answers))
    return path
