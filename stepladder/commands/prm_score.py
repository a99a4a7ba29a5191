"""``stepladder prm score`` and ``prm specs``: any process reward model on written solutions."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from stepladder.data.datasets.labelled_solutions import StepwiseSolution, load_stepwise
from stepladder.errors import ConfigError, DataFormatError
from stepladder.files import atomic_write_text
from stepladder.interfaces import ScoreRequest, collect_all
from stepladder.mcts.qvalues import AGGREGATIONS, aggregate_scores
from stepladder.prm.compose import clip_bound, delta_bound, mix_with_verdict, par_bound
from stepladder.prm.specs import NAMED_SPECS, PRMSpec, resolve_spec
from stepladder.types import Problem

if TYPE_CHECKING:
    from stepladder.lm.vllm_engine import EngineSettings
    from stepladder.policy.prompts import PromptRenderer
    from stepladder.prm.implicit_scorer import ImplicitStepScorer
    from stepladder.prm.reader import Solution, StepReader
    from stepladder.prm.scorer import TransformersStepScorer
    from stepladder.prm.vllm_scorers import VLLMStepScorer
from stepladder.loops.assembly.judges import build_judge, load_judge, prm_members

BACKENDS = ("transformers", "vllm")
"""What can forward the model."""


REWARDS = ("clip", "delta", "par", "verdict")
"""Forms of reward that ``prm score`` writes."""


_CHUNK = 64
"""Solutions scored between two lines of output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PRMSource:
    """Which model scores, and how."""

    model: str
    """Model directory, directory of an ensemble, or hub id."""
    spec: str | None = None
    """Name of a spec; None takes the directory's own, or the hub id's."""
    reference: str | None = None
    """Reference of an implicit model."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    dtype: str = "auto"
    """``auto``, ``float32``, ``bfloat16`` or ``float16``."""
    trust_remote_code: bool = False
    """Run code that ships with a hub model; the public ones named in ``prm specs`` need none."""
    seed: int = 0
    """Seed of a judge's verdicts."""
    backend: str = "transformers"
    """One of ``BACKENDS``; a judge is asked on the embedded engine only."""
    memory_share: float = 0.9
    """With ``vllm``: share of each GPU's memory that all its engines take together, in (0, 1]."""


class SolutionScorer(Protocol):
    """Scores written solutions: a ``StepReader``, a ``Judge``, or ``TokenScorer``."""

    def score(self, solutions: "Sequence[Solution]") -> list[tuple[float | None, ...]]:
        """Return one score in [0, 1] or None per step of every solution."""
        ...


class TokenScorer:
    """Scores written solutions with a model that reads the policy's own tokens."""

    def __init__(self, scorer: "TransformersStepScorer | ImplicitStepScorer | VLLMStepScorer", renderer: "PromptRenderer") -> None:
        """Combine a scorer with the renderer that its model was trained with.

        Raises:
            DataFormatError: If the renderer is another one.
        """
        if renderer.hash != scorer.spec.renderer_hash:
            raise DataFormatError(
                f"renderer: must be the one that the PRM was trained with: got {renderer.hash!r}, expected {scorer.spec.renderer_hash!r} "
                "-- keep tokenizer and step format of the model directory as they were saved"
            )
        self._scorer, self._renderer = scorer, renderer

    def score(self, solutions: "Sequence[Solution]") -> list[tuple[float | None, ...]]:
        """Return one score in [0, 1] or None per step of every solution.

        Raises:
            DataFormatError: If a step holds a step boundary of the model's format.
        """
        requests = [self._request(ticket, solution) for ticket, solution in enumerate(solutions)]
        return [result.scores[0] for result in collect_all(self._scorer, requests)]

    def _request(self, ticket: int, solution: "Solution") -> ScoreRequest:
        end = self._renderer.step_format.step_end
        text = "".join(step if step.endswith(end) else step + end for step in solution.steps)
        steps = self._renderer.encode_solution(text) if solution.steps else []
        if len(steps) != len(solution.steps):
            raise DataFormatError(
                f"{solution.place}: a step must not hold the model's step boundary {end!r} inside: got {len(steps)} pieces of "
                f"{len(solution.steps)} steps -- split the steps there"
            )
        prefix = self._renderer.prompt_ids(Problem(id=solution.place, question=solution.question))
        return ScoreRequest(ticket=ticket, prefix_ids=prefix, branches=(tuple(steps),))


class EnsembleReader:
    """Scores written solutions with several models: the mean of their scores, None where one has none."""

    def __init__(self, members: "Sequence[SolutionScorer]") -> None:
        """Combine scorers, at least one."""
        self._members = members

    def score(self, solutions: "Sequence[Solution]") -> list[tuple[float | None, ...]]:
        """Return one score in [0, 1] or None per step of every solution."""
        by_member = [member.score(solutions) for member in self._members]
        return [
            tuple(None if None in step else math.fsum(step) / len(step) for step in zip(*scores, strict=True))
            for scores in zip(*by_member, strict=True)
        ]


