"""Training the policy during the search: in place, with rows that know how stale they were, and the same after a kill at any chunk."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from stepladder.commands import evolve as evolve_command
from stepladder.errors import CheckpointError, ConfigError
from stepladder.lm.completions import IGNORE, completion_logps
from stepladder.lm.live_training import LiveTraining
from stepladder.lm.settings import TrainSettings
from stepladder.loops.assembly.checks import check_rounds
from stepladder.loops.config.load import load_config
from stepladder.loops.config.run import Config
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.results import RoundRow
from stepladder.loops.stages import online
from stepladder.loops.stages.kinds import ADVANTAGES, TREES
from stepladder.policy.gradient import GradientObjective, collate_gradient, collate_packed_gradient, gradient_rows, train_gradient
from stepladder.policy.gradient_settings import DAPO
from stepladder.types import AdvantageRow
from tests.folders import contents
from tests.inline import inline_pool
from tests.models import save_tiny_policy
from tests.runs import write_tiny_config
from tests.unit.policy.test_gradient import HASH, record

ONLINE = (
    "run.update_every=4",
    "run.rounds=1",
    "gradient.enabled=true",
    "gradient.batch_size=8",
    "gradient.learning_rate=1e-3",
    "sft.enabled=false",
    "preference.enabled=false",
    "labels.data=replace",
    "labels.advantages.scale=false",
    "search.method=majority",
    "search.options.wave=4",
    "search.simulations=8",
    "prm.enabled=false",
)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task with 24 training problems in shards of 6."""
    path = write_tiny_config(tmp_path / "task", workers=1)
    path.write_text(path.read_text().replace("options = { num_children = 4, wave = 2 }", "", 1))
    return path


def configured(task: Path, *overrides: str) -> Config:
    return load_config(task, [*ONLINE, *overrides])


def run_rounds(config: Config, root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunDir, list[RoundRow]]:
    """Run in this process; return the run and its rounds."""
    monkeypatch.setattr(evolve_command, "open_workers", inline_pool)
    rows: list[RoundRow] = []
    return evolve_command.evolve(config, root, display=ProgressDisplay(), on_round=rows.append), rows


