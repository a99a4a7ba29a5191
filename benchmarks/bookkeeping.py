"""Cost of the search's own bookkeeping, with models that answer at once: beside mctx, from 64 to 4,096 problems, and in one large tree.

    python benchmarks/bookkeeping.py

Figures are processor time of this process, the least of a few repetitions, so that other work on the machine matters little. That time
counts all threads, so XLA, which runs mctx, is kept to one, as NumPy and numba are here.
``engine`` is everything that a search does but its models: requests, tokens, texts, scores, selection, insertion, backup and the finished
record. ``arrays`` is selection, insertion and backup alone, which is what mctx does; mctx is jitted, on the CPU, compilation left out. An
expansion adds K nodes here and one in mctx.
"""

import functools
import importlib.util
import os
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.table import Table

from stepladder.interfaces import ScoreRequest, ScoreResult, StepRequest, StepResult
from stepladder.mcts.backup import backup_paths
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import resolve_method
from stepladder.mcts.strategies.descent import select_descent
from stepladder.mcts.strategies.descent_kernels import descent_rule
from stepladder.mcts.tree import NewNodes, add_nodes, allocate, land
from stepladder.testing import CharRenderer
from stepladder.types import Budget, Problem, Provenance, Step, StopReason

# XLA reads them when jax is imported, which happens in ``mctx_search``.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1".strip()

NUM_CHILDREN = 4
NUM_SIMULATIONS = 64
PROVENANCE = Provenance(round=0, policy_version=0, scorer_version=None, seed=0, config_hash="benchmark", renderer_hash="benchmark")
SCORES = (0.3, 0.7, 0.5, 0.6)


@functools.cache
def steps_of(num_samples: int) -> tuple[tuple[Step, ...], ...]:
    """Return so many different steps of eight tokens."""
    return tuple(
        (Step(token_ids=tuple(range(8 * i, 8 * i + 8)), logps=(-0.5,) * 8, text="a step.\n", stop_reason=StopReason.STEP),)
        for i in range(num_samples)
    )


@functools.cache
def scores_of(num_branches: int) -> tuple[tuple[float], ...]:
    """Return the scores of so many branches of one step."""
    return tuple((SCORES[i % len(SCORES)],) for i in range(num_branches))


class InstantPolicy:
    """Answers every request with the same steps."""

    def __init__(self) -> None:
        self._open: list[StepRequest] = []

    def submit(self, requests: Sequence[StepRequest]) -> None:
        """Queue requests."""
        self._open += requests

    def collect(self) -> list[StepResult]:
        """Return all results."""
        ready, self._open = self._open, []
        return [StepResult(ticket=request.ticket, samples=steps_of(request.num_samples)) for request in ready]


class InstantScorer:
    """Answers every request with the same scores."""

    def __init__(self) -> None:
        self._open: list[ScoreRequest] = []

    def submit(self, requests: Sequence[ScoreRequest]) -> None:
        """Queue requests."""
        self._open += requests

    def collect(self) -> list[ScoreResult]:
        """Return all results."""
        ready, self._open = self._open, []
        return [ScoreResult(ticket=request.ticket, scores=scores_of(len(request.branches))) for request in ready]


def search(num_problems: int, num_simulations: int, **axes: object) -> int:
    """Search problems with the default method, or with other axes, and return the number of nodes."""
    engine = SearchEngine(
        policy=InstantPolicy(),
        scorer=InstantScorer(),
        renderer=CharRenderer(),
        method=resolve_method("mcts", **{"num_children": NUM_CHILDREN, **axes}),
        budget=Budget(num_simulations=num_simulations, max_depth=10**6),
        provenance=PROVENANCE,
        max_trees=num_problems,
    )
    problems = (Problem(id=str(i), question="2 + 2 = ?") for i in range(num_problems))
    return sum(len(result.tree.parents) for result in engine.search(problems))


def grow_arrays(num_trees: int) -> None:
    """Select, insert and back up as mctx does with its defaults: MuZero's PUCT over rescaled values, leaves worth their own estimate."""
    tree = allocate(num_trees, num_nodes=1 + NUM_SIMULATIONS * NUM_CHILDREN, num_slots=NUM_CHILDREN)
    rule = descent_rule(selection="puct-mctx", c=1.25, c_base=19652.0, normalise="siblings")
    rows, size = np.arange(num_trees), num_trees * NUM_CHILDREN
    yes, no = np.ones(size, bool), np.zeros(size, bool)
    for _ in range(NUM_SIMULATIONS):
        leaves = select_descent(tree, rows, np.ones(num_trees, np.int64), rule=rule)[:, 0].copy()
        new = NewNodes(
            rows=np.repeat(rows, NUM_CHILDREN),
            parents=np.repeat(leaves, NUM_CHILDREN),
            slots=np.tile(np.arange(NUM_CHILDREN), num_trees),
            depths=np.repeat(tree.depth[rows, leaves].astype(np.int64) + 1, NUM_CHILDREN),
            priors=np.full(size, 1 / NUM_CHILDREN, np.float32),
            rewards=np.zeros(size, np.float32),
            raw_values=np.tile(np.array(SCORES, np.float32), num_trees),
            visited=no,
            selectable=yes,
            terminal=no,
            truncated=no,
        )
        add_nodes(tree, new)
        land(tree, rows, leaves)
        backup_paths(tree, rows, leaves, np.nan_to_num(tree.raw_value[rows, leaves]), opened=np.full(num_trees, NUM_CHILDREN))


