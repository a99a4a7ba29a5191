"""What preference training on trees learns per second, beside separate sequences and TRL's DPOTrainer, on pairs of real searches.

    python -m benchmarks.learning                    three seeds; about twelve minutes of processor time
    python -m benchmarks.learning --choose           TRL's held-out loss by learning rate, on a seed that is not reported
    python -m benchmarks.learning --run runs/mine    the pairs of the first round of a finished run, in three orders

A seed is a world of glyph programs, a warmed-up policy and one round of search, whose trees give up to 32 pairs of sibling steps a problem.
The policy that searched learns them by DPO, but for a quarter of the problems, on which it is measured. All contestants make as many
updates of 64 pairs, with the same loss, optimiser and constant learning rate, which was chosen for TRL; what differs is which pairs share
an update. TRL takes the token ids of the pairs, and computes reference log-probabilities once before.

The weights are copied after every fifth update. One evaluator, which forwards separate sequences, measures all copies afterwards. Times are
CPU seconds of one thread from the loading of the model on, reference pass included, copies left out.
"""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import many_runs
from benchmarks.evidence_tables import markdown_table, processor
from benchmarks.many_runs import Work, numbers, run_rounds
from benchmarks.packing import trl_trainer
from stepladder.embedded import GlyphTask, prepare, settings
from stepladder.hold_out import hold_out, share_of
from stepladder.lm.settings import TrainSettings
from stepladder.loops.config.load import load_config
from stepladder.loops.config.merge import merge
from stepladder.loops.runs.directory import load_run
from stepladder.loops.runs.workers import Task
from stepladder.loops.stages.kinds import PAIRS
from stepladder.policy.preference_settings import DPO
from stepladder.terminal import echo
from stepladder.types import PreferencePair

