"""A language model with a small part of its vocabulary: where a task has few words, most of a small model's work is its head.

Gemma 3 270M spends 168 of its 268 million parameters on 262,144 tokens. ``cut_vocabulary`` keeps the tokens that some texts need; the rest
of the model is unchanged. It reads those texts as before, and gives the kept tokens the probabilities that it gave them, divided by their
sum.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from stepladder.errors import DataFormatError
from stepladder.files import atomic_directory

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def cut_vocabulary(source: Path, out: Path, texts: Sequence[str]) -> None:
    """Save a model with a part of its vocabulary, unless it is there.

    Args:
        source: A model with one matrix for tokens that are read and written, and a byte-pair tokenizer.
        out: Directory of the smaller one.
        texts: What it must be able to read and write.

    Raises:
        DataFormatError: If the tokenizer is of another kind.
    """
    if out.exists():
        return
    plain, settings = (json.loads((source / name).read_text(encoding="utf-8")) for name in ("tokenizer.json", "tokenizer_config.json"))
    if plain["model"]["type"] != "BPE":
        raise DataFormatError(f"{source}: the tokenizer must be of byte pairs: got {plain['model']['type']} -- choose another model")
    special = {name: token for name, token in settings.items() if name in _SPECIAL}
    whole = Tokenizer.from_str(json.dumps(plain))
    kept = _needed(plain, {*special.values(), *(token for text in texts for token in whole.encode(text).tokens)})
    numbers = {token: number for number, token in enumerate(kept)}
    small = Tokenizer.from_str(json.dumps(_with_tokens(plain, numbers)))
    for text in texts:
        assert small.encode(text).tokens == whole.encode(text).tokens, f"all parts of its tokens are kept: {text!r}"
    model: Any = AutoModelForCausalLM.from_pretrained(source)
    old = torch.tensor(list(kept.values()))
    rows = model.get_input_embeddings().weight.data[old]
    model.resize_token_embeddings(len(kept))
    model.get_input_embeddings().weight.data.copy_(rows)
    for name, token in special.items():
        for config in (model.config, model.generation_config):
            if getattr(config, f"{name}_id", None) is not None:
                setattr(config, f"{name}_id", numbers[token])
    with atomic_directory(out) as temporary:
        model.save_pretrained(temporary)
        PreTrainedTokenizerFast(tokenizer_object=small, **special).save_pretrained(temporary)


def _needed(plain: dict[str, Any], tokens: set[str]) -> dict[str, int]:
    """Return tokens with their old numbers, in the order of these: the given ones, all of which they are merged, and single bytes."""
    vocabulary, parts = plain["model"]["vocab"], dict[str, list[str]]()
    for pair in plain["model"]["merges"]:
        parts.setdefault("".join(pair), []).extend(pair)
    found = {f"<0x{byte:02X}>" for byte in range(256)} & vocabulary.keys()
    while tokens:
        found |= tokens
        tokens = {part for token in tokens for part in parts.get(token, [])} - found
    return {token: vocabulary[token] for token in sorted(found, key=vocabulary.__getitem__)}


def _with_tokens(plain: dict[str, Any], numbers: dict[str, int]) -> dict[str, Any]:
    """Return a tokenizer with some tokens only, and what is merged to them."""
    model = plain["model"]
    merges = [pair for pair in model["merges"] if all(token in numbers for token in (*pair, pair[0] + pair[1]))]
    added = [{**each, "id": numbers[each["content"]]} for each in plain["added_tokens"] if each["content"] in numbers]
    after = plain["post_processor"] or {}
    named = {token: {**entry, "ids": [numbers[token]]} for token, entry in after.get("special_tokens", {}).items()}
    return {
        **plain,
        "added_tokens": added,
        "post_processor": {**after, "special_tokens": named} if named else plain["post_processor"],
        "model": {**model, "vocab": {token: number for token, number in numbers.items() if token in model["vocab"]}, "merges": merges},
    }
