"""The schedule of rounds: which round has which settings, and every mistake in one sentence."""

from pathlib import Path

import pytest

from stepladder.errors import ConfigError
from stepladder.loops.config.load import load_config
from stepladder.loops.config.paths import named_paths
from stepladder.loops.config.run import Config
from stepladder.loops.config.schedule import given_prm, round_config
from stepladder.loops.runs.directory import open_run
from stepladder.loops.runs.round_settings import changed_settings

BASE = 'problems = { train = "a", test = "b" }\npolicy = { model = "m" }\nrun = { rounds = 4 }\n'


def loaded(folder: Path, text: str, *overrides: str) -> Config:
    """Return the configuration of a file with some tables."""
    path = folder / "run.toml"
    path.write_text(BASE + text)
    return load_config(path, list(overrides))


def test_a_table_changes_its_rounds_and_no_other(tmp_path: Path) -> None:
    """Numbers, spans and open ends; settings that a table leaves out are those of the run; a variant keeps its rules."""
    config = loaded(
        tmp_path,
        """
search = { method = "mcts", simulations = 8, options = { num_children = 3 } }
[labels]
pairs = { type = "agent-q", critic_weight = 0.3 }
[[rounds]]
round = 1
search = { simulations = 2 }
prm = { enabled = false }
[[rounds]]
round = "3-"
search = { method = "beam" }
start_from = "base"
labels = { pairs = "evidence" }
""",
    )
    own = [round_config(config, number) for number in range(5)]
    assert [each.search.simulations for each in own] == [8, 2, 8, 8, 8]
    assert [each.prm.enabled for each in own] == [True, False, True, True, True]
    assert [each.search.method for each in own] == ["mcts", "mcts", "mcts", "beam", "beam"]
    assert [each.start_from for each in own] == ["best", "best", "best", "base", "base"]
    assert [each.labels.pairs.type for each in own] == ["agent-q", "agent-q", "agent-q", "evidence", "evidence"]
    # The options of one method are not those of another.
    assert [each.search.options for each in own] == [{"num_children": 3}] * 3 + [{}] * 2
    assert own[2] == own[0]
    assert changed_settings(config, own[1]) == {"prm.enabled": False, "search.simulations": 2}
    assert changed_settings(config, own[2]) == {}


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ("[{round = 5}]", "rounds, table 1: round must be at most run.rounds: got 5 > 4 -- raise"),
        ('[{round = "5-"}]', "round must be at most run.rounds: got 5 > 4"),
        ('[{round = "2-3"}, {round = 3}]', "rounds, table 2: round must be in one table: 3 is in rounds, table 1, too -- join them"),
        ("[{round = 0}]", 'round must be a number from 1, as 2, "2-3" or "3-": got 0'),
        ('[{round = "3-2"}]', 'round must be a number from 1, as 2, "2-3" or "3-": got \'3-2\''),
        ("[{round = true}]", "got True"),
        ("[{round = 1.5}]", "got 1.5"),
        ("[{search = {}}]", "round must say for which rounds it is: it is missing"),
        ("[{round = 2, problems = {}}]", "a round may change search, labels,"),
        ("[{round = 2, serach = {}}]", "did you mean 'search'?"),
        (
            "[{round = 2, search = {num_children = 8}}]",
            "unknown setting 'search.num_children' -- did you mean 'search.options.num_children'?",
        ),
        (
            "[{round = 2, search = {simulations = 0}}]",
            "round 2 (rounds, table 1): setting 'search.simulations': input should be greater than",
        ),
        ("[{round = 2, search = 3}]", "must be a table of settings: got 3"),
        ('[{round = 2, start_from = "model"}]', "start_from 'model' and start_model go together"),
        ("[3]", "setting 'rounds': must be a table of settings: got 3"),
    ],
)
def test_a_wrong_table_is_one_sentence(tmp_path: Path, tables: str, sentence: str) -> None:
    """The sentence names the file, the table, the rule and the value."""
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, f"rounds = {tables}\n")
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "run.toml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ('hill_climb = {setting = "problems.train_limit", start = 1, step = 1}', "rules.hill_climb.setting: a round may change search"),
        ('hill_climb = {setting = "search.simulatoins", start = 1, step = 1}', "unknown setting 'search.simulatoins'"),
        ('hill_climb = {setting = "search.simulations", start = 0, step = 1}', "setting 'search.simulations': input should be greater"),
        ('hill_climb = {setting = "search.simulations", start = 8, step = 0}', "step must not be 0: got 0"),
        (
            'hill_climb = {setting = "search.simulations", start = 8, step = 1, high = 4}',
            "start must be from low to high: got 8, None and 4",
        ),
        ("early_stop = {patience = 0}", "setting 'rules.early_stop.patience': input should be greater than or equal to 1"),
        ("balance = {temperatures = {low = 1.0, high = 0.5, step = 0.1}}", "a grid's low must be at most its high: got 1.0 > 0.5"),
        ("balance = {temperatures = {low = 0.0, high = 0.5, step = 0.1}}", "temperatures must be > 0: got 0.0"),
        ("early_stp = {patience = 1}", "unknown setting 'rules.early_stp' -- did you mean 'rules.early_stop'?"),
    ],
)
def test_a_wrong_rule_is_one_sentence(tmp_path: Path, rule: str, sentence: str) -> None:
    """Rules are checked before the run starts, with their first value."""
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, f"[rules]\n{rule}\n")
    assert sentence in str(caught.value)


