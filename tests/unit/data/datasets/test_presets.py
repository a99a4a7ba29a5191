"""Public sets by name: rows in their public layouts, keys of every kind, and rows that cannot be used."""

import json
from pathlib import Path

import pytest

from stepladder.data.datasets.presets import PRESETS, find_preset, load_preset, one_text
from stepladder.errors import ConfigError, DataFormatError
from stepladder.loops.assembly.problem_sets import read_sets
from stepladder.loops.config.load import load_config
from stepladder.loops.runs.inputs import input_digests

ORACLE = Path(__file__).parents[5] / "shared" / "oracles" / "gsm8k"


def write(path: Path, *rows: dict) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(name: str, path: Path, role: str = "test"):
    """Read a file as a preset does."""
    source = find_preset(f"preset:{name}:{path}")
    assert source is not None
    return load_preset(source, role)


@pytest.mark.parametrize(
    ("name", "row", "answer"),
    [
        ("gsm8k", {"question": "Q", "answer": "2 + 3 = <<2+3=5>>5\n#### 1,005"}, "1,005"),
        ("math", {"problem": "Q", "level": "Level 5", "type": "Algebra", "solution": "so $\\boxed{\\frac{1}{2}}$."}, "\\frac{1}{2}"),
        (
            "math-500",
            {"problem": "Q", "solution": "...", "answer": "\\pi", "level": 2, "unique_id": "test/a/1.json"},
            "\\pi",
        ),
        ("aime", {"id": 0, "problem": "Q", "solution": "...", "answer": "116", "url": "u"}, "116"),
        ("aime-2024", {"id": 60, "problem": "Q", "solution": "...", "answer": "025", "url": "u", "year": "2024"}, "025"),
        ("aime-2024", {"ID": "2024-I-1", "Problem": "Q", "Solution": "...", "Answer": 204}, "204"),
        ("aime-2025", {"problem": "Q", "answer": "70", "id": "0"}, "70"),
        ("amc", {"id": 0, "problem": "Q", "answer": 142.0, "url": "u"}, "142"),
        ("amc-23", {"id": 0, "question": "Q", "answer": 27.0, "url": "u"}, "27"),
        ("olympiadbench", {"id": 1606, "question": "Q", "final_answer": ["2"], "is_multiple_answer": False, "unit": None}, "2"),
        ("olympiadbench", {"id": 1, "question": "Q", "final_answer": ["$1$", "$-1$"], "is_multiple_answer": True}, "1, -1"),
        ("gaokao", {"question": "Q", "answer": "$3$"}, "3"),
        ("college-math", {"question": "Q", "answer": "$x=2$", "data_source": "college_math.Beginning_Algebra"}, "x=2"),
        ("omni-math", {"domain": ["Algebra"], "difficulty": 8.0, "problem": "Q", "solution": "...", "answer": "2", "source": "imo"}, "2"),
        ("minerva", {"problem": "Q", "type": "x", "solution": "It is \\boxed{7.25} m.", "idx": 0}, "7.25"),
    ],
)
def test_public_layouts_are_read(name: str, row: dict, answer: str, tmp_path: Path) -> None:
    """Each set's row gives its question, its final answer, and an id that does not depend on the row's place."""
    (first,) = load(name, write(tmp_path / "one.jsonl", row)).problems
    other = {key: "Another" if value == "Q" else value for key, value in row.items() if key != "unique_id"}
    *_, second = load(name, write(tmp_path / "two.jsonl", other, row)).problems
    assert (first.problem.question, first.answer) == ("Q", answer)
    assert first.problem.id == second.problem.id
    assert first.problem.id.startswith(f"{name}-")


def test_every_named_set_has_a_preset() -> None:
    """The sets of the documentation, with a split to train on for the two that have one."""
    assert {"gsm8k", "math", "math-500", "aime", "amc", "olympiadbench", "gaokao", "college-math", "omni-math", "minerva"} <= set(PRESETS)
    assert {name for name, preset in PRESETS.items() if preset.train} == {"gsm8k", "math"}


