"""Wrong words on the command line as one sentence: missing, unknown and impossible options, arguments and commands."""

import re
import sys
from collections.abc import Sequence
from typing import Any, cast

import typer
from typer.core import TyperGroup

from stepladder.terminal import echo, one_line

# typer does not export the base of all its complaints about words.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__bases__[0])


class Commands(TyperGroup):
    """All commands. It shows what typer complains about as every other error: one line, exit code 2."""

    def main(self, args: Sequence[str] | None = None, *more: Any, standalone_mode: bool = True, **options: Any) -> Any:
        """Run a command, and end the process with its exit code.

        Args:
            args: The words of the command line. Default: those of the process.
            more: See typer.
            standalone_mode: False returns instead of ending the process, and lets errors pass.
            options: See typer.
        """
        if not standalone_mode:
            return super().main(args, *more, standalone_mode=False, **options)
        try:
            code = super().main(args, *more, standalone_mode=False, **options)
        except _UsageError as error:
            # A command that was given nothing at all has shown its help, and has no more to say.
            if error.format_message().strip():
                echo(f"error: {usage_sentence(error, self._asked(sys.argv[1:] if args is None else args))}", err=True)
            code = error.exit_code
        sys.exit(code or 0)

    def _asked(self, words: Sequence[str]) -> str:
        """Return the name of the command that the words ask for, as far as they name one."""
        names, commands = ["stepladder"], self.commands
        for word in words:
            if word not in commands:
                break
            names.append(word)
            commands = getattr(commands[word], "commands", {})
        return " ".join(names)


def usage_sentence(error: typer.BadParameter, command: str) -> str:
    """Return typer's complaint on one line, with the command as its place, and the remedy."""
    # Some versions of typer end it with a dot, and two sentences are one here.
    complaint = one_line(error.format_message()).rstrip(".").replace(". ", ": ")
    complaint = f"{command}: {complaint[:1].lower()}{complaint[1:]}"
    if type(error).__name__ != "MissingParameter":
        return f"{complaint} -- {command} --help lists what it takes"
    meaning = re.split(r"[.:;,]", getattr(error.param, "help", None) or "")[0]
    return f"{complaint}{meaning and f' ({meaning})'} -- add it; {command} --help explains it"
