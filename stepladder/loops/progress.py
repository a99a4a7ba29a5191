"""Progress of long work, for people: one line a stage with problems done, tokens/s, solved so far and time left."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from stepladder.loops.workers import Progress

_PLAIN_INTERVAL_S = 10.0


class ProgressDisplay:
    """Shows the stages of a run on a terminal, or as a line every ten seconds where there is none."""

    def __init__(self, console: Console | None = None) -> None:
        """Write to ``console``, by default standard error, so that standard output stays for results."""
        self.console = console or Console(file=sys.stderr)

    @contextmanager
    def stages(self, totals: Mapping[str, int | None]) -> Iterator[Callable[[Progress], None]]:
        """Show one bar per stage while the block runs and yield the function that takes progress.

        Args:
            totals: Stage name -> items still to do, or None where only the task will know.
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
            tasks = {stage: bars.add_task(stage, total=total, rate="") for stage, total in totals.items()}
            tracker = _Tracker(bars, tasks, dict(totals), self.console)
            yield tracker.update
            tracker.finish()


class _Tracker:
    """Adds up what the workers report."""

    def __init__(self, bars: RichProgress, tasks: dict[str, TaskID], totals: dict[str, int | None], console: Console) -> None:
        self._bars, self._tasks, self._totals, self._console = bars, tasks, totals, console
        self._begin = self._last_line = time.monotonic()
        self._sums: dict[str, Progress] = {}

    def update(self, progress: Progress) -> None:
        """Add one report to its stage."""
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
        if not self._console.is_terminal and time.monotonic() - self._last_line >= _PLAIN_INTERVAL_S:
            self._last_line = time.monotonic()
            self._line(now)

    def finish(self) -> None:
        """Say where each stage ended, where there is no terminal to show bars."""
        if not self._console.is_terminal:
            for now in self._sums.values():
                self._line(now)

    def _rate(self, now: Progress) -> str:
        seconds = max(time.monotonic() - self._begin, 1e-9)
        solved = f", solved {now.solved}" if now.solved else ""
        return f"{now.tokens / seconds:,.0f} tokens/s{solved}"

    def _line(self, now: Progress) -> None:
        seconds = time.monotonic() - self._begin
        total = self._totals[now.stage] or now.items
        left = seconds / max(now.items, 1) * max(total - now.items, 0)
        self._console.print(f"{now.stage}: {now.items}/{total}, {self._rate(now)}, {seconds:.0f} s, {left:.0f} s left", highlight=False)
