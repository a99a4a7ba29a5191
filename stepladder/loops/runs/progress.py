"""Progress of long work, for people: one line a stage with problems done, tokens/s, solved so far and time left."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from stepladder.loops.runs.workers import Progress
from stepladder.terminal import plain

_PLAIN_INTERVAL_S = 10.0


class ProgressDisplay:
    """Shows the stages of a run on a terminal; without one, it prints a line every ten seconds."""

    def __init__(self, console: Console | None = None) -> None:
        """Write to ``console``, by default standard error, so that standard output stays for results."""
        self.console = console or Console(file=sys.stderr)

    def say(self, text: str) -> None:
        """Print a line above the bars; control characters and markup in it are shown as they are."""
        self.console.print(plain(text), markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stages(self, totals: Mapping[str, int | None]) -> Iterator[Callable[[Progress], None]]:
        """Show one bar per stage while the block runs and yield the function that takes progress.

        Args:
            totals: Stage name -> remaining items, or None if only the task knows.
        """
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self.console, disable=not self.console.is_terminal) as bars:
            tasks = {stage: bars.add_task(stage, start=False, total=total, rate="") for stage, total in totals.items()}
            tracker = _Tracker(bars, tasks, dict(totals), self.console)
            yield tracker.update
            tracker.finish()


class _Tracker:
    """Sums the reports of the workers."""

    def __init__(self, bars: RichProgress, tasks: dict[str, TaskID], totals: dict[str, int | None], console: Console) -> None:
        self._bars, self._tasks, self._totals, self._console = bars, tasks, totals, console
        self._last_report = self._last_line = time.monotonic()
        self._sums: dict[str, Progress] = {}
        self._spans: dict[str, tuple[float, float]] = {}
        """When each stage began and when it last reported."""

    def update(self, progress: Progress) -> None:
        """Add one report to its stage."""
        if progress.stage not in self._spans and progress.stage in self._tasks:
            self._bars.start_task(self._tasks[progress.stage])
        # Stages follow each other: the first report of a stage covers the time since the last report of the previous one.
        begin, _ = self._spans.get(progress.stage, (self._last_report, None))
        self._last_report = time.monotonic()
        self._spans[progress.stage] = begin, self._last_report
        before = self._sums.get(progress.stage, Progress(stage=progress.stage))
        now = Progress(
            stage=progress.stage,
            items=before.items + progress.items,
            tokens=before.tokens + progress.tokens,
            solved=before.solved + progress.solved,
        )
        self._sums[progress.stage] = now
        self._totals[progress.stage] = progress.total or self._totals.get(progress.stage)
        if progress.stage in self._tasks:
            total = self._totals[progress.stage]
            self._bars.update(self._tasks[progress.stage], completed=now.items, total=total, rate=self._rate(now))
        if not self._console.is_terminal and self._last_report - self._last_line >= _PLAIN_INTERVAL_S:
            self._last_line = self._last_report
            self._line(now)

    def finish(self) -> None:
        """Print the final count of each stage, if there is no terminal for bars."""
        if not self._console.is_terminal:
            for now in self._sums.values():
                self._line(now)

    def _seconds(self, stage: str) -> float:
        begin, end = self._spans[stage]
        return end - begin

    def _rate(self, now: Progress) -> str:
        solved = f", solved {now.solved}" if now.solved else ""
        return f"{now.tokens / max(self._seconds(now.stage), 1e-9):,.0f} tokens/s{solved}"

    def _line(self, now: Progress) -> None:
        seconds, total = self._seconds(now.stage), self._totals[now.stage] or now.items
        # Before the first item is done nothing is known of the time that one takes.
        left = f", {seconds / now.items * max(total - now.items, 0):.0f} s left" if now.items else ""
        self._console.print(f"{now.stage}: {now.items}/{total}, {self._rate(now)}, {seconds:.0f} s{left}", highlight=False, markup=False)
