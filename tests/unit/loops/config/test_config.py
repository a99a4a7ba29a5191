"""Configuration: precedence, checks, hash, and messages that name the way out."""

import json
from pathlib import Path

import pytest
from transformers import BertConfig, BloomConfig, GptOssConfig, PretrainedConfig
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.errors import CheckpointError, ConfigError
from stepladder.loops.assembly.checks import check_labels, check_model, check_prm, check_rounds, check_searches, check_start
from stepladder.loops.config.load import load_config
from stepladder.loops.config.names import variants
from stepladder.loops.config.run import Config
from stepladder.prm.sources import VALUE_HEAD_FOLDER
from stepladder.prm.specs import PRMSpec
from tests.models import save_tiny_policy

REQUIRED = ["problems.train=a.jsonl", "problems.test=b.jsonl", "policy.model=some/model"]


def test_overrides_beat_the_file_and_the_file_beats_defaults(tmp_path: Path) -> None:
    """Defaults < file < --set, and paths that exist beside the file become absolute."""
    (tmp_path / "train.jsonl").write_text("{}")
    path = tmp_path / "c.toml"
    path.write_text(
        '[problems]\ntrain = "train.jsonl"\ntest = "org/data"\n[policy]\nmodel = "m"\n[search]\nsimulations = 5\nmax_depth = 3\n'
    )
    config = load_config(path, ["search.simulations=7", "search.method=beam"])
    assert (config.search.simulations, config.search.max_depth, config.search.max_step_tokens) == (7, 3, 256)
    assert config.search.method == "beam"
    assert config.problems.train == str(tmp_path / "train.jsonl")
    assert config.problems.test == "org/data"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("search.simulation=3", "unknown setting 'search.simulation' -- did you mean 'search.simulations'?"),
        ("sft.lora.rank=4", "unknown setting 'sft.lora.rank' -- known here: alpha, dropout, four_bit, r, target_modules"),
        ("serch.simulations=3", "did you mean 'search'"),
        ("search.simulations=0", "'search.simulations': input should be greater than or equal to 1: got 0"),
        ("run.rounds=many", "'run.rounds'"),
        ("run.seed=false", "setting 'run.seed': must be a number: got false"),
        ("warmup.train={epochs=true}", "setting 'warmup.train.epochs': must be a number: got true"),
        ("rounds=[{round=1, search={simulations=true}}]", "setting 'search.simulations': must be a number: got true"),
        (f"search.simulations={2**63}", "setting 'search.simulations': must be below 2**63: got a larger number -- lower it"),
        ("labels.data=some", "'labels.data.type': must be one of accumulate, replace, window, on-policy: got 'some'"),
        ("format.prompt_template=hello", "must contain '{question}'"),
        ("format.step_end=''", "step_end must not be empty"),
        ("search=3", "'search'"),
        ("nonsense", "section.key=value"),
    ],
)
def test_wrong_settings_are_named(override: str, words: str) -> None:
    """The message names the setting, what it was and, for a misspelt key, the nearest one."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, [*REQUIRED, override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("prm.start=fixed", "setting 'prm': start 'fixed' needs a model"),
        ("preference.loss.target_margin=1", "setting 'preference.loss.target_margin'"),
        ("labels.pairs={type='agent-q', nope=1}", "setting 'labels.pairs.nope'"),
        ("search.scores.bound={type='clip', at='x'}", "'search.scores.bound.at'"),
        ("sft.lora={r=0, alpha=3}", "'sft.lora.r'"),
        ("rounds=[{round=1, search={simulations=0}}]", "simulations"),
        ("problems.grading={units='perhaps'}", "'problems.grading.units'"),
    ],
)
def test_a_wrong_setting_does_not_repeat_its_section(override: str, words: str) -> None:
    """What is right about a section is not shown, whichever rule of it is broken."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, [*REQUIRED, "search.simulations=31", "prm.train.batch_size=17", override])
    said = str(caught.value)
    assert words in said and len(said) < 300, said
    assert not any(unasked in said for unasked in ("{", "31", "17", "learning_rate", "Config(")), said


