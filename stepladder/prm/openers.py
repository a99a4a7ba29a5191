"""Functions that open the models of each family; ``families.FAMILIES`` names them."""

from collections.abc import Callable

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepladder.interfaces import StepScorer
from stepladder.lm.loading import load_token_classifier, load_tokenizer
from stepladder.prm.checkpoints import (
    load_bare_lm,
    load_head,
    load_reward_model,
    load_vocabulary_head,
    load_vocabulary_model,
    load_vocabulary_rows,
)
from stepladder.prm.implicit_scorer import ImplicitStepScorer
from stepladder.prm.judge import Judge
from stepladder.prm.open import ModelAccess, OpenedPRM, TextPRM, TokenPRM
from stepladder.prm.outputs import check_entropy_penalty
from stepladder.prm.reader import StepReader
from stepladder.prm.readings import HeadReading, RatioReading, Reading, SurprisalReading
from stepladder.prm.scorer import TransformersStepScorer
from stepladder.prm.served import CachedModel, TokenLogps, TokenOutputs
from stepladder.prm.sources import PRMSource
from stepladder.prm.specs import PRMSpec, resolve_reference
from stepladder.prm.word_judge import WordJudge

PromptLength = Callable[[tuple[int, ...]], int | None]


def open_head(source: PRMSource, spec: PRMSpec, access: ModelAccess) -> OpenedPRM:
    """Open a model with a head on its tokens: a value head, or two classes."""

    def load_model() -> PreTrainedModel:
        return load_reward_model(source.model, spec, device=source.device, dtype=source.dtype, trust_remote_code=source.trust_remote_code)

    if spec.prompt != "tokens":
        return _open_outputs(
            source, spec, access, load_model=lambda tokenizer: load_model(), load_own_head=lambda tokenizer: load_head(source.model, spec)
        )

    def load_classifier() -> PreTrainedModel:
        # stepladder's training saves the head at the place where transformers looks for it.
        return load_token_classifier(source.model, device=source.device, dtype=source.dtype, trust_remote_code=source.trust_remote_code)

    def load_scorer(prompt_length: PromptLength) -> StepScorer:
        if source.backend == "vllm":
            from stepladder.prm.vllm_scorers import VLLMOutputs, VLLMStepScorer

            outputs = VLLMOutputs(access.engine(source.model, task="embed"), load_head(source.model, spec).float())
            return VLLMStepScorer(outputs, spec, entropy_penalty=source.entropy_penalty)
        model = access.weights(("classifier", source.model, *_place(source)), load_classifier)
        return TransformersStepScorer(model, spec, entropy_penalty=source.entropy_penalty)

    return TokenPRM(spec=spec, model=source.model, load=load_scorer, renderer=lambda: access.renderer(source))


def open_probe(source: PRMSource, spec: PRMSpec, access: ModelAccess) -> OpenedPRM:
    """Open a value head on a policy's own hidden states."""

    def load_scorer(prompt_length: PromptLength) -> StepScorer:
        attached = access.attach(source, spec, load_head(source.model, spec))
        return TransformersStepScorer(attached, spec, entropy_penalty=source.entropy_penalty)

    return TokenPRM(spec=spec, model=source.model, load=load_scorer, renderer=lambda: access.renderer(source))


def open_vocabulary(source: PRMSource, spec: PRMSpec, access: ModelAccess) -> OpenedPRM:
    """Open a language model that is read at the logits of two tokens."""

    def load_model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        return load_vocabulary_model(
            source.model, spec, tokenizer, device=source.device, dtype=source.dtype, trust_remote_code=source.trust_remote_code
        )

    def load_rows(tokenizer: PreTrainedTokenizerBase) -> nn.Module:
        return load_vocabulary_head(source.model, spec, tokenizer)

    return _open_outputs(source, spec, access, load_model=load_model, load_own_head=load_rows)


def _open_outputs(
    source: PRMSource,
    spec: PRMSpec,
    access: ModelAccess,
    *,
    load_model: Callable[[PreTrainedTokenizerBase], PreTrainedModel],
    load_own_head: Callable[[PreTrainedTokenizerBase], nn.Module],
) -> TextPRM:
    """Open a model that reads text and has outputs at every token.

    Args:
        source: The model.
        spec: How it is read.
        access: Gives weights and engines.
        load_model: Loads it on transformers.
        load_own_head: Loads the head, which maps vLLM's hidden states to the outputs.
    """

    def load_outputs(tokenizer: PreTrainedTokenizerBase) -> TokenOutputs:
        if source.backend == "vllm":
            from stepladder.prm.vllm_scorers import VLLMOutputs

            head = load_own_head(tokenizer).float()
            return VLLMOutputs(access.engine(source.model, task="embed"), head)
        model = access.weights(("outputs", source.model, spec, *_place(source)), lambda: load_model(tokenizer))
        return CachedModel(model, num_outputs=spec.num_outputs)

    def load() -> StepReader:
        check_entropy_penalty(source.entropy_penalty, spec)
        tokenizer = load_tokenizer(source.model, trust_remote_code=source.trust_remote_code)
        reading = HeadReading(load_outputs(tokenizer), spec, entropy_penalty=source.entropy_penalty)
        return StepReader(reading, tokenizer, spec)

    return TextPRM(spec=spec, load=load)


