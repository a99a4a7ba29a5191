"""The run of glyph programs (``--task glyphs``) on three seeds, each beside its controls, as one Markdown table.

For every seed, with the settings of ``stepladder evolve --task glyphs`` and nothing else:

    run              the run itself
    more warm-up     the warm-up policy, trained on the warm-up solutions for as many further updates as the run's policies got
    STaR             the same rounds with independent samples in place of search, at the tokens that the run's search spent; no PRM
    random scorer    every round's search on test with an untrained value head in place of the PRM; same policy, seeds and budget
    clean traces     share of the right-answer solutions in the training data of which every step is right

How the settings were chosen is said at ``stepladder.embedded.recipes.GLYPHS``; test problems are only reported. ``make evidence-glyphs``
runs it; a stopped call continues.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.random_prm import save_random_prm
from stepladder.data.store import read_traces
from stepladder.embedded.glyphs import GlyphTask, is_clean, make_world
from stepladder.files import atomic_write_text
from stepladder.loops.assembly.devices import num_workers
from stepladder.loops.assembly.problem_sets import build_problems
from stepladder.loops.runs.directory import RunDir, load_run
from stepladder.loops.runs.evaluation_rows import all_solved
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.split_figures import AnswerMethod
from stepladder.loops.runs.workers import Task, worker_pool
from stepladder.loops.stages.context import Models, RoundContext
from stepladder.loops.stages.evaluate import EvaluationKind, evaluate_shard
from stepladder.loops.stages.train_policy import warm_up_policy


def evolve(root: Path, seed: int, *settings: str) -> RunDir:
    """Run ``stepladder evolve`` as a user would, and note how long it took if it was not stopped."""
    begin = time.monotonic()
    fresh = not root.exists()
    arguments = [value for setting in settings for value in ("--set", setting)]
    command = [sys.executable, "-m", "stepladder", "evolve", "--task", "glyphs", "--run-dir", str(root), "--seed", str(seed), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if fresh:
        atomic_write_text(root / "wall.json", json.dumps({"seconds": round(time.monotonic() - begin, 1)}) + "\n")
    return load_run(root)


def policy_updates(rows: list[RoundRow]) -> int:
    """Updates that the policies of all rounds got after the warm-up."""
    return sum(summary.updates for row in rows if row.round for summary in row.training.policy.stages.values())


def more_warm_up(context: RoundContext, rows: list[RoundRow]) -> float:
    """Greedy test accuracy after further training on the warm-up solutions."""
    config, out = context.config, context.run.root / "controls" / "more-warm-up"
    if not (out / "policy").exists():
        # Learning rate and batch are those of the rounds, so that only the data differ.
        train = replace(config.sft, max_updates=policy_updates(rows), epochs=1000.0)
        control = config.model_copy(
            update={
                "warmup": config.warmup.model_copy(update={"train": train}),
                "policy": config.policy.model_copy(update={"model": str(context.run.policy(0))}),
            }
        )
        solutions = Path(config.warmup.solutions or "")
        task = Task.of(warm_up_policy, config=control, solutions=solutions, out=out / "policy", stage="more warm-up")
        context.work([task], {"more warm-up": None})
    models = Models(policy=str(out / "policy"), prm=None, provenance=context.models(0, 0, None).provenance)
    return accuracy(context, models, "greedy", out)


def random_scorer(context: RoundContext, row: RoundRow) -> float:
    """Test accuracy of a round's search with an untrained value head in place of the PRM."""
    out = context.run.root / "controls" / f"random-scorer-{row.round}"
    policy = context.run.policy_source(row.policy_version, context.config)
    save_random_prm(out / "prm", config=context.config, policy=policy, seed=row.round)
    provenance = context.models(row.round, row.policy_version, row.round).provenance
    return accuracy(context, Models(policy=policy, prm=str(out / "prm"), provenance=provenance), "search", out)


def accuracy(context: RoundContext, models: Models, kind: EvaluationKind, out: Path) -> float:
    """Evaluate models on the test problems."""
    folder, stage, tasks = out / "evaluation", f"control {out.name}", []
    for index, problems in enumerate(context.shards("test")):
        shard = folder / f"shard-{index:04d}.json"
        if not shard.exists():
            task = Task.of(evaluate_shard, config=context.config, models=models, problems=problems, kind=kind, out=shard, stage=stage)
            tasks.append(task)
    context.work(tasks, {stage: len(context.problems["test"])})
    rows = all_solved(folder)
    return sum(row.correct for row in rows) / len(rows)


