"""Which process reward model searches best on the embedded task, at equal tokens: losses, targets, aggregations, implicit models, noise.

The policy is fixed: the one that round 1 of an embedded run trained. Every PRM starts from it and learns from the same solutions, those
that it sampled for the training problems, with the same number of updates and of passes over them: a batch holds as many solutions, or the
groups that their steps make where steps are compared. ``trees`` learn from the round's search trees instead, which the policy before made.
Each is measured on test problems:

    AUC         of right against wrong solutions within a problem, over one pool of samples that all PRMs score
    best of n   accuracy of the best-scored of so many samples, over all subsets of the pool
    search      accuracy of the run's search method guided by the PRM, every problem with the same cap on generated tokens

The noisy part flips the labels of a quarter of the solutions (the label noise of Coste et al. 2023), for every member others, trains
implicit PRMs on them, and follows the accuracy of best-of-n over growing n, the gold curve, for single members, their mean, their worst
case, and their mean less the variance.

Runs are read from ``--runs`` (``seed-0`` and so on, as ``make evidence-glyphs`` leaves them) and made where they are missing.
``make prm-study`` runs all; a stopped call continues. To use several cores, start one call per seed, and then one with all seeds, which
only collects.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from stepladder.data.labels.rstar_math import StepPairs
from stepladder.data.labels.value_rows import value_rows
from stepladder.data.metrics.answers import within_problem_auc
from stepladder.data.metrics.step_scores import best_of_n_curve
from stepladder.data.store import read_trees
from stepladder.files import atomic_file, atomic_write_text
from stepladder.interfaces import ScoreRequest, collect_all
from stepladder.lm.settings import TrainSettings
from stepladder.loops.assembly.policies import build_renderer
from stepladder.loops.assembly.problem_sets import build_problems
from stepladder.loops.assembly.problems import build_verifier, vote_keys
from stepladder.loops.assembly.scorers import build_scorer
from stepladder.loops.assembly.search import search_engine
from stepladder.loops.config.run import Config
from stepladder.loops.runs.directory import RunDir, load_run
from stepladder.loops.runs.workers import worker_models
from stepladder.mcts.methods import resolve_method
from stepladder.mcts.qvalues import AGGREGATIONS, aggregate_scores
from stepladder.prm.compose import Ensemble, ensemble_scores
from stepladder.prm.implicit import train_implicit_on_tokens
from stepladder.prm.objective import COMPARING
from stepladder.prm.specs import PRMSpec
from stepladder.prm.target_rows import group_rows, pair_rows
from stepladder.prm.value_training import train_value
from stepladder.tree_paths import path_to
from stepladder.types import Budget, LabelledProblem, Provenance, SearchResult, derive_seed

BINS = PRMSpec(bins=32, transform="identity")
IMPLICIT = PRMSpec(family="implicit", beta=0.05, accumulate=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to train a PRM."""

    loss: str = "bce"
    target: str = "monte-carlo"
    supervise: str = "step-end"
    source: str = "rollouts"
    spec: PRMSpec = field(default_factory=PRMSpec)


EVERY: dict[str, Any] = {"supervise": "every-token"}
VARIANTS = {
    "bce": Variant(**EVERY),
    "mse": Variant(loss="mse", **EVERY),
    "hl-gauss": Variant(loss="hl-gauss", spec=BINS, **EVERY),
    "two-hot": Variant(loss="two-hot", spec=BINS, **EVERY),
    "pairwise": Variant(loss="pairwise"),
    "pairwise+mse": Variant(loss="pairwise+mse"),
    "listwise, outcomes": Variant(loss="listwise", target="outcome"),
    "pairwise, step pairs": Variant(loss="pairwise", target="step-pairs"),
    "bce, hard max": Variant(target="hard-max", **EVERY),
    "bce, distance": Variant(target="distance", **EVERY),
    "bce, progress": Variant(target="progress", **EVERY),
    "bce, outcomes": Variant(target="outcome", **EVERY),
    "bce, trees, tree values": Variant(source="trees", target="tree-value", **EVERY),
    "implicit-ce, outcomes": Variant(loss="implicit-ce", target="outcome", spec=IMPLICIT),
}
"""What is compared, in the order of the table."""
BASE = "bce"
"""The variant whose scores the aggregations are compared on."""
NOISY = "implicit-ce, outcomes"
"""The variant that learns from flipped labels."""
COMPOSITIONS: dict[str, Ensemble | None] = {
    "one of them": None,
    "mean": "mean",
    "worst case": "min",
    "mean less variance": "mean-variance",
}
"""What becomes of the noisy members' scores."""
PENALTY = 1.0
"""Weight of the variance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is done."""

    problems: int
    """Test problems."""
    updates: int
    """Updates of every PRM."""
    samples: int
    """Solutions in the pool of a problem."""
    tokens: int
    """Generated tokens of a search."""
    members: int
    """Noisy PRMs."""
    noise: float
    """Share of the solutions whose labels are flipped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A seed's run, its fixed policy, and what is measured on it."""

    run: RunDir
    """The run that the policy and the data are of."""
    config: Config
    """Its configuration."""
    problems: list[LabelledProblem]
    """Test problems."""
    root: Path
    """Where PRMs and figures go."""
    sizes: Sizes
    """How much is done."""

    @property
    def policy(self) -> str:
        """The fixed policy."""
        return self.run.policy_source(1, self.config)