def open_implicit(source: PRMSource, spec: PRMSpec, access: ModelAccess) -> OpenedPRM:
    """Open a language model that is read against a reference; errors as for ``resolve_reference``."""
    reference = resolve_reference(source.model, spec, source.reference)

    def load_reading() -> Reading:
        own = _load_logps(source, access, source.model, num_engines=2)
        other = _load_logps(source, access, reference, num_engines=2, is_reference=True)
        return RatioReading(own, other, spec, entropy_penalty=source.entropy_penalty)

    return _open_logps(source, spec, access, load_reading)


def open_surprisal(source: PRMSource, spec: PRMSpec, access: ModelAccess) -> OpenedPRM:
    """Open a language model that is read at the log-probabilities of steps."""

    def load_reading() -> Reading:
        return SurprisalReading(_load_logps(source, access, source.model), spec, entropy_penalty=source.entropy_penalty)

    return _open_logps(source, spec, access, load_reading)


def _load_logps(source: PRMSource, access: ModelAccess, model: str, *, num_engines: int = 1, is_reference: bool = False) -> TokenLogps:
    """Load a language model that gives log-probabilities."""
    if source.backend == "vllm":
        from stepladder.prm.vllm_scorers import VLLMLogps

        return VLLMLogps(access.engine(model, task="generate", num_engines=num_engines, is_reference=is_reference))

    def load_bare() -> tuple[PreTrainedModel, nn.Module]:
        return load_bare_lm(model, device=source.device, dtype=source.dtype, trust_remote_code=source.trust_remote_code)

    bare, head = access.weights(("bare", model, *_place(source)), load_bare, is_reference=is_reference)
    return CachedModel.of_language_model(bare, head)


def _open_logps(source: PRMSource, spec: PRMSpec, access: ModelAccess, load_reading: Callable[[], Reading]) -> OpenedPRM:
    """Open what reads log-probabilities of the policy's tokens, or of text."""

    def load() -> StepReader:
        tokenizer = load_tokenizer(source.model, trust_remote_code=source.trust_remote_code)
        return StepReader(load_reading(), tokenizer, spec)

    if spec.prompt == "tokens":
        return TokenPRM(
            spec=spec,
            model=source.model,
            load=lambda prompt_length: ImplicitStepScorer(load(), prompt_length=prompt_length),
            renderer=lambda: access.renderer(source),
        )
    return TextPRM(spec=spec, load=load)


def open_judge(source: PRMSource, spec: PRMSpec, access: ModelAccess) -> OpenedPRM:
    """Open a language model that writes verdicts, or says a word at once, on the embedded engine."""

    def load() -> Judge | WordJudge:
        check_entropy_penalty(source.entropy_penalty, spec)
        return _load_word_judge(source, spec, access) if spec.says_word_at_once else load_judge(source, spec, access)

    return TextPRM(spec=spec, load=load)


def load_judge(source: PRMSource, spec: PRMSpec, access: ModelAccess) -> Judge:
    """Load a judge that writes its verdicts."""
    policy, prompt_ids, encode = access.judge_policy(source, spec)
    # The policy that writes is in memory, too.
    word = _load_word_judge(source, spec, access, is_reference=True) if spec.verdict_after else None
    return Judge(policy, spec, prompt_ids, seed=source.seed, encode=encode, word=word)


def _load_word_judge(source: PRMSource, spec: PRMSpec, access: ModelAccess, *, is_reference: bool = False) -> WordJudge:
    prompts = access.judge_prompts(source, spec)
    rows = [prompts.words[side][0] for side in (False, True)]

    def load_model() -> PreTrainedModel:
        options = {"device": source.device, "dtype": source.dtype, "trust_remote_code": source.trust_remote_code}
        return load_vocabulary_rows(source.model, rows, **options)

    model = access.weights(("words", source.model, tuple(rows), *_place(source)), load_model, is_reference=is_reference)
    return WordJudge(CachedModel(model, num_outputs=2), prompts)


def _place(source: PRMSource) -> tuple[str, str, bool]:
    """Return the settings that decide the device and type of loaded weights."""
    return source.device, source.dtype, source.trust_remote_code