def test_a_computed_value_that_is_impossible_is_one_sentence(tmp_path: Path) -> None:
    """The sentence names the round and says that a rule made the value."""
    config = loaded(tmp_path, "")
    with pytest.raises(ConfigError, match=r"^round 3, computed by \[rules\]: setting 'search.simulations': .* got -4"):
        round_config(config, 3, {"search.simulations": -4})
    assert round_config(config, 3, {"search.options.temperature": 0.7}).search.options == {"temperature": 0.7}


def test_rounds_share_one_given_prm(tmp_path: Path) -> None:
    """Version 0 is one model, whichever rounds it guides; two of them are refused."""
    fixed = '{round = 2, prm = {start = "fixed", model = "judge"}}'
    assert given_prm(loaded(tmp_path, f"rounds = [{fixed}]\n")) == "judge"
    with pytest.raises(ConfigError, match=r"prm\.model must be the same in all rounds with prm.start 'fixed': got 'judge' and 'other'"):
        loaded(tmp_path, f'rounds = [{fixed}, {{round = 3, prm = {{start = "fixed", model = "other"}}}}]\n')


def test_paths_of_rounds_are_paths(tmp_path: Path) -> None:
    """They are read beside the file, are inputs of the run, and take no part in its hash."""
    (tmp_path / "start").mkdir()
    text = 'rounds = [{round = 2, start_from = "model", start_model = "start"}]\n'
    config = loaded(tmp_path, text)
    assert round_config(config, 2).start_model == str(tmp_path / "start")
    assert named_paths(config.model_dump())["rounds[0].start_model"] == str(tmp_path / "start")
    assert config.hash() == loaded(tmp_path, text.replace('"start"', '"elsewhere"')).hash()
    assert config.hash() != loaded(tmp_path, text.replace("round = 2", "round = 3")).hash()


def test_a_run_keeps_its_schedule(tmp_path: Path) -> None:
    """The settings of a run directory are those it was started with, tables included; another table is another run."""
    config = loaded(tmp_path, "rounds = [{round = 2, search = {simulations = 3}}]\n")
    run = open_run(tmp_path / "run", config)
    assert run.config() == config
    other = loaded(tmp_path, "rounds = [{round = 2, search = {simulations = 4}}]\n")
    assert [each.split(":")[0] for each in other.differences(run.config())] == ["rounds"]
    assert not loaded(tmp_path, "rounds = [{round = 2, search = {simulations = 3}}]\n", "run.rounds=6").differences(run.config())
