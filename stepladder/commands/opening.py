"""What ``evolve`` says before and after its work: what it is about to do, and what to do with the result."""

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from stepladder.loops.assembly.workers import workers_words
from stepladder.loops.config.run import Config
from stepladder.loops.runs.description import model_words, prm_words, search_words, task_words
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.evaluation_rows import all_solved, searched_questions, solved_problems
from stepladder.loops.runs.machine import machine
from stepladder.loops.runs.newest import RUNS
from stepladder.loops.runs.progress import RunFrame, rough
from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.stage_times import stage_times
from stepladder.loops.runs.store_copy import name_of, place_words, url_of
from stepladder.loops.stages.plan import planned_stages, purpose, seconds_left

_LONGEST_QUESTION = 80


class Opening:
    """The beginning of a call of ``evolve``."""

    def __init__(self, config: Config, root: Path, *, num_done: int, last: int, expected_s: float | None) -> None:
        """Describe a call.

        Args:
            config: The settings of the run.
            root: Its directory.
            num_done: Rounds that are finished, the warm-up included.
            last: Last round of this call.
            expected_s: Seconds that the whole run usually takes; None if nobody knows.
        """
        self._config, self._root, self._num_done, self._last = config, root, num_done, last
        whole = last + 1
        self._expected_s = None if expected_s is None else expected_s * max(whole - num_done, 0) / whole

    def lines(self, sizes: Mapping[str, int]) -> list[str]:
        """Return what is about to be done, where, for how long, and that it may be stopped.

        Args:
            sizes: Problems by split.
        """
        config, count = self._config, f"{self._last} round{'' if self._last == 1 else 's'}"
        if self._num_done > self._last:
            return [f"evolve: {name_of(self._root)} has its {count} already"]
        begun = "" if not self._num_done else ", of which the warm-up is done" + self._done_rounds()
        problems = f"{sizes['train']:,} to learn from, {sizes['held_out']:,} for the gate, {sizes['test']:,} for the report"
        time = "known after the first round" if self._expected_s is None else f"about {rough(self._expected_s)} on two cores"
        return [
            f"evolve: a warm-up and {count}{begun}",
            f"  task      {task_words(config)}",
            f"  problems  {problems}",
            f"  policy    {model_words(config)}",
            f"  search    {search_words(config.search)}",
            f"  PRM       {prm_words(config)}",
            f"  machine   {machine()}; {workers_words(config)}",
            f"  in        {place_words(self._root)}",
            f"  time      {time}; Ctrl-C is fine, the same command goes on",
        ]

    def _done_rounds(self) -> str:
        done = self._num_done - 1
        return f" and round {done}" if done == 1 else f" and rounds 1 to {done}" if done else ""

    def frame(self, run: RunDir) -> RunFrame:
        """Return the frame of the run's stages."""
        plan = {number: planned_stages(self._config, number) for number in range(self._last + 1)}

        # The screen asks several times a second, and no other stage ends while one runs.
        @lru_cache(maxsize=1)
        def spent(number: int, stage: str) -> dict[int, dict[str, float]]:
            return stage_times(run.events).seconds

        def left(number: int, stage: str, elapsed: float, stage_left: float | None) -> float | None:
            return seconds_left(plan, spent(number, stage), number=number, stage=stage, elapsed=elapsed, stage_left=stage_left)

        return RunFrame(self._root, rounds=self._last, plan=plan, purpose=purpose, left=left, expected_s=self._expected_s)


def next_commands(run: RunDir) -> list[str]:
    """Return three commands that use a run, ready to be copied: ask it, measure its search, export its rows."""
    url = url_of(run.root)
    program, place = _program(), shlex.quote(url or str(run.root))
    beside = run.root if url is None else RUNS / run.root.name
    out, data = (shlex.quote(f"{beside}-{what}") for what in ("eval", "data"))
    rows = run.rows()
    labels = [row.labels for row in rows if row.labels is not None]
    has_pairs, has_traces = any(each.pairs.kept for each in labels), any(each.traces.kept for each in labels)
    commands = [
        f"{program} solve {_question(run, rows)} --run {place}",
        f"{program} eval --run {place} --out {out}",
        f"{program} export {place} --format {'preference' if has_pairs else 'sft'} --to {data}",
    ]
    return commands if has_pairs or has_traces else commands[:2]


def _question(run: RunDir, rows: Sequence[RoundRow]) -> str:
    """Return the words that ask a test problem of the run, or that ask for questions.

    Of the problems that the best policy solved both at once and with a search, it is the one that took the search least, so that an answer
    is likely.
    """
    folder = run.evaluation(rows[-1].best_policy if rows else 0, "test")
    at_once, questions = solved_problems(folder / "greedy"), searched_questions(folder / "search")
    solved = [row for row in all_solved(folder / "search") if row.correct and at_once.get(row.problem_id) and row.problem_id in questions]
    easy = (questions[row.problem_id] for row in sorted(solved, key=lambda row: row.tokens))
    for question in (*easy, *_first_question(run.config())):
        if len(question) <= _LONGEST_QUESTION and "\n" not in question:
            return shlex.quote(question)
    return "--interactive"


def _first_question(config: Config) -> list[str]:
    """Return the first question of the file of test problems, if it can be read."""
    try:
        with Path(config.problems.test or "").open(encoding="utf-8") as file:
            question = json.loads(file.readline())[config.problems.question_field]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [question] if isinstance(question, str) else []


def _program() -> str:
    """Return how this program is called: by its name, if a shell finds it, else as it was now."""
    if shutil.which("stepladder") is not None:
        return "stepladder"
    called = Path(sys.argv[0])
    if called.name == "stepladder" and called.exists():
        return shlex.quote(str(called))
    return f"{shlex.quote(sys.executable)} -m stepladder"
