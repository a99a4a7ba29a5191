"""``format.chat = "auto"``: templates of models that end their turns with them, plain prompts for base models and those without."""

from pathlib import Path

import pytest
from transformers import GenerationConfig, PreTrainedTokenizerFast

from stepladder.lm.chat import turn_end
from stepladder.loops.assembly.policies import step_format, with_chat
from stepladder.loops.config.load import load_config
from tests.models import tiny_config, tiny_tokenizer
from tests.tokenizer_families import llama3, qwen

REQUIRED = ["problems.train=a", "problems.test=b", "policy.model=m"]


def save(folder: Path, tokenizer: PreTrainedTokenizerFast, *, ends: list[int]) -> str:
    """Save a tokenizer, a model's configuration, and the tokens that end its answers."""
    tokenizer.save_pretrained(folder)
    config = tiny_config(tokenizer)
    config.eos_token_id = ends[0]
    config.save_pretrained(folder)
    GenerationConfig(eos_token_id=ends).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", [llama3, qwen], ids=lambda family: family.__name__)
def test_a_template_is_used_if_the_model_ends_its_turns_with_it(family, tmp_path: Path) -> None:
    """The same tokenizer is that of an instruct model or of a base model, by the tokens that end the model's answers."""
    tokenizer = family()
    closing = turn_end(tokenizer)
    assert closing is not None
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(closing)
    config = load_config(None, REQUIRED)
    chosen = with_chat(config, save(tmp_path / "instruct", tokenizer, ends=[closing]))
    assert chosen.config.format.chat is True
    assert step_format(chosen.config).chat
    assert chosen.note is not None and "go through the chat template" in chosen.note
    other = next(i for i in range(len(tokenizer)) if i != closing)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(other)
    base = with_chat(config, save(tmp_path / "base", tokenizer, ends=[other]))
    assert base.config.format.chat is False
    assert base.note is not None and "as a base model: prompts are plain" in base.note


def test_the_choice_is_made_once_and_only_where_it_is_open(tmp_path: Path) -> None:
    """Without a template prompts are plain, a stated value stays, and a run that goes on keeps its choice."""
    plain = save(tmp_path / "plain", tiny_tokenizer(), ends=[2])
    config = load_config(None, REQUIRED)
    assert with_chat(config, plain) == (config.model_copy(update={"format": config.format.model_copy(update={"chat": False})}), None)
    stated = load_config(None, [*REQUIRED, "format.chat=true"])
    assert with_chat(stated, "nowhere") == (stated, None)
    kept = with_chat(config, "nowhere", earlier=stated)
    assert (kept.config.format.chat, kept.note) == (True, None)
    assert config.differences(stated) == []
    assert load_config(None, [*REQUIRED, "format.chat=false"]).differences(stated) == ["format.chat: False != True"]
    assert not step_format(config).chat
