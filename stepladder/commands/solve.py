"""Search as an inference-time solver: models of a run or of directories, any method, no answers anywhere."""

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stepladder.commands.kept_work import part_of
from stepladder.commands.solve_progress import Progress
from stepladder.commands.solve_report import Detail, Row, answer_row, file_summary, has_failed, readable
from stepladder.commands.solve_search import (
    Answer,
    Spent,
    answer_keys,
    build_discriminator,
    build_engine,
    search_questions,
    search_reviewed,
)
from stepladder.commands.solve_settings import SolveSettings, show_warnings
from stepladder.data.datasets.problems import question_rows, questions_of, source_rows
from stepladder.errors import DataFormatError
from stepladder.files import atomic_write_text
from stepladder.lm.loaded_models import LoadedModels
from stepladder.loops.assembly.checks import check_cluster
from stepladder.loops.assembly.policies import end_observations
from stepladder.loops.assembly.preflight import measured_prompts
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.token_use import TokenUse, unique_tokens
from stepladder.mcts.methods import OUTSIDE, PRESETS, Preset
from stepladder.outputs import STANDARD, input_name
from stepladder.terminal import echo
from stepladder.types import Failures, Problem


def check_prompts(settings: SolveSettings, name: str, problems: Sequence[Problem]) -> None:
    """Refuse questions of which none leaves room for a solution, and warn of those that do not.

    Raises:
        ConfigError: If none does.
        DataFormatError: If a prompt cannot be written.
    """
    show_warnings(measured_prompts(settings.config, settings.policy, {name: problems}))


class Solved(NamedTuple):
    """Result of a call of ``solve``."""

    text: str
    """What to print."""
    failure: str | None
    """Why the call as a whole failed; None if any sample was given."""
    details: str | None = None
    """What else is to be printed if somebody wants to know more."""


def solve_question(
    settings: SolveSettings, question: str, *, tree_path: Path | None, as_json: bool, detail: Detail = Detail.NORMAL
) -> Solved:
    """Search one question."""
    problems = [Problem(id="question", question=question)]
    check_prompts(settings, "QUESTION", problems)
    with LoadedModels() as models, answer_keys(settings.config.problems) as key_of:
        engine, discriminator = build_engine(settings, models, problems, key_of), build_discriminator(settings, models, key_of)
        # Importing and loading models takes seconds, which are not part of a search's cost.
        begin = time.monotonic()
        ((result, reviewing),) = search_reviewed(engine, discriminator, problems)
        end_observations(engine.policy)
        seconds = time.monotonic() - begin
    use = TokenUse.of(engine.policy, engine.scorer, unique_tokens=unique_tokens(result.tree))
    if tree_path is not None:
        _write_trees(tree_path, [result.tree.to_dict()])
    row = answer_row(result, question, discriminator_tokens=reviewing)
    failure = _failure("QUESTION", result.failures)
    if as_json:
        return Solved(json.dumps({**row, "seconds": round(seconds, 3), "token_use": use.figures()}), failure)
    return Solved("" if failure else readable(row, result, settings.budget, seconds=seconds, use=use, detail=detail), failure)


def read_questions(source: str, *, id_field: str, question_field: str) -> list[Problem]:
    """Read questions from a JSONL or Parquet file, or from standard input (``-``): JSON lines or plain text, one question a line.

    Raises:
        DataFormatError: If there are none, or a row is malformed.
    """
    name = id_field or None
    if source == STANDARD:
        rows = question_rows(sys.stdin.buffer, "stdin", id_field=name, question_field=question_field)
    else:
        rows = source_rows(source)
    problems = questions_of(rows, id_field=name, question_field=question_field)
    if not problems:
        raise DataFormatError(f"{input_name(source)}: must hold at least one question: got none -- check that this is the right file")
    return problems


