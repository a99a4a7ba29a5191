"""The tokenizer of glyph programs, with one token per symbol, and the untrained transformer that learns to write them."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stepladder.embedded.glyphs import ANSWER_MARK, FUNCTIONS, GlyphTask
from stepladder.lm.loading import silence_bars

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"


def build_tokenizer(task: GlyphTask) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per digit, glyph, function and mark; decoding concatenates exactly."""
    # A function's token includes its blanks, so that they cost nothing. A lone blank separates list and program in a question.
    symbols = ["\n", " ", ANSWER_MARK, *"0123456789", *task.glyphs, *(f" {name} " for name in FUNCTIONS)]
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, UNK, *symbols])}
    core = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(rf" [a-z]+ |{ANSWER_MARK}|[\s\S]"), "isolated")
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


MAX_POSITIONS = 512
"""Context of the model in tokens; a solution of ten steps needs about ninety."""


def build_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlamaForCausalLM:
    """Return an untrained Llama of about 0.2 million parameters, in float32 and in evaluation mode."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=192,
        max_position_embeddings=MAX_POSITIONS,
        # Steps refer to symbols a few tokens back. Slow rotations would leave most of each head without position information.
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=tokenizer.get_vocab()[PAD],
        eos_token_id=tokenizer.get_vocab()[EOS],
        bos_token_id=None,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def write_base_model(directory: Path, task: GlyphTask, *, seed: int) -> None:
    """Write the untrained model and its tokenizer in Hugging Face form."""
    silence_bars()
    tokenizer = build_tokenizer(task)
    build_model(tokenizer, seed=seed).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
