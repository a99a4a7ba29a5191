"""Which published system improves a small policy most? The recipes on glyph programs at equal tokens and updates, as a Markdown table.

All systems of a seed and a variant begin with the same warmed-up policy. A round of each may generate the same tokens a training problem,
the samples of its PRM included, and has the same updates of the policy, shared among the stages that it has. What a system cannot spend, or
spends besides (probes, estimates, several trees a problem), is in the column of tokens. PRMs have updates of their own, the same for all.
There is no gate: every round's policy goes on.

    default   the embedded task
    noisy     training answers are graded by their last digit alone, so that wrong ones pass; test answers are graded exactly
    deep      programs of six glyphs, after a warm-up that has mostly shorter ones

    python -m benchmarks.systems --systems star,rest-mcts,rstar-math --seeds 0,1 --jobs 2

Every system and seed is a run directory below ``--root`` with a log beside it; a stopped call continues. A run that fails is named at the
end, and the others go on. ``--tables`` prints the tables of the runs that are finished.
"""

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import many_runs
from benchmarks.evidence_tables import Cell, finished, greedy, interval_over_problems, interval_over_seeds, sampled, spent
from benchmarks.glyph_variants import VARIANTS, prepare_variant, variant_settings
from benchmarks.many_runs import Work, end, names_among, numbers, processor_time, processor_time_added, run_from, run_rounds
from stepladder.commands.recipes import settings_on_task
from stepladder.data.metrics.answers import Interval
from stepladder.embedded import GlyphTask
from stepladder.files import atomic_write_text
from stepladder.loops.config.load import load_config
from stepladder.loops.config.merge import merge
from stepladder.loops.config.run import Config
from stepladder.loops.config.schedule import round_table
from stepladder.loops.runs.directory import load_run
from stepladder.loops.runs.results import TrainingSummary
from stepladder.loops.runs.workers import Task
from stepladder.recipes import find_recipe, recipes
from stepladder.terminal import echo

