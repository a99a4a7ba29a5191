"""The embedded task's base model: a small untrained Qwen2 and a tokenizer with one token per symbol, saved in Hugging Face form."""

from pathlib import Path

from stepladder.embedded.glyphs import FUNCTIONS, GLYPHS
from stepladder.files import atomic_directory

HIDDEN_SIZE = 96
NUM_HEADS = 3
"""Heads of 32 dimensions, the least that every engine can run."""
NUM_LAYERS = 3
INTERMEDIATE_SIZE = 256
MAX_POSITIONS = 128


def save_base_model(directory: Path, *, seed: int) -> None:
    """Build the untrained model from a seed and save it with its tokenizer, whole or not at all."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = build_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=INTERMEDIATE_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_HEADS,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.06,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(), atomic_directory(directory) as temporary:
        torch.manual_seed(seed)
        Qwen2ForCausalLM(config).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def build_tokenizer():
    """Return a tokenizer whose tokens are digits, glyphs, function names with the blanks around them, and the marks of the step format."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<eos>", "<unk>"]
    symbols = ["\n", " ", "= ", *"0123456789", *GLYPHS, *(f" {name} " for name in FUNCTIONS)]
    core = Tokenizer(models.WordLevel(vocab={token: i for i, token in enumerate(specials + symbols)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r" [a-z]+ |= |[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )
