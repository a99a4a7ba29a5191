"""Speed of the search, as ratios within one run: the engine's own share, searching against sampling, memory per node.

    python -m benchmarks.engine                    embedded model after a short warm-up, 256 problems x 64 simulations
    python -m benchmarks.engine --device cuda      the same on a GPU
    python -m benchmarks.engine --scoring          what scores cost: of a PRM of its own, and of a head on the policy's body
    python -m benchmarks.engine --products         what a search costs beside the matrix products of its tokens (CPU)

Searching and sampling use the same policy, problems, batch and limits; sampling draws whole solutions, one per simulation, and scores none.
All methods run in turn, and again, and the faster run of each counts, so that a machine whose speed drifts favours none of them. The ratio
compares tokens per second inside the policy; the overall figure counts scoring and bookkeeping, too. A second table shows steps whose
lengths differ tenfold, where an engine that waits for the longest one of a batch stalls, a third the same with twice the problems.

``--scoring`` gives the CPU time per generated token, since trees with other scores have other tokens, and within each run the share of the
work that scoring adds beside the tokens that it forwards. The scores of the first row cost nothing.

``--products`` takes a model of real proportions (``--shape``) with random weights, and gives the CPU time of a search in units of what its
unique tokens cost as matrix products alone: as the search does them, in batches as large as its decoding has, and on their own in the best
batches (``products.py``). The first ratio does not depend on what else the machine does, the second does.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.products import BATCHES, Passes, Products, Work
from stepladder.data.datasets.problems import load_seed_solutions, read_problems
from stepladder.data.labels.solution_traces import trace_from_solution
from stepladder.embedded import PreparedTask, prepare
from stepladder.embedded.glyphs import ANSWER_PATTERN, PROMPT_TEMPLATE, STEP_END, GlyphTask
from stepladder.embedded.model import build_tokenizer
from stepladder.interfaces import ScoreRequest, ScoreResult
from stepladder.lm.loading import load_causal_lm, load_tokenizer
from stepladder.lm.settings import TrainSettings
from stepladder.loops.runs.token_use import unique_tokens
from stepladder.mcts.engine import EngineStats, SearchEngine
from stepladder.mcts.methods import SearchMethod, resolve_method
from stepladder.mcts.tree import allocate
from stepladder.policy.backends import transformers as backend
from stepladder.policy.backends.transformers import TransformersPolicy
from stepladder.policy.fine_tuning import train_sft
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.prm.new_models import initialise_prm
from stepladder.prm.probes import new_head
from stepladder.prm.scorer import TransformersStepScorer
from stepladder.prm.specs import PRMSpec
from stepladder.types import Budget, Problem, Provenance, SearchResult

SETUPS = (("majority", 4), ("mcts", 1), ("mcts", 4), ("mcts", 8), ("beam", 4))
WARM_UP_UPDATES = 150
LONG_PROBLEMS, LONG_SIMULATIONS, LONG_BATCH = (16, 32), 8, 64
"""With 16 problems and four steps a leaf, one leaf in flight per tree just fills the batch; with 32 there is work to refill it."""
LONG_PROMPT_TOKENS = 200
LONG_SHAPE = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 192}
REAL_PROBLEMS, REAL_SIMULATIONS, REAL_DEPTH, REAL_BATCH = 4, 8, 4, 32
REAL_METHODS = f"mcts:4,beam:4,mcts:8,mcts:1,majority:{REAL_SIMULATIONS}"
PROPORTIONS: dict[str, dict[str, int]] = {
    "3M": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 768},
    "25M": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 1536},
    "135M": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536},
    "0.5B": {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864},
}
"""Layers in the proportions of Llama and Qwen; the last two are those of SmolLM2-135M and Qwen2.5-0.5B. The vocabulary is small."""
PROVENANCE = Provenance(round=0, policy_version=0, scorer_version=None, seed=0, config_hash="benchmark", renderer_hash="benchmark")


class Bench:
    """The models and problems of a benchmark."""

    max_step_tokens = 12

    def __init__(self, folder: Path, *, num_problems: int, max_batch: int, device: str) -> None:
        """Build the embedded task and warm its model up for a little while, so that its steps end where steps end."""
        task = prepare(folder / "task", seed=0, task=GlyphTask(num_train=num_problems))
        self.step_format = StepFormat(prompt_template=PROMPT_TEMPLATE, step_end=STEP_END, answer_pattern=ANSWER_PATTERN)
        self.policy_dir = self._warm_up(task, folder / "policy", device)
        self.tokenizer = load_tokenizer(self.policy_dir)
        self.renderer = PromptRenderer(self.tokenizer, self.step_format)
        self.problems: list[Problem] = [labelled.problem for labelled in read_problems(str(task.train)).problems]
        self.device, self.max_batch = device, max_batch

    def _warm_up(self, task: PreparedTask, out: Path, device: str) -> Path:
        renderer = PromptRenderer(load_tokenizer(task.base_model), self.step_format)
        provenance = replace(PROVENANCE, renderer_hash=renderer.hash)
        traces = [trace_from_solution(row, renderer=renderer, provenance=provenance) for row in load_seed_solutions(task.warmup)]
        settings = TrainSettings(learning_rate=2e-3, batch_size=32, max_updates=WARM_UP_UPDATES, device=device)
        train_sft(task.base_model, traces, out, settings, renderer_hash=renderer.hash)
        return out

    def policy(self) -> TransformersPolicy:
        """Return a policy with empty caches."""
        model = load_causal_lm(self.policy_dir, device=self.device)
        return TransformersPolicy(model, self.tokenizer, self.step_format, max_batch=self.max_batch)

    def scorer(self) -> TransformersStepScorer:
        """Return a PRM with an untrained head and empty caches."""
        model, spec = initialise_prm(self.policy_dir, renderer_hash=self.renderer.hash, seed=0, device=self.device)
        return TransformersStepScorer(model.eval(), spec)

    def search(self, method: SearchMethod, budget: Budget, *, scored: bool) -> tuple[list[SearchResult], EngineStats]:
        """Search all problems at once and say where the time went."""
        engine = SearchEngine(
            policy=self.policy(),
            scorer=self.scorer() if scored else None,
            renderer=self.renderer,
            method=method,
            budget=budget,
            provenance=PROVENANCE,
            max_trees=len(self.problems),
        )
        return list(engine.search(self.problems)), engine.stats


class LongSteps(Bench):
    """A model with random weights: nearly every token is about as likely as any other, so a newline comes after some 50 of them.

    The lengths of its steps are geometric: most lie between 6 and 180 tokens.
    """

    max_step_tokens = 256

    def __init__(
        self, folder: Path, *, num_problems: int, max_batch: int, device: str, step_end: str = "\n", shape: Mapping[str, Any] = LONG_SHAPE
    ) -> None:
        """Build the model, of a shape in the words of a Llama configuration, and its problems."""
        task = GlyphTask(num_train=1)
        tokenizer = build_tokenizer(task)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            **shape,
            max_position_embeddings=4096,
            eos_token_id=None,
            bos_token_id=None,
            pad_token_id=0,
        )
        self.policy_dir = folder / "long"
        LlamaForCausalLM(config).save_pretrained(self.policy_dir)
        tokenizer.eos_token = None
        tokenizer.save_pretrained(self.policy_dir)
        self.tokenizer = load_tokenizer(self.policy_dir)
        self.step_format = StepFormat(answer_pattern=r"(never)", step_end=step_end)
        self.renderer = PromptRenderer(self.tokenizer, self.step_format)
        digits = "0123456789"
        self.problems = [Problem(id=str(i), question=(f"{i:05d}" + digits * 20)[:LONG_PROMPT_TOKENS]) for i in range(num_problems)]
        self.device, self.max_batch = device, max_batch


class RealProportions(LongSteps):
    """The same with one of ``PROPORTIONS``, and steps of at most 64 tokens, 35 on average."""

    max_step_tokens = 64


def row_name(name: str, wave: int) -> str:
    """Return the name of a method in the tables."""
    return "independent sampling" if name == "majority" else f"{name}, W={wave}"


class FreeScorer:
    """Scores that cost nothing: a number in [0, 1) made of a step's tokens."""

    def __init__(self) -> None:
        """Begin without requests."""
        self._open: list[ScoreRequest] = []

    def submit(self, requests: Sequence[ScoreRequest]) -> None:
        """Queue requests."""
        self._open += requests

    def collect(self) -> list[ScoreResult]:
        """Return all results."""
        done, self._open = self._open, []
        return [
            ScoreResult(ticket=each.ticket, scores=tuple(tuple(sum(step) % 97 / 97 for step in branch) for branch in each.branches))
            for each in done
        ]


