"""Policies and renderers, from the configuration.

Model classes are imported inside the functions that need them, so that reading a configuration stays free of torch.
"""

import os
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stepladder.digests import file_stats
from stepladder.errors import ConfigError
from stepladder.interfaces import Policy
from stepladder.lm.loaded_models import LoadedModels, Role
from stepladder.loops.assembly.engines import engine_settings
from stepladder.loops.config.models import OpenAIConfig
from stepladder.loops.config.run import Config
from stepladder.policy.backends.server_settings import ServerOptions, ServerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stepladder.policy.prompts import PromptRenderer, StepFormat

POLICY = Role(kind="policy")
DISCRIMINATOR = Role(kind="discriminator")


def step_format(config: Config) -> "StepFormat":
    """Return the step format that the configuration describes."""
    from stepladder.policy.prompts import StepFormat

    stated = config.format.model_dump()
    # Still open where no model was looked at; a system message needs a template.
    if stated["chat"] == "auto":
        stated["chat"] = config.format.system is not None
    return StepFormat(**stated)


def build_renderer(config: Config, policy_dir: str) -> "PromptRenderer":
    """Return the renderer of a policy: its tokenizer with the configured format."""
    from stepladder.policy.prompts import PromptRenderer

    return PromptRenderer(_prompt_tokenizer(config, policy_dir), step_format(config))