TRL = "TRL's DPOTrainer"
OURS: dict[str, dict[str, Any]] = {
    "trees": {},
    "trees, `problems_per_update` 16": {"problems_per_update": 16},
    "separate sequences": {"packed": False},
}
"""What differs from the common settings."""
COMMON = TrainSettings(learning_rate=5e-3, updates=100, schedule="constant", device="cpu")
RATES = (1e-3, 2e-3, 3e-3, 5e-3, 1e-2)
DEVELOPMENT_SEED = 100
EVERY = 5
"""Updates from one copy of the weights to the next."""
MEASURED = 600
"""Held-out pairs at most; of more, every n-th counts."""
RUN: dict[str, Any] = {
    "run": {"rounds": 1, "workers": 1, "shard_size": 1000},
    "warmup": {"train": {"max_updates": 600}},
    "search": {"simulations": 64},
    "labels": {
        "value": "monte-carlo",
        "pairs": {"min_margin": 0.05, "pairs_per_node": 12, "best_and_worst": 8, "pairs_per_problem": 32, "rejected_must_fail": False},
    },
    "prm": {"enabled": False},
    # Only the pairs are used: the run itself learns and measures as little as it can.
    "sft": {"enabled": False},
    "preference": {"max_updates": 1},
    "evaluate": {"samples": 1, "simulations": 1},
}
"""Settings of the runs: large trees, and many pairs of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """A policy and its pairs."""

    policy: str
    """Directory of the policy that searched."""
    train: list[PreferencePair]
    """Pairs to learn."""
    held_out: list[PreferencePair]
    """Pairs of other problems."""

    def sentence(self) -> str:
        """Say it to readers."""
        each = [(len(pairs), len({pair.problem_id for pair in pairs})) for pairs in (self.train, self.held_out)]
        return "{:,} pairs of {} problems to learn, {:,} of {} held out".format(*each[0], *each[1])


class Point(NamedTuple):
    """What was learned by an update."""

    updates: int
    """Updates so far."""
    seconds: float
    """CPU seconds so far."""
    loss: float
    """DPO loss of the held-out pairs."""
    accuracy: float
    """Share of them whose chosen step has gained more than the other."""


class Curve(NamedTuple):
    """What a contestant learned with a seed."""

    problems: float
    """Problems of an update, on average."""
    points: list[Point]
    """In the order of updates, from none on."""

    def by(self, seconds: float) -> Point:
        """Return the last point that was reached in a time."""
        return [point for point in self.points if point.seconds <= seconds][-1]

    def reaches(self, loss: float) -> float:
        """Return the seconds after which a loss was reached first; infinite if never."""
        return next((point.seconds for point in self.points if point.loss <= loss), math.inf)


def search(root: Path, *, seed: int, problems: int) -> None:
    """Make the run of a seed; what is finished is kept."""
    # Most glyphs are often misread, so that siblings differ in what can be learned.
    task = GlyphTask(num_train=problems, num_held_out=1, num_test=1, right_shares=(0.4,) * 16, wrong_share=0.4)
    prepare(root / "start", seed=seed, task=task)
    plain = settings(root / "start", "glyphs")
    merge(plain, RUN)
    run_rounds(load_config(None, [f"run.seed={seed}"], base=plain), root)


def data_of(root: Path) -> Data:
    """Return the pairs of the first round of a run, a quarter of the problems held out."""
    run = load_run(root)
    pairs = PAIRS.read(run.shards("pairs", rounds=[1]))
    problems = {pair.problem_id for pair in pairs}
    aside = hold_out([[problem] for problem in problems], count=share_of(len(problems), 0.25), seed=0)
    return Data(
        policy=run.policy_source(pairs[0].provenance.policy_version, run.config()),
        train=[pair for pair in pairs if pair.problem_id not in aside],
        held_out=[pair for pair in pairs if pair.problem_id in aside],
    )


def train(name: str, data: Data, given: TrainSettings, out: Path) -> None:
    """Let a contestant train."""
    from stepladder.policy.fine_tuning import train_preference

    if name != TRL:
        train_preference(data.policy, data.train, out, given, renderer_hash=data.train[0].provenance.renderer_hash)
        return
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    trl_trainer(
        [{column: getattr(pair, column) for column in columns} for pair in data.train],
        data.policy,
        out,
        per_device_train_batch_size=given.batch_size,
        max_steps=given.updates,
        learning_rate=given.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=math.ceil(given.warmup_ratio * (given.updates or 1)),
        precompute_ref_log_probs=True,
        bf16=False,
        seed=given.seed,
    ).train()


def copied(call: Callable[[], None], *, every: int) -> list[tuple[int, float, dict[str, Any]]]:
    """Make a training, and return updates, CPU seconds and weights after every few updates."""
    from transformers import TrainerCallback, trainer

    found: list[tuple[int, float, dict[str, Any]]] = []

    class Copy(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            nonlocal start
            now = time.process_time()
            if state.global_step % every == 0:
                found.append((state.global_step, now - start, {name: value.clone() for name, value in model.state_dict().items()}))
            start += time.process_time() - now

    # Both trainers are a transformers.Trainer, so one watch serves them.
    watches: list[Any] = trainer.DEFAULT_CALLBACKS
    watches.append(Copy)
    start = time.process_time()
    try:
        call()
    finally:
        watches.remove(Copy)
    return found


class Evaluator:
    """Measures weights on held-out pairs, as separate sequences, with the policy that searched as the reference."""

    def __init__(self, data: Data) -> None:
        from stepladder.lm.training_rows import vocabulary_size
        from stepladder.policy.fine_tuning import load_policy, preference_rows

        self._model = load_policy(data.policy, COMMON, False)
        pairs = data.held_out[:: math.ceil(len(data.held_out) / MEASURED)]
        self._rows = preference_rows(pairs, vocabulary=vocabulary_size(self._model), dropped={})
        self._before = self._contrasts()

    def measure(self, weights: dict[str, Any]) -> tuple[float, float]:
        """Return DPO loss and accuracy."""
        self._model.load_state_dict(weights)
        margins = self._contrasts() - self._before
        return float(np.logaddexp(0.0, -DPO().beta * margins).mean()), float((margins > 0).mean())

    def _contrasts(self) -> np.ndarray:
        from stepladder.policy.fine_tuning import reference_rows

        rows = reference_rows(self._model, self._rows, replace(COMMON, packed=False), reference=None, trust_remote_code=False)
        return np.array([row.ref_chosen_logp - row.ref_rejected_logp for row in rows])


def contest(name: str, data: Data, given: TrainSettings, *, every: int = EVERY) -> Curve:
    """Let a contestant train, and measure it."""
    from stepladder.lm.training import plan_of
    from stepladder.policy.fine_tuning import collate_preferences, preference_rows

    given, evaluator = replace(given, **OURS.get(name, {})), Evaluator(data)
    with tempfile.TemporaryDirectory() as folder:
        found = copied(lambda: train(name, data, given, Path(folder) / "out"), every=every)
    points = [Point(updates, seconds, *evaluator.measure(weights)) for updates, seconds, weights in found]
    # TRL's order is plain random order.
    order = replace(given, packed=False, group_by_length=False) if name == TRL else given
    rows = preference_rows(data.train, vocabulary=10**6, dropped={})
    updates = plan_of(rows, order, collate_preferences, packed=order.packed).order
    problems = sum(len({rows[row].group for row in update}) for update in updates) / len(updates)
    return Curve(problems, [Point(0, 0.0, math.log(2), 0.5), *points])


# Tables


def spread(values: Sequence[float], form: str) -> str:
    """Return a mean with the lowest and the highest value."""
    return f"{form} ({form}–{form})".format(sum(values) / len(values), min(values), max(values))


def by_updates(found: dict[str, list[Curve]]) -> str:
    """Return what contestants learned in equal updates: after a quarter, half and all of them."""
    points = next(iter(found.values()))[0].points
    chosen = [len(points) // 4, len(points) // 2, len(points) - 1]
    heads = ["", "problems an update", "CPU s", *(f"loss after {points[at].updates}" for at in chosen)]
    body = []
    for name, curves in found.items():
        last = [curve.points[-1] for curve in curves]
        losses = [spread([curve.points[at].loss for curve in curves], "{:.3f}") for at in chosen]
        cells = [spread([curve.problems for curve in curves], "{:.1f}"), spread([point.seconds for point in last], "{:.1f}"), *losses]
        body.append([name, *cells, spread([100 * point.accuracy for point in last], "{:.1f}")])
    return markdown_table([*heads, f"accuracy after {points[-1].updates}, %"], body)


def by_seconds(found: dict[str, list[Curve]]) -> str:
    """Return what contestants have learned when each of them is done, and when they reach TRL's last loss; means over the seeds."""
    heads, body = ["", *(f"when done: {name}" for name in found), "CPU s to TRL's last loss"], []
    for name, curves in found.items():
        cells = []
        for other in found.values():
            reached = [curve.by(end.points[-1].seconds) for curve, end in zip(curves, other, strict=True)]
            cells.append("{:.3f}, {:.1f}%".format(*np.mean([(point.loss, 100 * point.accuracy) for point in reached], axis=0)))
        times = [curve.reaches(goal.points[-1].loss) for curve, goal in zip(curves, found[TRL], strict=True)]
        body.append([name, *cells, ", ".join("never" if seconds == math.inf else f"{seconds:.1f}" for seconds in times)])
    return markdown_table(heads, body)