class Scored(NamedTuple):
    """A search with scores."""

    seconds: float
    """CPU time."""
    tokens: int
    """Tokens generated."""
    unique: int
    """Tokens of prompts and steps, each once."""
    work: float
    """CPU time in the scorer, the head, and the bookkeeping of its outputs."""
    forwarded: int
    """Tokens that went through the bodies of policy and PRM."""


def scored_search(bench: Bench, scores: str, method: SearchMethod, budget: Budget, *, policy: TransformersPolicy | None = None) -> Scored:
    """Search all problems with one of ``SCORES``, with a new policy unless one is given."""
    policy, parts = policy or bench.policy(), []
    if scores == "free":
        scorer: Any = FreeScorer()
    elif scores == "own body":
        scorer = bench.scorer()
    else:
        head = new_head(policy.hidden_size, num_outputs=1, seed=0)
        spec = PRMSpec(family="probe", body="policy", read="step-end" if scores == "step-end" else "before-end", renderer_hash="benchmark")
        scorer = TransformersStepScorer(policy.attach(head, 1, at_end=scores == "step-end"), spec)
        parts = [(head, "forward"), (policy, "_keep_outputs"), (policy._model, "outputs")]
    work = Work((scorer, "submit"), (scorer, "collect"), *parts)
    engine = SearchEngine(
        policy=policy,
        scorer=scorer,
        renderer=bench.renderer,
        method=method,
        budget=budget,
        provenance=PROVENANCE,
        max_trees=len(bench.problems),
    )
    begin = time.thread_time()
    results = list(engine.search(bench.problems))
    seconds = time.thread_time() - begin
    forwarded = policy.forwarded_tokens + getattr(scorer, "forwarded_tokens", 0)
    tokens, unique = (sum(count(result.tree) for result in results) for count in (lambda tree: tree.generated_tokens, unique_tokens))
    return Scored(seconds, tokens, unique, work.seconds, forwarded)


