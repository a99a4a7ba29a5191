"""``stepladder config``: every setting explained on the command line, and a file to start from."""

from typing import Annotated

import typer

from stepladder.cli.errors import DebugOption, errors_explained
from stepladder.errors import ConfigError
from stepladder.terminal import echo


def config(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="A setting such as search.simulations, or a table such as prm.")
    ] = None,
    search: Annotated[str | None, typer.Option(metavar="WORD", help="Settings whose name, values or meaning hold a word.")] = None,
    template: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="Print a commented file of settings for `gsm8k`, `math` or `own` (a task of your own)."),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Explain the settings of a run.

    - `stepladder config` lists all tables; docs/config.md has them on one page
    - `stepladder config prm.target` or `stepladder config --search temperature`
    - `stepladder config --template own > run.toml`
    """
    with errors_explained(debug):
        from stepladder.loops.config.reference import Entry, all_tables, entries_of, find_entries
        from stepladder.loops.config.template import template as written

        if sum(given is not None for given in (key, search, template)) > 1:
            raise ConfigError("config: KEY, --search and --template each ask for something else: got more than one -- give one")

        def explained(entry: Entry) -> str:
            default = {None: "required", "-": "left out by default (None)"}.get(entry.default, f"default {entry.default}")
            kind = "" if entry.type is None else f" (with type {entry.type})"
            return f"{entry.key}{kind}\n    {entry.kind}; {default}\n    {entry.meaning}"

        if template is not None:
            echo(written(template).rstrip())
        elif key is not None:
            echo("\n".join(map(explained, entries_of(key))))
        elif search is not None:
            found = find_entries(search)
            if not found:
                raise ConfigError(f"--search: no setting holds {search!r} -- try another word; stepladder config lists all tables")
            echo("\n".join(map(explained, found)))
        else:
            tables = [table for table in all_tables() if table.key]
            echo("\n".join(dict.fromkeys(f"{table.key}: {table.meaning}" for table in tables)))
