"""Small tokenizers of the shapes of public families: splitting, normalising, byte fallback, flags of added tokens, and chat structure.

Vocabularies hold bytes or characters and the few merges that probes need. Chat templates have the families' control tokens and order of
parts, in our own words.

Source: the tokenizer.json and tokenizer_config.json files of the families' public checkpoints.
"""

import string
from collections.abc import Callable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPACE = "▁"


def _byte_symbols() -> list[str]:
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(rest))]


def _merged(vocab: dict[str, int], pairs: Sequence[tuple[str, str]]) -> models.BPE:
    for left, right in pairs:
        vocab.setdefault(left + right, len(vocab))
    return models.BPE(vocab=vocab, merges=list(pairs), ignore_merges=True)


def _byte_level(added: Sequence[AddedToken], *, digits: str, nfc: bool = False) -> Tokenizer:
    vocab = {symbol: i for i, symbol in enumerate(_byte_symbols())}
    # "\n\n" and ".\n\n" are tokens, and so are some words.
    core = Tokenizer(_merged(vocab, [("Ċ", "Ċ"), (".", "ĊĊ"), ("Ġ", "="), ("i", "s"), ("Ġ", "is")]))
    core.normalizer = normalizers.NFC() if nfc else None
    split = pre_tokenizers.Split(Regex(_SPLIT.format(digits=digits)), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    core.add_tokens(list(added))
    return core


def _special(*names: str, **flags: bool) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False, **flags) for name in names]


def _plain(*names: str) -> list[AddedToken]:
    return [AddedToken(name, special=False, normalized=False) for name in names]


def _begins_with(core: Tokenizer, name: str) -> None:
    core.post_processor = processors.TemplateProcessing(single=f"{name} $A", special_tokens=[(name, core.token_to_id(name))])


def _wrapped(core: Tokenizer, template: str, **names: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, clean_up_tokenization_spaces=False, **names)


def llama3() -> PreTrainedTokenizerFast:
    """Llama 3: byte-level, digits by threes, begins with a token, and its template prints the date."""
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"]
    core = _byte_level(_special(*names), digits=r"\p{N}{1,3}")
    _begins_with(core, "<|begin_of_text|>")
    template = (
        "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nDate: {{ strftime_now('%d %b %Y') }}\n\n<|eot_id|>"
        "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    )
    return _wrapped(core, template, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def qwen() -> PreTrainedTokenizerFast:
    """Qwen 2 and 3, base: byte-level, single digits, NFC, no begin token; the end of a turn is not the end of a text."""
    added = [*_special("<|endoftext|>", "<|im_start|>", "<|im_end|>"), *_plain("<think>", "</think>", "<tool_call>")]
    core = _byte_level(added, digits=r"\p{N}", nfc=True)
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return _wrapped(core, template, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def deepseek() -> PreTrainedTokenizerFast:
    """DeepSeek R1: byte-level, begins with a token, and the names of the roles are added tokens that are not special."""
    begin, end = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    core = _byte_level([*_special(begin, end), *_plain("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")], digits=r"\p{N}{1,3}")
    _begins_with(core, begin)
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}"
        "{% elif m['role'] == 'assistant' %}<｜Assistant｜>{{ m['content'] }}" + end + "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
    )
    return _wrapped(core, template, bos_token=begin, eos_token=end)


def _characters(specials: Sequence[str], further: Sequence[str] = ()) -> dict[str, int]:
    letters = [letter for letter in string.printable if letter not in " \t\r\x0b\x0c"]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, _SPACE, *further]
    return {piece: i for i, piece in enumerate(pieces)}


def gemma() -> PreTrainedTokenizerFast:
    """Gemma 3: pieces with byte fallback, blanks as ▁, runs of line breaks as added tokens that are not special, begins with a token."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    vocab = _characters(specials, ["\n\n", "\n\n\n", f"{_SPACE}="])
    core = Tokenizer(models.BPE(vocab=vocab, merges=[(_SPACE, "=")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Replace(" ", _SPACE)
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_tokens([*_special(*specials), *_plain("\n\n", "\n\n\n")])
    _begins_with(core, "<bos>")
    template = (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    return _wrapped(core, template, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


def _sentencepiece(specials: Sequence[str], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    vocab = _characters(specials, ["".join(pair) for pair in merges])
    core = Tokenizer(models.BPE(vocab=vocab, merges=list(merges), unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    core.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    return core


def mistral() -> PreTrainedTokenizerFast:
    """Mistral: pieces with byte fallback and a blank in front of every text, begins with a token, instructions between special tokens."""
    specials = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    core = _sentencepiece(specials, [(_SPACE, "="), ("i", "s")])
    core.add_tokens(_special(*specials))
    _begins_with(core, "<s>")
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
        "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    return _wrapped(core, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def phi3() -> PreTrainedTokenizerFast:
    """Phi 3: as Llama 2, but its control tokens swallow the blanks behind them, and it begins with nothing."""
    core = _sentencepiece(["<unk>", "<s>", "</s>"], [(_SPACE, "="), ("i", "s")])
    core.add_tokens(_special("<unk>", "<s>", "</s>"))
    core.add_tokens(_special("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", rstrip=True))
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    return _wrapped(core, template, bos_token="<s>", eos_token="<|endoftext|>", unk_token="<unk>")


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "llama3": llama3,
    "qwen": qwen,
    "gemma": gemma,
    "mistral": mistral,
    "phi3": phi3,
    "deepseek": deepseek,
}
"""The families by name."""