SCORES = ("free", "before-end", "step-end", "own body")
"""Scores that cost nothing, a head on the policy's body read at either token, and a PRM with a body of its own."""


def measure_scoring(bench: Bench, console: Console, *, simulations: int, repeats: int, title: str) -> None:
    """Print what scores cost."""
    table = Table("method", "scores", "CPU us per token", "work of scoring", "forwarded per token", title=title)
    budget = Budget(num_simulations=simulations, max_depth=8, max_step_tokens=bench.max_step_tokens)
    for name, wave in (("mcts", 4), ("beam", 4)):
        rounds = [[scored_search(bench, scores, resolve_method(name, wave=wave), budget) for scores in SCORES] for _ in range(repeats)]
        fastest = [min(runs, key=lambda run: run.seconds / run.tokens) for runs in zip(*rounds, strict=True)]
        for scores, run in zip(SCORES, fastest, strict=True):
            cost, share, forwarded = 1e6 * run.seconds / run.tokens, run.work / run.seconds, run.forwarded / run.tokens
            table.add_row(row_name(name, wave), scores, f"{cost:.1f}", f"{share:.1%}", f"{forwarded:.2f}")
    console.print(table)


class Beside(NamedTuple):
    """A search beside the matrix products of its tokens; times are CPU seconds."""

    unique: int
    """Tokens of prompts and steps, each once."""
    forwarded: int
    """Tokens that went through the model."""
    batch: float
    """Tokens of a decoding pass, on average."""
    seconds: float
    """The search."""
    products: float
    """Products within the search."""
    best_batch: float
    """Products of the unique tokens on their own, in the best batches."""
    layers: float
    """Rest of the passes: norms, activations, positions, and the calls of the layers."""
    attention: float
    """Attention in them."""
    sampling: float
    """Choice of tokens from logits."""


