"""One HTML file about a run that needs nothing else: styles, script and data are inside it, and its content policy allows no request.

The content policy names the hashes of the page's own style and script. So even a text that slipped through the escaping could not run.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from stepladder.files import atomic_write_text
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.problem_facts import ProblemFacts
from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.stage_times import StageTimes, stage_times
from stepladder.outputs import PAGE_MARK, check_output, text_with
from stepladder.report import figures, problem_sections, sections
from stepladder.report.levels import LevelPicture
from stepladder.report.markup import html, with_directions_shown
from stepladder.report.overview import what_was_run
from stepladder.report.prm_depth import DepthAuc, depth_aucs
from stepladder.report.prm_quality import prm
from stepladder.report.problem_sections import wrong_data
from stepladder.report.reproduce import reproduce
from stepladder.report.trees import NUM_TEST_TREES, trees_for_page
from stepladder.report.wrong_problems import WrongProblem, before_and_after, wrong_problems


def write_report(run: RunDir, to: Path | None = None, *, overwrite: bool = False, most_trees: int = NUM_TEST_TREES) -> Path:
    """Write the page about a run and return its path.

    Args:
        run: The run; it may be unfinished, even without a finished round.
        to: The file; None writes RUN/report.html.
        overwrite: Replace an earlier page at ``to``.
        most_trees: Most trees of test problems on the page.

    Raises:
        CheckpointError: If an evaluation file is damaged, or the page cannot be written, or ``to`` holds anything else.
    """
    path = to or run.root / "report.html"
    check_output(path, option="--to", ours=text_with(PAGE_MARK), overwrite=overwrite or to is None)
    atomic_write_text(path, render_page(run, most_trees=most_trees))
    return path


def render_page(run: RunDir, *, most_trees: int = NUM_TEST_TREES) -> str:
    """Return the page about a run as HTML; the same run gives the same page."""
    rows = run.rows()
    shown = trees_for_page(run, rows[-1].round, most=most_trees) if rows else []
    stages = stage_times(run.events)
    name = run.root.resolve().name
    wrong = wrong_problems(run, rows[-1].round) if rows else []
    body = _body(run, rows, stages, num_trees=len(shown), name=name, wrong=wrong)
    return document(f"{figures.headline(rows).title} · {name}", "\n".join(body), trees=shown, wrong=wrong_data(wrong))


def document(title: str, body: str, *, trees: Sequence[Any] = (), wrong: Sequence[Any] = ()) -> str:
    """Return a whole page around its body.

    Args:
        title: Title of the browser's tab.
        body: HTML.
        trees: Trees to click through, for the frame that ``sections.trees`` leaves for them.
        wrong: Wrong problems, for the frame that ``problem_sections.wrong`` leaves for them.
    """
    style, script = chart_style() + _resource("page.css"), _resource("page.js")
    return Template(_resource("page.html")).substitute(
        title=html(title),
        body=body,
        trees=json_block(list(trees)),
        wrong=json_block(list(wrong)),
        style=style,
        style_hash=_content_hash(style),
        script=script,
        script_hash=_content_hash(script),
    )


def _body(run: RunDir, rows: list[RoundRow], stages: StageTimes, *, num_trees: int, name: str, wrong: Sequence[WrongProblem]) -> list[str]:
    config = run.config()
    picture = LevelPicture(rows, config.problems.level_field)
    parts: list[str] = [
        sections.hero(name, rows, stages, picture=picture, facts=what_was_run(config, rows, stages)),
        '<main id="figures">',
    ]
    if rows:
        last = rows[-1]
        parts += [sections.rounds(rows, with_steps=picture.is_drawn), picture.section(), sections.by_round(rows), sections.by_tokens(rows)]
        parts += [problem_sections.before_after(before_and_after(run, rows), last.best_policy)]
        parts += [problem_sections.wrong(wrong, last.round, last.test.problems if last.test.search is not None else 0)]
        parts += [prm(rows, _aucs_by_depth(run, rows)), sections.data(rows)]
    parts.append(sections.problems(ProblemFacts.load(run.root)))
    return [*parts, sections.time_spent(rows, stages, config), sections.trees(num_trees), reproduce(run), "</main>"]


_DEPTH_ROUNDS = 3
"""Newest rounds of which the ranking of steps by depth is shown."""


def _aucs_by_depth(run: RunDir, rows: Sequence[RoundRow]) -> dict[int, DepthAuc]:
    searched = [row.round for row in rows if row.search is not None][-_DEPTH_ROUNDS:]
    found = {number: depth_aucs(run, number) for number in searched}
    return {number: figures for number, figures in found.items() if len(figures) > 1}


def chart_style() -> str:
    """Return the style sheet of charts outside a page."""
    return _resource("chart.css")


def json_block(value: Any) -> str:
    """Return JSON for a script element. It has no ``<``, so no text can close the element or open a comment.

    Texts have the escapes of ``with_directions_shown``.
    """
    written = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return with_directions_shown(written, backslash="\\\\")


def _resource(name: str) -> str:
    return files("stepladder.report").joinpath(name).read_text(encoding="utf-8")


def _content_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
