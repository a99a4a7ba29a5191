"""Wrong words on the command line: one sentence and exit code 2, for every command."""

from collections.abc import Iterator

import pytest
import typer.main
from typer.testing import CliRunner

from stepladder.cli.app import app

MISTAKES = {
    "an unknown command": (["nope"], "error: stepladder: no such command 'nope' -- stepladder --help lists what it takes"),
    "a command that is nearly right": (["slove"], "did you mean 'solve'"),
    "an unknown command of a group": (["prm", "nope"], "error: stepladder prm: no such command 'nope'"),
    "an unknown option": (["prm", "specs", "--nope"], "error: stepladder prm specs: no such option: --nope"),
    "an unknown option before the command": (["--nope", "solve"], "error: stepladder: no such option: --nope"),
    "an option without its value": (["eval", "--out"], "option '--out' requires an argument"),
    "no number": (["evolve", "--seed", "x"], "error: stepladder evolve: invalid value for '--seed'"),
    "a number out of range": (["solve", "q", "--tokens", "0"], "error: stepladder solve: invalid value for '--tokens'"),
    "too many arguments": (["solve", "a", "b"], "error: stepladder solve: got unexpected extra argument"),
    "a switch with a value": (["evolve", "--dry-run=yes"], "error: stepladder evolve: option '--dry-run' does not take a value"),
    "control characters": (["\x1b]52;c;x\x07\n\n"], "no such command"),
}


def required() -> Iterator[tuple[list[str], str, str]]:
    """Yield every thing that a command cannot do without: the words with all but it, its name, and what it means."""
    group = typer.main.get_command(app)
    commands = {(name,): command for name, command in group.commands.items()}  # type: ignore[attr-defined]
    commands |= {(*words, name): below for words, command in commands.items() for name, below in getattr(command, "commands", {}).items()}
    for words, command in commands.items():
        needed = {each: [each.opts[0]] if each.param_type_name == "option" else [] for each in command.params if each.required}
        for missing, option in needed.items():
            given = [word for each, option_ in needed.items() if each is not missing for word in (*option_, "x")]
            yield [*words, *given], option[0] if option else missing.metavar or missing.name, missing.help


def complaint(words: list[str]) -> str:
    """Return what a command says about its words."""
    done = CliRunner().invoke(app, words, prog_name="anything")
    assert done.exit_code == 2 and done.stdout == "", done.output
    assert done.stderr.count("\n") == 1 and "\x1b" not in done.stderr, done.stderr
    return done.stderr


@pytest.mark.parametrize(("words", "name", "meaning"), [*required()])
def test_what_is_missing_is_one_sentence(words: list[str], name: str, meaning: str) -> None:
    """It names the command, what is missing, what that means, and the help of this command."""
    said = complaint(words)
    command = " ".join(words[: 2 if words[0] == "prm" else 1])
    assert said.startswith(f"error: stepladder {command}: missing ")
    assert name.strip("{}[].").casefold() in said.casefold() and f"({meaning[:8]}" in said
    assert said.endswith(f" -- add it; stepladder {command} --help explains it\n")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_words_are_one_sentence(mistake: str) -> None:
    """Unknown, incomplete, out of range, too many."""
    words, said = MISTAKES[mistake]
    assert said.casefold() in complaint(words).casefold()


@pytest.mark.parametrize("words", [[], ["prm"]])
def test_nothing_at_all_gets_the_help(words: list[str]) -> None:
    """A group of commands without one shows its help, and nothing else."""
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "Usage" in done.output and "error: " not in done.output