def compare(data: dict[int, Data], given: dict[str, tuple[str, TrainSettings]], *, every: int = EVERY) -> dict[str, list[Curve]]:
    """Train every contestant, given as name and settings, with every seed."""
    found: dict[str, list[Curve]] = {title: [] for title in given}
    for seed, pairs in data.items():
        echo(f"seed {seed}: {pairs.sentence()}", err=True)
        for title, (name, common) in given.items():
            if not found[title]:
                # The first call pays for imports.
                contest(name, pairs, replace(common, updates=1), every=1)
            curve = contest(name, pairs, replace(common, seed=seed), every=every)
            found[title].append(curve)
            echo("  {}: {:.1f} CPU s, loss {:.3f}, accuracy {:.3f}".format(title, *curve.points[-1][1:]), err=True)
    return found


def main() -> None:
    """Make the runs, train on their pairs, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="seeds, with commas")
    parser.add_argument("--problems", type=int, default=600, help="problems that a run searches")
    parser.add_argument("--updates", type=int, default=COMMON.updates, help="updates of 64 pairs")
    parser.add_argument("--run", type=Path, help="a finished run with pairs, instead of one for each seed")
    parser.add_argument("--choose", action="store_true", help="TRL alone, by learning rate, on a seed of its own")
    parser.add_argument("--jobs", type=int, default=2, help="runs made at once; trainings come one after the other")
    parser.add_argument("--root", type=Path, default=Path("runs/learning"))
    arguments = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", TQDM_DISABLE="1")
    seeds = [DEVELOPMENT_SEED] if arguments.choose else arguments.seeds
    places = {seed: arguments.run or (arguments.root / f"seed-{seed}").resolve() for seed in seeds}
    if arguments.run is None:
        tasks = {seed: Task.of(search, root=place, seed=seed, problems=arguments.problems) for seed, place in places.items()}
        many_runs.end(many_runs.run_all({seed: Work(f"run of seed {seed}", task) for seed, task in tasks.items()}, [], jobs=arguments.jobs))
    common = replace(COMMON, updates=arguments.updates)
    given = {name: (name, common) for name in (*OURS, TRL)}
    if arguments.choose:
        given = {f"{TRL}, {rate:g}": (TRL, replace(common, learning_rate=rate)) for rate in RATES}
    data = {seed: data_of(place) for seed, place in places.items()}
    found = compare(data, given)
    echo("\n\n".join([*(f"Seed {seed}: {pairs.sentence()}." for seed, pairs in data.items()), f"{processor()}.", by_updates(found)]))
    if not arguments.choose:
        echo(f"\n{by_seconds(found)}")


if __name__ == "__main__":
    main()