def beside_products(bench: Bench, scores: str, method: SearchMethod, budget: Budget) -> Beside:
    """Search all problems with one of ``SCORES``, and measure the products of its tokens on the same weights afterwards."""
    policy = bench.policy()
    products, passes = Products(policy._model._model), Passes(policy)
    sampling = Work()
    with patch.object(backend, "sample_tokens", sampling.watched(backend.sample_tokens)):
        found = scored_search(bench, scores, method, budget, policy=policy)
    best = min(products.seconds(unique=found.unique, sampled=found.tokens, batch=size) for size in BATCHES)
    return Beside(
        unique=found.unique,
        forwarded=passes.tokens,
        batch=passes.mean_batch,
        seconds=found.seconds,
        products=passes.products.seconds,
        best_batch=best,
        layers=passes.all.seconds - passes.products.seconds - passes.attention.seconds,
        attention=passes.attention.seconds,
        sampling=sampling.seconds,
    )


def measure_products(bench: Bench, console: Console, methods: str, *, simulations: int, repeats: int, title: str) -> None:
    """Print what searches cost beside their matrix products, for methods as ``REAL_METHODS`` has them."""
    columns = ("method", "scores", "unique", "batch", "/ own", "/ best", "products", "layers", "attention", "sampling", "rest")
    table = Table(*columns, title=title)
    budget = Budget(num_simulations=simulations, max_depth=REAL_DEPTH, max_step_tokens=bench.max_step_tokens)
    named = [(name, int(wave)) for name, _, wave in (method.partition(":") for method in methods.split(","))]
    # Samples are scored in no search.
    setups = [(*each, scores) for scores in ("free", "before-end") for each in named if scores == "free" or each[0] != "majority"]
    rounds = []
    for _ in range(repeats):
        runs = []
        for name, wave, scores in setups:
            runs.append(beside_products(bench, scores, resolve_method(name, wave=wave), budget))
            console.log(f"{row_name(name, wave)}, {scores}: {runs[-1]}")
        rounds.append(runs)
    for (name, wave, scores), runs in zip(setups, zip(*rounds, strict=True), strict=True):
        run = min(runs, key=lambda run: run.seconds)
        parts = (run.products, run.layers, run.attention, run.sampling)
        # Another process may have slowed one of the measurements down.
        best = min(each.best_batch for each in runs)
        table.add_row(
            row_name(name, wave),
            scores,
            f"{run.unique:,}",
            f"{run.batch:.0f}",
            f"{run.seconds / run.products:.2f}",
            f"{run.seconds / best:.2f}",
            *(f"{part / run.seconds:.1%}" for part in (*parts, run.seconds - sum(parts))),
        )
    console.print(table)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """One run of a method."""

    tokens: int
    """Tokens generated."""
    nodes: int
    """Nodes of all trees."""
    seconds: float
    """Wall time."""
    stats: EngineStats
    """Where it went."""


def timed(bench: Bench, name: str, wave: int, budget: Budget) -> Timed:
    """Run a method once."""
    begin = time.perf_counter()
    results, stats = bench.search(resolve_method(name, wave=wave), budget, scored=name != "majority")
    seconds = time.perf_counter() - begin
    tokens, nodes = (
        sum(each) for each in zip(*((result.tree.generated_tokens, len(result.tree.parents)) for result in results), strict=True)
    )
    return Timed(tokens=tokens, nodes=nodes, seconds=seconds, stats=stats)


