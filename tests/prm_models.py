"""Tiny models of the architectures of public process reward models, with the real ids of their markers in the vocabulary.

Weights are random, tokenizers split as the real families do: byte-level BPE with the family's pattern (Qwen, Llama 3), or SentencePiece's
prepended space (Mistral). Only the few merges that make the markers are there.
"""

import string
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForTokenClassification,
)

_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
)


def _byte_symbols() -> list[str]:
    """Return the byte-level alphabet in the order of GPT-2's vocabulary, in which + is 10 and - is 12."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(rest))]


def _byte_level(
    extra: dict[str, int], merges: list[tuple[str, str]], specials: dict[str, int], *, bos: str | None, eos: str, template: str
) -> PreTrainedTokenizerFast:
    vocab = {symbol: i for i, symbol in enumerate(_byte_symbols())} | extra | specials
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    options = {} if bos is None else {"bos_token": bos}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=eos, pad_token=eos, chat_template=template, clean_up_tokenization_spaces=False, **options
    )


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Return a Qwen2.5-like tokenizer: <extra_0> is 151651, a space and five line breaks 76325, ' +' 488, ' -' 481."""
    breaks = ["Ċ" * n for n in (2, 4, 5)]
    extra = {breaks[0]: 271, breaks[1]: 1022, breaks[2]: 1406, "ĠĊĊĊĊĊ": 76325, "Ġ+": 488, "Ġ-": 481}
    merges = [("Ċ", "Ċ"), (breaks[0], breaks[0]), (breaks[1], "Ċ"), ("Ġ", breaks[2]), ("Ġ", "+"), ("Ġ", "-")]
    specials = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<extra_0>": 151651}
    return _byte_level(extra, merges, specials, bos="<|endoftext|>", eos="<|im_end|>", template=_CHATML)


def llama3_tokenizer(*, with_breaks: bool = False) -> PreTrainedTokenizerFast:
    """Return a Llama-3-like tokenizer: + is 10, - is 12; with breaks, a space and four line breaks are 23535."""
    names = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    specials = {name: 300 + i for i, name in enumerate(names)}
    extra, merges = {"ĊĊ": 271}, [("Ċ", "Ċ")]
    if with_breaks:
        extra |= {"ĊĊĊĊ": 1432, "ĠĊĊĊĊ": 23535}
        merges += [("ĊĊ", "ĊĊ"), ("Ġ", "ĊĊĊĊ")]
    return _byte_level(extra, merges, specials, bos=names[0], eos=names[3], template=_LLAMA3)


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """Return a Mistral-like tokenizer: '▁ки' is 12902, '▁+' 648, '▁-' 387, and text begins with <s>."""
    specials = {"<unk>": 0, "<s>": 1, "</s>": 2}
    characters = [*string.printable.replace(" ", ""), "▁", "к", "и", "р", "у"]
    vocab = specials | {character: 3 + i for i, character in enumerate(dict.fromkeys(characters))}
    vocab |= {"ки": 11000, "▁ки": 12902, "▁+": 648, "▁-": 387}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[("к", "и"), ("▁", "ки"), ("▁", "+"), ("▁", "-")], unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def _settings(tokenizer: PreTrainedTokenizerFast, max_positions: int, hidden: int) -> dict[str, object]:
    return {
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": max_positions,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def save_language_model(
    directory: Path, tokenizer: PreTrainedTokenizerFast, *, arch: str = "qwen2", seed: int = 0, max_positions: int = 512, hidden: int = 32
) -> Path:
    """Save a causal language model (``qwen2``, ``llama`` or ``mistral``) with a tokenizer and return its directory."""
    settings = _settings(tokenizer, max_positions, hidden)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if arch == "mistral":
            model = MistralForCausalLM(MistralConfig(**settings, sliding_window=None))
        else:
            model = LlamaForCausalLM(LlamaConfig(**settings)) if arch == "llama" else Qwen2ForCausalLM(Qwen2Config(**settings))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return Path(directory)


def save_head_model(
    directory: Path,
    tokenizer: PreTrainedTokenizerFast,
    *,
    head: str,
    num_outputs: int,
    seed: int = 0,
    max_positions: int = 512,
    hidden: int = 32,
) -> Path:
    """Save a Qwen2 body with a head as public checkpoints have it, and return its directory.

    ``head`` is ``linear`` (token classification), ``mlp`` (score.0, score.2: Qwen2.5-Math-PRM) or ``v_head`` (v_head.summary: Skywork).
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForTokenClassification(Qwen2Config(**_settings(tokenizer, max_positions, hidden), num_labels=num_outputs))
        wide, last = torch.nn.Linear(hidden, hidden), torch.nn.Linear(hidden, num_outputs)
    state = model.state_dict()
    if head != "linear":
        state = {key: value for key, value in state.items() if not key.startswith("score.")}
        layers = {"score.0": wide, "score.2": last} if head == "mlp" else {"v_head.summary": last}
        state |= {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()}
    if head == "mlp":
        model.config.architectures = ["Qwen2ForProcessRewardModel"]
        model.config.auto_map = {
            "AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig",
            "AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel",
        }
    model.save_pretrained(directory, state_dict=state)
    tokenizer.save_pretrained(directory)
    return Path(directory)