def open_study(runs: Path, root: Path, seed: int, sizes: Sizes) -> Study:
    """Open a seed's run, or make it as far as is needed."""
    path = runs / f"seed-{seed}"
    if not (path / "rounds" / "001" / "round.json").exists():
        evolve = [sys.executable, "-m", "stepladder", "evolve", "--task", "glyphs", "--run-dir", str(path)]
        subprocess.run([*evolve, "--seed", str(seed), "--rounds", "1"], check=True, stdout=subprocess.DEVNULL)
    run = load_run(path)
    problems = build_problems(run.config().problems, seed=seed)["test"][: sizes.problems]
    return Study(run=run, config=run.config(), problems=problems, root=root / f"seed-{seed}", sizes=sizes)


def train(study: Study, variant: Variant, out: Path, *, rows: Sequence[Any] | None = None, seed: int = 0) -> None:
    """Train a PRM that is missing."""
    if out.exists():
        return
    worker_models().release()
    share = 1.0
    if rows is None:
        records = [record for shard in study.run.shards(variant.source, rounds=[1]) for record in read_trees(shard)]
        if variant.target == "step-pairs":
            given = study.config.prm.target
            rows = (given if isinstance(given, StepPairs) else StepPairs()).select(records).rows
        else:
            rows = value_rows(records, target=variant.target, drop_one_sided=True).rows
        share = rows_per_solution(variant, rows, records)
    section = study.config.prm.train
    settings = TrainSettings(
        learning_rate=section.learning_rate,
        epochs=1000.0,
        max_updates=study.sizes.updates,
        batch_size=max(1, round(section.batch_size * share)),
        weight_decay=section.weight_decay,
        seed=seed,
        device="cpu",
    )
    renderer = build_renderer(study.config, study.policy)
    common: dict[str, Any] = {"renderer_hash": renderer.hash, "loss": variant.loss}
    if variant.spec.family == "implicit":
        spec = replace(variant.spec, reference=str(Path(study.policy).resolve()))
        train_implicit_on_tokens(study.policy, rows, out, settings, spec=spec, **common)  # pyright: ignore[reportArgumentType]
    else:
        train_value(study.policy, rows, out, settings, spec=variant.spec, supervise=variant.supervise, **common)  # pyright: ignore
    renderer.step_format.save(out)


def rows_per_solution(variant: Variant, rows: Sequence[Any], records: Sequence[Any]) -> float:
    """Return how many rows a trainer makes of a solution: groups of steps, or of a problem's solutions, where these are compared."""
    if variant.loss not in COMPARING:
        return 1.0
    solutions = value_rows(records, drop_one_sided=True).rows
    if variant.target == "step-pairs":
        return len(pair_rows(rows, vocabulary=sys.maxsize, dropped={})) / len(solutions)
    compare = "problem" if variant.loss == "listwise" else "siblings"
    return len(group_rows(rows, vocabulary=sys.maxsize, dropped={}, compare=compare)) / len(solutions)


def search(study: Study, prm: str | None, method: Any, budget: Budget) -> list[SearchResult]:
    """Search the test problems and return the results in their order."""
    problems = [labelled.problem for labelled in study.problems]
    with build_verifier(study.config.problems, []) as verifier:
        engine = search_engine(
            study.config,
            worker_models(),
            problems,
            policy=study.policy,
            prm=prm,
            method=method,
            budget=budget,
            key_of=vote_keys(verifier),
            provenance=Provenance(
                round=1, policy_version=1, scorer_version=None, seed=study.config.run.seed, config_hash="study", renderer_hash=""
            ),
        )
        found = {result.problem_id: result for result in engine.search(problems)}
    return [found[problem.id] for problem in problems]


def search_accuracy(study: Study, prm: str, **options: Any) -> tuple[float, float]:
    """Return the share of right answers of the run's search, and the tokens that it generated per problem."""
    section = study.config.search
    limits = Budget(
        num_simulations=1_000_000, max_tokens=study.sizes.tokens, max_depth=section.max_depth, max_step_tokens=section.max_step_tokens
    )
    chosen = study.config.evaluate
    results = search(study, prm, resolve_method(chosen.method, **(chosen.options | options)), limits)
    with build_verifier(study.config.problems, study.problems) as verifier:
        verdicts = verifier.grade([(result.problem_id, result.answer) for result in results])
    tokens = sum(result.tree.generated_tokens for result in results)
    return sum(verdict.correct for verdict in verdicts) / len(verdicts), tokens / len(results)


