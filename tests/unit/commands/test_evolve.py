"""``evolve`` from Python: what it takes, and the lock that it holds."""

from pathlib import Path

import pytest

from stepladder.commands import evolve as command
from stepladder.commands.evolve import evolve
from stepladder.errors import CheckpointError, ConfigError
from stepladder.locks import locked
from stepladder.loops.assembly.problem_sets import read_sets
from stepladder.loops.config.load import load_config
from stepladder.loops.runs.directory import LOCK_FILE, RunDir
from tests.runs import write_tiny_config


@pytest.fixture
def config(tmp_path):
    """Write a configuration with its model and problems."""
    return write_tiny_config(tmp_path / "files")


@pytest.fixture
def rounds(monkeypatch):
    """Replace the rounds by a note of what they would work on, and of whether the run is locked."""
    noted = []

    def note(config, root, *, sets, display, on_round, stop_after, check):
        noted.append((config, root, (root / LOCK_FILE).exists()))
        return RunDir(root=root)

    monkeypatch.setattr(command, "run_rounds", note)
    return noted


def test_a_file_is_a_configuration_and_names_the_run(config, rounds, tmp_path, monkeypatch):
    """The path of a configuration is enough; overrides go over it, and the run is locked meanwhile."""
    monkeypatch.chdir(tmp_path)
    run = evolve(config, overrides=["run.rounds=5"])
    assert run.root == Path("runs/tiny")
    assert rounds == [(load_config(config, ["run.rounds=5"]), Path("runs/tiny"), True)]
    assert not (run.root / LOCK_FILE).exists()


def test_a_configuration_needs_a_place(config, rounds, tmp_path):
    """A configuration without a file has no name for a run."""
    settings = load_config(config, [])
    with pytest.raises(ConfigError, match="needs a run directory"):
        evolve(settings)
    assert evolve(settings, str(tmp_path / "run"), overrides=["run.seed=3"]).root == tmp_path / "run"
    assert rounds[0][0].run.seed == 3


def test_problems_are_read_once(config, tmp_path, monkeypatch):
    """The checks before the lock and the rounds share one reading, which takes seconds for many problems."""
    reads = []

    def read(section, *, seed):
        reads.append(section.train)
        return read_sets(section, seed=seed)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "read_sets", read)
    monkeypatch.setattr(command, "open_run", stop)
    with pytest.raises(KeyboardInterrupt):
        evolve(config, tmp_path / "run")
    assert len(reads) == 1


def test_a_run_that_another_process_works_on_is_refused(config, rounds, tmp_path):
    """The lock of the command line holds here, too."""
    root = tmp_path / "run"
    with locked(root / LOCK_FILE, place=root), pytest.raises(CheckpointError, match="only one process may write here"):
        evolve(config, root)
    assert rounds == []
