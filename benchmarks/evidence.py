"""Does search train better than sampling? Arms of the puzzle at equal generated tokens and equal updates, over seeds, as Markdown tables.

    star                    plain STaR: independent samples, the same number for every problem, any right ones as traces
    star-unsolved           the same; a problem leaves when it is solved, and the others share its tokens
    star-ranked             as star-unsolved, with the traces of best Monte Carlo value
    best-of-n               as star-unsolved, with the traces that the PRM scores best; the PRM is trained on the first samples
    search-plain            tree search without a PRM
    search-random           the search with a random PRM
    search                  the search with its PRM, which each round trains on its first samples
    star-pairs, search-pairs  star-unsolved and search with a quarter of the updates on preference pairs

All arms of a seed begin with the same warmed-up policy. All have the same pool of generated tokens a round, first samples included, and the
same number of updates of the policy and as many traces a problem. The PRM's own updates come on top. Seeds from 100 on were used for
development.

    python -m benchmarks.evidence --seeds 0,1 --arms star-unsolved,search --rounds 2

Every arm and seed is a run directory below ``--root``; a stopped call continues. Tables are of the runs that are finished.
"""

import argparse
import json
import math
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch

from stepladder.commands.evolve import evolve
from stepladder.data.metrics.answers import Interval
from stepladder.data.store import read_traces
from stepladder.embedded import prepare, recipes, settings, task_named
from stepladder.files import atomic_directory, atomic_write_text
from stepladder.lm.loading import load_tokenizer
from stepladder.loops.assembly.policies import build_renderer
from stepladder.loops.config.load import load_config
from stepladder.loops.config.run import Config
from stepladder.loops.runs.directory import RunDir, open_run
from stepladder.loops.runs.evaluation_rows import all_pools, all_solved
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.results import RoundRow
from stepladder.prm.new_models import initialise_prm
from stepladder.terminal import echo

TASK = "puzzle"
REFERENCE = "search"
"""The arm with which the others are compared."""
MILESTONES = (0.5, 0.9)
TEMPERATURE = recipes.PUZZLE["search"]["options"]["temperature"]
"""Every arm samples its training data at the temperature of the embedded run's search."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How large the comparison is."""

    rounds: int
    """Rounds after the warm-up."""
    tokens: int
    """Generated tokens of a round, per training problem."""
    updates: int
    """Updates of the policy in a round."""
    samples: int
    """Independent samples of a test problem after each round."""

    @property
    def name(self) -> str:
        """Part of the directory of its runs."""
        return f"{self.rounds}x{self.tokens}-{self.updates}"


class Cell(NamedTuple):
    """A finished run of an arm."""

    arm: str
    """Name of the arm."""
    seed: int
    """Seed of the run."""
    run: RunDir
    """Its directory."""
    rows: list[RoundRow]
    """Its rounds."""


def arms(size: Size) -> dict[str, list[str]]:
    """Return the settings of every arm that differ from the embedded run's, as ``--set`` takes them."""
    samples = ["search.method=majority", f"search.options={{temperature={TEMPERATURE}}}", "search.simulations=100000"]
    pool = f"pool_tokens={size.tokens}"
    no_prm = ["prm.enabled=false", "prm.when=after-policy"]
    unsolved = [*samples, f"search.max_tokens={size.tokens // 4}"]
    allocation = 'search.allocation={type="unsolved-first",trees_per_problem=1000,' + pool + "}"
    random_traces = ["labels.trace_by=random", "labels.value=monte-carlo"]
    pairs = [
        "preference.enabled=true",
        f"preference.max_updates={size.updates // 4}",
        f"sft.max_updates={size.updates - size.updates // 4}",
    ]
    star = [*unsolved, allocation, *no_prm]
    searched = [f'search.allocation={{type="unsolved-first",trees_per_problem=4,{pool}}}']
    whole_round = [f"search.max_tokens={size.tokens // 2}"]
    return {
        "star": [*samples, f"search.max_tokens={size.tokens}", *no_prm, *random_traces, 'search.allocation={type="uniform"}'],
        "star-unsolved": [*star, *random_traces],
        "star-ranked": [*star, "labels.trace_by=value", "labels.value=monte-carlo"],
        "best-of-n": [*unsolved, allocation, "labels.trace_by=score", "labels.value=monte-carlo"],
        "search-plain": [
            *no_prm,
            *searched,
            *whole_round,
            "search.method=mcts",
            f"search.options={{num_children=4,temperature={TEMPERATURE}}}",
        ],
        "search-random": [*searched, *whole_round, "prm.start=fixed", "prm.when=before-search"],
        "search": [*searched, *whole_round],
        "star-pairs": [*star, *random_traces, *pairs],
        "search-pairs": [*searched, *whole_round, *pairs],
    }


