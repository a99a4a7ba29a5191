"""Word problems: what is told, the solution and the answer agree; both arms have one budget."""

import json
import random
import re
from pathlib import Path

import pytest

from benchmarks.word_problems import EVENTS, NUMBERS, Size, arms, common, word_problem, write_task
from stepladder.loops.assembly.checks import check_labels, check_searches
from stepladder.loops.config.load import load_config

SIZE = Size(rounds=1, tokens=400, updates=8, problems=2, tests=1, solved=4, numbers="small")
TOLD = {
    r"Then (\d+) more come": lambda value, n: value + n,
    r"A friend brings (\d+)": lambda value, n: value + n,
    r"Then (\d+) get lost": lambda value, n: value - n,
    r"A friend takes (\d+) of them": lambda value, n: value - n,
    r"Then the number doubles()": lambda value, n: 2 * value,
    r"Then there are three times as many()": lambda value, n: 3 * value,
}


@pytest.mark.parametrize("size", NUMBERS)
def test_what_is_told_gives_the_answer(size: str) -> None:
    """Sentence by sentence, by another way than the lines of the solution, whose equations hold and follow one another."""
    rng, most = random.Random(0), NUMBERS[size].most
    for events in EVENTS * 20:
        row = word_problem(rng, events, NUMBERS[size])
        first, *told, _ = re.split(r"(?<=[.?]) ", row["question"])
        value = int(re.findall(r"\d+", first)[0])
        *lines, end = row["solution"].splitlines()
        assert len(told) == len(lines) == events
        for sentence, line in zip(told, lines, strict=True):
            change, match = next((change, found) for text, change in TOLD.items() if (found := re.match(text, sentence)))
            before, result = value, change(value, int(match[1] or 0))
            left, _, right = line.partition(" = ")
            assert int(left.split()[0]) == before and eval(left) == result == int(right) and 1 <= result <= most
            value = result
        assert end == f"#### {value}" and row["answer"] == str(value)


def test_questions_come_once_and_both_arms_have_one_budget(tmp_path: Path) -> None:
    """No question is in two splits; the settings of both arms pass the checks of a run and differ in the search and the PRM alone."""
    write_task(tmp_path / "task", SIZE, 0)
    rows = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in (tmp_path / "task").iterdir()}
    assert {split: len(each) for split, each in rows.items()} == {"test": 5, "held_out": 20, "train": 10, "warmup": 4}
    questions = [row["question"] for each in rows.values() for row in each]
    assert len(set(questions)) == len(questions)
    plain = common(tmp_path / "task", tmp_path / "model", SIZE, 0)
    configs = {arm: load_config(None, more, base=plain) for arm, more in arms(SIZE).items()}
    for config in configs.values():
        check_searches(config)
        check_labels(config)
        assert getattr(config.search.allocation, "pool_tokens", None) == SIZE.tokens and config.sft.max_updates == SIZE.updates
        assert config.search.options["temperature"] == 0.8
    samples, search = configs["samples"], configs["search"]
    assert (samples.sft, samples.labels, samples.evaluate) == (search.sft, search.labels, search.evaluate)
    assert not samples.prm.enabled and search.prm.enabled
