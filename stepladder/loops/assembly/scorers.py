"""Step scorers, from the configuration."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from stepladder.data.step_checks.sandbox import CodeSandbox
from stepladder.errors import ConfigError
from stepladder.interfaces import Policy, Ranges, StepScorer, sampled_runs
from stepladder.lm.loaded_models import LoadedModels
from stepladder.loops.assembly.engines import engine_settings
from stepladder.loops.config.run import Config
from stepladder.loops.config.search import ArithmeticCheck, CodeCheck, ScoreBound, ScoresConfig, VarianceEnsemble
from stepladder.prm.families import FAMILIES
from stepladder.prm.requests import SplitPrefix, begun
from stepladder.prm.sources import PRMSource, prm_members, reads_policy_body
from stepladder.prm.specs import SPEC_FILE
from stepladder.types import Problem

if TYPE_CHECKING:
    from stepladder.policy.backends.transformers import TransformersPolicy
    from stepladder.policy.prompts import PromptRenderer


def build_scorer(
    config: Config,
    models: LoadedModels,
    *,
    prm: str | Sequence[str],
    renderer: "PromptRenderer",
    problems: "Iterable[Problem] | SearchedPrompts" = (),
    scores: ScoresConfig | None = None,
    policy: Policy | None = None,
    policy_source: str | None = None,
) -> StepScorer:
    """Return a step scorer on the configured backend; raises as ``build_policy`` does.

    Args:
        config: The configuration.
        models: The models of this process.
        prm: Directory of a PRM or of an ensemble, or the hub id of a public PRM; several make an ensemble.
        renderer: The policy's renderer.
        problems: The problems to search, or their prompts. A PRM that reads text, or is implicit, needs the questions.
        scores: Settings that change the scores; None takes those of ``evaluate``.
        policy: The policy that samples the steps, before its first request; a PRM on its body shares it. None if there is none here.
        policy_source: Its directory or hub id; None for weights that no directory holds.
    """
    from stepladder.loops.assembly.prms import Sampler, open_members

    scores = config.evaluate.scores if scores is None else scores
    members = [member for directory in ([prm] if isinstance(prm, str) else prm) for member in prm_members(directory)]
    check_probes(config, members)
    sources = [prm_source(config, member, entropy_penalty=scores.entropy_penalty, renderer_hash=renderer.hash) for member in members]
    prompts = problems if isinstance(problems, SearchedPrompts) else SearchedPrompts(renderer, problems)
    shares_body = policy_source is not None and hasattr(policy, "attach")
    sampler = Sampler(policy_source, cast("TransformersPolicy", policy)) if policy_source is not None and shares_body else None
    opened = open_members(sources, models, engine_settings(config, config.policy.vllm.prm_memory_share), sampler=sampler)
    scorers = [each.step_scorer(prompts) for each in opened]
    return composed_scorer(scorers, scores, decode=renderer.decode, prompt_length=prompts.length)


def check_probes(config: Config, prms: Sequence[str]) -> None:
    """Refuse a value head on a policy's hidden states where another engine than the embedded one samples.

    Args:
        config: The configuration.
        prms: Directories or hub ids of PRMs.

    Raises:
        ConfigError: If so.
        CheckpointError: If a spec is malformed.
    """
    for member in (member for prm in prms for member in prm_members(prm)):
        if config.policy.backend != "transformers" and reads_policy_body(member):
            raise ConfigError(
                f"{member}: a value head reads the hidden states of the policy, which only the backend 'transformers' gives: got "
                f"policy.backend {config.policy.backend!r} -- use 'transformers', or a PRM with a body of its own (prm.body = 'own')"
            )


def prm_source(config: Config, model: str, *, entropy_penalty: float = 0.0, renderer_hash: str | None = None) -> PRMSource:
    """Return the source of a configured PRM. A spec in its directory goes first; if vLLM cannot forward it, the embedded engine does.

    Args:
        config: The configuration.
        model: Directory or hub id.
        entropy_penalty: As for ``PRMSource``.
        renderer_hash: Hash of the policy's renderer. A policy that scores itself by log-probabilities reads its own tokens.

    Raises:
        ConfigError: If the PRM has no spec.
        CheckpointError: If its spec is malformed.
    """
    spec = None if (Path(model) / SPEC_FILE).is_file() else config.prm.spec
    options = {} if spec is None else dict(config.prm.spec_options)
    name = PRMSource(model=model, spec=spec, spec_options=tuple(options.items())).resolve().family
    family = FAMILIES[name]
    if config.prm.is_policy and name in ("implicit", "surprisal"):
        options |= {"prompt": "tokens", "renderer_hash": renderer_hash}
    return PRMSource(
        model=model,
        spec=spec,
        spec_options=tuple(options.items()),
        reference=config.prm.reference,
        device=config.policy.device,
        dtype=config.policy.dtype,
        trust_remote_code=config.policy.trust_remote_code,
        seed=config.run.seed,
        backend=config.prm.backend if config.prm.backend in family.backends else "transformers",
        entropy_penalty=entropy_penalty,
    )


def composed_scorer(
    scorers: Sequence[StepScorer],
    scores: ScoresConfig,
    *,
    decode: Callable[[Sequence[int]], str],
    prompt_length: Callable[[tuple[int, ...]], int | None],
) -> StepScorer:
    """Combine several scorers into one: their ensemble, then bounds, then checks.

    Args:
        scorers: One or more.
        scores: Settings that change their scores.
        decode: Text of some tokens.
        prompt_length: As for ``code_check``.

    Raises:
        ConfigError: If steps are checked by their code, and this machine cannot sandbox it.
    """
    from stepladder.loops.assembly.step_checks import arithmetic_check, code_check
    from stepladder.prm.compose import BoundedScorer, CheckedScorer

    scorer = scorers[0] if len(scorers) == 1 else _ensemble_scorer(scorers, scores)
    if isinstance(scores.bound, ScoreBound):
        scorer = BoundedScorer(scorer, rule=scores.bound.type, at=scores.bound.at)
    if isinstance(scores.check, ArithmeticCheck):
        scorer = CheckedScorer(scorer, arithmetic_check(decode), cap=scores.check.cap)
    elif isinstance(scores.check, CodeCheck):
        check = code_check(decode, prompt_length=prompt_length, sandbox=_sandbox(scores.check.allow_unsandboxed))
        scorer = CheckedScorer(scorer, check, cap=scores.check.cap)
    return scorer


def _ensemble_scorer(scorers: Sequence[StepScorer], scores: ScoresConfig) -> StepScorer:
    from stepladder.prm.compose import EnsembleScorer

    if isinstance(scores.ensemble, VarianceEnsemble):
        return EnsembleScorer(scorers, rule=scores.ensemble.type, penalty=scores.ensemble.penalty)
    return EnsembleScorer(scorers, rule=scores.ensemble.type)


@cache
def _sandbox(allow_unsandboxed: bool) -> CodeSandbox:
    """Return the sandbox of this process. It remembers results from one search to the next."""
    return CodeSandbox(allow_unsandboxed=allow_unsandboxed)


class SearchedPrompts:
    """The prompts of the problems that are searched: ``stepladder.prm.open.SearchPrompts`` to which problems come and go."""

    def __init__(self, renderer: "PromptRenderer", problems: Iterable[Problem] = ()) -> None:
        """Begin with the prompts of some problems."""
        self._renderer = renderer
        self._questions: dict[tuple[int, ...], str] = {}
        self._uses: Counter[tuple[int, ...]] = Counter()
        self._lengths: list[int] = []
        for problem in problems:
            self._enter(renderer.prompt_ids(problem), problem.question)
        self._sort_lengths()

    def add(self, prompt_ids: tuple[int, ...], question: str) -> None:
        """Add the prompt of a search that begins."""
        self._enter(prompt_ids, question)
        self._sort_lengths()

    def remove(self, prompt_ids: tuple[int, ...]) -> None:
        """Remove the prompt of a search that is over, unless another search has it, too."""
        self._uses[prompt_ids] -= 1
        if not self._uses[prompt_ids]:
            del self._uses[prompt_ids], self._questions[prompt_ids]
            self._sort_lengths()

    def _enter(self, prompt_ids: tuple[int, ...], question: str) -> None:
        self._questions[prompt_ids] = question
        self._uses[prompt_ids] += 1

    def _sort_lengths(self) -> None:
        self._lengths = sorted({len(prompt) for prompt in self._questions}, reverse=True)

    @property
    def renderer_hash(self) -> str:
        """Hash of the renderer that made the prompts."""
        return self._renderer.hash

    def length(self, prefix_ids: tuple[int, ...]) -> int | None:
        """Return the number of prompt tokens; None if the prompt is that of no known problem."""
        # The longest prompt that fits: a shorter one could only fit a question that begins like another.
        return next((length for length in self._lengths if prefix_ids[:length] in self._questions), None)

    def split(self, prefix_ids: tuple[int, ...], observations: Ranges) -> SplitPrefix | None:
        """Return question and steps as text."""
        length = self.length(prefix_ids)
        if length is None:
            return None
        steps: list[str] = []
        observation = ""
        for sampled, observed in sampled_runs(prefix_ids, observations, start=length):
            steps += begun(observation, map(self.decode, self._renderer.cut(sampled)))
            observation = self._renderer.decode(observed)
        return SplitPrefix(self._questions[prefix_ids[:length]], tuple(steps), observation)

    def decode(self, step_ids: Sequence[int]) -> str:
        """Return the text of a step in the form of ``split``."""
        return self._renderer.decode(step_ids).removesuffix(self._renderer.step_format.step_end)
