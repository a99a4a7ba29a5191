"""The findings of ``stepladder doctor``, their exit codes, and the same checks in ``evolve`` and ``solve``."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.commands import doctor
from stepladder.commands.doctor import Finding, Level, Report
from stepladder.errors import ConfigError
from tests.models import save_tiny_policy

# Importing torch in a process of its own takes seconds; one test does.
_NO_GPU = "[]"


@pytest.fixture
def quick(monkeypatch):
    """Make the imports in other processes answer at once."""
    monkeypatch.setattr(doctor, "_probed", lambda code: _NO_GPU)


@pytest.fixture
def config_file(tmp_path) -> Path:
    """A configuration with a model of 64 positions and two problems in each split."""
    model = save_tiny_policy(tmp_path / "model", max_positions=64)
    for name in ("train", "test"):
        rows = [{"id": f"{name}{number}", "question": f"{'ab'[name == 'test']}{number}+1", "answer": "2"} for number in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "run.toml"
    path.write_text(
        f'[problems]\ntrain = "train.jsonl"\ntest = "test.jsonl"\nheld_out_size = 1\n[policy]\nmodel = "{model}"\ndevice = "cpu"\n'
        "[search]\nmax_depth = 4\nmax_step_tokens = 8\n"
    )
    return path


def test_only_faults_fail():
    """A warning or a note leaves exit code 0."""
    mild = [Finding(name=level, level=level, text="") for level in (Level.OK, Level.NOTE, Level.WARNING)]
    assert Report(mild).works
    assert Report(mild).as_text().splitlines()[-1] == "everything that is needed works"
    broken = Report([*mild, Finding(name="torch", level=Level.FAULT, text="gone")])
    assert not broken.works
    assert broken.as_text().splitlines()[-2:] == ["fault    torch: gone", "1 of what is needed does not work"]


def test_packages_are_held_to_their_bounds():
    """Missing and too old packages are faults, with what to install."""
    assert doctor._package("numpy", Requirement("numpy>=1")).text == version("numpy")
    old = doctor._package("numpy", Requirement("numpy>=999"))
    assert (old.level, old.text) == (Level.FAULT, f"must be >=999: got {version('numpy')} -- pip install 'numpy>=999'")
    missing = doctor._package("no-such-package", Requirement("no-such-package>=1"))
    assert (missing.level, missing.text) == (Level.FAULT, "is not installed -- pip install 'no-such-package>=1'")


def test_an_engine_that_does_not_import_is_a_fault(monkeypatch):
    """The last line of the other process's error is told; the code runs in a real process here."""
    monkeypatch.setattr(doctor, "_PROBE", "raise ImportError('libcuda.so is missing')")
    (finding,) = doctor._engines()
    assert finding.level is Level.FAULT
    assert "ImportError: libcuda.so is missing" in finding.text


def test_gpus_are_listed(monkeypatch):
    """Name, free and all memory of each."""
    monkeypatch.setattr(doctor, "_probed", lambda code: json.dumps([["H100", 70 << 30, 80 << 30]]))
    assert [finding.text for finding in doctor._engines()] == ["starts", "H100, 70.0 GiB free of 80.0 GiB"]


def test_threads_and_disk(monkeypatch, tmp_path):
    """The cores are told with the threads that models use; a nearly full disk is a warning."""
    monkeypatch.setattr(doctor, "num_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert doctor._threads().text == "8, OMP_NUM_THREADS=4"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert doctor._threads().text == "8; small models use one per process"
    assert doctor._disk(tmp_path / "not" / "there").level is Level.OK
    monkeypatch.setattr(doctor, "free_disk", lambda place: 5 << 20)
    assert doctor._disk(tmp_path).text.startswith("5 MiB free")


def test_a_machine_without_a_sandbox_is_told_why(monkeypatch):
    """It is a warning, since only checks and tools that run code need it."""

    def refuse():
        raise ConfigError("sandbox: code must be sandboxed")

    monkeypatch.setattr(doctor, "check_sandbox", refuse)
    monkeypatch.setattr(doctor, "landlock_version", lambda: -1)
    finding = doctor._sandbox()
    assert (finding.level, finding.text) == (Level.WARNING, "Landlock is missing; code must be sandboxed")


def test_a_run_is_checked(quick, config_file):
    """Prompts, memory and disk have lines of their own; JSON has the same findings."""
    done = CliRunner().invoke(app, ["doctor", str(config_file), "--json"])
    assert done.exit_code == 0, done.output
    plain = json.loads(done.stdout)
    assert plain["works"]
    texts = [(finding["name"], finding["text"]) for finding in plain["findings"]]
    # Four characters and a line break, a token each; four steps of eight tokens.
    assert ("context", "train: the longest prompt has 5 tokens, a solution at most 32, of 64 that the policy takes") in texts
    assert [name for name, _ in texts].count("context") == 3
    assert {"settings", "chat template", "memory", "disk"} <= {name for name, _ in texts}
    assert not any(text.startswith(f"{name}: ") for name, text in texts)


def test_a_run_that_cannot_work_is_a_fault(quick, config_file):
    """A context without room for any prompt, a model that is not there: exit code 1, with the sentence of ``evolve``."""
    done = CliRunner().invoke(app, ["doctor", str(config_file), "--set", "policy.model=./no-such-model"])
    assert done.exit_code == 1
    assert "fault    run: policy.model: must be a model directory or a hub id" in done.stdout
    save_tiny_policy(config_file.parent / "short", max_positions=5)
    done = CliRunner().invoke(app, ["doctor", str(config_file), "--set", f"policy.model={config_file.parent / 'short'}"])
    assert done.exit_code == 1
    assert "no prompt does, the longest has 5" in done.stdout


def test_settings_need_a_run():
    """``--set`` without a configuration is one sentence."""
    done = CliRunner().invoke(app, ["doctor", "--set", "run.rounds=1"])
    assert done.exit_code == 2
    assert "doctor: --set changes the settings of a run" in done.output
