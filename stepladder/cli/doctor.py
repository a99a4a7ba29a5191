"""``stepladder doctor``."""

from typing import Annotated

import typer

from stepladder.cli.errors import DebugOption, SetOption, errors_explained
from stepladder.terminal import echo


def doctor(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[CONFIG.toml|RUN]", help="Check what this run needs, too: its settings, or its directory or URL."),
    ] = None,
    run_dir: Annotated[
        str | None,
        typer.Option(metavar="DIR|URL", help="Where the run will live, for the check of the disk. Default: runs/NAME-OF-CONFIG."),
    ] = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    debug: DebugOption = False,
) -> None:
    """Say what works on this machine, and what to do about the rest.

    One line per check, which begins with `ok`, `note` (something optional is missing), `warning` (it works, with a doubt) or `fault`
    (`evolve` does not work). Exit code 0 if there is no fault, 1 if there is one.

    With a configuration or a run, it also checks that the models can be served, that prompts and solutions fit their context, and compares
    the memory of every stage and the disk of the rounds with what is there (docs/doctor.md has the formulas). `evolve` makes the same
    checks before it starts.

    - `stepladder doctor`
    - `stepladder doctor configs/gsm8k.toml --set policy.model=./my-model`
    - `stepladder doctor runs/gsm8k --json`
    """
    with errors_explained(debug):
        from stepladder.commands.doctor import examine
        from stepladder.loops.runs.run_places import find_run

        root = None if run_dir is None else find_run(run_dir, to_work=True).root
        report = examine(target, overrides=overrides, root=root)
        echo(report.as_json() if as_json else report.as_text())
        if not report.works:
            raise typer.Exit(1)
