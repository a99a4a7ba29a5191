"""Does search train better than sampling? Arms of the puzzle at equal generated tokens and equal updates, over seeds, as Markdown tables.

    star                    plain STaR: independent samples, the same number for every problem
    star-unsolved           the same; a problem leaves when it is solved, and the others share its tokens
    star-ranked             as star-unsolved, with the traces of best Monte Carlo value
    star-single             as star-unsolved, but one sample at a time instead of four, so that a problem leaves after its first solution
    star-time               star-single with eight times the tokens: on one core it takes as long as the search and its PRM
    best-of-n               as star-unsolved, with the traces that the PRM scores best; the PRM is trained on the first samples
    search-plain            tree search without a PRM
    search-random           the search with a random PRM
    search-weak             the search with a PRM that has a tenth of the updates
    search                  the search with its PRM, which each round trains on its first samples
    star-pairs, search-pairs  star-unsolved and search with a quarter of the updates on preference pairs

All arms of a seed begin with the same warmed-up policy. All but star-time have the same pool of generated tokens a round, first samples
included, and all the same number of updates of the policy, which learns one trace of each problem, the shortest of all rounds. The PRM's
own updates come on top. ``--pass-at 16`` draws so many solutions of every test problem from the last policies besides, for pass@16.
With ``--noise 0.1`` one in ten wrong solutions that state the goal is graded as right in training, with ``--noise 1`` all of them, as if
only the last row were read. Test problems are graded exactly.
Seeds from 100 on were used for development.

    python -m benchmarks.evidence --jobs 2 --seeds 0,1 --arms star-unsolved,search

Every arm and seed is a run directory below ``--root`` with a log beside it; a stopped call continues. A run that fails is named at the end,
and the others go on. ``--tables`` prints the tables of the rounds that are finished. Tables and a picture are also written to ``--root``.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import many_runs, noisy_puzzle
from benchmarks.evidence_picture import draw
from benchmarks.evidence_tables import finished, pass_at_table, problem_rows, render
from benchmarks.many_runs import Work, end, names_among, numbers, run_from, run_rounds, share
from benchmarks.random_prm import save_random_prm
from stepladder.embedded import PuzzleTask, prepare, recipes, settings
from stepladder.files import atomic_directory, atomic_write_text
from stepladder.loops.config.load import load_config
from stepladder.loops.config.run import Config
from stepladder.loops.runs.directory import load_run
from stepladder.loops.runs.workers import Task
from stepladder.terminal import echo

TASK = "puzzle"
TEMPERATURE = recipes.PUZZLE["search"]["options"]["temperature"]
"""Every arm samples its training data at the temperature of the embedded run's search."""
TIME = 8
"""Tokens of ``star-time`` in those of the search. Without the training and evaluation of policies, which are equal, two rounds take 181 s
a seed with the search, of which its PRM takes 146, and 22 s with samples one at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How large the comparison is."""

    rounds: int = 3
    """Rounds after the warm-up."""
    tokens: int = 1000
    """Generated tokens of a round, per training problem."""
    updates: int = 200
    """Updates of the policy in a round."""
    samples: int = 2
    """Independent samples of a test problem after each round."""
    problems: int = 16
    """Training problems of each distance."""
    tests: int = 64
    """Test problems of each distance."""
    least: int = 5
    """Moves from the easiest problems to the goal."""
    most: int = 13
    """Moves from the hardest problems to the goal."""
    noise: float = 0.0
    """Share of the wrong solutions that state the goal which are graded as right in training, in [0, 1]."""

    @property
    def name(self) -> str:
        """Part of the directory of its runs."""
        return f"{self.rounds}x{self.tokens}-{self.updates}-{self.task}" + (f"-noise-{self.noise:g}" if self.noise else "")

    @property
    def task(self) -> str:
        """Part of the directories of all runs on the same problems, with the same measurements."""
        return f"{self.least}-{self.most}-{self.problems}-{self.tests}x{self.samples}"

    @property
    def puzzle(self) -> PuzzleTask:
        """The problems."""
        return PuzzleTask(
            least_distance=self.least, most_distance=self.most, train_per_distance=self.problems, test_per_distance=self.tests
        )

    def sentence(self) -> str:
        """Say it to readers."""
        return (
            f"{self.rounds} rounds, {self.tokens:,} generated tokens a problem and round, {self.updates} updates of the policy a round, "
            f"{self.problems} training and {self.tests} test problems of each distance from {self.least} to {self.most}, k = {self.samples}"
        ) + (f"; {self.noise:.0%} of the wrong solutions that state the goal pass in training" if self.noise else "")


