"""``stepladder config``: every setting has a page, can be found, and can be written to a file that loads."""

import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.loops.config.load import load_config
from stepladder.loops.config.names import all_settings
from stepladder.loops.config.reference import all_entries, find_entries
from stepladder.loops.config.template import TASKS, template
from stepladder.toml_text import as_toml, toml_value

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> str:
    """Return what the command prints."""
    done = CliRunner().invoke(app, ["config", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_every_setting_has_a_page_and_a_meaning() -> None:
    """No setting is without a row in docs/config.md, and no row is without a meaning and values."""
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    for setting in all_settings():
        if setting.holds != "settings" and not (setting.types == () and setting.name == "type"):
            assert f"| `{setting.key}` |" in page, f"{setting.key} has no row"
    for entry in all_entries():
        assert len(entry.meaning) > 5, f"{entry.key} has no docstring"
        assert entry.kind, f"{entry.key} has no values"


def test_settings_are_found_by_name_table_and_word() -> None:
    """A key, a table with what is inside it, a word of a meaning, and the list of tables."""
    assert run("search.simulations").startswith("search.simulations\n    whole number >= 1; default 32\n    ")
    assert "problems.grading.percent" in run("problems")
    assert run("problems.subset").startswith("problems.subset\n    text; left out by default (None)\n    Configuration name")
    assert "``" not in run("problems"), "names are in single backquotes"
    assert run("labels.pairs.critic_weight").startswith("labels.pairs.critic_weight (with type 'agent-q')")
    assert "evaluate.temperature" in run("--search", "Temperature")
    assert "problems: Sources of problems, and grading of answers." in run()
    assert {entry.key for entry in find_entries("policy.model")} == {"policy.model", "start_model"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search.simulation"], "did you mean 'search.simulations'"),
        (["--search", "zebra"], "no setting holds 'zebra'"),
        (["--template", "maths"], "did you mean 'math'"),
        (["prm", "--search", "x"], "got more than one"),
    ],
)
def test_what_is_not_there_is_one_sentence(arguments: list[str], words: str) -> None:
    """Unknown keys, words and tasks, and two questions at once."""
    done = CliRunner().invoke(app, ["config", *arguments])
    assert done.exit_code == 2
    assert words in done.output


@pytest.mark.parametrize("key", ["nope.key", "zzz", "x" * 300])
def test_a_name_like_no_other_gets_the_sections(key: str) -> None:
    """The remedy lists what stands at the top of a configuration, each once, and none of what is inside."""
    done = CliRunner().invoke(app, ["config", key])
    listed = done.stderr.partition("known here: ")[2].removesuffix(", or use --search\n").split(", ")
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert listed == sorted({setting.key for setting in all_settings() if not setting.table})


@pytest.mark.parametrize("task", TASKS)
def test_templates_load_as_they_are(task: str, tmp_path: Path) -> None:
    """A template says what the task needs and leaves every default as it is; each default in it is TOML."""
    path = tmp_path / "run.toml"
    path.write_text(template(task))
    bare = [f"{key}={toml_value(value)}" for key, value in TASKS[task].items()]
    assert load_config(path, []) == load_config(None, bare)
    for line in re.findall(r"^# (\w+ = .*)$", template(task), flags=re.MULTILINE):
        if not line.endswith("= ...") and "type = '" not in line:
            tomllib.loads(line)


def test_a_dry_run_can_be_fed_back(tmp_path: Path) -> None:
    """What it prints loads to the same settings: variants, rounds, options and texts with quotes and line ends included."""
    given = load_config(
        None,
        [
            "problems.train=a.jsonl",
            "problems.test=b.jsonl",
            "policy.model=m",
            "labels.pairs={type='agent-q', critic_weight=0.3}",
            "search.options={num_children=8, wave=2}",
            'format.prompt_template="Say \\"{question}\\"\\nnow"',
            "rounds=[{round=1, search={simulations=4}}]",
        ],
    )
    path = tmp_path / "again.toml"
    path.write_text(as_toml(given.model_dump(mode="json")))
    assert load_config(path, []) == given
    done = CliRunner().invoke(app, ["evolve", "--dry-run", "--run-dir", str(tmp_path / "run"), "--set", "search.simulations=7"])
    assert done.exit_code == 0, done.output
    (tmp_path / "printed.toml").write_text(done.output)
    assert load_config(tmp_path / "printed.toml", []).search.simulations == 7
