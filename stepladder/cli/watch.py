"""``stepladder watch``."""

from typing import Annotated

import typer

from stepladder.cli.errors import DebugOption, errors_explained
from stepladder.cli.signals import stopped


def watch(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Run directory or URL. Default: the one in `runs` that began last.")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and stop.")] = False,
    debug: DebugOption = False,
) -> None:
    """Watch a run: round, stage, throughput, solved problems, time left, and a tree that grows.

    It reads files of the run's directory and nothing else, so it may run in another terminal, or on another machine that has the directory.
    It ends with the run, or with Ctrl-C, which does not touch the run. Without a terminal it prints lines; NO_COLOR switches colours off.

    - `stepladder watch runs/embedded`
    - `ssh host stepladder watch runs/embedded --once`
    """
    with errors_explained(debug):
        from rich.console import Console

        from stepladder.report.watch import begun_last, watch_run

        try:
            watch_run(run or begun_last(), Console(), interval_s=interval, once=once)
        except KeyboardInterrupt as stop:
            raise stopped(stop) from None
