"""Solved examples of the warm-up as training rows of the PRM."""

from pathlib import Path

from stepladder.data.datasets.problems import SeedSolution, load_seed_solutions
from stepladder.data.labels.solution_traces import steps_of_solution
from stepladder.data.labels.value_rows import value_rows
from stepladder.loops.config.run import Config
from stepladder.loops.config.training import TreeTarget
from stepladder.policy.prompts import PromptRenderer
from stepladder.types import Problem, Provenance, StopReason, TreeRecord, ValueRow


def example_values(config: Config, renderer: PromptRenderer, solutions: Path) -> list[ValueRow]:
    """Return the value rows of solved examples under the configured target. A finished example without an answer at its end is wrong."""
    assert isinstance(config.prm.target, TreeTarget), "checked before the run"
    provenance = Provenance(
        round=0, policy_version=0, scorer_version=None, seed=config.run.seed, config_hash=config.hash(), renderer_hash=renderer.hash
    )
    trees = [example_tree(solution, renderer=renderer, provenance=provenance) for solution in load_seed_solutions(solutions)]
    return value_rows(trees, target=config.prm.target.type).rows


def example_tree(solution: SeedSolution, *, renderer: PromptRenderer, provenance: Provenance) -> TreeRecord:
    """Return a written solution as a graded tree of one path."""
    steps = steps_of_solution(solution, renderer)
    texts = [renderer.decode(step) for step in steps]
    count = len(steps) + 1
    is_right = bool(texts) and renderer.step_format.is_final(texts[-1], solution.question)
    last = [StopReason.END] if steps and solution.finished else []
    return TreeRecord(
        problem_id=solution.id,
        question=solution.question,
        prompt_ids=list(renderer.prompt_ids(Problem(id=solution.id, question=solution.question))),
        method="solved example",
        parents=list(range(-1, count - 1)),
        depths=list(range(count)),
        token_ids=[[], *(list(step) for step in steps)],
        logps=[[] for _ in range(count)],
        texts=["", *texts],
        priors=[1.0] * count,
        scores=[None] * count,
        visits=[0] * count,
        values=[None] * count,
        stop_reasons=[*[StopReason.STEP] * (count - len(last)), *last],
        answers=[None] * count,
        outcomes=[*[None] * (count - len(last)), *[float(is_right)] * len(last)],
        generated_tokens=0,
        policy_calls=0,
        scored_tokens=0,
        num_simulations=0,
        provenance=provenance,
    )
