import json
import logging
import shutil

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stepladder.errors import CheckpointError, ConfigError
from stepladder.lm.loading import (
    load_causal_lm,
    load_model_settings,
    load_token_classifier,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
)
from stepladder.policy.prompts import StepFormat
from tests.models import save_tiny_policy


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("policy"), arch="qwen2", vocab="chars", hidden=32, layers=1)


def test_a_custom_tokenizer_comes_back_as_it_was_saved(directory):
    """The family's own splitting rules (Qwen2's drop newlines of this vocabulary) do not replace those in the file."""
    tokenizer = load_tokenizer(directory)
    ids = tokenizer.encode("1+2=3\n ab")
    assert tokenizer.decode(ids) == "1+2=3\n ab" and len(ids) == 9


def test_a_tokenizer_that_other_tools_read_differently_is_told_once(tmp_path, caplog):
    """Qwen2's class drops the blank of this vocabulary; Llama's reads the file as it is, and a directory of our own needs no warning."""
    qwen, llama, own = (save_tiny_policy(tmp_path / name, arch=arch) for name, arch in (("q", "qwen2"), ("l", "llama"), ("o", "qwen2")))
    StepFormat().save(own)
    with caplog.at_level(logging.WARNING, logger="stepladder"):
        for directory in (qwen, llama, own, qwen):
            load_tokenizer(directory)
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"{qwen}: tokenizer.json is used as it was saved, but AutoTokenizer")
    assert "as a Qwen2Tokenizer: 'is 1+1?' gives the ids [24, 34, 5, 7, 42, 7, 53] here and [24, 34, 7, 42, 7, 53] there" in message


def test_a_tokenizer_that_fails_on_unknown_characters_is_refused(tmp_path):
    """A vocabulary of words without an unknown token raises a bare Exception at any other character: one sentence before that."""
    core = Tokenizer(models.WordLevel({"<eos>": 0, "1": 1}))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>").save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"must read any text: 'is 1\+1\?' raises .*Missing \[UNK\].* -- give its model an unknown token"
    ):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("setting", "value"), [("model_max_length", "long"), ("model_max_length", None), ("chat_template", {"a": 1})])
def test_a_tokenizer_with_settings_of_another_type_is_refused(directory, tmp_path, setting, value):
    """They load, and the library raises a TypeError when it compares a length, or saves the model after its training."""
    copy = shutil.copytree(directory, tmp_path / "policy")
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {setting: value}))
    if value is None:
        # The library has a length of its own for none.
        assert load_tokenizer(copy).model_max_length > 1e29
        return
    with pytest.raises(CheckpointError, match=f"^{copy}: {setting} must be .* in tokenizer_config.json: got .* -- correct it"):
        load_tokenizer(copy)


def test_models_load_in_evaluation_mode_with_the_type_that_was_asked_for(directory):
    """``auto`` is float32 on the CPU; a token classifier takes the same body and a new head."""
    model = load_causal_lm(directory, device="cpu")
    assert not model.training and model.dtype == torch.float32
    assert load_causal_lm(directory, device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    head = load_token_classifier(directory, device="cpu", num_labels=1)
    assert head.config.num_labels == 1
    torch.testing.assert_close(head.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_what_is_missing_is_named(directory, tmp_path):
    """No directory, no tokenizer, a broken tokenizer file, no weights: one sentence each, with the place."""
    (tmp_path / "bare").mkdir()
    with pytest.raises(CheckpointError, match=r"nowhere: must be a model directory or a hub id"):
        load_causal_lm(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"bare: a model directory must hold a tokenizer"):
        load_tokenizer(tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").write_text("{}")
    (tmp_path / "bare" / "tokenizer_config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: must be the settings of a tokenizer: it is not JSON"):
        load_tokenizer(tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "bare" / "config.json").write_text((directory / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"bare: must be a causal language model: Error no file named model.safetensors"):
        load_causal_lm(tmp_path / "bare", device="cpu")


def test_a_hub_id_that_cannot_be_loaded_is_no_incomplete_directory(monkeypatch):
    """The remedy fits what was given."""

    def refuse(*_, **__):
        raise OSError("no such repository")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    monkeypatch.setattr("stepladder.hub.why_unreachable", lambda: None)
    monkeypatch.setattr("stepladder.lm.loading.why_unreachable", lambda: None)
    with pytest.raises(CheckpointError, match="someone/model: could not load a tokenizer: no such repository -- check the name"):
        load_tokenizer("someone/model")


def test_devices_and_types_are_checked():
    """Malformed and absent devices and unknown types are configuration errors."""
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device"):
        resolve_device("gpu")
    with pytest.raises(ConfigError, match=r"must be 'auto', 'cpu', 'cuda' or 'cuda:N': got 'meta'"):
        resolve_device("meta")
    with pytest.raises(ConfigError, match="must exist"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")
    with pytest.raises(ConfigError, match="dtype"):
        resolve_dtype("int8", torch.device("cpu"))


def test_numbers_that_nothing_computes_with_are_refused(tmp_path):
    """Libraries would fail on them with an overflow that names no file. A tokenizer's endless length is larger, and stays."""
    model = save_tiny_policy(tmp_path / "model")
    path = model / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "num_hidden_layers": 10**400}))
    with pytest.raises(CheckpointError, match=r"config\.json: must be .*: 'num_hidden_layers' must be below 2\*\*63 -- save"):
        load_model_settings(model)
    path.write_text(json.dumps(settings))
    endless = model / "tokenizer_config.json"
    endless.write_text(json.dumps({**json.loads(endless.read_text()), "model_max_length": 10**30}))
    load_model_settings(model)
    load_tokenizer(model)