def measure(bench: Bench, console: Console, *, simulations: int, repeats: int, title: str) -> None:
    """Print how fast methods are, and the engine's own share of their time."""
    table = Table("method", "tokens", "tokens/s in policy", "of sampling", "engine share", "tokens/s overall", "nodes", title=title)
    budget = Budget(num_simulations=simulations, max_depth=8, max_step_tokens=bench.max_step_tokens)
    rounds = [[timed(bench, name, wave, budget) for name, wave in SETUPS] for _ in range(repeats)]
    fastest = [min(runs, key=lambda run: run.seconds) for runs in zip(*rounds, strict=True)]
    sampling = fastest[0].tokens / fastest[0].stats.policy_s
    for (name, wave), run in zip(SETUPS, fastest, strict=True):
        rate = run.tokens / run.stats.policy_s
        table.add_row(
            row_name(name, wave),
            f"{run.tokens:,}",
            f"{rate:,.0f}",
            f"{rate / sampling:.2f}",
            f"{run.stats.engine_s / run.stats.total_s:.1%}",
            f"{run.tokens / run.seconds:,.0f}",
            f"{run.nodes:,}",
        )
    console.print(table)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=256)
    parser.add_argument("--simulations", type=int, default=64)
    parser.add_argument("--max-batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scoring", action="store_true")
    parser.add_argument("--products", action="store_true")
    parser.add_argument("--shape", choices=PROPORTIONS, default="25M", help="the model of --products")
    parser.add_argument("--methods", default=REAL_METHODS, help="the methods of --products, with the leaves or samples in flight of each")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(width=120)
    extent = f"{arguments.problems} problems x {arguments.simulations} simulations, batch {arguments.max_batch}"
    with tempfile.TemporaryDirectory() as folder:
        if arguments.products:
            shape = PROPORTIONS[arguments.shape]
            real = RealProportions(Path(folder), num_problems=REAL_PROBLEMS, max_batch=REAL_BATCH, device="cpu", shape=shape)
            warm = Budget(num_simulations=2, max_depth=2, max_step_tokens=4)
            scored_search(real, "free", resolve_method("mcts"), warm)
            extent = f"{REAL_PROBLEMS} problems x {REAL_SIMULATIONS} simulations, batch {REAL_BATCH}"
            title = f"beside the matrix products of {arguments.shape}: {extent}"
            measure_products(real, console, arguments.methods, simulations=REAL_SIMULATIONS, repeats=arguments.repeats, title=title)
            return
        bench = Bench(Path(folder), num_problems=arguments.problems, max_batch=arguments.max_batch, device=arguments.device)
        # Load the compiled code, which a process does once.
        for name in ("majority", "mcts", "beam"):
            bench.search(resolve_method(name), Budget(num_simulations=2, max_depth=2, max_step_tokens=12), scored=name != "majority")
        options = {"console": console, "repeats": arguments.repeats}
        if arguments.scoring:
            measure_scoring(bench, simulations=arguments.simulations, title=f"cost of scores, embedded task: {extent}", **options)
            long_steps = LongSteps(Path(folder), num_problems=LONG_PROBLEMS[0], max_batch=LONG_BATCH, device=arguments.device)
            title = f"cost of scores, long steps: {LONG_PROBLEMS[0]} problems x {LONG_SIMULATIONS} simulations, batch {LONG_BATCH}"
            measure_scoring(long_steps, simulations=LONG_SIMULATIONS, title=title, **options)
            return
        measure(bench, simulations=arguments.simulations, title=f"embedded task: {extent}, {arguments.device}", **options)
        for num_problems in LONG_PROBLEMS:
            long_steps = LongSteps(Path(folder), num_problems=num_problems, max_batch=LONG_BATCH, device=arguments.device)
            extent = f"{num_problems} problems x {LONG_SIMULATIONS} simulations, batch {LONG_BATCH}"
            title = f"long steps of uneven length: {extent}, {arguments.device}"
            measure(long_steps, simulations=LONG_SIMULATIONS, title=title, **options)
    console.print(f"tree arrays: {allocate(1, num_nodes=1, num_slots=4).bytes_per_node} bytes per node at K = 4")


if __name__ == "__main__":
    main()
