"""Tiny causal language models and value models with random weights, saved to disk in Hugging Face form.

Every model here has two or so layers, so a test runs in milliseconds. Nothing is downloaded. ``arch="llama"`` puts a begin-of-sequence
token in front of encoded text and ``arch="qwen2"`` does not, as the real families do, so both paths of a renderer are met.
"""

import string
from pathlib import Path
from typing import Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForTokenClassification,
)

Arch = Literal["qwen2", "llama"]
Vocab = Literal["chars", "bytes"]

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
CHARS = "\n " + string.digits + string.ascii_lowercase + "+-*/=().,:;?#<>[]|"
"""The characters of the ``chars`` vocabulary; its ids are 4 and up, in this order, after the four special tokens."""


def tiny_tokenizer(vocab: Vocab = "chars", *, add_bos: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single characters (``chars``) or of single UTF-8 bytes (``bytes``), without merges.

    Decoding concatenates exactly: the text of a concatenation is the concatenation of the texts.
    """
    specials = [PAD, BOS, EOS, UNK]
    alphabet = list(CHARS) if vocab == "chars" else sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: i for i, token in enumerate([*specials, *alphabet])}
    if vocab == "chars":
        core = Tokenizer(models.WordLevel(vocab=ids, unk_token=UNK))
        core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        core.decoder = decoders.Fuse()
    else:
        core = Tokenizer(models.BPE(vocab=ids, merges=[]))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    if add_bos:
        core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )


def tiny_config(
    tokenizer: PreTrainedTokenizerFast,
    *,
    arch: Arch = "qwen2",
    hidden: int = 64,
    layers: int = 2,
    kv_heads: int | None = None,
    max_positions: int = 512,
    **overrides: object,
) -> Qwen2Config | LlamaConfig:
    """Return the configuration of a model with heads of 32 dimensions; ``kv_heads`` below ``hidden // 32`` gives grouped queries.

    Weights are drawn wider than usual (0.1), so that predictions differ clearly from uniform.
    """
    heads = hidden // 32
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads if kv_heads is None else kv_heads,
        "max_position_embeddings": max_positions,
        "initializer_range": 0.1,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": False,
        **overrides,
    }
    return (Qwen2Config if arch == "qwen2" else LlamaConfig)(**settings)


def tiny_policy(
    *, arch: Arch = "qwen2", vocab: Vocab = "chars", seed: int = 0, **config: int
) -> tuple[Qwen2ForCausalLM | LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Return a causal language model in evaluation mode and its tokenizer; the weights depend on the seed alone."""
    tokenizer = tiny_tokenizer(vocab, add_bos=arch == "llama")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = tiny_config(tokenizer, arch=arch, **config)
        model = (Qwen2ForCausalLM if arch == "qwen2" else LlamaForCausalLM)(settings)
    return model.eval(), tokenizer


def tiny_scorer(
    *, arch: Arch = "qwen2", vocab: Vocab = "chars", seed: int = 0, **config: int
) -> tuple[Qwen2ForTokenClassification | LlamaForTokenClassification, PreTrainedTokenizerFast]:
    """Return a causal body with a one-output head on every token, in evaluation mode, and its tokenizer."""
    tokenizer = tiny_tokenizer(vocab, add_bos=arch == "llama")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = tiny_config(tokenizer, arch=arch, num_labels=1, **config)
        model = (Qwen2ForTokenClassification if arch == "qwen2" else LlamaForTokenClassification)(settings)
    return model.eval(), tokenizer


def save_tiny_policy(
    directory: Path, *, arch: Arch = "qwen2", vocab: Vocab = "chars", seed: int = 0, hidden: int = 64, layers: int = 2, **config: int
) -> Path:
    """Save a tiny causal language model and its tokenizer to ``directory`` and return it."""
    model, tokenizer = tiny_policy(arch=arch, vocab=vocab, seed=seed, hidden=hidden, layers=layers, **config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return Path(directory)


def save_tiny_scorer(
    directory: Path, *, arch: Arch = "qwen2", vocab: Vocab = "chars", seed: int = 0, hidden: int = 64, layers: int = 2, **config: int
) -> Path:
    """Save a tiny value model (token classification, one label) and its tokenizer to ``directory`` and return it."""
    model, tokenizer = tiny_scorer(arch=arch, vocab=vocab, seed=seed, hidden=hidden, layers=layers, **config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return Path(directory)