REFERENCE = "star"
"""The system with which the others are compared."""
STAGES = ("sft", "preference", "gradient")
"""Stages of the policy, on by default or not, in their order."""
_ON = {"sft": True, "preference": True, "gradient": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How large the comparison is."""

    rounds: int = 2
    """Rounds after the warm-up."""
    tokens: int = 200
    """Generated tokens of a round, per training problem."""
    updates: int = 20
    """Updates of the policy in a round."""
    prm_updates: int = 100
    """Updates of a PRM in a round."""
    train: int = 200
    """Training problems."""
    tests: int = 200
    """Test problems."""
    samples: int = 8
    """Independent samples of a test problem after each round."""

    @property
    def name(self) -> str:
        """Part of the directory of its runs."""
        return f"{self.rounds}x{self.tokens}-{self.updates}-{self.prm_updates}"

    @property
    def measured(self) -> str:
        """Part of the directories of all runs that are measured alike."""
        return f"{self.train}-{self.tests}x{self.samples}"

    def sentence(self) -> str:
        """Say it to readers."""
        return (
            f"{self.rounds} rounds, {self.train} training problems, {self.tokens:,} generated tokens a problem and round, {self.updates} "
            f"updates of the policy and {self.prm_updates} of the PRM a round, {self.tests} test problems, k = {self.samples}"
        )

    def task(self) -> GlyphTask:
        """Return the task at this size."""
        return GlyphTask(num_train=self.train, num_held_out=50, num_test=self.tests)


def common(size: Size, seed: int) -> dict[str, Any]:
    """Return the settings that all systems share: few measurements, one process a run, and no gate, which would make updates unequal."""
    return {
        "run": {"seed": seed, "rounds": size.rounds, "workers": 1, "shard_size": 1000},
        "evaluate": {"samples": size.samples, "method": "mcts", "options": {"num_children": 1}, "simulations": 1},
        "gate": {"rule": "drop", "max_drop": 1.0, "min_problems": 1, "min_rows": 1},
    }


def system_settings(task: dict[str, Any], name: str, size: Size, *, seed: int, solution_tokens: float) -> dict[str, Any]:
    """Return the settings of a system at the budget of all.

    Args:
        task: Settings of the task.
        name: The recipe.
        size: The budget.
        seed: Seed of the run.
        solution_tokens: Tokens of one solution, by which samples for a PRM count.
    """
    plain = settings_on_task(find_recipe(name), task, embedded=True)
    merge(plain, common(size, seed))
    plain["run"].pop("update_every", None)
    plain.get("rules", {}).pop("early_stop", None)
    plain["rounds"] = [cut for table in plain.get("rounds", []) if (cut := _until(table, size.rounds))]
    for table in (plain, *plain["rounds"]):
        _share_updates(table, plain, size.updates)
    _cap_tokens(plain, size, solution_tokens)
    plain["prm"].setdefault("train", {}).update(max_updates=size.prm_updates, epochs=1000.0)
    return plain


def _until(table: Mapping[str, Any], last: int) -> dict[str, Any] | None:
    """Return a table of rounds that ends with the last round of all; None if it begins later."""
    rounds = round_table(dict(table))
    if rounds.first > last:
        return None
    return {**table, "round": f"{rounds.first}-{min(rounds.last or last, last)}"}


def _share_updates(table: dict[str, Any], plain: Mapping[str, Any], updates: int) -> None:
    """Share the updates among the stages of the policy that a table, or the run without one, has; the first one gets what is left over."""
    on = [stage for stage in STAGES if table.get(stage, {}).get("enabled", plain.get(stage, {}).get("enabled", _ON[stage]))]
    for place, stage in enumerate(on):
        own = updates // len(on) + (updates % len(on) if place == 0 else 0)
        table.setdefault(stage, {}).update(max_updates=own, epochs=1000.0)


def _cap_tokens(plain: dict[str, Any], size: Size, solution_tokens: float) -> None:
    """Cap the tokens of the search, and let it go on until they are spent, unless its commitments count simulations."""
    sampled_first = plain["prm"].get("rollouts", 0) * solution_tokens if plain["prm"].get("enabled", True) else 0.0
    plain["search"]["max_tokens"] = max(int(size.tokens - sampled_first), size.tokens // 4)
    if "commit" in plain["search"].get("options", {}):
        return
    # A step takes a token at least, so the tokens end every search.
    plain["search"]["simulations"] = size.tokens
    for table in plain["rounds"]:
        if "simulations" in table.get("search", {}):
            table["search"]["simulations"] = size.tokens


def warm_up_root(root: Path, size: Size, variant: str, seed: int) -> Path:
    """Return the directory of the run of a seed that ends after its warm-up."""
    return root / variant / f"seed-{seed}" / f"warm-up-{size.measured}"


def system_root(root: Path, size: Size, variant: str, seed: int, name: str) -> Path:
    """Return the directory of the run of a system."""
    return root / variant / f"seed-{seed}" / f"{size.name}-{size.measured}" / name


def warm_up(root: Path, size: Size, variant: str, seed: int, more: Sequence[str]) -> None:
    """Warm up the policy with which all systems of a seed begin; what is finished is kept."""
    base = warm_up_root(root, size, variant, seed)
    prepare_variant(base / "start", VARIANTS[variant], size.task(), seed=seed)
    plain = variant_settings(base / "start", VARIANTS[variant])
    merge(plain, {**common(size, seed), "prm": {"enabled": False}})
    run_rounds(load_config(None, [*more, "run.rounds=0"], base=plain), base)


def run_system(root: Path, size: Size, variant: str, seed: int, name: str, more: Sequence[str]) -> None:
    """Run a system from the warmed-up policy of its seed; what is finished is kept."""
    start, place = load_run(warm_up_root(root, size, variant, seed)), system_root(root, size, variant, seed, name)
    row = start.row(0)
    assert row is not None, "the warm-up is finished"
    solution_tokens = row.test.tokens.greedy / max(row.test.problems, 1)
    task = variant_settings(start.root / "start", VARIANTS[variant])
    config = system_config(task, name, size, seed=seed, solution_tokens=solution_tokens, more=more)
    place.parent.mkdir(parents=True, exist_ok=True)
    with processor_time_added(_cost(place)):
        run_from(start, config, place)


def _cost(place: Path) -> Path:
    """Return the file with the processor time of the run of a system, beside its directory."""
    return place.with_name(f"{place.name}.cpu-seconds")


def system_config(task: dict[str, Any], name: str, size: Size, *, seed: int, solution_tokens: float, more: Sequence[str] = ()) -> Config:
    """Return the configuration of a system at the budget of all; arguments as for ``system_settings``."""
    plain = system_settings(task, name, size, seed=seed, solution_tokens=solution_tokens)
    return load_config(None, list(more), base=plain, where=name)


def run_all(
    root: Path, size: Size, *, variants: Sequence[str], seeds: Sequence[int], chosen: Sequence[str], more: Sequence[str], jobs: int
) -> list[str]:
    """Run the systems of all variants and seeds, ``jobs`` at once; return a sentence about each run that failed."""
    begins = [(variant, seed) for variant in variants for seed in seeds]
    starts = {
        (variant, seed): Work(
            f"{variant}, seed {seed}, warm-up", Task.of(warm_up, root=root, size=size, variant=variant, seed=seed, more=more)
        )
        for variant, seed in begins
    }
    runs = [
        (
            (variant, seed),
            Work(
                f"{variant}, seed {seed}, {name}",
                Task.of(run_system, root=root, size=size, variant=variant, seed=seed, name=name, more=more),
            ),
        )
        for name in chosen
        for variant, seed in begins
    ]
    return many_runs.run_all(starts, runs, jobs=jobs)


def table(cells: Sequence[Cell], *, rounds: int) -> str:
    """Return the table of one variant: the systems by sampled accuracy after the last round, and what each is ahead of the reference."""
    lines = [
        "| system | seeds | greedy % | sampled % | sampled, less star (95%) | pass@k % | tokens a problem and round | updates | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    by_name: dict[str, list[Cell]] = {}
    for cell in cells:
        by_name.setdefault(cell.arm, []).append(cell)
    reference = {cell.seed: sampled(cell, rounds) for cell in by_name.get(REFERENCE, [])}
    ranked = sorted(by_name.items(), key=lambda item: -_mean([_share(sampled(cell, rounds)) for cell in item[1]]))
    if cells:
        starts = list({cell.seed: cell for cell in cells}.values())
        lines.append(f"| (warm-up) | {len(starts)} | {_accuracies(starts, 0)} | – | {_passed(starts, 0)} | 0 | 0 | – |")
    lines += [_row(name, own, reference, rounds) for name, own in ranked]
    return "\n".join(lines)


def _row(name: str, cells: Sequence[Cell], reference: Mapping[int, dict[str, float]], rounds: int) -> str:
    shared = [(sampled(cell, rounds), reference[cell.seed]) for cell in cells if cell.seed in reference]
    gaps = [[own[problem] - other[problem] for problem in sorted(own)] for own, other in shared]
    ahead = "–" if name == REFERENCE or not gaps else _gap([sum(each) / len(each) for each in gaps], interval_over_problems(gaps))
    learned = [row for cell in cells for row in cell.rows[1:]]
    problems = [row.search.problems for row in learned if row.search is not None]
    tokens = sum(map(spent, learned)) / max(sum(problems), 1)
    updates = _mean([float(sum(each.updates for each in row.training.policy.stages.values())) for row in learned])
    costs = [cost for cell in cells if (cost := processor_time(_cost(cell.run.root))) is not None]
    return (
        f"| {name} | {len(cells)} | {_accuracies(cells, rounds)} | {ahead} | {_passed(cells, rounds)} | {tokens:.0f} | {updates:.0f}"
        f"{_prm_updates(cells)} | {f'{_mean(costs):.0f}' if costs else '–'} |"
    )


def _prm_updates(cells: Sequence[Cell]) -> str:
    own = [row.training.prm.updates for cell in cells for row in cell.rows[1:] if isinstance(row.training.prm, TrainingSummary)]
    return f" + {sum(own) / len(own):.0f}" if own else ""


def _accuracies(cells: Sequence[Cell], number: int) -> str:
    """Return greedy and sampled accuracy in per cent, the latter with its standard error over the test problems of all seeds."""
    shares = [share for cell in cells for share in sampled(cell, number).values()]
    error = statistics.stdev(shares) / math.sqrt(len(shares))
    return f"{100 * _mean([_share(greedy(cell, number)) for cell in cells]):.1f} | {100 * _mean(shares):.1f} ± {100 * error:.1f}"


def _passed(cells: Sequence[Cell], number: int) -> str:
    return f"{100 * _mean([cell.rows[number].test.pool.pass_at_k or 0.0 for cell in cells]):.1f}"


def _gap(by_seed: Sequence[float], over_problems: Interval) -> str:
    """Return a mean difference in per cent, with its interval over seeds where there are some, else over problems."""
    low, high = interval_over_seeds(by_seed) or over_problems
    what = "seeds" if interval_over_seeds(by_seed) else "problems"
    return f"{100 * _mean(by_seed):+.1f} ({100 * low:+.1f} to {100 * high:+.1f}, {what})"


def _share(values: Mapping[str, float]) -> float:
    return sum(values.values()) / max(len(values), 1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def main() -> None:
    """Run the systems and print their tables."""
    names, plain = list(recipes()), Size()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", type=names_among(names), default=names, help="recipes, with commas, the most important first")
    parser.add_argument("--variants", type=names_among(list(VARIANTS)), default=["default"], help="default, noisy and deep, with commas")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="seeds, with commas")
    parser.add_argument("--rounds", type=int, default=plain.rounds)
    parser.add_argument("--tokens", type=int, default=plain.tokens, help="generated tokens a training problem and round")
    parser.add_argument("--updates", type=int, default=plain.updates, help="updates of the policy a round")
    parser.add_argument("--prm-updates", type=int, default=plain.prm_updates, help="updates of a PRM a round")
    parser.add_argument("--train", type=int, default=plain.train, help="training problems")
    parser.add_argument("--tests", type=int, default=plain.tests, help="test problems")
    parser.add_argument("--samples", type=int, default=plain.samples, help="samples of a test problem")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, each on one core")
    parser.add_argument("--tables", action="store_true", help="run nothing, print the tables of what is finished")
    parser.add_argument("--root", type=Path, default=Path("runs/systems"))
    parser.add_argument("--set", dest="more", action="append", default=[], metavar="KEY=VALUE", help="change a setting in all systems")
    given = parser.parse_args()
    size = Size(
        rounds=given.rounds,
        tokens=given.tokens,
        updates=given.updates,
        prm_updates=given.prm_updates,
        train=given.train,
        tests=given.tests,
        samples=given.samples,
    )
    root, failed = given.root.resolve(), list[str]()
    if not given.tables:
        work = {"variants": given.variants, "seeds": given.seeds, "chosen": given.systems}
        failed = run_all(root, size, **work, more=given.more, jobs=given.jobs)
    parts = [f"{size.sentence()}."]
    for variant in given.variants:
        places = [(name, seed, system_root(root, size, variant, seed, name)) for name in given.systems for seed in given.seeds]
        cells = finished(places, rounds=size.rounds)
        parts.append(f"{variant}, {VARIANTS[variant].about}:\n\n{table(cells, rounds=size.rounds)}")
    text = "\n\n".join(parts)
    root.mkdir(parents=True, exist_ok=True)
    atomic_write_text(root / f"systems-{size.name}.md", text + "\n")
    echo(text)
    end(failed)


if __name__ == "__main__":
    main()