ARMS = tuple(arms(Size(rounds=1, tokens=1, updates=4, samples=1)))


def common(size: Size, seed: int) -> list[str]:
    """Return the settings that all arms share: few measurements, and no gate, which would give arms unequal updates."""
    return [
        f"run.seed={seed}",
        f"run.rounds={size.rounds}",
        f"sft.max_updates={size.updates}",
        "preference.enabled=false",
        f"evaluate.samples={size.samples}",
        "evaluate.method=greedy",
        "evaluate.simulations=1",
        "gate.max_drop=1.0",
    ]


def arm_config(start: Path, overrides: Sequence[str]) -> Config:
    """Return the embedded run's settings with some changed."""
    return load_config(None, list(overrides), base=settings(start, TASK))


def warm_up(root: Path, size: Size, seed: int) -> RunDir:
    """Return the run of a seed that ends after its warm-up."""
    base = root / f"seed-{seed}" / "warm-up"
    prepare(base / "start", seed=seed, task=task_named(TASK))
    config = arm_config(base / "start", [*common(size, seed), "run.rounds=0"])
    return run_rounds(config, base)


def run_rounds(config: Config, root: Path) -> RunDir:
    """Run what is missing of a run."""
    return evolve(config, root, display=ProgressDisplay(), on_round=lambda row: None)


def run_arm(root: Path, size: Size, seed: int, arm: str, *, more: Sequence[str] = ()) -> Cell:
    """Run an arm from the warmed-up policy of its seed; what is finished is kept."""
    start = warm_up(root, size, seed)
    place = root / f"seed-{seed}" / size.name / arm
    overrides = [*common(size, seed), *arms(size)[arm], *more]
    if arm == "search-random":
        overrides.append(f"prm.model={random_prm(start, place.parent / 'random-prm', seed)}")
    config = arm_config(start.root / "start", overrides)
    if not (place / "rounds" / "000").exists():
        adopt(open_run(place, config), start)
    run = run_rounds(config, place)
    return Cell(arm, seed, run, run.rows())


def adopt(run: RunDir, start: RunDir) -> None:
    """Begin a run with the finished round 0 of another one."""
    with atomic_directory(run.round(0)) as temporary:
        shutil.copytree(start.round(0), temporary, dirs_exist_ok=True)


def random_prm(start: RunDir, place: Path, seed: int) -> Path:
    """Return a PRM whose scores have nothing to do with the task: the warmed-up policy with a wide random head."""
    if not place.exists():
        config = start.config()
        policy = start.policy_source(0, config)
        model, spec = initialise_prm(policy, renderer_hash=build_renderer(config, policy).hash, seed=seed, device="cpu")
        # The head starts near zero, where all scores are alike; wider, it tells steps apart, at random.
        head = cast(torch.nn.Linear, model.get_submodule("score"))
        head.weight.data *= 100.0
        with atomic_directory(place) as temporary:
            model.save_pretrained(temporary)
            load_tokenizer(policy).save_pretrained(temporary)
            spec.save(temporary)
    return place


# Figures


def greedy(cell: Cell, number: int) -> dict[str, float]:
    """Return whether the greedy solution of each test problem is right after a round."""
    folder = cell.run.evaluation(number, "test") / "greedy"
    return {row.problem_id: float(row.correct) for row in all_solved(folder)}


def sampled(cell: Cell, number: int) -> dict[str, float]:
    """Return the share of right samples of each test problem after a round."""
    folder = cell.run.evaluation(number, "test") / "samples"
    return {row.problem_id: sum(sample.correct for sample in row.samples) / len(row.samples) for row in all_pools(folder)}


def spent(row: RoundRow) -> int:
    """Return the generated tokens that a round learned from."""
    return 0 if row.search is None else row.search.generated_tokens + row.search.rollout_tokens


def tokens_to_reach(curve: Sequence[tuple[float, float]], share: float) -> float | None:
    """Return the tokens at which an accuracy is reached, between two rounds by a straight line; None if it never is.

    Args:
        curve: (tokens so far, accuracy) after each round, from the warm-up on.
        share: The accuracy.
    """
    if curve and curve[0][1] >= share:
        return curve[0][0]
    for (before, low), (after, high) in pairwise(curve):
        if low < share <= high:
            return before + (after - before) * (share - low) / (high - low)
    return None


