"""The tokenizers of the embedded tasks, with one token per symbol, and the untrained transformers that learn to write them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from stepladder.embedded.glyphs import ANSWER_MARK, FUNCTIONS, GlyphTask
from stepladder.embedded.puzzle import FLIPS, GOAL
from stepladder.lm.loading import silence_bars

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """The size of a Llama; multi-head attention with equal numbers of heads."""

    hidden_size: int
    """Width of the body."""
    num_layers: int
    """Layers."""
    num_heads: int
    """Heads per layer."""
    intermediate_size: int
    """Width of the feed-forward layers."""


MAX_POSITIONS = 512
"""Context of the models in tokens; a glyph solution of ten steps needs about ninety, a puzzle's longest 230."""
GLYPH_SHAPE = ModelShape(hidden_size=64, num_layers=4, num_heads=2, intermediate_size=192)
PUZZLE_SHAPE = ModelShape(hidden_size=96, num_layers=2, num_heads=4, intermediate_size=256)
PUZZLE_WINDOW = 20
"""Tokens that a token of the puzzle sees: its own step and the one before. A row is all that counts, whatever led to it."""


def build_tokenizer(task: GlyphTask) -> PreTrainedTokenizerFast:
    """Return the tokenizer of glyph programs: one token per digit, glyph, function and mark."""
    # A function's token includes its blanks, so that they cost nothing. A lone blank separates list and program in a question.
    symbols = ["\n", " ", ANSWER_MARK, *"0123456789", *task.glyphs, *(f" {name} " for name in FUNCTIONS)]
    return symbol_tokenizer(symbols, pattern=rf" [a-z]+ |{ANSWER_MARK}|[\s\S]")


def build_puzzle_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of the puzzle: one token per digit and move, a move with its blank."""
    return symbol_tokenizer(["\n", *GOAL, *(f"f{length} " for length in FLIPS)], pattern=r"f[0-9] |[\s\S]")


def symbol_tokenizer(symbols: Sequence[str], *, pattern: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per symbol; decoding concatenates exactly.

    Args:
        symbols: The texts of the tokens.
        pattern: Regular expression whose matches are the tokens of a text.
    """
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, UNK, *symbols])}
    core = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, EOS, UNK)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, seed: int, shape: ModelShape = GLYPH_SHAPE, window: int | None = None
) -> LlamaForCausalLM | MistralForCausalLM:
    """Return an untrained model of about 0.2 million parameters, in float32 and in evaluation mode.

    Args:
        tokenizer: Its tokenizer.
        seed: Seed of the weights.
        shape: Its size.
        window: Tokens that a token sees, itself included; None is a Llama, which sees all earlier ones.
    """
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_heads,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": MAX_POSITIONS,
        # Steps refer to symbols a few tokens back. Slow rotations would leave most of each head without position information.
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        "tie_word_embeddings": True,
        "initializer_range": 0.05,
        "pad_token_id": tokenizer.get_vocab()[PAD],
        "eos_token_id": tokenizer.get_vocab()[EOS],
        "bos_token_id": None,
        "dtype": "float32",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if window is None:
            return LlamaForCausalLM(LlamaConfig(**settings)).eval()
        return MistralForCausalLM(MistralConfig(**settings, sliding_window=window)).eval()


def write_base_model(directory: Path, task: GlyphTask, *, seed: int) -> None:
    """Write the untrained model of glyph programs and its tokenizer in Hugging Face form."""
    tokenizer = build_tokenizer(task)
    write_model(directory, build_model(tokenizer, seed=seed), tokenizer)


def write_puzzle_model(directory: Path, *, seed: int) -> None:
    """Write the untrained model of the puzzle and its tokenizer in Hugging Face form."""
    tokenizer = build_puzzle_tokenizer()
    write_model(directory, build_model(tokenizer, seed=seed, shape=PUZZLE_SHAPE, window=PUZZLE_WINDOW), tokenizer)


def write_model(directory: Path, model: LlamaForCausalLM | MistralForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a model and its tokenizer in Hugging Face form."""
    silence_bars()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
