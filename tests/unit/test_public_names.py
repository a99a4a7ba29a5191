"""The names that ``import stepladder`` offers, and the two ways to start the command line."""

import subprocess
import sys
from importlib import import_module

import pytest

import stepladder


def test_public_names_are_sorted_and_have_a_home():
    """``__all__`` is sorted and names exactly what the package can import."""
    assert stepladder.__all__ == sorted(stepladder.__all__)
    assert set(stepladder.__all__) == set(stepladder._HOMES)
    assert set(stepladder.__all__) <= set(dir(stepladder))


@pytest.mark.parametrize("name", stepladder.__all__)
def test_a_public_name_is_the_object_of_its_home(name):
    """Every public name is importable, documented, and defined where the table says."""
    value = getattr(stepladder, name)
    assert value is getattr(import_module(f"stepladder.{stepladder._HOMES[name]}"), name)
    assert value.__module__ == f"stepladder.{stepladder._HOMES[name]}"
    assert value.__doc__


def test_an_unknown_name_is_an_attribute_error():
    """A misspelt name fails as in any module."""
    with pytest.raises(AttributeError, match="no attribute 'Serach'"):
        stepladder.Serach  # noqa: B018


def test_importing_loads_no_library_of_weight():
    """``import stepladder`` loads neither a model library nor NumPy."""
    code = "import sys, stepladder; print([name for name in ('numpy', 'numba', 'torch', 'transformers') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_module_is_the_command_line():
    """``python -m stepladder`` is the ``stepladder`` command."""
    done = subprocess.run([sys.executable, "-m", "stepladder", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == f"stepladder {stepladder.__version__}"