def test_rows_that_cannot_be_used_are_counted_by_reason(tmp_path: Path) -> None:
    """Repetitions, empty questions and keys, and keys that no answer can equal leave; the others stay in order."""
    rows = [
        {"problem": "One?", "answer": "1"},
        {"problem": " one?  ", "answer": "2"},
        {"problem": "", "answer": "1"},
        {"problem": "Two?", "answer": None},
        {"problem": "Three?", "answer": "\\frac{{{"},
        {"problem": "Four?", "answer": "4"},
    ]
    loaded = load("math-500", write(tmp_path / "rows.jsonl", *rows))
    assert [labelled.answer for labelled in loaded.problems] == ["1", "4"]
    assert loaded.num_rows == 6
    assert loaded.dropped == {
        "a question that is there already": 1,
        "no question": 1,
        "no answer": 1,
        "an unreadable answer": 1,
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(27.0, "27"), (0.5, "0.5"), (3, "3"), (["a", "b"], "a, b"), (["$1$"], "1"), (None, ""), (float("nan"), ""), ("$5 or $6", "$5 or $6")],
)
def test_answers_of_every_kind_are_texts(value: object, text: str) -> None:
    """Whole floats lose their point, parts are joined, a pair of dollar signs is notation."""
    assert one_text(value) == text


def test_what_is_wrong_with_a_preset_is_one_sentence(tmp_path: Path) -> None:
    """An unknown name, a set for evaluation to train on, a file of another layout, and one without usable rows."""
    with pytest.raises(ConfigError, match="did you mean 'gsm8k'"):
        find_preset("preset:gsm8")
    source = find_preset("preset:aime")
    assert source is not None
    with pytest.raises(ConfigError, match="preset 'aime' is a set for evaluation"):
        load_preset(source, "train")
    with pytest.raises(DataFormatError, match="question in 'problem' or 'question' or 'Problem': the row has 'prompt', 'answer'"):
        load("math", write(tmp_path / "other.jsonl", {"prompt": "Q", "answer": "1"}))
    with pytest.raises(DataFormatError, match="must hold a problem that can be graded"):
        load("math-500", write(tmp_path / "empty.jsonl", {"problem": "Q", "answer": ""}))
    assert find_preset("openai/gsm8k") is None


def test_splits_that_share_questions_lose_them_on_the_training_side(tmp_path: Path) -> None:
    """The test set stays whole; its questions leave training and held-out; similar ones are reported, with ids."""
    long = "a train leaves the station at noon and travels at sixty miles an hour until it reaches the town"
    write(tmp_path / "train.jsonl", *({"question": text, "answer": "#### 1"} for text in ("A?", "B?", "C?", "D?", f"{long}.", "d ?")))
    write(tmp_path / "held_out.jsonl", *({"question": text, "answer": "#### 1"} for text in ("C?", "E?")))
    write(tmp_path / "test.jsonl", *({"question": text, "answer": "#### 1"} for text in ("B?", "E?", f"Hard: {long}, why?")))
    (tmp_path / "run.toml").write_text(
        "[problems]\n"
        + "".join(f'{split} = "preset:gsm8k:{split}.jsonl"\n' for split in ("train", "held_out", "test"))
        + '[policy]\nmodel = "m"\n'
    )
    config = load_config(tmp_path / "run.toml", [])
    assert set(input_digests(config)) == {"problems.train", "problems.held_out", "problems.test"}
    sets = read_sets(config.problems, seed=0)
    questions = {name: [labelled.problem.question for labelled in problems] for name, problems in sets.splits.items()}
    assert questions["train"] == ["A?", "D?", f"{long}.", "d ?"]
    assert questions["held_out"] == ["C?"]
    assert len(questions["test"]) == 3
    facts = sets.facts()
    assert {name: split.num_shared for name, split in facts.splits.items()} == {"train": 2, "held_out": 1, "test": 0}
    assert (facts.similar["test"].num_similar, facts.similar["held_out"].num_similar) == (1, 0)
    assert facts.similar["test"].examples == [[sets.splits["test"][2].problem.id, sets.splits["train"][2].problem.id]]
    facts.save(tmp_path)
    assert type(facts).load(tmp_path) == facts
    assert any("share ten words" in sentence for sentence in facts.sentences())


def test_a_real_file_of_gsm8k_is_read_whole() -> None:
    """Every row of the public file has a question of its own and a readable key."""
    files = sorted(ORACLE.glob("*test*.jsonl")) if ORACLE.is_dir() else []
    if not files:
        pytest.skip(f"no file of GSM8K in {ORACLE}")
    loaded = load("gsm8k", files[0])
    assert len(loaded.problems) == loaded.num_rows
    assert len({labelled.problem.id for labelled in loaded.problems}) == loaded.num_rows
