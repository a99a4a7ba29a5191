"""Settings that another setting switches off are named, each with its reason."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stepladder import embedded
from stepladder.cli.app import app
from stepladder.commands.recipes import settings_on_task
from stepladder.loops.config import unused
from stepladder.loops.config.load import load_config
from stepladder.loops.config.run import Config, flatten_keys
from stepladder.loops.config.unused import unused_settings
from stepladder.recipes import recipes
from tests.runs import write_tiny_config

CASES: dict[tuple[str, ...], dict[str, str]] = {
    ("prm.enabled=false", "prm.train.epochs=3", "search.scores.bound=clip", "prm.target=outcome"): {
        "prm.train.epochs": "prm.enabled",
        "search.scores.bound.type": "prm.enabled",
        "prm.target.type": "only rows of values for export",
    },
    ("prm.start=fixed", "prm.model=m", "prm.loss=mse", "prm.train.learning_rate=1e-3", "prm.supervise=every-token", "prm.target=outcome"): {
        "prm.loss.type": "prm.start is 'fixed'",
        "prm.train.learning_rate": "prm.start is 'fixed'",
        "prm.supervise": "prm.start is 'fixed'",
        "prm.target.type": "only rows of values for export",
    },
    ("prm.spec=judge", "prm.reference=m"): {"prm.spec": "without prm.model", "prm.reference": "without prm.model"},
    ("prm.bootstrap=false", "search.scores.ensemble=min"): {"prm.bootstrap": "prm.ensemble is 1", "search.scores.ensemble.type": "is 1"},
    ("prm.model=m", "prm.loss=hl-gauss", "prm.loss.bins=8"): {"prm.loss.bins": "a head already"},
    ("prm.body=joint", "prm.joint_weight=0.5", "prm.train.epochs=1", "prm.supervise=every-token"): {
        "prm.train.epochs": "the SFT stage trains the head",
        "prm.supervise": "the SFT stage trains the head",
    },
    ("prm.body=policy", "prm.joint_weight=0.5"): {"prm.joint_weight": "prm.body is not 'joint'"},
    ("search.scores.entropy_penalty=0.5",): {"search.scores.entropy_penalty": "no head of bins"},
    ("run.ray.retries=3",): {"run.ray.retries": "run.cluster is 'local'"},
    ("labels.rollouts=false",): {"labels.rollouts": "no prm.rollouts"},
    ("preference.enabled=false", "preference.batch_size=2", "labels.pairs=agent-q"): {
        "preference.batch_size": "preference.enabled",
        "labels.pairs.type": "only pairs for export",
    },
    ("preference.loss=kto", "labels.pairs=agent-q"): {"labels.pairs.type": "not trained on pairs"},
    ("search.refinement.depth=2", "labels.pairs=agent-q"): {"labels.pairs.type": "search.refinement"},
    ("labels.graded=solutions",): {"labels.graded.type": "takes pairs"},
    ("gradient.epochs=2", "labels.advantages=treerl"): {
        "gradient.epochs": "gradient.enabled",
        "labels.advantages.type": "gradient.enabled",
    },
    ("gradient.enabled=true", "gradient.loss=dapo", "gradient.reference=base", "labels.advantages=treerl"): {
        "gradient.reference": "kl_weight is 0"
    },
    ("gradient.enabled=true", "gradient.max_staleness=1"): {"gradient.max_staleness": "without run.update_every"},
    ("labels.revision_of=solution",): {"labels.revision_of": "labels.revisions is 0"},
    ("warmup.train.epochs=1",): {"warmup.train.epochs": "warmup.solutions"},
    ("problems.held_out=h", "problems.held_out_size=9"): {"problems.held_out_size": "problems.held_out"},
    ("problems.rule=number", "problems.grading.units=optional"): {"problems.grading.units": "not 'math'"},
    ("problems.verifier=a.b:c", "problems.unreadable=drop"): {"problems.unreadable": "problems.verifier"},
    ("format.chat=false", "format.date=2026-01-01"): {"format.date": "format.chat"},
    ("sft.enabled=false", "sft.epochs=1"): {"sft.epochs": "sft.enabled"},
    ("gate.rule=better", "gate.max_drop=0.1"): {"gate.max_drop": "gate.rule is not 'drop'"},
    ("gate.confidence=0.9",): {"gate.confidence": "gate.rule is 'drop'"},
    ("policy.vllm.memory_share=0.5",): {"policy.vllm.memory_share": "no backend is 'vllm'"},
    ("policy.openai.url=http://127.0.0.1:1/v1",): {"policy.openai.url": "not 'openai'"},
}
"""Settings, and what is said of those without effect."""


def _config(*settings: str) -> Any:
    return load_config(None, ["problems.train=t", "problems.test=e", "policy.model=p", *settings])


def test_a_setting_that_one_round_reads_is_not_named() -> None:
    """A loss of pairs is read in round 2 alone; one that no round reads is named."""
    plain = ("preference.enabled=false", "preference.batch_size=2", "labels.revision_of=solution")
    assert {key for each in unused_settings(_config(*plain)) for key in each.keys} == {"preference.batch_size", "labels.revision_of"}
    scheduled = _config(*plain, "rounds=[{round=2, preference={enabled=true}}]")
    assert {key for each in unused_settings(scheduled) for key in each.keys} == {"labels.revision_of"}


@pytest.mark.parametrize(("settings", "expected"), CASES.items(), ids=[case[0] for case in CASES])
def test_a_setting_that_another_switches_off_is_named(settings: tuple[str, ...], expected: dict[str, str]) -> None:
    """Each once, with its reason; settings that are read are not named."""
    found = {key: each.because for each in unused_settings(_config(*settings)) for key in each.keys}
    assert set(found) == set(expected)
    assert all(words in found[key] for key, words in expected.items()), found


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("prm.ensemble=2", "prm.bootstrap=false", "search.scores.ensemble=min"),
        ("prm.loss=hl-gauss", "prm.loss.bins=8", "search.scores.entropy_penalty=0.5"),
        ("prm.model=m", "prm.spec=judge", "prm.start=fixed", "search.scores.bound=clip"),
        ("prm.rollouts=4", "labels.rollouts=false", "prm.target=rollouts"),
        ("preference.loss=kto", "labels.graded=solutions"),
        ("gradient.enabled=true", "gradient.reference=base", "labels.advantages=treerl", "labels.advantages.released=true"),
        ("warmup.solutions=w", "warmup.train.epochs=1", "labels.revisions=1", "labels.revision_of=solution"),
        ("problems.grading.units=optional", "problems.deadline_s=1", "problems.subset=main"),
        ("policy.backend=vllm", "policy.vllm.memory_share=0.5", "format.chat=true", "format.date=2026-01-01"),
    ],
    ids=str,
)
def test_settings_that_are_read_are_not_named(settings: tuple[str, ...]) -> None:
    """The same settings beside the choice that reads them."""
    assert unused_settings(_config(*settings)) == []


def test_a_date_needs_no_quotes() -> None:
    """TOML reads it as a date, and the setting is the same as with quotes."""
    assert _config("format.date=2026-01-01").format == _config("format.date='2026-01-01'").format


def test_problems_in_files_have_no_splits_of_the_hub(tmp_path: Path) -> None:
    """With one source on the hub the splits are read, with none they are not."""
    for name in ("t", "e"):
        (tmp_path / name).write_text("{}\n")
    given = [f"problems.train={tmp_path / 't'}", f"problems.test={tmp_path / 'e'}", "policy.model=p", "problems.subset=main"]
    (only,) = unused_settings(load_config(None, given))
    assert str(only) == "problems.subset has no effect on the run: all problems are in files"
    assert unused_settings(load_config(None, [*given, "problems.test=openai/gsm8k"])) == []


def test_every_rule_has_a_case() -> None:
    """Each reason is one of those that the cases above show."""
    shown = {each.because for settings in CASES for each in unused_settings(_config(*settings))} | {"all problems are in files"}
    assert {rule.because for rule in unused._RULES} == shown


def test_shipped_settings_are_all_read() -> None:
    """Nothing in the shipped configurations or the embedded task is without effect."""
    shipped = [load_config(path, ["policy.model=p"]) for path in (Path(__file__).parents[4] / "configs").glob("*.toml")]
    assert shipped
    for config in [*shipped, load_config(None, [], base=embedded.settings(Path("start")))]:
        assert unused_settings(config) == []


@pytest.mark.parametrize("name", recipes())
def test_the_settings_of_every_recipe_can_be_looked_through(name: str) -> None:
    """In a file of one's own as well, and whatever a variant demands of other settings; a default is none of the changes."""
    config = _of_recipe(name)
    assert set(unused._changed(config)) <= set(flatten_keys(config.model_dump(mode="json")))
    assert all(each.keys for each in unused_settings(config))


