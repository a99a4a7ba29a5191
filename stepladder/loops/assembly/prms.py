"""Process reward models with the weights and engines of this process."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import nn
from transformers import PreTrainedTokenizerBase

from stepladder.interfaces import Policy, Ranges, StepScorer
from stepladder.lm.chat import FIXED_DATE
from stepladder.lm.flat import FlatModel
from stepladder.lm.loaded_models import LoadedModels, Role
from stepladder.lm.loading import LanguageModelSource, load_tokenizer, silence_bars
from stepladder.lm.prefix_cache import AttachedHead, PrefixCache
from stepladder.lm.settings import EngineSettings
from stepladder.lm.vllm_engine import VLLMEngine
from stepladder.lm.vllm_start import Task
from stepladder.policy.backends.transformers import TransformersPolicy
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.prm.checkpoints import check_fit
from stepladder.prm.open import Encode, EnsembleSolutionScorer, OpenedPRM, SolutionScorer, TokenRenderer, open_prm
from stepladder.prm.requests import SplitPrefix
from stepladder.prm.sources import PRMSource, check_backend, prm_members
from stepladder.prm.specs import PRMSpec, resolve_body
from stepladder.prm.word_judge import VerdictPrompts
from stepladder.types import Problem

T = TypeVar("T")


class MemberAccess:
    """``ModelAccess`` of one model of an ensemble, or of a single PRM."""

    def __init__(
        self,
        models: LoadedModels,
        settings: EngineSettings,
        *,
        number: int = 0,
        num_members: int = 1,
        sampler: "Sampler | None" = None,
    ) -> None:
        """Provide the services that a PRM needs.

        Args:
            models: The process's models.
            settings: Settings of vLLM; the engines of all members together take its memory share.
            number: Place of the model in its ensemble, from 0.
            num_members: Models of the ensemble, >= 1.
            sampler: The policy that samples what is scored; None if nothing is sampled in this process.
        """
        self._models, self._settings, self._sampler = models, settings, sampler
        self._number, self._num_members = number, num_members

    def weights(self, made_from: object, load: Callable[[], T], *, is_reference: bool = False) -> T:
        """Return loaded weights. If the process already holds weights with an equal ``made_from``, it returns them."""
        return self._models.weights(self._role(is_reference), made_from, load)

    def engine(self, model: str, *, task: Task, num_engines: int = 1, is_reference: bool = False) -> VLLMEngine:
        """Return a vLLM engine with an empty cache.

        Raises:
            ConfigError: If vLLM is not installed or an option is unknown.
            CheckpointError: If vLLM cannot serve the model.
        """
        share = self._settings.memory_share / (self._num_members * num_engines)
        settings = replace(self._settings, memory_share=share)
        return self._models.engine(
            self._role(is_reference), (model, task, settings), lambda: VLLMEngine(model, task=task, settings=settings)
        )

    def attach(self, source: PRMSource, spec: PRMSpec, head: nn.Module) -> AttachedHead:
        """Read a head off the hidden states of the policy that a probe's spec names, in the passes that sample if it is the sampler.

        Raises:
            CheckpointError: If the policy cannot be loaded, or the head was trained on another one.
            BackendError: If its hidden states cannot be read.
        """
        named, sampler = resolve_body(source.model, spec), self._sampler
        if sampler is not None and Path(sampler.source).resolve() == Path(named).resolve():
            check_fit(head, source.model, width=sampler.policy.hidden_size)
            return sampler.policy.attach(head, spec.num_outputs, at_end=spec.read == "step-end")
        options = {"device": source.device, "dtype": source.dtype, "trust_remote_code": source.trust_remote_code}
        language_model = LanguageModelSource(model=named, **options)
        model, _ = self.weights(language_model, language_model.load)
        flat = FlatModel(model)
        check_fit(head, source.model, width=flat.hidden_size)
        return PrefixCache(flat).attach(head, spec.num_outputs)

    def renderer(self, source: PRMSource) -> TokenRenderer:
        """Return the renderer that a model of a policy's tokens was saved with.

        Raises:
            CheckpointError: If the model's directory has no tokenizer or step format.
        """
        tokenizer = load_tokenizer(source.model, trust_remote_code=source.trust_remote_code)
        return PromptRenderer(tokenizer, StepFormat.load(source.model))

    def judge_policy(self, source: PRMSource, spec: PRMSpec) -> tuple[Policy, Encode, Encode]:
        """Return what writes a judge's verdicts on the embedded engine, and what makes tokens of a prompt, and of a text after it."""
        language_model = LanguageModelSource(
            model=source.model, device=source.device, dtype=source.dtype, trust_remote_code=source.trust_remote_code
        )
        model, tokenizer = self.weights(language_model, language_model.load)
        renderer = judge_renderer(tokenizer, spec)
        policy = TransformersPolicy(model, tokenizer, renderer.step_format)
        return (
            policy,
            lambda prompt: renderer.prompt_ids(_asked(prompt)),
            lambda text: renderer.encode_text(text, place="a judge's verdict"),
        )

    def judge_prompts(self, source: PRMSource, spec: PRMSpec) -> VerdictPrompts:
        """Return the prompts of a judge that says one word."""
        return verdict_prompts(load_tokenizer(source.model, trust_remote_code=source.trust_remote_code), spec)

    def _role(self, is_reference: bool) -> Role:
        return Role(kind="prm", number=self._number, is_reference=is_reference)


