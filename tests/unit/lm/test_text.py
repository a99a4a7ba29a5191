import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stepladder.lm.text import StepBoundary, TokenText
from tests.models import tiny_tokenizer


def _metaspace_tokenizer():
    """A SentencePiece-like tokenizer: blanks are part of words, and decoding drops the first one."""
    core = Tokenizer(models.WordLevel({"<unk>": 0, "▁a": 1, "a": 2, "▁b": 3, ".": 4}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.add_special_tokens([AddedToken("<unk>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def _piece_tokenizer(pieces):
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=pieces[0]))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token=pieces[0])


def test_step_texts_concatenate_although_the_decoder_drops_leading_blanks():
    """The text of [b a] behind [a] keeps its blank, which plain decoding would drop."""
    text = TokenText(_metaspace_tokenizer())
    assert text.decode([3, 1]) == " b a"
    assert text.decode([2]) + text.decode([3, 4]) == "a b."


def test_texts_of_plain_tokenizers_are_what_the_tokenizer_decodes():
    """No anchor changes what needs none; special tokens are left out and no ids give no text."""
    tokenizer = tiny_tokenizer("bytes")
    ids = tokenizer.encode(" é=1\n", add_special_tokens=False)
    assert TokenText(tokenizer).decode([*ids, tokenizer.eos_token_id]) == " é=1\n"
    assert TokenText(tokenizer).decode_batch([[], ids]) == ["", " é=1\n"]


def test_boundary_tokens_are_those_whose_text_contains_or_completes_the_closing_text():
    r"""For "\n\n": "a\n\nb" closes by itself; "\n" and "\nb" may complete it; "a\n" cannot, since it only begins it."""
    pieces = ["<unk>", "a", "\n", "a\n", "\nb", "a\n\nb"]
    boundary = StepBoundary(_piece_tokenizer(pieces), "\n\n", vocab_size=len(pieces) + 2)
    assert [pieces[i] for i in np.flatnonzero(boundary.closes)] == ["a\n\nb"]
    assert [pieces[i] for i in np.flatnonzero(boundary.may_close)] == ["\n", "\nb"]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([1, 2], False), ([2, 2], True), ([3, 2], True), ([3, 4], True), ([2, 1, 2], False), ([2], False), ([1, 4], False)],
)
def test_completion_is_decided_on_the_tokens_of_the_step(ids, expected):
    """The closing text must be contiguous and lie within the step."""
    boundary = StepBoundary(_piece_tokenizer(["<unk>", "a", "\n", "a\n", "\nb"]), "\n\n", vocab_size=5)
    assert boundary.completes(np.array(ids)) is expected


def test_a_closing_character_of_several_byte_tokens_is_found_at_its_last_byte():
    """The ideographic full stop is three bytes, each a token of its own."""
    tokenizer = tiny_tokenizer("bytes")
    boundary = StepBoundary(tokenizer, "。", vocab_size=len(tokenizer))
    ids = np.array(tokenizer.encode("é。", add_special_tokens=False))
    assert len(ids) == 5
    assert not boundary.closes.any() and boundary.may_close[ids].all()
    assert [boundary.completes(ids[: i + 1]) for i in range(5)] == [False, False, False, False, True]