def sample_pool(study: Study) -> list[dict[str, Any]]:
    """Return a pool of graded samples of every test problem: prompt, steps of each sample as tokens, verdicts."""
    section = study.config.search
    budget = Budget(num_simulations=study.sizes.samples, max_depth=section.max_depth, max_step_tokens=section.max_step_tokens)
    results = search(study, None, resolve_method("majority"), budget)
    pool = []
    with build_verifier(study.config.problems, study.problems) as verifier:
        for result in results:
            tree = result.tree
            last = [node for node, reason in enumerate(tree.stop_reasons) if reason != "step"]
            paths = [tuple(tuple(tree.token_ids[step]) for step in path_to(tree, node)) for node in last]
            verdicts = verifier.grade([(result.problem_id, tree.answers[node]) for node in last])
            pool.append({"prompt": tuple(tree.prompt_ids), "samples": paths, "right": [verdict.correct for verdict in verdicts]})
    return pool


def score_pool(study: Study, prm: str, pool: list[dict[str, Any]]) -> list[list[Any]]:
    """Return the step scores of every sample."""
    renderer = build_renderer(study.config, study.policy)
    problems = [labelled.problem for labelled in study.problems]
    scorer = build_scorer(study.config, worker_models(), prm=prm, renderer=renderer, problems=problems)
    requests = [ScoreRequest(ticket=i, prefix_ids=entry["prompt"], branches=tuple(entry["samples"])) for i, entry in enumerate(pool)]
    return [list(result.scores) for result in collect_all(scorer, requests)]


def pool_figures(pool: list[dict[str, Any]], step_scores: list[list[Any]], *, aggregation: str) -> dict[str, Any]:
    """Return AUC and gold curve of a pool whose steps are scored."""
    groups = []
    for entry, samples in zip(pool, step_scores, strict=True):
        totals = [aggregate_scores(sample, rule=aggregation) for sample in samples]
        known = [(score, right) for score, right in zip(totals, entry["right"], strict=True) if score is not None]
        groups.append(([score for score, _ in known], [right for _, right in known]))
    curve = best_of_n_curve(groups)
    return {"auc": within_problem_auc(groups), "curve": [[point.n, point.accuracy, point.score] for point in curve]}