def judge_renderer(tokenizer: PreTrainedTokenizerBase, spec: PRMSpec) -> PromptRenderer:
    """Return the renderer of a judge's prompts, which says that a verdict ends its text."""
    chat = spec.prompt == "chat"
    return PromptRenderer(
        tokenizer,
        StepFormat(
            prompt_template="{question}",
            step_end="\n",
            answer_pattern=spec.verdict or None,
            chat=chat,
            system=spec.system if chat else None,
            date=FIXED_DATE,
        ),
    )


def verdict_prompts(tokenizer: PreTrainedTokenizerBase, spec: PRMSpec) -> VerdictPrompts:
    """Return the prompts of a judge that says one word; errors as for ``VerdictPrompts``."""
    renderer = judge_renderer(tokenizer, spec)
    return VerdictPrompts(
        spec, lambda prompt: renderer.prompt_ids(_asked(prompt)), lambda text: renderer.encode_text(text, place="a judge's verdict")
    )


def _asked(prompt: str) -> Problem:
    return Problem(id="judge", question=prompt)


class Sampler(NamedTuple):
    """A policy of this process whose hidden states value heads can read."""

    source: str
    """Directory or hub id of the policy."""
    policy: TransformersPolicy
    """The policy, or what gives it tools or actions."""


def open_members(
    sources: Sequence[PRMSource], models: LoadedModels, settings: EngineSettings, *, sampler: Sampler | None = None
) -> list[OpenedPRM]:
    """Open PRMs that score together, and release those of an earlier, larger ensemble. Errors are those of ``open_prm``.

    Args:
        sources: The PRMs.
        models: The process's models.
        settings: Settings of vLLM.
        sampler: As for ``MemberAccess``.
    """
    models.keep_first("prm", len(sources))
    return [
        open_prm(source, MemberAccess(models, settings, number=number, num_members=len(sources), sampler=sampler))
        for number, source in enumerate(sources)
    ]


def open_solution_scorer(source: PRMSource, models: LoadedModels) -> SolutionScorer:
    """Load a model, or an ensemble, and return its scorer of written solutions.

    Raises:
        CheckpointError: If the model is missing or does not fit its spec.
        ConfigError: If it has no spec, or backend, device, type or reference do not fit.
        BackendError: If the model cannot be served.
    """
    check_backend(source)
    silence_bars()
    settings = EngineSettings(dtype=source.dtype, trust_remote_code=source.trust_remote_code)
    members = [replace(source, model=member) for member in prm_members(source.model)]
    scorers = [opened.solution_scorer() for opened in open_members(members, models, settings)]
    return scorers[0] if len(scorers) == 1 else EnsembleSolutionScorer(scorers)


class _PromptsAlone:
    """``SearchPrompts`` of requests whose prefix begins with one of some prompts, for models that read tokens."""

    def __init__(self, renderer_hash: str, prompts: Collection[tuple[int, ...]]) -> None:
        self.renderer_hash = renderer_hash
        self._prompts, self._lengths = set(prompts), sorted({len(prompt) for prompt in prompts}, reverse=True)

    def length(self, prefix_ids: tuple[int, ...]) -> int | None:
        return next((length for length in self._lengths if prefix_ids[:length] in self._prompts), None)

    def split(self, prefix_ids: tuple[int, ...], observations: Ranges) -> SplitPrefix | None:
        return None

    def decode(self, step_ids: Sequence[int]) -> str:
        return ""


def open_token_scorer(source: PRMSource, models: LoadedModels, *, renderer_hash: str, prompts: Collection[tuple[int, ...]]) -> StepScorer:
    """Load a model of a policy's tokens and return a scorer for the steps of solutions after some prompts.

    Raises:
        DataFormatError: If the model was trained on prompts of another renderer; otherwise as for ``open_solution_scorer``.
    """
    silence_bars()
    settings = EngineSettings(dtype=source.dtype, trust_remote_code=source.trust_remote_code)
    return open_prm(source, MemberAccess(models, settings)).step_scorer(_PromptsAlone(renderer_hash, prompts))