def arms(size: Size) -> dict[str, list[str]]:
    """Return the settings of every arm that differ from the embedded run's, as ``--set`` takes them."""
    samples = ["search.method=majority", f"search.options={{temperature={TEMPERATURE}}}", "search.simulations=100000"]
    pool = f"pool_tokens={size.tokens}"
    anew = ["search.start=question"]
    no_prm = ["prm.enabled=false", "prm.when=after-policy", *anew]
    unsolved = [*samples, f"search.max_tokens={size.tokens // 4}"]
    allocation = 'search.allocation={type="unsolved-first",trees_per_problem=1000,' + pool + "}"
    monte_carlo = "labels.value=monte-carlo"
    pairs = [
        "preference.enabled=true",
        f"preference.max_updates={size.updates // 4}",
        "preference.epochs=1000",
        f"sft.max_updates={size.updates - size.updates // 4}",
    ]
    star = [*unsolved, allocation, *no_prm, monte_carlo]
    single = [*star, "search.simulations=1", f"search.options={{temperature={TEMPERATURE},wave=1}}"]
    searched = [f"search.allocation.{pool}"]
    whole_round = [f"search.max_tokens={size.tokens // 2}"]
    return {
        "star": [*samples, f"search.max_tokens={size.tokens}", *no_prm, monte_carlo, 'search.allocation={type="uniform"}'],
        "star-unsolved": star,
        "star-ranked": [*star, "labels.trace_by=value"],
        "star-single": single,
        "star-time": [*single, f"search.allocation.pool_tokens={TIME * size.tokens}"],
        "best-of-n": [*unsolved, allocation, *anew, "labels.trace_by=score", monte_carlo],
        "search-plain": [
            *no_prm,
            *searched,
            *whole_round,
            "search.method=mcts",
            f"search.options={{num_children=4,temperature={TEMPERATURE}}}",
        ],
        "search-random": [*searched, *whole_round, *anew, "prm.start=fixed", "prm.when=before-search"],
        "search-weak": [*searched, *whole_round, f"prm.train.max_updates={recipes.PUZZLE['prm']['train']['max_updates'] // 10}"],
        "search": [*searched, *whole_round],
        "star-pairs": [*star, *pairs],
        "search-pairs": [*searched, *whole_round, *pairs],
    }


ARMS = tuple(arms(Size()))


def common(size: Size, seed: int) -> list[str]:
    """Return the settings that all arms share: few measurements, no gate, which would give arms unequal updates, and one process a run."""
    return [
        f"run.seed={seed}",
        f"run.rounds={size.rounds}",
        "run.workers=1",
        "run.shard_size=1000",
        f"sft.max_updates={size.updates}",
        "preference.enabled=false",
        f"evaluate.samples={size.samples}",
        # The tables have no search at test time: one expansion is the cheapest.
        "evaluate.method=mcts",
        "evaluate.options={num_children=1}",
        "evaluate.simulations=1",
        "gate.max_drop=1.0",
    ]


def arm_config(start: Path, overrides: Sequence[str]) -> Config:
    """Return the embedded run's settings with some changed."""
    return load_config(None, list(overrides), base=settings(start, TASK))


def warm_up_root(root: Path, size: Size, seed: int) -> Path:
    """Return the directory of the run of a seed that ends after its warm-up."""
    return root / f"seed-{seed}" / f"warm-up-{size.task}"