def clean_share(run: RunDir, number: int, seed: int) -> float | None:
    """Share of a round's training solutions, all with the right answer, of which every step is right."""
    world = make_world(GlyphTask(), seed=seed)
    traces = [trace for path in run.shards("traces", rounds=[number]) for trace in read_traces(path)]
    clean = [is_clean(world, trace.prompt, trace.completion.splitlines(keepends=True)) for trace in traces]
    return sum(clean) / len(clean) if clean else None


def evidence_of_seed(root: Path, seed: int) -> list[dict[str, Any]]:
    """Run a seed with its controls and return one entry per round."""
    run = evolve(root / f"seed-{seed}", seed)
    rows = run.rows()
    config = run.config()
    searched = [row.search for row in rows if row.search is not None]
    tokens = sum(search.generated_tokens + search.rollout_tokens for search in searched) / sum(search.problems for search in searched)
    star_settings = [
        "search.method=majority",
        "search.simulations=100000",
        f"search.max_tokens={math.ceil(tokens)}",
        "prm.enabled=false",
        "preference.enabled=false",
    ]
    star = evolve(root / f"star-{seed}", seed, *star_settings)
    problems = build_problems(config.problems, seed=seed)
    with worker_pool(num_workers(config), threads=config.run.threads) as pool:
        context = RoundContext(config=config, run=run, problems=problems, pool=pool, display=ProgressDisplay())
        control = more_warm_up(context, rows)
        controls = [control if row.round == len(rows) - 1 else None for row in rows]
        return [
            round_entry(context, row, star_row, more_warm_up=last, seed=seed)
            for row, star_row, last in zip(rows, star.rows(), controls, strict=True)
        ]


def round_entry(context: RoundContext, row: RoundRow, star: RoundRow, *, more_warm_up: float | None, seed: int) -> dict[str, Any]:
    """Return what the table says of a round."""
    measured = {method: found.value for method in AnswerMethod if (found := row.test.accuracy(method)) is not None}
    return {
        "seed": seed,
        "round": row.round,
        "pass_at_1": measured.get(AnswerMethod.POLICY),
        "interval": None if row.test.pass_at_1 is None else row.test.pass_at_1.interval,
        "more_warm_up": more_warm_up,
        "star": None if star.test.pass_at_1 is None else star.test.pass_at_1.value,
        "search": measured.get(AnswerMethod.SEARCH),
        "random_scorer": random_scorer(context, row) if row.round else None,
        "majority": measured.get(AnswerMethod.MAJORITY),
        "best_of_n": measured.get(AnswerMethod.BEST_OF_N),
        "weighted_vote": measured.get(AnswerMethod.WEIGHTED_VOTE),
        "auc": row.test.pool.prm_within_problem_auc,
        "clean": clean_share(context.run, row.round, seed) if row.round else None,
        "tokens": None if row.test.search is None else row.test.search.tokens_per_problem,
        "accepted": row.accepted,
    }


def render(entries: list[dict[str, Any]]) -> str:
    """Return the entries as a Markdown table, shares in per cent."""
    columns = {
        "seed": "seed",
        "round": "round",
        "pass_at_1": "pass@1",
        "more_warm_up": "more warm-up",
        "star": "STaR",
        "search": "search",
        "random_scorer": "random scorer",
        "majority": "majority",
        "best_of_n": "best-of-n",
        "weighted_vote": "weighted vote",
        "auc": "PRM AUC",
        "clean": "clean traces",
        "tokens": "tokens",
        "accepted": "accepted",
    }
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(_cell(name, entry) for name in columns) + " |" for entry in entries]) + "\n"


def _cell(name: str, entry: dict[str, Any]) -> str:
    value = entry[name]
    if value is None:
        return "–"
    if name == "pass_at_1":
        low, high = entry["interval"]
        return f"**{100 * value:.1f}** ({100 * low:.0f}–{100 * high:.0f})"
    if name in ("seed", "round"):
        return str(value)
    if name == "accepted":
        return "yes" if value else "no"
    if name == "tokens":
        return f"{value:.0f}"
    return f"{value:.2f}" if name == "auc" else f"{100 * value:.1f}"


def main() -> None:
    """Run the evidence and write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", type=Path, default=Path("runs/evidence-glyphs"))
    parser.add_argument("--fresh", action="store_true", help="delete what an earlier call left")
    arguments = parser.parse_args()
    if arguments.fresh:
        shutil.rmtree(arguments.root, ignore_errors=True)
    entries = [entry for seed in arguments.seeds for entry in evidence_of_seed(arguments.root, seed)]
    atomic_write_text(arguments.root / "evidence.json", json.dumps(entries, indent=2) + "\n")
    atomic_write_text(arguments.root / "evidence.md", render(entries))
    print(render(entries))


if __name__ == "__main__":
    main()
