"""Progress of long work, for people: problems done, tokens/s, solved so far and time left of every stage, and its place in the run."""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live as Screen
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stepladder.loops.runs.live import INTERVAL_S, Live, LiveStage, LiveTree, overall_left, remove_live
from stepladder.loops.runs.workers import Progress
from stepladder.terminal import plain

_PLAIN_INTERVAL_S = 10.0
_FRAMES_A_SECOND = 4
_NAME_WIDTH, _BAR_WIDTH = 20, 10


class RunFrame:
    """The place of a stage in its run: round, number, purpose, and the time left for the whole. It keeps ``live.json`` up to date."""

    def __init__(
        self,
        root: Path,
        *,
        rounds: int,
        plan: Mapping[int, Sequence[str]],
        purpose: Callable[[int, str], str],
        left: Callable[[int, str, float, float | None], float | None],
        expected_s: float | None = None,
    ) -> None:
        """Describe a run that is about to work.

        Args:
            root: Its directory.
            rounds: Its last round.
            plan: The stages of every round.
            purpose: What a stage of a round is for.
            left: Seconds left of the run, given round, stage, its seconds so far and its seconds to come; None if they are not known.
            expected_s: Seconds that the whole run is expected to take, until the run itself knows better.
        """
        self._root, self._rounds, self._plan, self._purpose, self._left = root, rounds, plan, purpose, left
        self._expected_s = expected_s
        self._began, self._began_at = time.monotonic(), time.time()
        self._round, self._stage, self._stage_began = 0, "", self._began
        self._tree: LiveTree | None = None
        self._written = -INTERVAL_S

    def enter(self, number: int, stage: str) -> None:
        """Note that a stage begins."""
        self._round, self._stage, self._stage_began = number, stage, time.monotonic()
        self.show((), force=True)

    def show(self, parts: Sequence[LiveStage], tree: LiveTree | None = None, *, force: bool = False) -> None:
        """Write what the run is doing, at most once a second."""
        self._tree = tree or self._tree
        now = time.monotonic()
        if not force and now - self._written < INTERVAL_S:
            return
        self._written = now
        stages = self._plan.get(self._round, ())
        Live(
            pid=os.getpid(),
            host=socket.gethostname(),
            time=time.time(),
            began=self._began_at,
            round=self._round,
            rounds=self._rounds,
            stage=self._stage,
            stage_number=stages.index(self._stage) + 1 if self._stage in stages else len(stages),
            num_stages=len(stages),
            purpose=self.purpose(),
            seconds_left=self.seconds_left(parts),
            parts=tuple(parts),
            tree=self._tree,
        ).save(self._root)

    def close(self) -> None:
        """Remove the file: nobody works on the run any more."""
        remove_live(self._root)

    def seconds_left(self, parts: Sequence[LiveStage]) -> float | None:
        """Return the seconds left for the whole run; None if they are not known yet."""
        elapsed = time.monotonic() - self._stage_began
        found = self._left(self._round, self._stage, elapsed, overall_left(parts) if parts else None)
        if found is None and self._expected_s is not None:
            return max(self._expected_s - (time.monotonic() - self._began), 0.0) or None
        return found

    def place(self) -> str:
        """Return the place of the stage in the run in one line."""
        where, stages = "warm-up" if self._round == 0 else f"round {self._round} of {self._rounds}", self._plan.get(self._round, ())
        counted = f", stage {stages.index(self._stage) + 1} of {len(stages)}" if self._stage in stages else ""
        return f"{where}{counted}: {self._stage}"

    def purpose(self) -> str:
        """Return what the stage is for; empty if nothing is known."""
        return self._purpose(self._round, self._stage)

    def heading(self) -> str:
        """Return the place of the stage in the run, and what it is for, in one line."""
        said = self.purpose()
        return self.place() + (f" -- {said}" if said else "")

    def footer(self, parts: Sequence[LiveStage]) -> str:
        """Return the time of the whole run."""
        left = self.seconds_left(parts)
        rest = "time left is known after the first round" if left is None else f"about {rough(left)} left"
        return f"whole run: {clock(time.monotonic() - self._began)}, {rest}"


def clock(seconds: float) -> str:
    """Write seconds as ``0:07``, ``12:05`` or ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def rough(seconds: float) -> str:
    """Write a guess of some time as no more exact than it is."""
    if seconds < 90:
        return f"{max(round(seconds / 10), 1) * 10} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60 // 10 * 10:02d} min"


class ProgressDisplay:
    """Shows the stages of long work on a terminal; without one, it prints a line every ten seconds."""

    def __init__(self, console: Console | None = None) -> None:
        """Write to ``console``, by default standard error, so that standard output stays for results."""
        self.console = console or Console(file=sys.stderr)
        self.frame: RunFrame | None = None
        """The place of the stages in a run; None outside one."""

    @property
    def is_animated(self) -> bool:
        """Whether lines can be drawn over."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def say(self, text: str) -> None:
        """Print a line above the bars; control characters and markup in it are shown as they are."""
        self.console.print(plain(text), markup=False, highlight=False, soft_wrap=True)

    def enter(self, number: int, stage: str) -> None:
        """Note that a stage of a run begins, and say so."""
        if self.frame is None:
            return
        self.frame.enter(number, stage)
        if not self.is_animated:
            self.say(f"{self.frame.heading()} ({self.frame.footer(())})")

    @contextmanager
    def stages(self, totals: Mapping[str, int | None]) -> Iterator[Callable[[Progress], None]]:
        """Show one bar per stage while the block runs and yield the function that takes progress.

        Args:
            totals: Stage name -> remaining items, or None if only the task knows.
        """
        tracker = _Tracker(dict(totals), self.console, self.frame, animated=self.is_animated)
        if not self.is_animated:
            yield tracker.update
            tracker.finish()
            return
        # Standard output is for results, also while bars are drawn on standard error.
        with Screen(get_renderable=tracker.board, console=self.console, refresh_per_second=_FRAMES_A_SECOND, redirect_stdout=False):
            yield tracker.update


