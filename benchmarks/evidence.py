"""Evidence that the embedded run improves a model by search: three seeds, each beside its controls, as one Markdown table.

For every seed, with the settings of ``stepladder evolve`` and nothing else:

    run              the embedded run itself
    more warm-up     the warm-up policy trained on the warm-up solutions for as many further updates as the run's policy got
    STaR             the same rounds with independent samples in place of search, at the tokens the run's search spent; no PRM, no preferences
    random scorer    the run's final search with an untrained value head in place of the PRM, same seeds and budgets
    clean traces     share of right-answer solutions in the training data of which every step is right

Settings were chosen on held-out problems of other seeds; test problems are only reported. Run with ``make evidence``; takes about ten
minutes a seed on two cores and continues where it was stopped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from stepladder.data.metrics import wilson_interval
from stepladder.data.store import read_traces
from stepladder.embedded import clean_share
from stepladder.files import atomic_write_text
from stepladder.loops import build, evaluate, jobs
from stepladder.loops.round import RoundContext
from stepladder.loops.progress import ProgressDisplay
from stepladder.loops.rundir import RunDir, load_run
from stepladder.loops.workers import Task, WorkerPool, worker_pool
from stepladder.types import derive_seed


def evolve(root: Path, seed: int, *settings: str) -> RunDir:
    """Run ``stepladder evolve`` as a user would."""
    arguments = [value for setting in settings for value in ("--set", setting)]
    command = [sys.executable, "-m", "stepladder.cli", "evolve", "--run-dir", str(root), "--seed", str(seed), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return load_run(root)


def context_of(run: RunDir, pool: WorkerPool) -> RoundContext:
    """Return what jobs on a finished run need."""
    config = run.config()
    problems = build.build_problems(config.problems, seed=config.run.seed)
    return RoundContext(config=config, run=run, problems=problems, pool=pool, display=ProgressDisplay())


def policy_updates(row: dict[str, Any]) -> int:
    """Updates that a round's policy got."""
    stages = row["training"].get("policy", {})
    return sum(stage["updates"] for stage in stages.values())


def more_warm_up(context: RoundContext, rows: list[dict[str, Any]]) -> float:
    """Greedy test accuracy after further training on the warm-up solutions, for as many updates as the run's policies got."""
    out = context.run.root / "controls" / "more-warm-up"
    config = context.config
    if not (out / "policy").exists():
        train = config.warmup.train.model_copy(update={"max_updates": sum(map(policy_updates, rows)), "epochs": 1000.0})
        control = config.model_copy(
            update={
                "warmup": config.warmup.model_copy(update={"train": train}),
                "policy": config.policy.model_copy(update={"model": str(context.run.policy(0))}),
            }
        )
        arguments = {
            "config": control,
            "solutions": Path(config.warmup.solutions or ""),
            "out": out / "policy",
            "stage": "control: more warm-up",
        }
        context.work([Task(function=jobs.warm_up, arguments=arguments)], {"control: more warm-up": None})
    models = jobs.Models(policy=str(out / "policy"), prm=None, provenance=context.models(0, 0, None).provenance)
    return evaluation(context, models, "greedy", out / "test" / "greedy")["pass_at_1"]


def random_scorer(context: RoundContext, row: dict[str, Any]) -> float:
    """Test accuracy of a round's search with an untrained value head in place of the PRM."""
    from stepladder.prm.model import initialise_prm

    out = context.run.root / "controls" / f"random-scorer-{row['round']}"
    policy = context.policy(row["policy_version"])
    if not (out / "prm").exists():
        renderer = build.build_renderer(context.config, policy)
        initialise_prm(policy, out / "prm", renderer_hash=renderer.hash, seed=derive_seed(context.config.run.seed, "random scorer"))
    models = jobs.Models(
        policy=policy, prm=str(out / "prm"), provenance=context.models(row["round"], row["policy_version"], None).provenance
    )
    return evaluation(context, models, "search", out / "test" / "search")["accuracy"]


def evaluation(context: RoundContext, models: jobs.Models, kind: str, folder: Path) -> dict[str, Any]:
    """Evaluate on the test problems and return accuracy under the names of the kind."""
    stage, tasks = f"control: {folder.parents[1].name}", []
    for index, problems in enumerate(context.shards("test")):
        out = folder / f"shard-{index:04d}.json"
        if not out.exists():
            arguments = {"config": context.config, "models": models, "problems": problems, "kind": kind, "out": out, "stage": stage}
            tasks.append(Task(function=jobs.evaluate_shard, arguments=arguments))
    context.work(tasks, {stage: len(context.problems["test"])})
    rows = evaluate.read_rows(folder)
    correct = sum(row["correct"] for row in rows)
    return {"pass_at_1": correct / len(rows), "accuracy": correct / len(rows), "interval": wilson_interval(correct, len(rows))}
