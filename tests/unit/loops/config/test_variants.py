"""Settings that are one of several variants: what each takes, what is refused, and how a wrong key is answered."""

import itertools
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from stepladder.data.labels.graded import GradedSolutions
from stepladder.data.labels.pair_rules import AgentQPairs, EvidencePairs, RStarPairs
from stepladder.errors import ConfigError
from stepladder.loops.config.load import load_config, with_overrides
from stepladder.loops.config.names import all_settings, variants
from stepladder.loops.config.run import Config
from stepladder.policy.preference_settings import SimPO

REQUIRED = ["problems.train=a.jsonl", "problems.test=b.jsonl", "policy.model=some/model"]
ROOT = Path(__file__).parents[4]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = [
    pytest.param(text, id=f"{page.name}-{number}")
    for page in PAGES
    for number, text in enumerate(re.findall(r"^```toml\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE))
]
COMMANDS = [
    pytest.param(line, id=f"{page.name}-{number}")
    for page in PAGES
    for block in re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for number, line in enumerate(block.replace("\\\n", " ").splitlines())
    if line.startswith("stepladder ") and "--set " in line
]
# Where a variant chosen by itself contradicts another setting: what has to be set beside it.
BESIDE = {
    "prm.target=step-pairs": ["prm.loss=pairwise"],
    "prm.loss=implicit-ce": ["prm.target=outcome"],
    "prm.loss=implicit-dpo": ["prm.target=outcome"],
    "prm.loss=verdicts": ["prm.spec=judge"],
}
VARIANTS = [(key, name) for key, kinds in variants().items() for name in kinds]
# Every setting of every variant with every type of that variant, but the type itself.
PAIRS = [
    (setting.key, setting.table, name, not setting.types or name in setting.types)
    for setting in all_settings()
    if setting.table in variants() and setting.name != "type"
    for name in variants()[setting.table]
]


def configured(*overrides: str) -> Config:
    """The configuration with what it requires."""
    return load_config(None, [*REQUIRED, *overrides])


def at(config: Config, key: str) -> Any:
    """The setting of a key."""
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


def refused(*overrides: str) -> str:
    """The message with which settings are refused: one line of less than 400 characters."""
    with pytest.raises(ConfigError) as caught:
        configured(*overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize(("key", "name"), VARIANTS)
def test_every_variant_can_be_chosen(key: str, name: str) -> None:
    """By its type alone, by ``.type`` or as a table: all three are the same, and a dump of it is read again as it is."""
    beside = BESIDE.get(f"{key}={name}", [])
    config = configured(*beside, f"{key}={name}")
    assert at(config, key).type == name
    assert configured(*beside, f"{key}.type={name}") == configured(*beside, f'{key}={{ type = "{name}" }}') == config
    assert Config.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(("key", "table", "name", "taken"), PAIRS)
def test_a_setting_goes_with_its_variants_alone(key: str, table: str, name: str, taken: bool) -> None:
    """A setting that its variant takes is accepted at its default, or as a text; any other is refused with a variant that takes it."""
    owner = next(kind for given, kind in variants()[table].items() if key.rpartition(".")[2] in kind.__dataclass_fields__)
    default = getattr(owner(), key.rpartition(".")[2])
    # There is no text for None.
    default = "x" if default is None else default
    overrides = [*BESIDE.get(f"{table}={name}", []), f"{table}={name}", f"{key}={json.dumps(default)}"]
    if taken:
        assert at(configured(*overrides), key) == default
    else:
        message = refused(*overrides)
        assert f"unknown setting {key!r} -- {table}.type {name!r} does not take it" in message
        assert f"pass --set {table}.type=" in message


def test_the_order_of_overrides_does_not_matter() -> None:
    """A setting may come before the type that takes it."""
    given = ["labels.pairs.critic_weight=0.9", "labels.pairs.type=agent-q"]
    assert configured(*given).labels.pairs == configured(*reversed(given)).labels.pairs == AgentQPairs(critic_weight=0.9)


def test_another_type_starts_afresh(tmp_path: Path) -> None:
    """The settings of one type are not those of another; naming the same type again keeps them."""
    path = tmp_path / "c.toml"
    path.write_text('labels.pairs = { type = "agent-q", critic_weight = 0.9, min_margin = 0.3 }\n')
    base = load_config(path, REQUIRED)
    assert with_overrides(base, ["labels.pairs=rstar-math"]).labels.pairs == RStarPairs()
    assert with_overrides(base, ["labels.pairs.type=rstar-math"]).labels.pairs == RStarPairs()
    assert with_overrides(base, ["labels.pairs=agent-q"]) == base
    assert with_overrides(base, ["labels.pairs.min_margin=0.1"]).labels.pairs == AgentQPairs(critic_weight=0.9, min_margin=0.1)


def test_a_file_changes_the_type_of_what_is_below_it(tmp_path: Path) -> None:
    """A file over other settings: the short form, a table of another type, and a table without a type."""
    base = configured("labels.pairs=agent-q", "labels.pairs.critic_weight=0.9").model_dump(mode="json")
    path = tmp_path / "c.toml"
    for text, expected in (
        ('[labels]\npairs = "evidence"\n', EvidencePairs()),
        ('[labels.pairs]\ntype = "rstar-math"\nmin_margin = 0.1\n', RStarPairs(min_margin=0.1)),
        ("[labels.pairs]\nmin_margin = 0.1\n", AgentQPairs(critic_weight=0.9, min_margin=0.1)),
    ):
        path.write_text(text)
        assert load_config(path, [], base=base).labels.pairs == expected


def test_a_short_name_can_be_refined() -> None:
    """A type that the file names alone takes settings from the command line."""
    config = configured(
        "labels.graded=solutions", "labels.graded.per_problem=3", "preference.loss=simpo", "preference.loss.target_margin=0.5"
    )
    assert config.labels.graded == GradedSolutions(per_problem=3)
    assert config.preference.loss == SimPO(target_margin=0.5)


def test_the_hash_sees_the_settings_of_a_variant_and_not_how_they_are_written() -> None:
    """The short form and the table with its defaults compute the same."""
    plain = configured("labels.pairs=agent-q").hash()
    assert configured('labels.pairs={ type = "agent-q", critic_weight = 0.5 }').hash() == plain
    assert configured("labels.pairs=agent-q", "labels.pairs.critic_weight=0.6").hash() != plain
    assert configured("labels.pairs=value-margin").hash() != plain


@pytest.mark.parametrize(
    ("override", "right"),
    [
        ("search.num_children=8", "did you mean 'search.options.num_children'?"),
        ("num_children=8", "did you mean 'search.options.num_children' or 'evaluate.options.num_children'?"),
        ("evaluate.wave=2", "did you mean 'evaluate.options.wave'?"),
        ("labels.critic_weight=0.9", "did you mean 'labels.pairs.critic_weight' (with labels.pairs.type 'agent-q')?"),
        ("labels.pair.critic_weight=0.9", "unknown setting 'labels.pair' -- did you mean 'labels.pairs'?"),
        ("preference.beta=0.1", "did you mean 'preference.loss.beta'?"),
        ("preference.label_smoothing=visits", "did you mean 'preference.loss.label_smoothing'?"),
        ("preference.loss.label_smothing=0.1", "did you mean 'preference.loss.label_smoothing'?"),
        ("prm.bins=8", "did you mean 'prm.loss.bins' (with prm.loss.type 'hl-gauss' or 'two-hot')?"),
        ("prm.head=two-class", "did you mean 'prm.loss.head'?"),
        ("search.scores.penalty=1", "did you mean 'search.scores.ensemble.penalty' (with search.scores.ensemble.type 'mean-variance')?"),
        ("evaluate.max_depth=3", "did you mean 'search.max_depth'?"),
        ("simulations=3", "did you mean 'search.simulations' or 'evaluate.simulations'?"),
        ("labels.data=windows", "did you mean 'window'?"),
        ("foo=1", "known here: evaluate, format, gate, gradient, labels, policy,"),
    ],
)
def test_a_wrong_key_names_the_right_one(override: str, right: str) -> None:
    """Misspelt, moved, or of another section or method: the remedy is the key to use."""
    assert right in refused(override)


@pytest.mark.parametrize(
    "override",
    ["prm.start=fixed", "sft.held_out=0.5", "format.step_end=''", "preference.reference=base", "labels.pairs=3", "search.options.wave=[1]"],
)
def test_a_message_does_not_repeat_the_section(override: str) -> None:
    """One wrong setting is one short sentence, whatever else the section holds."""
    message = refused(override, "preference.loss=simpo")
    assert "{" not in message
    assert override.split("=")[0].rsplit(".", 1)[0] in message


def test_what_a_plain_value_is_not() -> None:
    """A setting that is a number or a word says both."""
    message = refused("preference.loss.label_smoothing=0.7")
    assert "'preference.loss.label_smoothing': input should be less than 0.5 or input should be 'visits', 'agreement'" in message
    assert message.endswith("got 0.7")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_file_is_read(path: Path) -> None:
    """It loads as it is, and says nothing that it could leave out by mistake: every key is one of the configuration's."""
    config = load_config(path, [])
    known = {setting.key for setting in all_settings()}
    for section, given in tomllib.loads(path.read_text(encoding="utf-8")).items():
        assert {f"{section}.{name}" for name in given} <= known
        assert config.model_dump()[section]


@pytest.mark.parametrize("text", SNIPPETS)
def test_every_snippet_of_the_documentation_is_read(tmp_path: Path, text: str) -> None:
    """Settings that a page shows exist and go together."""
    path = tmp_path / "snippet.toml"
    path.write_text(text, encoding="utf-8")
    load_config(path, REQUIRED)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_override_of_the_documentation_is_read(line: str) -> None:
    """What a page gives to ``--set`` exists and goes together."""
    words = shlex.split(line, comments=True)
    overrides = [after for before, after in itertools.pairwise(words) if before == "--set"]
    assert overrides
    configured(*overrides)
