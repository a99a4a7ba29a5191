"""The command line as a whole: versions, short help, completion, and configurations that come with the package."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

import stepladder
from stepladder.cli.app import app
from stepladder.commands.versions import EXTRAS, PARTS, versions
from stepladder.errors import ConfigError
from stepladder.loops.config.load import load_config, shipped


def test_the_version_names_the_parts(monkeypatch):
    """Every part has a line; a missing one says how to get it."""
    lines = CliRunner().invoke(app, ["--version"]).stdout.splitlines()
    assert lines == versions().splitlines()
    assert lines[0] == f"stepladder {stepladder.__version__}"
    assert [line.split()[0] for line in lines[3:]] == [*PARTS, *(name for names in EXTRAS.values() for name in names)]
    monkeypatch.setattr("stepladder.commands.versions.EXTRAS", {"serve": ("no-such-package",)})
    assert versions().splitlines()[-1] == "no-such-package not installed -- pip install 'stepladder[serve]'"


@pytest.mark.parametrize("words", [[], ["solve"], ["prm"], ["prm", "score"], ["serve"]])
def test_help_has_a_short_form(words):
    """``-h`` is ``--help`` for every command."""
    short, long = (CliRunner().invoke(app, [*words, flag]) for flag in ("-h", "--help"))
    assert short.exit_code == long.exit_code == 0
    assert short.stdout == long.stdout
    assert "Usage" in short.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete(shell):
    """A shell gets its script, and from it the commands that begin with what was typed."""
    script = CliRunner().invoke(app, [], env={"_STEPLADDER_COMPLETE": f"source_{shell}"}, prog_name="stepladder")
    assert "_STEPLADDER_COMPLETE=complete_" in script.stdout


def test_commands_are_completed():
    """The words of bash are completed."""
    typed = {"_STEPLADDER_COMPLETE": "complete_bash", "COMP_WORDS": "stepladder s", "COMP_CWORD": "1"}
    done = CliRunner().invoke(app, [], env=typed, prog_name="stepladder")
    assert {"serve", "solve"} <= set(done.stdout.split())


def test_shipped_configurations_are_found_anywhere(tmp_path, monkeypatch):
    """A path below ``configs/`` names the file that comes with the package, unless there is one here."""
    monkeypatch.chdir(tmp_path)
    found = shipped(Path("configs/gsm8k.toml"))
    assert found.is_file() and found.is_absolute()
    assert load_config(Path("configs/gsm8k.toml"), ["policy.model=m"]).policy.model == "m"
    config = load_config(found, ["policy.model=m", "training.accelerate_config=configs/accelerate/fsdp.yaml"])
    assert Path(str(config.training.accelerate_config)).is_file()
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config(Path("configs/none.toml"), [])
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "gsm8k.toml").write_text("[policy]\n")
    assert shipped(Path("configs/gsm8k.toml")) == Path("configs/gsm8k.toml")