def resolve_source(source: PRMSource) -> PRMSpec:
    """Return how a source is read, the first of an ensemble's models for all of them; errors as for ``resolve_spec``."""
    return resolve_spec(prm_members(source.model)[0], source.spec)


@contextmanager
def open_scorer(source: PRMSource) -> "Iterator[SolutionScorer]":
    """Load a model, or an ensemble, and give what scores solutions with it; engines that were started for it are stopped at the end.

    Raises:
        CheckpointError: If the model is missing or does not fit its spec.
        ConfigError: If nothing says how it is read, or backend, device, type or reference do not fit.
        BackendError: If the model cannot be served.
    """
    _check_backend(source)
    with ExitStack() as engines:
        members = prm_members(source.model)
        share = source.memory_share / len(members)
        scorers = [_opened(replace(source, model=member, memory_share=share), engines) for member in members]
        yield scorers[0] if len(scorers) == 1 else EnsembleReader(scorers)


def _check_backend(source: PRMSource) -> None:
    if source.backend not in BACKENDS:
        raise ConfigError(f"--backend: must be one of {', '.join(BACKENDS)}: got {source.backend!r}")
    if source.backend != "vllm":
        return
    if source.device != "auto":
        raise ConfigError(f"--device: vLLM takes the GPU where there is one: got {source.device!r} -- leave it out with --backend vllm")
    if resolve_source(source).family == "judge":
        raise ConfigError("--backend: a judge writes its verdicts on the embedded engine: got 'vllm' -- use 'transformers'")


def _opened(source: PRMSource, engines: ExitStack) -> SolutionScorer:
    """Return what scores solutions with one model; its engines are left to ``engines`` to stop."""
    from stepladder.prm.reader import StepReader

    spec, places = resolve_source(source), _places(source)
    if spec.family == "judge":
        return build_judge(*load_judge(source.model, places), spec, seed=source.seed)
    if spec.prompt == "tokens":
        from stepladder.lm.loading import load_tokenizer
        from stepladder.policy.prompts import PromptRenderer, StepFormat

        renderer = PromptRenderer(load_tokenizer(source.model, trust_remote_code=source.trust_remote_code), StepFormat.load(source.model))
        return TokenScorer(_vllm_step_scorer(source, spec, engines) if source.backend == "vllm" else open_step_scorer(source), renderer)
    if source.backend == "vllm":
        return _vllm_reader(source, spec, engines)
    return StepReader.from_pretrained(source.model, spec, reference=source.reference, **places)


def _vllm_reader(source: PRMSource, spec: PRMSpec, engines: ExitStack) -> "StepReader":
    from stepladder.prm.vllm_scorers import vllm_reader

    # An implicit model and its reference are two engines.
    settings = _vllm_settings(source, num_engines=2 if spec.family == "implicit" else 1)
    reader = vllm_reader(source.model, spec, reference=source.reference, settings=settings)
    engines.callback(reader.close)
    return reader


def _vllm_step_scorer(source: PRMSource, spec: PRMSpec, engines: ExitStack) -> "ImplicitStepScorer | VLLMStepScorer":
    if spec.family == "implicit":
        from stepladder.prm.implicit_scorer import ImplicitStepScorer

        return ImplicitStepScorer(_vllm_reader(source, spec, engines), prompt_length=len)
    from stepladder.prm.vllm_scorers import VLLMStepScorer

    scorer = VLLMStepScorer.from_pretrained(source.model, settings=_vllm_settings(source, num_engines=1))
    engines.callback(scorer.close)
    return scorer


def _vllm_settings(source: PRMSource, *, num_engines: int) -> "EngineSettings":
    from stepladder.lm.vllm_engine import EngineSettings

    return EngineSettings(dtype=source.dtype, memory_share=source.memory_share / num_engines, trust_remote_code=source.trust_remote_code)


def open_step_scorer(source: PRMSource) -> "TransformersStepScorer | ImplicitStepScorer":
    """Load a model that reads the policy's own tokens, to score steps behind a prompt; errors as for ``open_scorer``."""
    spec, places = resolve_source(source), _places(source)
    if spec.family != "implicit":
        from stepladder.prm.scorer import TransformersStepScorer

        return TransformersStepScorer.from_pretrained(source.model, **places)
    from stepladder.prm.implicit_scorer import ImplicitStepScorer
    from stepladder.prm.reader import StepReader

    reader = StepReader.from_pretrained(source.model, spec, reference=source.reference, **places)
    # Whole solutions are scored, so that a request's prefix is the prompt alone.
    return ImplicitStepScorer(reader, prompt_length=len)