def arm_root(root: Path, size: Size, seed: int, arm: str) -> Path:
    """Return the directory of the run of an arm."""
    return root / f"seed-{seed}" / size.name / arm


def warm_up(root: Path, size: Size, seed: int, *, more: Sequence[str] = ()) -> None:
    """Warm up the policy with which all arms of a seed begin; what is finished is kept."""
    base = warm_up_root(root, size, seed)
    prepare(base / "start", seed=seed, task=size.puzzle)
    if size.noise:
        write_noisy_problems(base, size.noise)
    run_rounds(arm_config(base / "start", [*common(size, seed), *more, "run.rounds=0"]), base)


def run_arm(root: Path, size: Size, seed: int, arm: str, *, more: Sequence[str] = ()) -> None:
    """Run an arm from the warmed-up policy of its seed; what is finished is kept."""
    start, place = load_run(warm_up_root(root, size, seed)), arm_root(root, size, seed, arm)
    overrides = [*common(size, seed), *arms(size)[arm], *more]
    if arm == "search-random":
        prm, config = place.parent / "random-prm", start.config()
        save_random_prm(prm, config=config, policy=start.policy_source(0, config), seed=seed)
        overrides.append(f"prm.model={prm}")
    if size.noise:
        overrides += noisy_grading(start.root, size.noise)
    run_from(start, arm_config(start.root / "start", overrides), place)


def pass_at_root(root: Path, size: Size, seed: int, arm: str, k: int) -> Path:
    """Return the directory of the run that measures the last policy of an arm with k samples."""
    return root / f"seed-{seed}" / f"{size.name}-pass-at-{k}" / arm


def measure_pass_at(root: Path, size: Size, seed: int, arm: str, *, k: int) -> None:
    """Draw k solutions of every test problem from the last policy of an arm that is finished; what is drawn is kept."""
    trained, start = load_run(arm_root(root, size, seed, arm)), settings(warm_up_root(root, size, seed) / "start", TASK)
    # Nothing is trained or searched: the run ends after the measurements of its first model.
    measured = {**start, "policy": {"model": trained.policy_source(size.rounds, trained.config())}, "warmup": {}}
    idle = ["prm.enabled=false", "prm.when=after-policy", "prm.replay=0", "search.start=question", "labels.replay=0"]
    overrides = [*common(size, seed), *idle, "run.rounds=0"]
    run_rounds(load_config(None, [*overrides, f"evaluate.samples={k}"], base=measured), pass_at_root(root, size, seed, arm, k))


def noisy_problems(base: Path, noise: float) -> Path:
    """Return where ``write_noisy_problems`` writes."""
    return base / "start" / f"noise-{noise:g}"