def _prompt_tokenizer(config: Config, policy_dir: str) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of prompts. Settings that depend on it and the renderer share one load: a large vocabulary takes seconds."""
    path = Path(policy_dir)
    return _tokenizer_at(policy_dir, config.policy.trust_remote_code, file_stats(path) if path.is_dir() else ())


# Two: a policy, and one beside it that a round starts from or that reviews answers.
@lru_cache(maxsize=2)
def _tokenizer_at(policy_dir: str, trust_remote_code: bool, stats: tuple[tuple[str, int, int], ...]) -> "PreTrainedTokenizerBase":
    from stepladder.lm.loading import load_tokenizer

    return load_tokenizer(policy_dir, trust_remote_code=trust_remote_code)


def imported_row_check(config: Config, policy_dir: str) -> Callable[[Any, str], None]:
    """Return a check of an imported record, given its file and row, against the tokenizer and vocabulary of a policy.

    Raises:
        CheckpointError: If the policy cannot be read.
    """
    from stepladder.data.exports.import_checks import check_row
    from stepladder.lm.loading import load_model_settings

    renderer = build_renderer(config, policy_dir)
    named, _ = load_model_settings(policy_dir, trust_remote_code=config.policy.trust_remote_code)
    return lambda record, place: check_row(record, renderer, vocab_size=named.get_text_config().vocab_size, place=place)


class ChosenChat(NamedTuple):
    """The settings with the choice that ``format.chat = "auto"`` leaves open."""

    config: Config
    """The settings."""
    note: str | None
    """The choice in one sentence; None if there was nothing to choose."""


def with_chat(config: Config, policy_dir: str, *, earlier: Config | None = None) -> ChosenChat:
    """Choose whether prompts go through the chat template of a policy, where the settings leave it open.

    They do if the tokenizer has a template and its token for the end of a turn ends the model's answers. The tokenizers of many base models
    have a template, too, but their end token is another.

    Args:
        config: The settings.
        policy_dir: The policy.
        earlier: Settings with which the same work was started before; its choice is kept.
    """
    if config.format.chat != "auto":
        return ChosenChat(config, None)
    from stepladder.lm.chat import turn_end
    from stepladder.lm.loading import load_model_settings
    from stepladder.policy.backends.steps import end_tokens

    note = None
    if earlier is not None:
        chat = earlier.format.chat
    else:
        tokenizer = _prompt_tokenizer(config, policy_dir)
        named = load_model_settings(policy_dir, trust_remote_code=config.policy.trust_remote_code)
        closing = turn_end(tokenizer)
        chat = closing is not None and bool(end_tokens(tokenizer, *named, vocab_size=max(len(tokenizer), closing + 1))[closing])
        if chat or config.format.system is not None:
            chat = True
            note = f"format.chat: prompts go through the chat template of {policy_dir} -- false leaves them plain"
        elif tokenizer.chat_template:
            note = (
                f"format.chat: {policy_dir} has a chat template but does not end its answers with it, as a base model: prompts are plain "
                "-- set format.chat = true to use it"
            )
    return ChosenChat(config.model_copy(update={"format": config.format.model_copy(update={"chat": chat})}), note)


def with_date(config: Config, policy_dir: str, *, earlier: Config | None) -> Config:
    """Return the settings with the date that a chat template prints, so that a run keeps it on another day.

    Args:
        config: The settings; unchanged if they have a date, or the template prints none.
        policy_dir: The policy with the template.
        earlier: Settings with which the same work was started before; its date is kept. None is the first start: today.
    """
    from stepladder.lm.chat import prints_date, today

    if config.format.chat is not True or config.format.date is not None:
        return config
    if earlier is not None:
        date = earlier.format.date
    elif prints_date(_prompt_tokenizer(config, policy_dir)):
        date = today()
    else:
        date = None
    return config.model_copy(update={"format": config.format.model_copy(update={"date": date})})


class LiveWeights(NamedTuple):
    """A policy in memory whose weights change between searches."""

    source: str
    """Directory or hub id that it was loaded from, with its tokenizer and format."""
    model: "PreTrainedModel"
    """The model."""
    tokenizer: "PreTrainedTokenizerBase"
    """Its tokenizer."""


def build_policy(config: Config, models: LoadedModels, policy: str | LiveWeights, *, role: Role = POLICY) -> Policy:
    """Return a policy on the configured backend. Weights and engines are those of the process; its key/value caches are new.

    Args:
        config: The configuration.
        models: The models of this process.
        policy: Directory or hub id of the policy, or on the ``transformers`` backend a policy in memory.
        role: Role of the policy. Only that of the search takes the configured actions and calls the tool.

    Raises:
        ConfigError: If the backend is not installed or its settings are impossible.
        CheckpointError: If the model cannot be loaded.
        BackendError: If the server does not answer.
    """
    if isinstance(policy, LiveWeights):
        source, bare = policy.source, _in_place(config, policy)
    else:
        source, bare = policy, _bare_policy(config, models, policy, role=role)
    if role != POLICY:
        return bare
    if config.search.actions:
        bare = _with_actions(bare, config, build_renderer(config, source))
    if config.search.tool is None:
        return bare
    from stepladder.loops.assembly.tools import build_tool
    from stepladder.policy.observations import ObservationStore
    from stepladder.policy.tools import ToolPolicy, ToolSettings

    section = config.search
    settings = ToolSettings(form=section.observation, max_tokens=section.max_observation_tokens, max_errors=section.max_tool_errors)
    return ToolPolicy(bare, build_tool(config), build_renderer(config, source), settings, ObservationStore())


def _with_actions(policy: Policy, config: Config, renderer: "PromptRenderer") -> Policy:
    from stepladder.policy.actions import Action, ActionPolicy

    section = config.search
    actions = [
        Action(
            name=name,
            # The decimal number that the user wrote.
            share=Fraction(repr(action.share)),
            prompt=renderer.variant(action.prompt).prompt_ids,
            after=action.after,
            max_steps=section.max_depth if action.to_end else 1,
        )
        for name, action in section.actions.items()
    ]
    return ActionPolicy(policy, renderer.prompt_ids, actions)


def keep_observations(policy: Policy, shard: Path) -> None:
    """Keep what the tool of a policy returns in a file beside a shard, so that the shard's work goes on as it began after a restart.

    The file is there until the work is finished. Without a tool, nothing happens.

    Raises:
        CheckpointError: If the file is there and holds something else.
    """
    keep = getattr(policy, "keep_observations", None)
    if keep is not None:
        keep(shard.with_suffix(".observations.jsonl"))


def end_observations(policy: Policy) -> None:
    """End the tool of a policy whose work is finished and stored, and delete its observations; nothing without a tool."""
    end = getattr(policy, "end", None)
    if end is not None:
        end()


def _in_place(config: Config, live: LiveWeights) -> Policy:
    from stepladder.policy.backends.transformers import TransformersPolicy

    return TransformersPolicy(live.model, live.tokenizer, step_format(config), max_batch=config.policy.max_batch)


def _bare_policy(config: Config, models: LoadedModels, policy_dir: str, *, role: Role) -> Policy:
    if config.policy.backend == "vllm":
        return _vllm_policy(config, models, policy_dir, role=role)
    if config.policy.backend == "openai":
        return _openai_policy(config, models, policy_dir)
    from stepladder.lm.loading import LanguageModelSource, silence_bars
    from stepladder.policy.backends.transformers import TransformersPolicy

    silence_bars()
    section = config.policy
    source = LanguageModelSource(model=policy_dir, device=section.device, dtype=section.dtype, trust_remote_code=section.trust_remote_code)
    model, tokenizer = models.weights(role, source, source.load)
    return TransformersPolicy(model, tokenizer, step_format(config), max_batch=section.max_batch)


def _vllm_policy(config: Config, models: LoadedModels, policy_dir: str, *, role: Role) -> Policy:
    from stepladder.lm.loading import load_model_settings, load_tokenizer
    from stepladder.lm.vllm_engine import VLLMEngine
    from stepladder.policy.backends.vllm import VLLMPolicy

    trust, settings = config.policy.trust_remote_code, engine_settings(config, config.policy.vllm.memory_share)
    engine = models.engine(role, (policy_dir, settings), lambda: VLLMEngine(policy_dir, task="generate", settings=settings))
    tokenizer, named = load_tokenizer(policy_dir, trust_remote_code=trust), load_model_settings(policy_dir, trust_remote_code=trust)
    return VLLMPolicy(engine, tokenizer, step_format(config), *named)


def _openai_policy(config: Config, models: LoadedModels, policy_dir: str) -> Policy:
    from stepladder.lm.loading import load_model_settings, load_tokenizer
    from stepladder.policy.backends.completion_server import CompletionServer
    from stepladder.policy.backends.openai import OpenAIPolicy

    trust = config.policy.trust_remote_code
    tokenizer, named = load_tokenizer(policy_dir, trust_remote_code=trust), load_model_settings(policy_dir, trust_remote_code=trust)
    text = named[0].get_text_config()
    context = getattr(text, "max_position_embeddings", None)
    settings = _server_settings(config.policy.openai)
    server = models.weights(Role(kind="server"), settings, lambda: CompletionServer(settings))
    return OpenAIPolicy(server, tokenizer, step_format(config), *named, vocab_size=text.vocab_size, context=context)


def _server_settings(section: OpenAIConfig) -> ServerSettings:
    """Return the settings of a server's connection, with the key from the environment."""
    key = None if section.api_key_env is None else os.environ.get(section.api_key_env)
    if section.api_key_env is not None and not key:
        raise ConfigError(f"policy.openai.api_key_env: the variable must hold a key: {section.api_key_env!r} is not set -- export it")
    options = {each.name: getattr(section, each.name) for each in fields(ServerOptions)}
    return ServerSettings(**options, api_key=key)