def test_a_variant_that_demands_other_settings_has_its_own_defaults() -> None:
    """The judge of this recipe is trained on verdicts, which no PRM without a spec is: two of its settings are the loss's own."""
    changed = unused._changed(_of_recipe("spar"))
    assert {"prm.spec", "prm.loss.type", "prm.loss.samples"} <= set(changed)
    assert "prm.loss.per_side" not in changed


def _of_recipe(name: str) -> Config:
    task = {"problems": {"train": "a", "test": "b"}, "policy": {"model": "p"}}
    return load_config(None, [], base=settings_on_task(recipes()[name], task, embedded=True), where=name)


def test_evolve_says_so_before_it_begins(tmp_path: Path) -> None:
    """One line each on standard error, also in a dry run; nothing is refused, so that one setting can switch off a section."""
    config = write_tiny_config(tmp_path, num_train=6)
    done = CliRunner().invoke(app, ["evolve", str(config), "--run-dir", str(tmp_path / "run"), "--dry-run", "--set", "prm.enabled=false"])
    assert done.exit_code == 0
    # The tiny tokenizer has no "_" for the held-out questions, of which another line tells.
    (line,) = (line for line in done.stderr.splitlines() if "has no token" not in line)
    assert line.startswith("note: prm.rollouts, prm.train.") and line.endswith("have no effect on the run: prm.enabled is false")