def mctx_search(num_trees: int) -> Callable[[], None] | None:
    """Return a compiled mctx search of the same extent, or None where mctx is not installed."""
    if importlib.util.find_spec("mctx") is None:
        return None
    import jax
    import mctx
    from jax import numpy as jnp

    def step(params: None, key: "jax.Array", action: "jax.Array", state: "jax.Array") -> tuple["mctx.RecurrentFnOutput", "jax.Array"]:
        ones = jnp.ones(num_trees)
        value = jnp.array(SCORES)[action]
        logits = jnp.zeros((num_trees, NUM_CHILDREN))
        # pyright does not see the fields of chex's dataclasses.
        fields: dict[str, Any] = {"reward": 0 * ones, "discount": ones, "prior_logits": logits, "value": value}
        return mctx.RecurrentFnOutput(**fields), state

    run = jax.jit(
        functools.partial(mctx.muzero_policy, recurrent_fn=cast(Any, step), num_simulations=NUM_SIMULATIONS, dirichlet_fraction=0.0)
    )
    fields: dict[str, Any] = {
        "prior_logits": jnp.zeros((num_trees, NUM_CHILDREN)),
        "value": jnp.zeros(num_trees),
        "embedding": jnp.zeros((num_trees, 1)),
    }
    root = mctx.RootFnOutput(**fields)
    key = jax.random.PRNGKey(0)
    return lambda: jax.block_until_ready(run(params=None, rng_key=key, root=root).search_tree.node_values)


def least_seconds(work: Callable[[], object], *, repetitions: int = 3) -> float:
    """Return the least processor time of a few runs."""
    seconds = []
    for _ in range(repetitions):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return min(seconds)


def beside_mctx() -> Table:
    """Compare with mctx at the same number of trees, simulations and children."""
    table = Table("problems", "engine us/sim.", "us/node", "arrays us/sim.", "us/node", "mctx us/sim. (= node)", "arrays / mctx per sim.")
    for num_trees in (64, 256, 1024):
        simulations = num_trees * NUM_SIMULATIONS
        whole = least_seconds(lambda n=num_trees: search(n, NUM_SIMULATIONS)) / simulations * 1e6
        arrays = least_seconds(lambda n=num_trees: grow_arrays(n)) / simulations * 1e6
        other = mctx_search(num_trees)
        if other is None:
            mctx_cells = ["not installed", "-"]
        else:
            other()
            reference = least_seconds(other) / simulations * 1e6
            mctx_cells = [f"{reference:.1f}", f"{arrays / reference:.2f}"]
        per_node = [f"{cost:.1f}" for cost in (whole, whole / NUM_CHILDREN, arrays, arrays / NUM_CHILDREN)]
        table.add_row(str(num_trees), *per_node, *mctx_cells)
    return table


def growth() -> str:
    """Return the cost of a node with 64 and with 4,096 problems at once."""
    cost = {}
    for num_problems, repetitions in ((64, 5), (4096, 1)):
        nodes = num_problems * (1 + NUM_SIMULATIONS * NUM_CHILDREN)
        cost[num_problems] = least_seconds(lambda n=num_problems: search(n, NUM_SIMULATIONS), repetitions=repetitions) / nodes * 1e6
    return f"a node costs {cost[64]:.1f} us with 64 problems at once, {cost[4096]:.1f} us with 4,096: ratio {cost[4096] / cost[64]:.2f}"


def peak_bytes(work: Callable[[], int]) -> float:
    """Return the memory at the peak of a search, per node."""
    tracemalloc.start()
    nodes = work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / nodes


def memory() -> str:
    """Return the memory per node of one tree and of many."""
    extents = ((1, 2_500), (1, 25_000), (32, 64), (256, 64))
    figures = [(n * (1 + NUM_CHILDREN * m), peak_bytes(lambda n=n, m=m: search(n, m))) for n, m in extents]
    return "bytes a node at the peak: " + ", ".join(
        f"{peak:.0f} ({nodes:,} nodes in {n} tree{'s'[: n > 1]})" for (nodes, peak), (n, _) in zip(figures, extents, strict=True)
    )


def large_trees() -> list[str]:
    """Return what single trees of unusual shape cost."""
    shapes: list[tuple[str, int, dict[str, object]]] = [
        ("a tree", 25_000, {}),
        ("a root of 1,000 children", 2_000, {"root_num_children": 1000}),
        ("a chain", 2_000, {"num_children": 1}),
    ]
    lines = []
    for name, num_simulations, axes in shapes:
        begin = time.process_time()
        nodes = search(1, num_simulations, **axes)
        seconds = time.process_time() - begin
        lines.append(f"{name} of {nodes:,} nodes: {seconds:.1f} s, {seconds / nodes * 1e6:.1f} us a node")
    return lines


def main() -> None:
    """Run the benchmark and print its figures."""
    console = Console(width=120)
    # Compile first.
    search(1, 2)
    grow_arrays(1)
    console.print(f"{NUM_SIMULATIONS} simulations, {NUM_CHILDREN} children")
    console.print(beside_mctx())
    console.print(growth())
    console.print(memory())
    for line in large_trees():
        console.print(line)


if __name__ == "__main__":
    main()