T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5% points of Student's t by degrees of freedom."""


def interval_over_seeds(differences: Sequence[float]) -> Interval | None:
    """Return the 95% t-interval of a mean difference, one value per seed; None for fewer than two, or more than ten."""
    quantile = T_QUANTILES.get(len(differences) - 1)
    if quantile is None:
        return None
    mean = sum(differences) / len(differences)
    spread = math.sqrt(sum((each - mean) ** 2 for each in differences) / (len(differences) - 1) / len(differences))
    return Interval(mean - quantile * spread, mean + quantile * spread)


def interval_over_problems(differences: Sequence[Sequence[float]], *, num_resamples: int = 10_000) -> Interval:
    """Return the 95% bootstrap interval of a mean difference over the test problems, which are drawn anew within every seed.

    Args:
        differences: Per seed, the difference at every problem.
        num_resamples: Bootstrap samples, >= 1.
    """
    rng = np.random.default_rng(0)
    means = np.mean([rng.choice(each, (num_resamples, len(each))).mean(axis=1) for each in differences], axis=0)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(low), float(high))


def paired(cells: Sequence[Cell], arm: str, measure: Callable[[Cell], dict[str, float]]) -> list[list[float]]:
    """Return, per seed that both arms have, what the reference arm is better by at every problem."""
    ours = {cell.seed: cell for cell in cells if cell.arm == REFERENCE}
    theirs = {cell.seed: cell for cell in cells if cell.arm == arm}
    found = []
    for seed in sorted(set(ours) & set(theirs)):
        first, second = measure(ours[seed]), measure(theirs[seed])
        found.append([first[problem] - second[problem] for problem in sorted(first)])
    return found


def overlap(cell: Cell) -> dict[int, tuple[int, int]]:
    """Return, by distance, how many test problems there are, and how many occur as rows in the traces that the arm learned from."""
    seen = {
        step.split(" ")[-1] for path in cell.run.shards("traces") for trace in read_traces(path) for step in trace.completion.splitlines()
    }
    counts: dict[int, tuple[int, int]] = {}
    for line in Path(cell.run.config().problems.test).read_text(encoding="utf-8").splitlines():
        problem = json.loads(line)
        total, met = counts.get(problem["distance"], (0, 0))
        counts[problem["distance"]] = (total + 1, met + (problem["question"] in seen))
    return dict(sorted(counts.items()))


# Tables