def test_a_round_trains_while_it_searches(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 4 and 2 problems; the first is searched by the start model, later ones by changed weights; nothing else is left over."""
    run, rows = run_rounds(configured(task), tmp_path / "run", monkeypatch)
    updates = [json.loads(line) for line in (run.round(1) / online.UPDATES_FILE).read_text().splitlines()]
    assert [entry["chunk"] for entry in updates] == list(range(8))
    gradient = rows[1].training.policy.gradient
    assert gradient is not None and gradient.layout == "trees"
    assert gradient.updates == updates[-1]["updates"] >= 8
    assert [point[0] for point in gradient.curve] == list(range(1, gradient.updates + 1))
    assert all(norm is not None and norm > 0 for _, _, norm in gradient.curve)
    trees, learned = TREES.read(run.shards("trees", rounds=[1])), ADVANTAGES.read(run.shards("advantages", rounds=[1]))
    assert len(trees) == 24 and len(run.shards("trees", rounds=[1])) == 4
    assert len(learned) == gradient.rows == sum(entry["rows"] for entry in updates)
    assert rows[1].labels is not None and rows[1].labels.advantages is not None
    assert rows[1].labels.advantages.kept == len(learned) + gradient.dropped_by_reason.get("too stale", 0)
    assert not (run.round(1) / online.FOLDER).exists()
    # Eight samples of four problems, of which some teach nothing, in updates of 8 rows: later updates of a chunk are staler.
    staleness = {row.staleness for row in learned}
    assert {0, 1} <= staleness and max(staleness) <= 3
    # The stored log-probabilities are those of the weights that sampled: of the start model in the first chunk alone.
    start = [gap_to(Path(run.policy_source(0, configured(task))), learned, trees, shard) for shard in (range(4), range(20, 24))]
    assert start[0] < 1e-4 < start[1]
    end = gap_to(run.policy(1), learned, trees, range(22, 24))
    assert 1e-4 < end < start[1]


def gap_to(policy: Path, learned: list[AdvantageRow], trees: list[Any], places: range) -> float:
    """Return the mean difference of the stored log-probabilities of some problems' rows to those under a saved policy."""
    names = {trees[place].problem_id for place in places}
    rows = [row for row in learned if row.problem_id in names]
    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    batch = collate_gradient(gradient_rows(rows, vocabulary=model.config.vocab_size))
    with torch.no_grad():
        found = completion_logps(model, batch)[batch["targets"] != IGNORE]
    return float((found - torch.tensor([logp for row in rows for logp in row.logps])).abs().mean())


@pytest.mark.parametrize("checkpoint_every", [0, 3])
def test_a_killed_round_ends_with_the_same_bytes(
    checkpoint_every: int, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped during a search, an update, a checkpoint's neighbour and the end, and started again: the same files, byte for byte."""
    config = configured(task, f"gradient.checkpoint_every={checkpoint_every}", "gradient.loss={type='grpo', kl_weight=0.1, truncation=2.0}")
    whole, _ = run_rounds(config, tmp_path / "whole", monkeypatch)
    stage, calls = online._OnlineStage, {"_search": [2, 5], "_train": [4, 6], "finish": [1]}
    for name, stops in calls.items():
        monkeypatch.setattr(stage, name, _stopping(getattr(stage, name), stops))
    searched = []
    monkeypatch.setattr(stage, "do", _counting(stage.do, searched))
    stopped = 0
    while True:
        try:
            run, _ = run_rounds(config, tmp_path / "killed", monkeypatch)
            break
        except _Stopped:
            stopped += 1
    assert stopped == 5
    assert model_and_rows(run) == model_and_rows(whole)
    # With checkpoints the stage went on in the middle, without it began again.
    assert (0 in searched[searched.index(3) :]) == (checkpoint_every == 0)


@pytest.mark.parametrize("damage", ["half", "nothing", "another's"])
def test_a_damaged_state_is_named(damage: str, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was cut, an empty one, and weights without the rest: one sentence, and without the file the round begins anew."""
    config, root = configured(task, "gradient.checkpoint_every=1"), tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(_Stopped):
        patch.setattr(online._OnlineStage, "_checkpoint", _stopping(online._OnlineStage._checkpoint, [1]))
        run_rounds(config, root, patch)
    (state,) = root.rglob("state.pt")
    if damage == "another's":
        torch.save({"model": {}}, state)
    else:
        state.write_bytes(state.read_bytes()[: state.stat().st_size // 2] if damage == "half" else b"")
    with pytest.raises(
        CheckpointError, match=f"^{state}: must be the state of a training .* -- remove {state.parent}, and run evolve again"
    ):
        run_rounds(config, root, monkeypatch)


class _Stopped(BaseException):
    """A kill."""


def _stopping(function: Any, stops: list[int]) -> Any:
    """Return a function that stops at some of its calls, counted from 1, after its work."""
    count = 0

    def call(*args: Any) -> Any:
        nonlocal count
        count += 1
        result = function(*args)
        if count in stops:
            raise _Stopped
        return result

    return call


def _counting(function: Any, seen: list[int]) -> Any:
    def call(stage: Any, chunk: Any, index: int, count: int) -> None:
        seen.append(index)
        function(stage, chunk, index, count)

    return call


def model_and_rows(run: RunDir) -> dict[str, bytes]:
    """Return the files of a run that must be the same, by their names."""
    found = contents(run.root)
    return {
        name: content
        for name, content in found.items()
        if name.endswith((".parquet", ".safetensors", ".jsonl", "policy.json")) and "events" not in name and "metrics" not in name
    }


def test_a_round_without_a_difference_leaves_the_policy(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample of each problem compares with nothing: no update, no model, and the round says why."""
    run, rows = run_rounds(
        configured(task, "search.simulations=1", "search.options.wave=1", "problems.train_limit=4"), tmp_path / "run", monkeypatch
    )
    assert not run.policy(1).exists() and rows[1].training.policy.gradient is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "policy.backend=vllm",
            r"run.update_every: changes the weights .* in place, which only the backend 'transformers' can: got policy.backend 'vllm'",
        ),
        ("sft.enabled=true", r"run.update_every: trains .*: needs sft.enabled False, got True"),
        ("gradient.enabled=false", r"needs gradient.enabled True, got False"),
        ("search.allocation=unsolved-first", r"needs search.allocation 'uniform', got 'unsolved-first'"),
        ("start_from=base", r"needs start_from 'best', got 'base'"),
    ],
)
def test_what_cannot_be_trained_during_the_search_is_refused(override: str, message: str, task: Path) -> None:
    """One sentence each, before any work."""
    with pytest.raises(ConfigError, match=message):
        check_rounds(configured(task, override))


