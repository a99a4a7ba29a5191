"""How to run it again: the resolved settings as TOML that ``stepladder evolve`` reads, versions, seed and command."""

from html import escape

from stepladder.files import reading
from stepladder.loops.runs.directory import RunDir
from stepladder.report.markup import Markup, lead, section, table
from stepladder.toml_text import as_toml


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
        Markup(f'<pre tabindex="0"><code>{escape(command)}</code></pre>'),
        table(("what", "value"), rows, style="facts", text_columns=[0, 1]),
        Markup(f'<details><summary>settings.toml</summary><pre tabindex="0"><code>{escape(as_toml(settings))}</code></pre></details>'),
    )