def test_unknown_key_is_reported_before_what_is_missing() -> None:
    """A misspelt required key is explained as misspelt, not as missing."""
    with pytest.raises(ConfigError, match=r"did you mean 'problems\.test'"):
        load_config(None, ["problems.train=a", "problems.tset=b", "policy.model=m"])


@pytest.mark.parametrize("text", ["[search\n", "\xff"])
def test_unreadable_file_is_named(tmp_path: Path, text: str) -> None:
    """A file that is no TOML, or no UTF-8, is an error of one sentence with its path."""
    path = tmp_path / "c.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="not a readable TOML file"):
        load_config(path, [])
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config(tmp_path / "absent.toml", [])


def test_hash_names_what_is_computed_and_nothing_else() -> None:
    """Paths, workers and the number of rounds leave the hash alone; a search setting does not."""
    base = load_config(None, REQUIRED).hash()
    same = ["problems.train=c.jsonl", "run.workers=3", "run.rounds=9", "policy.max_batch=7"]
    assert load_config(None, [*REQUIRED, *same]).hash() == base
    assert load_config(None, [*REQUIRED, "search.simulations=33"]).hash() != base
    assert load_config(None, [*REQUIRED, "search.start=question"]).hash() == base
    assert load_config(None, [*REQUIRED, "search.start=first-samples"]).hash() != base
    assert len(base) == 16


def test_differences_name_the_settings_that_differ() -> None:
    """What may not change within a run is listed with both values; what may is not."""
    ours, theirs = load_config(None, REQUIRED), load_config(None, [*REQUIRED, "search.simulations=33", "run.rounds=9"])
    assert ours.differences(theirs) == ["search.simulations: 32 != 33"]