def test_an_update_in_place_is_that_of_a_training(tmp_path: Path) -> None:
    """One update of a live model, in passes of three rows, gives the weights of a training of one update."""
    start = save_tiny_policy(tmp_path / "start")
    rows = [record([4, 5 + i], [10 + side, 12], [1.0 - 2 * side] * 2, [-1.0, -1.5], problem=f"p{i}") for i in range(4) for side in (0, 1)]
    settings = TrainSettings(
        learning_rate=1e-3, epochs=1.0, batch_size=8, schedule="constant", weight_decay=0.1, device="cpu", warmup_ratio=0.0
    )
    objective = GradientObjective(settings=DAPO())
    report = train_gradient(start, rows, tmp_path / "out", settings, renderer_hash=HASH, objective=objective)
    model = AutoModelForCausalLM.from_pretrained(start)
    live = LiveTraining.start(
        model,
        objective=objective,
        settings=replace(settings, micro_batch_size=3),
        collate=collate_gradient,
        collate_packed=collate_packed_gradient,
    )
    made = live.train(gradient_rows(rows, vocabulary=model.config.vocab_size), at=0.5, number=0)
    assert made.losses == pytest.approx([report.first_loss], rel=1e-5) and made.used == dict.fromkeys(range(8), 0)
    trained = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters())
    for name, value in model.named_parameters():
        # The first step of Adam is about the sign of the gradient, which rounding decides where it is next to 0.
        gaps = (value - trained[name]).abs()
        assert gaps.mean() < 1e-6 and gaps.max() < 1e-4, name


def test_the_learning_rate_follows_the_share_that_is_done(tmp_path: Path) -> None:
    """It rises over the first tenth and falls linearly to 0; updates beyond a bound are not made, and their rows are not used."""
    start = AutoModelForCausalLM.from_pretrained(save_tiny_policy(tmp_path / "start"))
    settings = TrainSettings(learning_rate=1e-3, epochs=1.0, batch_size=2, device="cpu", warmup_ratio=0.1)
    live = LiveTraining.start(
        start, objective=GradientObjective(), settings=settings, collate=collate_gradient, collate_packed=collate_packed_gradient
    )
    rows = gradient_rows([record([4, 5], [10 + i, 12], [1.0, -1.0], [-1.0, -1.5], problem=f"p{i}") for i in range(8)], vocabulary=60)
    rates = []
    for at in (0.05, 0.1, 0.55, 0.95):
        made = live.train(rows, at=at, number=1, max_updates=3)
        rates.append(live.optimizer.param_groups[0]["lr"])
        assert len(made.losses) == 3 and len(made.used) == 6 and sorted(made.used.values()) == [0, 0, 1, 1, 2, 2] and made.late == 2
    half = replace(live, settings=replace(settings, epochs=0.5)).train(rows, at=0.5, number=1, max_updates=3)
    # Half an epoch has two updates, so that none of the rows it leaves out is too late.
    assert len(half.used) == 4 and half.late == 0
    assert rates == pytest.approx([5e-4, 1e-3, 5e-4, 1e-3 * 0.05 / 0.9])
