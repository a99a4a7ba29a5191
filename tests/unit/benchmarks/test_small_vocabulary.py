"""A model with a part of its vocabulary computes what the whole one did."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from benchmarks.small_vocabulary import cut_vocabulary
from stepladder.errors import DataFormatError
from stepladder.lm.loading import load_tokenizer
from tests.models import save_tiny_policy

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
TEXTS = ["Mia has 23 stamps.\n23 + 14 = 37\n", "Then the number doubles.\n37 * 2 = 74\n"]


def save_model(place: Path) -> None:
    """Save a tiny Gemma whose tokenizer has merged the words of more texts than are needed."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    single_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*SPECIAL, "\n", *single_bytes], show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, "Nobody reads these other words about mountains and rivers.", "0123456789"] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    config = Gemma3TextConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, pad_token_id=0, eos_token_id=1, bos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    Gemma3ForCausalLM(config).save_pretrained(place)
    named = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(place)


def test_kept_tokens_keep_their_numbers_of_the_head_and_their_texts(tmp_path: Path) -> None:
    """The logits of the kept tokens are those of the whole model, and texts are cut and joined as before."""
    save_model(tmp_path / "whole")
    cut_vocabulary(tmp_path / "whole", tmp_path / "small", TEXTS)
    tokenizers = [load_tokenizer(tmp_path / name) for name in ("whole", "small")]
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "small")]
    assert len(tokenizers[1]) == models[1].config.vocab_size < len(tokenizers[0])
    assert tokenizers[1].eos_token_id == models[1].config.eos_token_id
    old = tokenizers[0].convert_tokens_to_ids(tokenizers[1].convert_ids_to_tokens(list(range(len(tokenizers[1])))))
    for text in (*TEXTS, "Mia doubles 74.\n"):
        ids = [tokenizer(text, return_tensors="pt").input_ids for tokenizer in tokenizers]
        assert torch.tensor(old)[ids[1]].equal(ids[0]) or text not in TEXTS
        assert tokenizers[1].decode(ids[1][0]) == f"<bos>{text}"
        logits = [model(part).logits for model, part in zip(models, (torch.tensor(old)[ids[1]], ids[1]), strict=True)]
        torch.testing.assert_close(logits[1], logits[0][..., old])


def test_what_is_there_is_kept_and_other_tokenizers_are_refused(tmp_path: Path) -> None:
    """A second call changes nothing. A tokenizer of whole words is another matter."""
    (tmp_path / "there").mkdir()
    cut_vocabulary(tmp_path / "nowhere", tmp_path / "there", TEXTS)
    assert list((tmp_path / "there").iterdir()) == []
    save_tiny_policy(tmp_path / "words", hidden=32, layers=1, max_positions=64)
    with pytest.raises(DataFormatError, match="must be of byte pairs: got WordLevel"):
        cut_vocabulary(tmp_path / "words", tmp_path / "small", TEXTS)
