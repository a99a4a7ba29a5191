"""A run as seen from outside: only files of its directory are read."""

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live as Screen

from stepladder.errors import CheckpointError
from stepladder.loops.runs.directory import load_run
from stepladder.loops.runs.newest import RUNS
from stepladder.loops.runs.seen_run import SeenRun, look
from stepladder.loops.runs.stage_times import EVENTS_FILE
from stepladder.report.live_view import line, view

_LINE_INTERVAL_S = 10.0


def watch_run(place: str | Path, console: Console, *, interval_s: float, once: bool = False) -> None:
    """Show a run until it ends: redrawn on a terminal, as lines elsewhere.

    Args:
        place: Its directory or URL.
        console: Where to show it.
        interval_s: Seconds between two looks.
        once: Look once.

    Raises:
        CheckpointError: If there is no run.
    """
    run = load_run(place)
    rounds = run.config().run.rounds

    def look_again() -> SeenRun:
        return look(load_run(place), rounds)

    seen = look(run, rounds)
    if once or not seen.is_running:
        console.print(view(seen, width=console.width))
    elif console.is_terminal and not console.is_dumb_terminal:
        _draw(look_again, seen, console, interval_s)
    else:
        _print_lines(look_again, seen, console, interval_s)


def _draw(look_again: Callable[[], SeenRun], seen: SeenRun, console: Console, interval_s: float) -> None:
    with Screen(view(seen, width=console.width, height=console.height), console=console, auto_refresh=False) as screen:
        while seen.is_running:
            time.sleep(interval_s)
            seen = look_again()
            screen.update(view(seen, width=console.width, height=console.height), refresh=True)


def _print_lines(look_again: Callable[[], SeenRun], seen: SeenRun, console: Console, interval_s: float) -> None:
    """Print a line for every new stage and every ten seconds, and the whole picture at the end."""
    place, printed = None, 0.0
    while seen.is_running:
        # A process that begins or ends holds the lock and says nothing of what it does.
        now = None if seen.live is None else (seen.live.round, seen.live.stage)
        if seen.live is not None and (now != place or time.monotonic() - printed >= _LINE_INTERVAL_S):
            console.print(line(seen.live), highlight=False, markup=False, soft_wrap=True)
            place, printed = now, time.monotonic()
        time.sleep(interval_s)
        seen = look_again()
    console.print(view(seen, width=console.width))


def begun_last(folder: Path = RUNS) -> Path:
    """Return the run in a folder that was begun or continued last.

    Raises:
        CheckpointError: If there is none.
    """
    found = {path.parent: _last_touched(path.parent) for path in folder.glob("*/run.json")}
    if not found:
        raise CheckpointError(f"{folder}: must hold a run: found none -- name the directory of one")
    return max(found, key=lambda run: (found[run], run.name))


def _last_touched(run: Path) -> float:
    events = run / EVENTS_FILE
    return (events if events.exists() else run / "run.json").stat().st_mtime
