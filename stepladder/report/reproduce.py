"""How to run it again: the resolved settings as TOML that ``stepladder evolve`` reads, versions, seed and command."""

import json
from html import escape
from typing import Any

from stepladder.files import reading
from stepladder.loops.runs.directory import RunDir
from stepladder.report.markup import Markup, lead, section, table


def as_toml(settings: dict[str, Any]) -> str:
    """Return nested settings as TOML; None is left out, which is what it means in a configuration file.

    Args:
        settings: Tables, strings, numbers, booleans, lists of those, and None.
    """
    lines = [f"{_key(name)} = {_value(value)}" for name, value in settings.items() if value is not None and not isinstance(value, dict)]
    return "\n".join(lines + _tables(settings, prefix="")).lstrip("\n") + "\n"


def _tables(settings: dict[str, Any], *, prefix: str) -> list[str]:
    lines: list[str] = []
    for name, inner in settings.items():
        if isinstance(inner, dict):
            path = f"{prefix}{_key(name)}"
            lines += ["", f"[{path}]"]
            lines += [f"{_key(key)} = {_value(value)}" for key, value in inner.items() if value is not None and not isinstance(value, dict)]
            lines += _tables(inner, prefix=f"{path}.")
    return lines


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("_", "").replace("-", "").isalnum() else json.dumps(name)


def _value(value: Any) -> str:
    # TOML's strings, numbers, booleans and arrays of them are written like JSON's; DEL is the one character that only JSON allows bare.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def reproduce(run: RunDir) -> Markup:
    """Return the section on settings, versions and the command, from a run's run.json."""
    facts, settings = run.facts(), run.config().model_dump(mode="json")
    with reading(run.root / "run.json", what="the description of a run", remedy="restore it from a copy, or start another run"):
        versions = {"stepladder": facts["stepladder"], "python": facts["python"], **facts["packages"]}
        rows = [("seed", str(settings["run"]["seed"])), ("configuration hash", str(facts["config_hash"]))]
        rows += [("git revision", str(facts["git_revision"]))] if facts["git_revision"] else []
        rows += [(str(name), str(version)) for name, version in versions.items()]
    command = "stepladder evolve settings.toml --run-dir runs/again"
    return section(
        "reproduce",
        "Run it again",
        lead(
            "Save the settings below as settings.toml; the files they name must still be there. Every seed follows from the run's "
            "seed, so with the same versions on the same kind of machine the new run should give the same data."
        ),
        Markup(f"<pre><code>{escape(command)}</code></pre>"),
        table(("what", "value"), rows, style="facts", text_columns=[0, 1]),
        Markup(f"<details><summary>settings.toml</summary><pre><code>{escape(as_toml(settings))}</code></pre></details>"),
    )