def solve_stream(settings: SolveSettings, problems: list[Problem], *, tree_path: Path | None, display: ProgressDisplay | None) -> Solved:
    """Search questions and print one JSON line each, in their order, as soon as all before it are answered. Nothing is kept elsewhere.

    Args:
        settings: Models, method and budget.
        problems: The questions.
        tree_path: File for the searched trees; None writes none.
        display: Where progress is shown; None shows none.
    """
    check_cluster(settings.config)
    check_prompts(settings, "questions", problems)
    rows: dict[str, Row] = {}
    trees: dict[str, dict[str, Any]] = {}
    waiting = deque(problem.id for problem in problems)

    def keep(answers: Sequence[Answer]) -> None:
        for row, tree in answers:
            rows[row["id"]] = row
            if tree is not None:
                trees[row["id"]] = tree
        while waiting and waiting[0] in rows:
            echo(json.dumps(rows[waiting.popleft()]))

    spent = search_questions(settings, problems, open_ids=set(waiting), wants_trees=tree_path is not None, keep=keep, display=display)
    if tree_path is not None:
        _write_trees(tree_path, [trees[problem.id] for problem in problems])
    return _summed("answers", [rows[problem.id] for problem in problems], spent, STANDARD)


def solve_file(
    settings: SolveSettings,
    source: str,
    output: Path,
    *,
    tree_path: Path | None,
    id_field: str = "id",
    question_field: str = "question",
    display: ProgressDisplay | None = None,
) -> Solved:
    """Search every question of a file and write one JSON line each, in the order of the file.

    During the work, finished answers are kept next to the output, so the same command continues a stopped one, with other workers if need
    be. If questions failed, they stay there, and the same command then asks these questions again.

    Args:
        settings: Models, method and budget.
        source: JSONL or Parquet file, or ``-`` for standard input; answers in it are not kept.
        output: JSONL file to write.
        tree_path: File for the searched trees; None writes none.
        id_field: Field of the ids; empty makes them from file name and line number.
        question_field: Field of the questions.
        display: Where progress is shown; None shows none.

    Raises:
        ConfigError: If no question leaves room for a solution.
        DataFormatError: If the file breaks its format.
        CheckpointError: If the kept answers belong to other settings or questions, or lack requested trees.
    """
    problems = read_questions(source, id_field=id_field, question_field=question_field)
    check_prompts(settings, input_name(source), problems)
    part = part_of(output)
    progress = Progress.resume(part, settings.facts, problems, keeps_trees=tree_path is not None)
    rows, trees = progress.rows, progress.trees
    check_cluster(settings.config)

    def keep(answers: Sequence[Answer]) -> None:
        for row, tree in answers:
            rows[row["id"]] = row
            if tree is not None:
                trees[row["id"]] = tree
        progress.keep([answer for answer in answers if not has_failed(answer[0])])

    spent = search_questions(
        settings,
        problems,
        open_ids={problem.id for problem in problems} - rows.keys(),
        wants_trees=tree_path is not None,
        keep=keep,
        display=display,
        on_loaded=lambda: progress.kept.begin(settings.facts),
    )
    atomic_write_text(output, "".join(json.dumps(rows[problem.id]) + "\n" for problem in problems))
    if tree_path is not None:
        _write_trees(tree_path, [trees[problem.id] for problem in problems])
    if not any(has_failed(rows[problem.id]) for problem in problems):
        part.unlink()
    return _summed(str(output), [rows[problem.id] for problem in problems], spent, source)


def _summed(name: str, rows: Sequence[Row], spent: Spent, source: str) -> Solved:
    summary = file_summary(rows, spent.failures, name, seconds=spent.seconds)
    details = spent.use.sentence()
    return Solved(summary, _failure(input_name(source), spent.failures), details)


def _failure(place: str, failures: Failures) -> str | None:
    if not failures.all_failed:
        return None
    return f"{place}: must be asked: {failures.sentence()} -- mend that and repeat the command"


def explain_methods() -> str:
    """Return one paragraph per search method (description, settings, source), and the reasons for missing published methods."""
    paragraphs = [_explained(preset) for preset in PRESETS.values()]
    outside = [f"  {name}: {reason}" for name, reason in OUTSIDE.items()]
    note = "Settings not named have their defaults, which docs/methods.md lists; --option KEY=VALUE changes any of them."
    return "\n".join([*paragraphs, "", note, "", "Published searches that the settings do not express:", *outside])


def _explained(preset: Preset) -> str:
    method = preset.method
    lines = [f"{method.name}: {method.description}"]
    details = {
        "settings": ", ".join(f"{name}={value}" for name, value in method.settings().items()),
        "source": preset.source,
        "published budget": preset.budget,
        "differs": preset.differs,
    }
    return "\n".join(lines + [f"    {name}: {text}" for name, text in details.items() if text])


def _write_trees(path: Path, trees: list[dict[str, Any]]) -> None:
    atomic_write_text(path, json.dumps(trees[0] if len(trees) == 1 else trees) + "\n")