def stage_figures(part: LiveStage) -> str:
    """Write the figures of a stage as ``40/144, 3,000 tokens/s, solved 7``; what is not counted or 0 is left out."""
    rate = f", {part.rate:,.0f} tokens/s" if part.tokens else ""
    return _done(part) + rate + (f", solved {part.solved}" if part.solved else "")


def _done(part: LiveStage) -> str:
    return f"{part.items}/{'?' if part.total is None else part.total}"


def stage_table(parts: Sequence[LiveStage]) -> Table:
    """Return the bars of stages with their figures, under headings; it fits 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("", width=_NAME_WIDTH, no_wrap=True, overflow="ellipsis")
    table.add_column("", width=_BAR_WIDTH)
    for name, width in (("done", 11), ("tokens/s", 8), ("solved", 6), ("time", 6), ("left", 6)):
        table.add_column(name, justify="right", min_width=width, no_wrap=True)
    for part in parts:
        begun = part.seconds > 0
        left = part.seconds_left
        table.add_row(
            Text(plain(part.name), style="" if begun else "dim"),
            ProgressBar(total=part.total or None, completed=part.items, width=_BAR_WIDTH, pulse=begun and part.total is None),
            Text(_done(part), style="" if begun else "dim"),
            f"{part.rate:,.0f}" if begun and part.tokens else "",
            f"{part.solved:,}" if part.solved else "",
            clock(part.seconds) if begun else "",
            "" if left is None or not begun else clock(left),
        )
    return table


class _Tracker:
    """Sums the reports of the workers."""

    def __init__(self, totals: dict[str, int | None], console: Console, frame: RunFrame | None, *, animated: bool) -> None:
        self._totals, self._console, self._frame, self._is_animated = totals, console, frame, animated
        self._last_report = self._last_line = time.monotonic()
        self._sums: dict[str, Progress] = {}
        self._spans: dict[str, tuple[float, float]] = {}
        """When each stage began and when it last reported."""

    def update(self, progress: Progress) -> None:
        """Add one report to its stage."""
        # Stages follow each other: the first report of a stage covers the time since the last report of the previous one.
        begin, _ = self._spans.get(progress.stage, (self._last_report, None))
        self._last_report = time.monotonic()
        self._spans[progress.stage] = begin, self._last_report
        before = self._sums.get(progress.stage, Progress(stage=progress.stage))
        self._sums[progress.stage] = Progress(
            stage=progress.stage,
            items=before.items + progress.items,
            tokens=before.tokens + progress.tokens,
            solved=before.solved + progress.solved,
        )
        self._totals[progress.stage] = progress.total or self._totals.get(progress.stage)
        if self._frame is not None:
            self._frame.show(self._parts(), progress.tree)
        if not self._is_animated and self._last_report - self._last_line >= _PLAIN_INTERVAL_S:
            self._last_line = self._last_report
            self._line(progress.stage)

    def finish(self) -> None:
        """Print the final count of each stage."""
        for stage in self._sums:
            self._line(stage)

    def board(self) -> RenderableType:
        """Return what a terminal shows: the place in the run, the stages, and the time of the whole."""
        parts = self._parts()
        if self._frame is None:
            return stage_table(parts)
        said = self._frame.purpose()
        heading = [Text(plain(self._frame.place()), style="bold"), *([Text(plain(said), style="dim")] if said else [])]
        return Group(*heading, stage_table(parts), Text(self._frame.footer(parts), style="dim"))

    def _parts(self) -> list[LiveStage]:
        """Return all stages: those that reported with their figures, and those that are still to come."""
        names = dict.fromkeys([*self._totals, *self._sums])
        return [self._part(name) for name in names]

    def _part(self, name: str) -> LiveStage:
        now, (begin, end) = self._sums.get(name, Progress(stage=name)), self._spans.get(name, (0.0, 0.0))
        short = name.partition(": ")[2] if self._frame is not None and ": " in name else name
        return LiveStage(
            name=short, items=now.items, total=self._totals.get(name), tokens=now.tokens, solved=now.solved, seconds=end - begin
        )

    def _line(self, stage: str) -> None:
        part = self._part(stage)
        left = "" if part.seconds_left is None else f", {part.seconds_left:.0f} s left"
        self._console.print(f"{stage}: {stage_figures(part)}, {part.seconds:.0f} s{left}", highlight=False, markup=False)
