"""Common parts of the commands: errors as one line and an exit code, the option for tracebacks, and the option for settings."""

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from stepladder.cli.signals import stopped
from stepladder.errors import CheckpointError, ConfigError, DataFormatError, StepladderError
from stepladder.files import file_fault
from stepladder.terminal import echo, one_line

DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, e.g. `search.simulations=64`. May be repeated.")
]

OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier result of this command in the same place; nothing else is ever replaced.")
]

_FAILED, _WRONG_USE = 1, 2
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FILE_LIBRARIES = ("pyarrow", "safetensors", "jinja2", "json", "zipfile", "tomllib", "tokenizers", "pyo3_runtime", "pickle", "_pickle")
"""Libraries whose own errors say that something which was read is damaged."""


@contextmanager
def errors_explained(debug: bool) -> Iterator[None]:
    """Turn every exception into one line and an exit code; with ``--debug`` show the traceback as well."""
    try:
        yield
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except KeyboardInterrupt as stop:
        echo("stopped", err=True)
        raise stopped(stop) from None
    except BrokenPipeError:
        # The reader of our output went away (head, less): that is its right, and Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        if debug:
            echo(traceback.format_exc(), err=True)
        sentence, code = explain(error)
        echo(f"error: {sentence}", err=True)
        raise typer.Exit(code) from None


def explain(error: BaseException) -> tuple[str, int]:
    """Return the sentence for an exception that ends a command, and the exit code.

    Our own errors are already sentences. Errors of the machine, a disk or a library get a sentence. Everything else is a bug of ours.
    """
    if isinstance(error, StepladderError):
        wrong_use = isinstance(error, ConfigError | DataFormatError | CheckpointError)
        return str(error), _WRONG_USE if wrong_use else _FAILED
    kind, first_line = type(error), one_line(str(error).strip().partition("\n")[0])
    if isinstance(error, ImportError) and error.name and not error.name.startswith("stepladder"):
        package = error.name.partition(".")[0]
        remedy = f"install it again, with pip install --force-reinstall {package}"
        return f"the package {package!r} must be importable: {first_line} -- {remedy}", _FAILED
    if kind.__name__ == "OutOfMemoryError":
        return f"the GPU must have enough memory: {first_line} -- use smaller batches or fewer problems at once", _FAILED
    # PyTorch has no exception of its own for a lack of memory on the CPU.
    if isinstance(error, MemoryError) or "can't allocate memory" in first_line:
        return "this command must have enough memory: the machine has no more -- use smaller batches or a larger machine", _FAILED
    if isinstance(error, OSError) and error.errno is not None:
        return _machine_fault(error)
    if any(each.__module__.partition(".")[0] in _FILE_LIBRARIES for each in kind.__mro__) or isinstance(error, UnicodeDecodeError):
        return f"something that was read must be whole: {file_fault(error)} -- run again with --debug to see what was read", _WRONG_USE
    return f"this is a bug of stepladder: {kind.__name__}: {first_line} -- run again with --debug and report it", _FAILED


def _machine_fault(error: OSError) -> tuple[str, int]:
    """Return the sentence and the code for an error of the operating system that nothing else handled."""
    place = f"{error.filename}: " if error.filename is not None else ""
    if error.errno in _FULL:
        return f"{place}could not be written: the disk is full ({error.strerror}) -- free space, then run the same command again", _FAILED
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError | PermissionError):
        return f"{place}{file_fault(error)} -- correct the path or its rights, then run the same command again", _WRONG_USE
    return f"{place}{file_fault(error)} -- mend that, then run the same command again", _FAILED