def test_impossible_searches_are_refused_before_work() -> None:
    """An unknown method, an unknown option, no children, and a wave larger than the search are configuration errors."""
    for override, words in (
        ("search.method=mtcs", "did you mean 'mcts'"),
        ("search.options.childs=3", "unknown setting 'childs'"),
        ("search.options.num_children=0", "num_children must be a whole number >= 1"),
        ("search.start=first-samples", "needs a PRM that each round trains before its search: got prm.enabled True"),
        ("evaluate.options.wave=17", "evaluate.options.wave: must be at most evaluate.simulations: got 17 > 16"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_searches(load_config(None, [*REQUIRED, override]))
        assert words in str(caught.value)
    check_searches(load_config(None, REQUIRED))
    first = [*REQUIRED, "search.start=first-samples", "prm.when=before-search", "prm.rollouts=2"]
    with pytest.raises(ConfigError, match="needs a method that draws solutions, such as restart: got 'mcts'"):
        check_searches(load_config(None, first))
    check_searches(load_config(None, [*first, "search.method=restart"]))


def test_model_directory_is_checked_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that does not exist, or holds no tokenizer, is refused; a hub id is left to the loader where the hub answers."""
    monkeypatch.setattr("stepladder.hub.why_unreachable", lambda: None)

    def policy(model: object) -> Config:
        return load_config(None, [*REQUIRED, f"policy.model={model}"])

    check_model(policy("Qwen/Qwen2.5-0.5B").policy)
    with pytest.raises(ConfigError, match="does not exist"):
        check_model(policy(tmp_path / "absent").policy)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"must hold tokenizer\.json"):
        check_model(policy(tmp_path).policy)


def test_a_model_of_a_family_that_cannot_be_served_is_refused_before_work(tmp_path: Path) -> None:
    """Policy and PRM alike; vLLM serves such a policy."""
    model = tmp_path / "model"
    save_tiny_policy(model)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "layer_types": ["full_attention", "linear_attention"]}))
    with pytest.raises(ConfigError, match=r"policy\.model: the transformers backend serves .* has linear_attention layers -- use backend"):
        check_model(load_config(None, [*REQUIRED, f"policy.model={model}"]).policy)
    with pytest.raises(ConfigError, match=r"prm\.model: the transformers backend serves"):
        check_prm(load_config(None, [*REQUIRED, f"prm.model={model}"]).prm)
    check_prm(load_config(None, [*REQUIRED, f"prm.model={model}", "prm.enabled=false"]).prm)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (BertConfig(), "an encoder -- use a decoder, such as those of docs/backends.md"),
        (BloomConfig(), "attention outside transformers' registry -- use backend 'vllm', or another model"),
        (GptOssConfig(), "attention sinks -- use backend 'vllm', or another model"),
    ],
)
def test_a_family_that_the_loader_would_refuse_is_refused_before_work(config: PretrainedConfig, said: str, tmp_path: Path) -> None:
    """An encoder would even have given numbers; vLLM generates with none."""
    model = save_tiny_policy(tmp_path / "model")
    config.save_pretrained(model)
    with pytest.raises(ConfigError, match=rf"policy\.model: .* has {said}$"):
        check_model(load_config(None, [*REQUIRED, f"policy.model={model}"]).policy)
    check_model(load_config(None, [*REQUIRED, f"policy.model={model}", "policy.backend=vllm"]).policy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["policy.model={head}"], r"policy\.model: must be a language model: .* on the body of \.\. -- name that policy, and the head as"),
        (["start_from=model", "start_model={head}"], r"start_model: must be a language model: .* -- name that policy, and the head as"),
        (["prm.model={head}"], r"prm\.model: must be a language model: .* -- name that policy, or keep the head with prm.start = 'fixed'"),
        (["prm.model={model}", "prm.reference={head}"], r"prm\.reference: must be a language model"),
        (["prm.start=fixed", "prm.model={model}"], "how its scores are read must be known: there is no stepladder_prm.json"),
    ],
)
def test_a_head_or_a_plain_model_in_the_place_of_the_other_is_refused_before_work(
    tmp_path: Path, settings: list[str], message: str
) -> None:
    """One sentence each. A two-head model is taken as the language model that it is, and as the PRM that its head is."""
    model = tmp_path / "model"
    save_tiny_policy(model)
    (tmp_path / "head").mkdir()
    spec = PRMSpec(family="probe", body="..", read="step-end")
    spec.save(tmp_path / "head")
    config = load_config(None, [*REQUIRED, *(each.format(model=model, head=tmp_path / "head") for each in settings)])
    with pytest.raises(ConfigError, match=message):
        check_all(config)
    (model / VALUE_HEAD_FOLDER).mkdir()
    spec.save(model / VALUE_HEAD_FOLDER)
    both = load_config(None, [*REQUIRED, *(each.format(model=model, head=model) for each in settings)])
    check_all(both)


def check_all(config: Config) -> None:
    """Check the models of a configuration; the policy need not be there."""
    check_prm(config.prm)
    check_start(config)
    if Path(config.policy.model).is_dir():
        check_model(config.policy)


def test_the_first_value_of_a_rule_is_checked_before_work() -> None:
    """A temperature below 0 is no setting that a file may not hold, but none that the method takes."""
    climb = "rules.hill_climb={setting='search.options.temperature', start=%s, step=0.5}"
    methods = ["search.method=majority", "evaluate.method=majority"]
    check_rounds(load_config(None, [*REQUIRED, *methods, climb % 1.0]))
    with pytest.raises(ConfigError, match=r"rules\.hill_climb\.start: search\.options\.temperature would be -1\.0 .*>= 0: got -1"):
        check_rounds(load_config(None, [*REQUIRED, *methods, climb % -1.0]))


@pytest.mark.parametrize("name", ["model", "reference"])
def test_a_given_prm_is_looked_for_before_work(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that does not exist is refused; a hub id and a directory are left to the loader, unless the hub cannot be reached."""
    monkeypatch.setattr("stepladder.hub.why_unreachable", lambda: None)
    for source in (tmp_path, "owner/prm"):
        check_prm(load_config(None, [*REQUIRED, f"prm.{name}={source}"]).prm)
    with pytest.raises(ConfigError, match=rf"prm\.{name}: must be a model directory or a hub id: '.*absent' does not exist"):
        check_prm(load_config(None, [*REQUIRED, f"prm.{name}={tmp_path / 'absent'}"]).prm)
    monkeypatch.setattr("stepladder.hub.why_unreachable", lambda: "no route")
    check_prm(load_config(None, [*REQUIRED, f"prm.{name}={tmp_path}"]).prm)
    with pytest.raises(CheckpointError, match=r"owner/prm: must be a directory or a hub id: .*cannot be reached \(no route\)"):
        check_prm(load_config(None, [*REQUIRED, f"prm.{name}=owner/prm"]).prm)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["prm.start=fixed"], "needs a model to keep"),
        (["prm.start=fixed", "prm.model=x", "prm.ensemble=2"], "trains nothing"),
        (["prm.target=step-pairs"], "needs the loss 'pairwise'"),
        (["prm.target=step-pairs", "prm.loss=listwise"], "needs the loss 'pairwise'"),
        (["prm.loss=implicit-ce"], "expected 'outcome'"),
        (["prm.loss=implicit-ce", "prm.target=outcome", "prm.start=last"], "expected 'policy'"),
        (["prm.loss=pairwise", "prm.supervise=every-token"], "expected 'step-end'"),
        (["prm.loss=hinge"], "'prm.loss.type'"),
        (
            ["search.scores.bound=par", "search.scores.bound.at=2"],
            "'search.scores.bound.at': input should be less than or equal to 1: got 2",
        ),
        (["evaluate.scores.ensemble=mean-variance", "evaluate.scores.ensemble.penalty=-1"], "evaluate.scores.ensemble.penalty"),
        (["search.scores.ensembl=min"], "did you mean 'search.scores.ensemble'"),
    ],
)
def test_prm_choices_that_do_not_fit_each_other_are_explained(settings: list[str], words: str) -> None:
    """Loss, target, head, start and what becomes of scores are checked before anything is loaded."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, [*REQUIRED, *settings])
    assert words in str(caught.value)


def test_every_prm_loss_and_target_can_be_configured() -> None:
    """What the configuration names is what the trainers know."""
    from stepladder.data.labels.values import ValueTarget
    from stepladder.prm import implicit, objective

    assert set(variants()["prm.loss"]) == {*objective.LOSSES, *implicit.LOSSES, "verdicts"}
    assert set(ValueTarget) < set(variants()["prm.target"])


def test_a_misspelt_method_is_told_before_the_embedded_task_is_prepared(tmp_path: Path) -> None:
    """Even a dry run refuses it, and nothing is written."""
    run = tmp_path / "run"
    for more in ([], ["--dry-run"]):
        result = CliRunner().invoke(app, ["evolve", "--set", "search.method=mtcs", "--run-dir", str(run), *more])
        assert result.exit_code == 2 and "did you mean 'mcts'" in result.output
    assert not run.exists()


def test_a_question_has_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks are told before a run is looked for: no solution of them could mean anything."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["solve", "  "])
    assert (result.exit_code, "QUESTION: must have text: got '  '" in result.output) == (2, True), result.output


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["a={share=0.5}", "b={share=0.4}"], "'search.actions': shares must sum to 1: got 0.9 of a, b"),
        (["a={share=0}", "b={share=1}"], "'search.actions.a.share': input should be greater than 0: got 0"),
        (["a={share=1,prompt=''}"], "'search.actions.a.prompt': prompt must contain '{prompt}' or '{question}': got ''"),
        (["a={share=0.5}", "b={share=0.5,after=['c']}"], "b.after must name start or actions (a, b): got 'c'"),
        (["a={share=0.5,after=['start']}", "b={share=0.5,after=['a']}"], "some action must be able to follow b: got none"),
        (["start={share=1}"], "an action must not be called 'start', which is the question"),
        (["a={share=1,to_end=true}", "tool='code'"], "a tool runs between single steps: got tool 'code' and actions.a.to_end"),
        (["a={share=1,shares=1}"], "unknown setting 'search.actions.a.shares' -- did you mean 'search.actions.NAME.share'?"),
    ],
)
def test_impossible_actions_are_refused_before_work(given: list[str], words: str) -> None:
    """One sentence with the place, the rule and what was given."""
    overrides = [f"search.{text}" if text.startswith("tool") else f"search.actions.{text}" for text in given]
    with pytest.raises(ConfigError) as caught:
        load_config(None, [*REQUIRED, *overrides])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_actions_are_part_of_the_results_and_of_the_written_settings() -> None:
    """Without actions the hash is that of settings without the key; methods and losses that cannot take them are refused."""
    plain = load_config(None, REQUIRED)
    config = load_config(None, [*REQUIRED, "search.actions.a={share=1}"])
    assert "actions" not in plain.model_dump(mode="json")["search"] and plain.hash() != config.hash()
    assert load_config(None, [], base=config.model_dump(mode="json")) == config
    distinct = "search.options={siblings='distinct',prior='sum-logp'}"
    with pytest.raises(ConfigError, match=r"search\.options\.siblings: must not be 'distinct' with search\.actions"):
        check_searches(load_config(None, [*REQUIRED, "search.actions.a={share=1}", distinct]))
    for wrong in ("preference.reference=sampler", "preference.loss=inpo", "gradient.enabled=true"):
        with pytest.raises(ConfigError, match="needs log-probabilities after the prompt that is trained"):
            check_labels(load_config(None, [*REQUIRED, "search.actions.a={share=1}", wrong]))


@pytest.mark.parametrize("section", ["search", "evaluate"])
def test_a_new_method_begins_without_the_options_of_the_old_one(tmp_path: Path, section: str) -> None:
    """From a file and by ``--set``, in any order; the same method keeps them, and what is given beside the method counts."""
    base = {"problems": {"train": "a.jsonl", "test": "a.jsonl", "rule": "exact"}, "policy": {"model": "m"}}
    base[section] = {"method": "restart", "options": {"draw_steps": 8, "temperature": 0.7}}

    def options(*overrides: str, file: str = "") -> dict[str, object]:
        path = tmp_path / "a.toml"
        path.write_text(file, encoding="utf-8")
        return getattr(load_config(path, list(overrides), base=base), section).options

    assert options() == {"draw_steps": 8, "temperature": 0.7}
    assert options(f"{section}.method=restart", f"{section}.options.draw_steps=4") == {"draw_steps": 4, "temperature": 0.7}
    assert options(f"{section}.method=majority") == {}
    assert options(f"{section}.options.wave=2", f"{section}.method=majority") == {"wave": 2}
    assert options(file=f'[{section}]\noptions = {{wave = 3}}\nmethod = "majority"\n') == {"wave": 3}


def test_a_file_is_named_by_its_path_or_text_and_needs_no_overrides(tmp_path):
    """One text or a table of overrides would be read letter by letter or name by name: one sentence."""
    path = tmp_path / "own.toml"
    path.write_text("[policy]\nmodel = 'm'\n[problems]\ntrain = 't'\ntest = 'u'\n[search]\nsimulations = 7\n")
    assert load_config(str(path)) == load_config(path, [])
    assert load_config(str(path), ("search.simulations=9",)).search.simulations == 9
    for overrides in ("search.simulations=9", {"search.simulations": 9}):
        with pytest.raises(ConfigError, match="overrides: must be a list of texts, each KEY=VALUE: got "):
            load_config(path, overrides)
