"""What the commands share: errors as one line and an exit code, the option that shows tracebacks, and the one that changes a setting."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from stepladder.cli.signals import stopped
from stepladder.errors import CheckpointError, ConfigError, DataFormatError, StepladderError
from stepladder.terminal import echo

DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, e.g. `search.simulations=64`. May be repeated.")
]

OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier result of this command in the same place; nothing else is ever replaced.")
]


@contextmanager
def errors_explained(debug: bool) -> Iterator[None]:
    """Turn exceptions into one line and an exit code; with ``--debug`` show the traceback as well."""
    try:
        yield
    except KeyboardInterrupt as stop:
        echo("stopped", err=True)
        raise stopped(stop) from None
    except BrokenPipeError:
        # The reader of our output went away (head, less): that is its right, and Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except StepladderError as error:
        if debug:
            echo(traceback.format_exc(), err=True)
        echo(f"error: {error}", err=True)
        wrong_use = isinstance(error, ConfigError | DataFormatError | CheckpointError)
        raise typer.Exit(2 if wrong_use else 1) from None