def render(cells: Sequence[Cell], size: Size) -> str:
    """Return the tables of some finished runs."""
    parts = [
        f"{size.rounds} rounds, {size.tokens} generated tokens a problem and round, {size.updates} updates of the policy a round; "
        f"{processor()}.",
        rounds_table(cells, size),
        differences_table(cells, size),
        levels_table(cells),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def rounds_table(cells: Sequence[Cell], size: Size) -> str:
    """Return one row per arm and seed, with its figures after every round."""
    heads = ["arm", "seed", "round", "solved", "pass@1 greedy", "pass@1 sampled", f"pass@{size.samples}", "tokens", "unique / generated"]
    heads += ["traces", "updates", *(f"tokens to {100 * share:.0f}%" for share in MILESTONES)]
    body = []
    for cell in cells:
        total, curve = 0, []
        for row in cell.rows:
            total += spent(row)
            curve.append((float(total), 0.0 if row.test.pass_at_1 is None else row.test.pass_at_1.value))
            last = row is cell.rows[-1]
            reached = [tokens_to_reach(curve, share) if last else None for share in MILESTONES]
            sft = row.training.policy.stages
            body.append(
                [
                    cell.arm,
                    str(cell.seed),
                    str(row.round),
                    "–" if row.search is None else str(row.search.solved),
                    _percent(curve[-1][1]),
                    _percent(row.test.pool.sampled_pass_at_1),
                    _percent(row.test.pool.pass_at_k),
                    f"{total:,}",
                    _unique_share(row),
                    "–" if row.labels is None else str(row.labels.traces.kept),
                    str(sum(summary.updates for name, summary in sft.items() if name != "warmup")) if row.round else "–",
                    *("–" if tokens is None else f"{tokens:,.0f}" for tokens in reached),
                ]
            )
    return _table(heads, body)


def differences_table(cells: Sequence[Cell], size: Size) -> str:
    """Return what the reference arm is better by after each round, with both intervals."""
    heads = ["search against", "round", "seeds", "greedy: difference", "over seeds", "over problems"]
    heads += ["sampled: difference", "over seeds", "over problems"]
    body = []
    for arm in (arm for arm in ARMS if arm != REFERENCE and any(cell.arm == arm for cell in cells)):
        for number in range(1, size.rounds + 1):
            usable = [cell for cell in cells if len(cell.rows) > number]
            found = [paired(usable, arm, partial(measure, number=number)) for measure in (greedy, sampled)]
            if found[0]:
                body.append([arm, str(number), str(len(found[0])), *(text for each in found for text in _difference(each))])
    return _table(heads, body) if body else ""


def levels_table(cells: Sequence[Cell]) -> str:
    """Return solved training problems, greedy accuracy and overlap by distance, as sums and means over the seeds of an arm."""
    levels = list(cells[0].rows[0].test.levels) if cells else []
    body = []
    for arm in (arm for arm in ARMS if any(cell.arm == arm for cell in cells)):
        own = [cell for cell in cells if cell.arm == arm]
        for number in range(max(len(cell.rows) for cell in own)):
            rows = [cell.rows[number] for cell in own if len(cell.rows) > number]
            accuracy = [np.mean([row.test.levels[level].pass_at_1 or 0.0 for row in rows]) for level in levels]
            body.append([arm, str(number), "greedy %", *(f"{100 * each:.0f}" for each in accuracy)])
            searched = [row.search for row in rows if row.search is not None and row.search.levels]
            if searched:
                shares = [100 * np.mean([each.levels[level].solved / each.levels[level].problems for each in searched]) for level in levels]
                body.append([arm, str(number), "solved %", *(f"{share:.0f}" for share in shares)])
        met = [overlap(cell) for cell in own]
        body.append(
            [arm, "all", "met in traces %", *(f"{100 * np.mean([_share(each[int(level)]) for each in met]):.0f}" for level in levels)]
        )
    return _table(["arm", "round", "figure", *(f"distance {level}" for level in levels)], body) if body else ""


def _share(counts: tuple[int, int]) -> float:
    return counts[1] / counts[0]


def _difference(per_seed: Sequence[Sequence[float]]) -> list[str]:
    means = [sum(each) / len(each) for each in per_seed]
    over_seeds, over_problems = interval_over_seeds(means), interval_over_problems(per_seed)
    return [f"{100 * sum(means) / len(means):+.1f}", *("–" if each is None else _between(each) for each in (over_seeds, over_problems))]


def _between(interval: Interval) -> str:
    low, high = interval
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _unique_share(row: RoundRow) -> str:
    use = None if row.search is None else row.search.token_use
    return "–" if use is None or row.search is None else f"{use.unique_tokens / max(row.search.generated_tokens, 1):.2f}"


def _table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join(["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *("| " + " | ".join(row) + " |" for row in body)])


def processor() -> str:
    """Return the name of the processor; results of training repeat exactly on one kind of processor only."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    parts = [found.get("model name", platform.processor() or platform.machine())]
    parts += [f"{key} {found[key]}" for key in ("cpu family", "model") if key in found]
    return "processor " + ", ".join(parts)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    chosen = text.split(",")
    unknown = sorted(set(chosen) - set(ARMS))
    if unknown:
        raise argparse.ArgumentTypeError(f"must be among {', '.join(ARMS)}: got {', '.join(unknown)}")
    return chosen


def main() -> None:
    """Run the arms and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2, 3, 4], help="seeds, with commas")
    parser.add_argument("--arms", type=_names, default=list(ARMS), help="arms, with commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1000, help="generated tokens a training problem and round")
    parser.add_argument("--updates", type=int, default=100, help="updates of the policy a round")
    parser.add_argument("--samples", type=int, default=16, help="samples of a test problem for sampled pass@1 and pass@k")
    parser.add_argument("--root", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--set", dest="more", action="append", default=[], metavar="KEY=VALUE", help="change a setting in all arms")
    arguments = parser.parse_args()
    size = Size(rounds=arguments.rounds, tokens=arguments.tokens, updates=arguments.updates, samples=arguments.samples)
    cells: list[Cell] = []
    text = ""
    for seed in arguments.seeds:
        for arm in arguments.arms:
            cells.append(run_arm(arguments.root, size, seed, arm, more=arguments.more))
            # Written after every run, so that a stopped call leaves the table of what is finished.
            text = render(cells, size)
            atomic_write_text(arguments.root / f"evidence-{size.name}.md", text)
    echo(text)


if __name__ == "__main__":
    main()