def write_noisy_problems(base: Path, noise: float) -> None:
    """Write the problems of a seed with the probability that a wrong solution passes, unless they are there."""
    folder = noisy_problems(base, noise)
    if folder.exists():
        return
    with atomic_directory(folder) as temporary:
        for split, passing in (("train", f"{noise:g}"), ("held_out", "0"), ("test", "0")):
            rows = ({**row, "passing": passing} for row in problem_rows(base / "start" / "problems" / f"{split}.jsonl"))
            (temporary / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def noisy_grading(base: Path, noise: float) -> list[str]:
    """Return the settings that grade by these files, as ``--set`` takes them."""
    files = [f"problems.{split}={noisy_problems(base, noise) / f'{split}.jsonl'}" for split in ("train", "held_out", "test")]
    return [*files, "problems.answer_field=passing", f"problems.verifier={Path(noisy_puzzle.__file__).resolve()}:grade"]


def run_all(
    root: Path, size: Size, *, seeds: Sequence[int], chosen: Sequence[str], more: Sequence[str], jobs: int, pass_at: int | None = None
) -> list[str]:
    """Run the arms of all seeds, ``jobs`` at once, an arm of all seeds before the next; return a sentence about each run that failed.

    Args:
        root: Where all runs lie.
        size: How large the comparison is.
        seeds: The seeds.
        chosen: The arms.
        more: Settings that change in all arms, as ``--set`` takes them.
        jobs: Runs at once, >= 1.
        pass_at: Solutions of every test problem to draw from the last policies at the end, >= 1; None draws none.
    """
    starts = {seed: Work(f"seed {seed}, warm-up", Task.of(warm_up, root=root, size=size, seed=seed, more=more)) for seed in seeds}
    runs = [
        (seed, Work(f"seed {seed}, {arm}", Task.of(run_arm, root=root, size=size, seed=seed, arm=arm, more=more)))
        for arm in chosen
        for seed in seeds
    ]
    if pass_at is not None:
        runs += [
            (
                seed,
                Work(f"seed {seed}, {arm}, pass@{pass_at}", Task.of(measure_pass_at, root=root, size=size, seed=seed, arm=arm, k=pass_at)),
            )
            for arm in chosen
            for seed in seeds
        ]
    return many_runs.run_all(starts, runs, jobs=jobs)


def places(root: Path, size: Size, *, seeds: Sequence[int], chosen: Sequence[str]) -> list[tuple[str, int, Path]]:
    """Return arm, seed and directory of some runs."""
    return [(arm, seed, arm_root(root, size, seed, arm)) for seed in seeds for arm in chosen]


def main() -> None:
    """Run the arms and print their tables."""
    parser, plain = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter), Size()
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2, 3, 4], help="seeds, with commas")
    parser.add_argument("--arms", type=names_among(ARMS), default=list(ARMS), help="arms, with commas, the most important first")
    parser.add_argument("--rounds", type=int, default=plain.rounds)
    parser.add_argument("--tokens", type=int, default=plain.tokens, help="generated tokens a training problem and round")
    parser.add_argument("--updates", type=int, default=plain.updates, help="updates of the policy a round")
    parser.add_argument("--samples", type=int, default=plain.samples, help="samples of a test problem for sampled pass@1 and pass@k")
    parser.add_argument("--problems", type=int, default=plain.problems, help="training problems of each distance")
    parser.add_argument("--tests", type=int, default=plain.tests, help="test problems of each distance; 196 at most with the others")
    parser.add_argument("--distances", type=numbers, default=[plain.least, plain.most], help="moves to the goal, fewest and most")
    parser.add_argument("--noise", type=share, default=plain.noise, help="share of wrong solutions that pass in training, in [0, 1]")
    parser.add_argument("--pass-at", type=int, metavar="K", help="measure pass@K of the last policies with K samples besides")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, each on one core")
    parser.add_argument("--tables", action="store_true", help="run nothing, print the tables of what is finished")
    parser.add_argument("--root", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--set", dest="more", action="append", default=[], metavar="KEY=VALUE", help="change a setting in all arms")
    arguments = parser.parse_args()
    size = Size(
        rounds=arguments.rounds,
        tokens=arguments.tokens,
        updates=arguments.updates,
        samples=arguments.samples,
        problems=arguments.problems,
        tests=arguments.tests,
        least=arguments.distances[0],
        most=arguments.distances[-1],
        noise=arguments.noise,
    )
    root, seeds, chosen, k, failed = arguments.root.resolve(), arguments.seeds, arguments.arms, arguments.pass_at, list[str]()
    if not arguments.tables:
        failed = run_all(root, size, seeds=seeds, chosen=chosen, more=arguments.more, jobs=arguments.jobs, pass_at=k)
    if cells := finished(places(root, size, seeds=seeds, chosen=chosen)):
        text = render(cells, size.sentence())
        if k is not None:
            measured = [(arm, seed, pass_at_root(root, size, seed, arm, k)) for arm in chosen for seed in seeds]
            text += f"\n{pass_at_table(finished(measured, rounds=0), k)}\n"
        atomic_write_text(root / f"evidence-{size.name}.md", text)
        atomic_write_text(root / f"evidence-{size.name}.svg", draw(cells))
        echo(text)
    end(failed)


if __name__ == "__main__":
    main()
