"""Whatever ends a command: one sentence, an exit code, and a traceback only where it was asked for."""

import errno
import json
import subprocess
import sys

import pyarrow as pa
import pytest
import typer
from jinja2.exceptions import SecurityError
from safetensors import SafetensorError

from stepladder.cli.errors import errors_explained
from stepladder.errors import BackendError, CheckpointError, ConfigError, DataFormatError


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own, which would take seconds to import."""


CASES = [
    (ConfigError("a: b -- c"), 2, "a: b -- c"),
    (DataFormatError("a: b -- c"), 2, "a: b -- c"),
    (CheckpointError("a: b -- c"), 2, "a: b -- c"),
    (BackendError("a: b -- c"), 1, "a: b -- c"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "some/file"), 2, "some/file: there is no such file"),
    (PermissionError(errno.EACCES, "Permission denied", "some/file"), 2, "some/file: you may not read it"),
    (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk is full"),
    (OSError(errno.EIO, "Input/output error", "some/file"), 1, "some/file: Input/output error"),
    (MemoryError(), 1, "enough memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 1, "enough memory"),
    (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), 1, "the GPU must have enough memory"),
    (pa.ArrowInvalid("Parquet magic bytes not found"), 2, "Parquet magic bytes not found"),
    (SafetensorError("header too small"), 2, "header too small"),
    (SecurityError("access to attribute"), 2, "access to attribute"),
    (json.JSONDecodeError("Expecting value", "x", 0), 2, "it is not JSON"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), 2, "it is not UTF-8"),
    (ModuleNotFoundError("No module named 'zstandard'", name="zstandard"), 1, "the package 'zstandard' must be importable"),
    (KeyError("rows\nand more"), 1, "this is a bug of stepladder: KeyError: "),
    (ZeroDivisionError("division by zero"), 1, "this is a bug of stepladder: ZeroDivisionError: division by zero"),
    (RuntimeError("shape\nmismatch"), 1, "this is a bug of stepladder: RuntimeError: shape -- run again with --debug and report it"),
    (ImportError("cannot import name 'x'", name="stepladder.x"), 1, "this is a bug of stepladder"),
]


@pytest.mark.parametrize(("error", "code", "said"), CASES, ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "")
@pytest.mark.parametrize("debug", [False, True])
def test_an_exception_is_one_sentence(error, code, said, debug, capsys):
    """Exit code 2 for what the user gave, 1 for what failed; the traceback comes with --debug alone."""
    with pytest.raises(typer.Exit) as stop, errors_explained(debug):
        raise error
    shown = capsys.readouterr()
    assert stop.value.exit_code == code
    assert shown.out == ""
    assert said in shown.err
    assert sum(line.startswith("error: ") for line in shown.err.splitlines()) == 1
    assert ("Traceback" in shown.err) == debug
    assert shown.err.count("\n") == 1 or debug


@pytest.mark.parametrize("error", [typer.Exit(0), typer.Exit(3), typer.Abort(), typer.BadParameter("x"), SystemExit(4)], ids=repr)
def test_deliberate_ends_pass(error, capsys):
    """What a command ends with on purpose is no error."""
    with pytest.raises(type(error)) as caught, errors_explained(False):
        raise error
    assert caught.value is error
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("missing", ["typer", "pydantic", "numpy"])
def test_a_broken_installation_names_the_package(missing):
    """A package that cannot be imported ends every command in one sentence."""
    code = f"import sys; sys.modules[{missing!r}] = None; from stepladder.cli import main; sys.argv[1:] = ['evolve', '--dry-run']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: the package {missing!r} must be importable: ")
    assert done.stderr.count("\n") == 1
