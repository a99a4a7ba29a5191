"""Hundreds of attacks on the sandbox, as root and as an ordinary user, with the newest and the first version of Landlock."""

import builtins
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.locks import needs_locks
from tests.unit.data.step_checks.attacks import RUNS, attempts

ROOT = Path(__file__).parents[4]
NOBODY = 65534
ATTACKERS = ("this user", "this user, first Landlock", "an ordinary user")
pytestmark = needs_locks


@cache
def ended(attacker: str) -> dict[str, Any]:
    """Return what became of every attack by an attacker; tried once."""
    user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if attacker == "an ordinary user" else {}
    interpreter = sys.executable
    if user:
        if os.geteuid():
            pytest.skip("this user is an ordinary one, and cannot become another")
        # That of the tests may stand in a folder of root's, where others cannot read it.
        interpreter = next((path for path in (sys.executable, shutil.which("python3", path="/usr/bin")) if path and starts(path, user)), "")
        if not interpreter:
            pytest.skip("no interpreter or no source of stepladder that an ordinary user may read")
    arguments = ["-m", "tests.unit.data.step_checks.attack", *(["first"] if "first" in attacker else [])]
    done = run(interpreter, arguments, user)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["user"] == (NOBODY if user else os.geteuid())
    return found


def run(interpreter: str, arguments: list[str], user: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
    """Run Python as a user, with stepladder's source and a secret in its environment."""
    environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "STEPLADDER_SECRET": "secret", "PATH": os.defpath}
    return subprocess.run([interpreter, *arguments], env=environment, cwd="/", capture_output=True, text=True, check=False, **user)


def starts(interpreter: str, user: dict[str, Any]) -> bool:
    """Whether an interpreter starts as a user and finds what the attacks need in files that this user may read."""
    try:
        return run(interpreter, ["-c", "import tests.unit.data.step_checks.attack"], user).returncode == 0
    except PermissionError:
        return False


@pytest.mark.parametrize("attacker", ATTACKERS)
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, tries in attempts().items() for name in tries])
def test_an_attempt_is_refused(kind, name, attacker):
    """Every attempt raises the error that the table states."""
    error, wanted = ended(attacker)["attempts"][kind].get(name, "not tried"), attempts()[kind][name][1]
    assert error not in ("nothing", "not tried") and issubclass(getattr(builtins, error), getattr(builtins, wanted)), error


@pytest.mark.parametrize("attacker", ATTACKERS)
@pytest.mark.parametrize("kind", attempts())
def test_the_world_outside_is_as_it_was(kind, attacker):
    """Contents, sizes, modes, owners, links, dates, attributes and names are those of before; the attempts of the kind were all made."""
    assert ended(attacker)["attempts"][kind]["world"] == ""


@pytest.mark.parametrize("attacker", [ATTACKERS[0], ATTACKERS[-1]])
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, runs in RUNS.items() for name in runs])
def test_a_run_ends_as_stated(kind, name, attacker):
    """No forged verdict passes, and what takes too much ends for the reason that the table states."""
    assert ended(attacker)["runs"][kind][name] == RUNS[kind][name][1]