def kept(path: Path, make: Any) -> dict[str, Any]:
    """Return figures from a file, made and written first where it is missing."""
    if not path.exists():
        atomic_write_text(path, json.dumps(make(), indent=2) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


def figures_of_seed(study: Study, names: Sequence[str]) -> dict[str, Any]:
    """Train and measure every variant, the aggregations and the noisy ensemble of one seed."""
    pool: list[dict[str, Any]] = []

    def the_pool() -> list[dict[str, Any]]:
        # Sampled when it is first needed: a call that only collects needs none.
        if not pool:
            pool.extend(sample_pool(study))
        return pool

    def measure(name: str) -> dict[str, Any]:
        prm = study.root / "prms" / slug(name)
        train(study, VARIANTS[name], prm)
        figures = pool_figures(the_pool(), score_pool(study, str(prm), the_pool()), aggregation="last")
        accuracy, tokens = search_accuracy(study, str(prm))
        return {**figures, "search": accuracy, "tokens": tokens}

    variants = {name: kept(study.root / f"{slug(name)}.json", lambda name=name: measure(name)) for name in names}

    def aggregate() -> dict[str, Any]:
        prm = str(study.root / "prms" / slug(BASE))
        scores = score_pool(study, prm, the_pool())
        return {
            rule: {
                **pool_figures(the_pool(), scores, aggregation=rule),
                "search": search_accuracy(study, prm, aggregation=rule, estimate="path")[0],
            }
            for rule in AGGREGATIONS
        }

    return {
        "variants": variants,
        "aggregations": kept(study.root / "aggregations.json", aggregate) if BASE in names else {},
        "noise": kept(study.root / "noise.json", lambda: noisy_figures(study, the_pool())),
    }


def noisy_figures(study: Study, pool: list[dict[str, Any]]) -> dict[str, Any]:
    """Train PRMs with flipped labels and return the gold curves of each composition."""
    variant = VARIANTS[NOISY]
    records = [record for shard in study.run.shards(variant.source, rounds=[1]) for record in read_trees(shard)]
    rows = value_rows(records, target=variant.target, drop_one_sided=True).rows
    members = [study.root / "prms" / f"noisy-{number}" for number in range(study.sizes.members)]
    for number, member in enumerate(members):
        train(study, variant, member, rows=noisy_rows(study, rows, number), seed=number)
    scores = [score_pool(study, str(member), pool) for member in members]
    figures: dict[str, Any] = {}
    for name, rule in COMPOSITIONS.items():
        pools = scores if rule is None else [composed(scores, rule)]
        curves = [pool_figures(pool, each, aggregation="last") for each in pools]
        figures[name] = {
            "auc": float(np.mean([each["auc"] for each in curves])),
            "curve": np.mean([each["curve"] for each in curves], axis=0).tolist(),
        }
    return figures


def noisy_rows(study: Study, rows: Sequence[Any], member: int) -> list[Any]:
    """Return the rows, the labels of some solutions flipped; which ones is the member's own."""
    rng = np.random.default_rng(derive_seed(study.config.run.seed, "noise", member))
    flipped = lambda row: replace(row, targets=[None if target is None else 1.0 - target for target in row.targets])  # noqa: E731
    return [flipped(row) if flip else row for row, flip in zip(rows, rng.random(len(rows)) < study.sizes.noise, strict=True)]


def composed(members: list[list[list[Any]]], rule: Ensemble) -> list[list[Any]]:
    """Return the scores that an ensemble gives: those of a search guided by all members, without scoring anything again."""
    return [
        [
            [
                None if None in step else float(ensemble_scores(np.array(step)[:, None], rule=rule, penalty=PENALTY)[0])
                for step in zip(*sample, strict=True)
            ]
            for sample in zip(*samples, strict=True)
        ]
        for samples in zip(*members, strict=True)
    ]


def slug(name: str) -> str:
    """Return a name as a file name."""
    return name.replace(", ", "--").replace(" ", "-").replace("+", "-and-")


def render(seeds: dict[int, dict[str, Any]]) -> str:
    """Return the tables in Markdown: means over the seeds, and the range of the search accuracy."""
    lines = []
    for title, part in (("loss and target", "variants"), (f"aggregation of the scores of `{BASE}`", "aggregations")):
        names = list(next(iter(seeds.values()))[part])
        if not names:
            continue
        n = next(iter(seeds.values()))[part][names[0]]["curve"][-1][0]
        lines += ["", f"| {title} | AUC | best of {n:.0f} | search | search, by seed |", "|---|---|---|---|---|"]
        for name in names:
            given = [figures[part][name] for figures in seeds.values()]
            auc, best, found = (
                np.mean([each["auc"] or 0.5 for each in given]),
                np.mean([each["curve"][-1][1] for each in given]),
                [each["search"] for each in given],
            )
            by_seed = ", ".join(f"{100 * value:.1f}" for value in found)
            lines.append(f"| {name} | {auc:.3f} | {100 * best:.1f} | **{100 * np.mean(found):.1f}** | {by_seed} |")
    curves = {name: np.mean([figures["noise"][name]["curve"] for figures in seeds.values()], axis=0) for name in COMPOSITIONS}
    counts = [f"{point[0]:.0f}" for point in next(iter(curves.values()))]
    lines += ["", f"| noisy PRMs, right answers of best of n | {' | '.join(counts)} |", "|---|" + "---|" * len(counts)]
    lines += [f"| {name} | " + " | ".join(f"{100 * point[1]:.1f}" for point in curve) + " |" for name, curve in curves.items()]
    return "\n".join(lines).strip() + "\n"


def draw(path: Path, seeds: dict[int, dict[str, Any]]) -> None:
    """Draw the gold curves of the noisy PRMs, mean over the seeds."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "stepladder"}):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        curves = {name: np.mean([figures["noise"][name]["curve"] for figures in seeds.values()], axis=0) for name in COMPOSITIONS}
        for name, curve in curves.items():
            axes.plot(curve[:, 0], 100 * curve[:, 1], marker="o", label=name)
        counts = next(iter(curves.values()))[:, 0]
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, labels=[f"{count:.0f}" for count in counts])
        axes.set(xlabel="samples to choose from", ylabel="right answers of the best-scored, %")
        axes.legend()
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def main() -> None:
    """Run the study and write its tables and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence-glyphs"))
    parser.add_argument("--root", type=Path, default=Path("runs/prm-study"))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--updates", type=int, default=700)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--noise", type=float, default=0.25)
    arguments = parser.parse_args()
    names = ("problems", "updates", "samples", "tokens", "members", "noise")
    sizes = Sizes(**{name: getattr(arguments, name) for name in names})
    seeds = {seed: figures_of_seed(open_study(arguments.runs, arguments.root, seed, sizes), arguments.variants) for seed in arguments.seeds}
    atomic_write_text(arguments.root / "study.json", json.dumps(seeds, indent=2) + "\n")
    atomic_write_text(arguments.root / "study.md", render(seeds))
    draw(arguments.root / "gold-curves.svg", seeds)
    print(render(seeds))


if __name__ == "__main__":
    main()