def _places(source: PRMSource) -> dict[str, Any]:
    return {"device": source.device, "dtype": source.dtype, "trust_remote_code": source.trust_remote_code}


def score_solutions(
    scorer: SolutionScorer, solutions: Sequence[StepwiseSolution], *, on_progress: Any = None
) -> list[tuple[float | None, ...]]:
    """Return the scores of the steps of every solution, some solutions at a time."""
    from stepladder.prm.reader import Solution

    scores: list[tuple[float | None, ...]] = []
    for begin in range(0, len(solutions), _CHUNK):
        chunk = solutions[begin : begin + _CHUNK]
        scores += scorer.score([Solution(question=each.question, steps=each.steps, place=each.place) for each in chunk])
        if on_progress:
            on_progress(len(scores), len(solutions))
    return scores


def score_file(path: Path, source: PRMSource, output: Path, *, aggregation: str, rewards: str | None = None, bound_at: float = 0.5) -> str:
    """Score every solution of a file, write one JSON row each, and return the line to print.

    A row holds ``place``, ``problem_id``, ``question``, ``steps``, ``scores`` (null where a step could not be scored) and ``score``, the
    aggregate; a judge's also ``thoughts``, its runs of equal verdicts, and with ``rewards`` what an RL trainer may use.

    Args:
        path: File of solutions.
        source: The model.
        output: Where the rows go.
        aggregation: How step scores become one.
        rewards: ``clip``, ``delta`` or ``par``: bounded rewards of the steps; ``verdict``: one reward of the solution, in which no wrong
            solution outranks a right one; None writes none.
        bound_at: Bound of ``clip``, reference of ``par``.

    Raises:
        ConfigError: If aggregation or rewards are unknown; otherwise as for ``open_scorer`` and ``load_stepwise``.
    """
    if aggregation not in AGGREGATIONS:
        raise ConfigError(f"--aggregation: must be one of {', '.join(AGGREGATIONS)}: got {aggregation!r}")
    if rewards not in (None, *REWARDS):
        raise ConfigError(f"--rewards: must be one of {', '.join(REWARDS)}: got {rewards!r}")
    spec = resolve_source(source)
    file = load_stepwise(path, split=spec.split)
    with open_scorer(source) as scorer:
        scores = score_solutions(scorer, file.solutions)
    rows = []
    for solution, steps in zip(file.solutions, scores, strict=True):
        row = {
            "place": solution.place,
            "problem_id": solution.problem_id,
            "question": solution.question,
            "steps": list(solution.steps),
            "scores": list(steps),
            "score": aggregate_scores(steps, rule=aggregation),
        }
        if rewards is not None:
            row["rewards"] = _rewards(solution, steps, row["score"], rule=rewards, at=bound_at)
        if spec.family == "judge":
            from stepladder.prm.judge import merge_runs

            row["thoughts"] = [thought._asdict() for thought in merge_runs(steps)]
        rows.append(json.dumps(row, ensure_ascii=False))
    atomic_write_text(output, "".join(f"{row}\n" for row in rows))
    counts = Counter(score is not None for steps in scores for score in steps)
    return (
        f"{output}: {counts[True]} steps of {len(rows)} solutions scored, {counts[False]} not scored (no tokens, beyond the context, or no "
        f"readable verdict){_told(file.dropped_by_reason)}"
    )


def _rewards(solution: StepwiseSolution, scores: Sequence[float | None], score: float | None, *, rule: str, at: float) -> Any:
    """Return the reward of every step, or of the solution; None where a score, or the verdict, is not known."""
    if rule == "verdict":
        return None if score is None or solution.correct is None else mix_with_verdict(score, solution.correct)
    # A step without a score has no reward; the difference is taken to the next step that has one.
    known = np.array([score for score in scores if score is not None], dtype=np.float64)
    bounded = {
        "clip": lambda: clip_bound(known, bound=at),
        "par": lambda: par_bound(known, reference=at),
        "delta": lambda: delta_bound(known),
    }[rule]()
    values = iter(bounded.tolist())
    return [None if score is None else next(values) for score in scores]


def _told(dropped: dict[str, int]) -> str:
    return f"; dropped {', '.join(f'{count} {reason}' for reason, count in sorted(dropped.items()))}" if dropped else ""


def explain_specs(*, as_json: bool = False) -> str:
    """Return the named specs as text, or as JSON with every field."""
    if as_json:
        from dataclasses import asdict

        return json.dumps({name: asdict(entry) for name, entry in NAMED_SPECS.items()}, indent=2, ensure_ascii=False)
    lines = []
    for name, entry in NAMED_SPECS.items():
        lines.append(f"{name:<20} {entry.summary}")
        lines += [f"{'':<20}   {hub_id}" for hub_id in entry.checkpoints]
    return "\n".join(lines)
