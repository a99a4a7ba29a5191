"""Step scorers, from the configuration."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from stepladder.data.step_checks.sandbox import CodeSandbox
from stepladder.errors import ConfigError, DataFormatError
from stepladder.loops.assembly.engines import engine_settings, held_engine, held_engines
from stepladder.loops.assembly.judges import prm_members
from stepladder.loops.assembly.policies import policy_weights
from stepladder.loops.config.run import Config
from stepladder.loops.config.search import ScoresConfig
from stepladder.types import Problem


def build_scorer(
    config: Config,
    prm: str | Sequence[str] | None,
    *,
    renderer: Any,
    problems: Iterable[Problem] = (),
    scores: ScoresConfig | None = None,
) -> Any:
    """Return a step scorer on the configured backend, or None without a PRM; raises as ``build_policy`` does.

    Args:
        config: The configuration.
        prm: Directory of a PRM or of an ensemble, or the hub id of a public PRM; several make an ensemble, none is no scorer.
        renderer: The policy's renderer.
        problems: What will be searched; a PRM that reads text, or is implicit, needs the questions.
        scores: What becomes of the scores; None is what ``evaluate`` says.
    """
    if not prm:
        return None
    scores = config.evaluate.scores if scores is None else scores
    members = [member for directory in ([prm] if isinstance(prm, str) else prm) for member in prm_members(directory)]
    _keep_prms(members)
    prompts = _Prompts(renderer, problems)
    scorers = [_member_scorer(config, member, prompts, scores, number, len(members)) for number, member in enumerate(members)]
    return composed_scorer(scorers, scores, decode=renderer.decode, prompt_length=prompts.length)


def composed_scorer(
    scorers: Sequence[Any],
    scores: ScoresConfig,
    *,
    decode: Callable[[Sequence[int]], str],
    prompt_length: Callable[[tuple[int, ...]], int | None],
) -> Any:
    """Return one scorer of several: their ensemble, then bounds, then checks.

    Args:
        scorers: One or more.
        scores: What becomes of their scores.
        decode: Text of some tokens.
        prompt_length: As for ``code_check``.

    Raises:
        ConfigError: If steps are checked by their code, and this machine cannot shut it in.
    """
    from stepladder.loops.assembly.step_checks import arithmetic_check, code_check
    from stepladder.prm.compose import BoundedScorer, CheckedScorer, EnsembleScorer

    scorer = scorers[0] if len(scorers) == 1 else EnsembleScorer(scorers, rule=scores.ensemble, penalty=scores.penalty)
    if scores.bound != "none":
        scorer = BoundedScorer(scorer, rule=scores.bound, at=scores.bound_at)
    if scores.check == "arithmetic":
        scorer = CheckedScorer(scorer, arithmetic_check(decode), cap=scores.check_cap)
    elif scores.check == "code":
        check = code_check(decode, prompt_length=prompt_length, sandbox=_sandbox(scores.allow_unsandboxed))
        scorer = CheckedScorer(scorer, check, cap=scores.check_cap)
    return scorer


@cache
def _sandbox(allow_unsandboxed: bool) -> CodeSandbox:
    """Return what runs code in this process; what it has run is remembered from one search to the next."""
    return CodeSandbox(allow_unsandboxed=allow_unsandboxed)


def _member_scorer(config: Config, prm_dir: str, prompts: "_Prompts", scores: ScoresConfig, number: int, count: int) -> Any:
    spec = _prm_spec(config, prm_dir)
    if spec is not None and spec.prompt == "tokens" and spec.renderer_hash != prompts.renderer.hash:
        raise DataFormatError(
            f"{prm_dir}: the PRM must have been trained on the prompts and steps of this policy: got renderer {prompts.renderer.hash!r}, "
            f"expected {spec.renderer_hash!r} -- use the PRM of the same run, or one that reads text"
        )
    if spec is not None and (spec.prompt != "tokens" or spec.family == "implicit"):
        return _reading_scorer(config, prm_dir, spec, prompts, scores, number, count)
    if config.prm.backend == "vllm":
        return _vllm_scorer(config, prm_dir, scores, number, count)
    from stepladder.lm.loading import load_token_classifier
    from stepladder.prm.scorer import TransformersStepScorer
    from stepladder.prm.specs import PRMSpec

    options: dict[str, Any] = {"device": config.policy.device, "dtype": config.policy.dtype}
    model = _held_prm((prm_dir, spec), lambda: load_token_classifier(prm_dir, **options))
    return TransformersStepScorer(model, PRMSpec.load(prm_dir), entropy_penalty=scores.entropy_penalty)


def _vllm_scorer(config: Config, prm_dir: str, scores: ScoresConfig, number: int, count: int) -> Any:
    from stepladder.prm.checkpoints import load_head
    from stepladder.prm.specs import PRMSpec
    from stepladder.prm.vllm_scorers import VLLMOutputs, VLLMStepScorer

    spec = PRMSpec.load(prm_dir)
    engine = _prm_engine(config, prm_dir, f"prm {number}", count)
    return VLLMStepScorer(VLLMOutputs(engine, load_head(prm_dir, spec)), spec, entropy_penalty=scores.entropy_penalty)


def _vllm_reader(config: Config, prm_dir: str, spec: Any, scores: ScoresConfig, number: int, count: int) -> Any:
    """Return the reader of a PRM that reads text, or is implicit, on vLLM."""
    from stepladder.lm.loading import load_tokenizer
    from stepladder.prm.checkpoints import load_head
    from stepladder.prm.reader import StepReader
    from stepladder.prm.specs import resolve_reference
    from stepladder.prm.vllm_scorers import VLLMLogps, VLLMOutputs

    tokenizer = load_tokenizer(prm_dir, trust_remote_code=config.policy.trust_remote_code)
    other = resolve_reference(prm_dir, spec, config.prm.reference)
    models: list[Any]
    if other is None:
        models = [VLLMOutputs(_prm_engine(config, prm_dir, f"prm {number}", count), load_head(prm_dir, spec, tokenizer))]
    else:
        roles = {f"prm {number}": prm_dir, f"prm {number} reference": str(other)}
        models = [VLLMLogps(_prm_engine(config, model, role, 2 * count, task="generate")) for role, model in roles.items()]
    return StepReader(models, tokenizer, spec, entropy_penalty=scores.entropy_penalty)


def _prm_engine(config: Config, source: str, role: str, count: int, *, task: Any = "embed") -> Any:
    from stepladder.lm.vllm_engine import VLLMEngine

    # The engines of an ensemble, and those of an implicit model and its reference, share what one would have.
    settings = engine_settings(config, config.policy.vllm.prm_memory_share / count)
    return held_engine(role, (source, settings), lambda: VLLMEngine(source, task=task, settings=settings))


class _Prompts:
    """Finds the question and the earlier steps in what a search asks to have scored."""

    def __init__(self, renderer: Any, problems: Iterable[Problem]) -> None:
        self.renderer = renderer
        self._questions = {renderer.prompt_ids(problem): problem.question for problem in problems}
        self._lengths = sorted({len(prompt) for prompt in self._questions}, reverse=True)

    def length(self, prefix_ids: tuple[int, ...]) -> int | None:
        """Return how many tokens are the prompt; None where it is that of no known problem."""
        # The longest prompt that fits: a shorter one could only fit a question that begins like another.
        return next((length for length in self._lengths if prefix_ids[:length] in self._questions), None)

    def split(self, prefix_ids: tuple[int, ...]) -> tuple[str, tuple[str, ...]] | None:
        """Return question and steps as text."""
        length, end = self.length(prefix_ids), self.renderer.step_format.step_end
        if length is None:
            return None
        steps = self.renderer.step_format.split_steps(self.renderer.decode(prefix_ids[length:]))
        return self._questions[prefix_ids[:length]], tuple(step.removesuffix(end) for step in steps)

    def decode(self, step_ids: Sequence[int]) -> str:
        """Return the text of a step as ``split`` gives it."""
        return self.renderer.decode(step_ids).removesuffix(self.renderer.step_format.step_end)


def _prm_spec(config: Config, prm_dir: str) -> Any:
    """Return how a PRM is read; None where nothing says it, which is left to the error of whoever loads it."""
    from stepladder.prm.specs import SPEC_FILE, resolve_spec

    own = (Path(prm_dir) / SPEC_FILE).is_file()
    try:
        return resolve_spec(prm_dir, None if own else config.prm.spec)
    except ConfigError:
        if config.prm.spec is not None:
            raise
        return None


def _reading_scorer(config: Config, prm_dir: str, spec: Any, prompts: _Prompts, scores: ScoresConfig, number: int, count: int) -> Any:
    """Return a PRM that reads text, or is implicit, as a scorer of what the policy writes; a judge runs on the embedded engine."""
    from stepladder.prm.implicit_scorer import ImplicitStepScorer
    from stepladder.prm.outputs import check_entropy_penalty
    from stepladder.prm.reader import StepReader, load_parts
    from stepladder.prm.text_scorer import TextStepScorer

    options = {"device": config.policy.device, "dtype": config.policy.dtype, "trust_remote_code": config.policy.trust_remote_code}
    if spec.family == "judge":
        from stepladder.loops.assembly.judges import build_judge, load_judge

        check_entropy_penalty(scores.entropy_penalty, spec)
        model, tokenizer = _held_prm((prm_dir, spec), lambda: load_judge(prm_dir, options))
        return TextStepScorer(build_judge(model, tokenizer, spec, seed=config.run.seed), split=prompts.split, decode=prompts.decode)
    if config.prm.backend == "vllm":
        reader = _vllm_reader(config, prm_dir, spec, scores, number, count)
    else:
        parts = _held_prm((prm_dir, spec), lambda: load_parts(prm_dir, spec, reference=config.prm.reference, **options))
        reader = StepReader.on_transformers(parts, spec, entropy_penalty=scores.entropy_penalty)
    if spec.prompt == "tokens":
        return ImplicitStepScorer(reader, prompt_length=prompts.length)
    return TextStepScorer(reader, split=prompts.split, decode=prompts.decode)


@cache
def _prms() -> dict[tuple[str, Any], Any]:
    """Return the weights of the PRMs that this process scores with, by directory and spec."""
    return {}


def _keep_prms(members: Sequence[str]) -> None:
    """Forget the PRMs that are not among those wanted now: a round's models would otherwise pile up."""
    for key in [key for key in _prms() if key[0] not in members]:
        del _prms()[key]
    for role in [role for role in held_engines() if role.startswith("prm") and int(role.split()[1]) >= len(members)]:
        held_engines().pop(role)[1].close()


def _held_prm(key: tuple[str, Any], load: Callable[[], Any]) -> Any:
    if key not in _prms():
        _prms()[key] = load()
    return _prms()[key]


def release_weights() -> None:
    """Forget cached weights and end engines; called before training, which needs the memory."""
    for _, engine in held_engines().values():
        engine.close()
    held_engines().clear()
    policy_weights.cache_clear()
    _prms().clear()
