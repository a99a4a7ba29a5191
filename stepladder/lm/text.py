"""The text of token ids, and the tokens at which a step may end.

Some tokenizers drop a leading space when they decode (SentencePiece). So a step is decoded after an anchor token, whose own text is then
cut off. As a result, the texts of the steps of a solution concatenate to the text of the solution.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"
"""The replacement character, which a decoder writes for bytes that are not a whole character."""


class TokenText:
    """Decodes token ids so that concatenation is kept."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wrap a tokenizer, and find out whether it needs an anchor."""
        self._tokenizer = tokenizer
        self._anchor, self._anchor_text = _anchor(tokenizer)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of some ids, without special tokens."""
        return self.decode_batch([token_ids])[0]

    def decode_batch(self, sequences: Sequence[Sequence[int]], *, skip_special: bool = True) -> list[str]:
        """Return the text of every sequence."""
        anchored = [[*self._anchor, *ids] for ids in sequences]
        texts = _decode_batch(self._tokenizer, anchored, skip_special=skip_special)
        return [text.removeprefix(self._anchor_text) for text in texts]


def _decode_batch(tokenizer: PreTrainedTokenizerBase, sequences: list[list[int]], *, skip_special: bool) -> list[str]:
    core: Any = getattr(tokenizer, "_tokenizer", None)
    if isinstance(core, Tokenizer):
        return core.decode_batch(sequences, skip_special_tokens=skip_special)
    return [tokenizer.decode(ids, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False) for ids in sequences]  # type: ignore[misc]


def _anchor(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], str]:
    """Return an anchor token and its text, or nothing if decoding keeps leading spaces."""
    words = tokenizer.encode("a a", add_special_tokens=False)
    pieces = _decode_batch(tokenizer, [[i] for i in words] + [words], skip_special=True)
    if "".join(pieces[:-1]) == pieces[-1] or not words:
        return [], ""
    return [words[0]], pieces[0]


class StepBoundary:
    """Finds the tokens that complete the closing text of a step.

    The text may be one token, a part of a longer token, or spelt by several tokens. It must lie within the step: the end of an earlier
    step does not count.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, step_end: str, *, vocab_size: int) -> None:
        """Classify every token once.

        Args:
            tokenizer: The tokenizer.
            step_end: The text, not empty.
            vocab_size: Number of ids that the model can produce; it may exceed the tokenizer's.
        """
        self._text = TokenText(tokenizer)
        self._step_end = step_end
        known = np.zeros(vocab_size, dtype=bool)
        known[[i for i in tokenizer.get_vocab().values() if i < vocab_size]] = True
        ids = np.flatnonzero(known)
        pieces = self._text.decode_batch(ids[:, None].tolist(), skip_special=False)
        self.closes: np.ndarray = np.zeros(vocab_size, dtype=bool)
        """Tokens whose own text contains the whole closing text, [V]."""
        self.closes[ids] = [step_end in piece for piece in pieces]
        self.may_close: np.ndarray = np.zeros(vocab_size, dtype=bool)
        """Tokens that can complete the closing text together with earlier tokens, [V]; ``completes`` decides."""
        self.may_close[ids] = [step_end not in piece and _may_complete(piece, step_end) for piece in pieces]
        # Every token adds at least one byte, except special tokens and byte-less pieces; a few more tokens cover those.
        self._reach = len(step_end.encode()) + 4

    def completes(self, token_ids: Int[np.ndarray, "T"]) -> bool:
        """Say whether the last token of a step completes the closing text; the step must be open before that token."""
        return self._step_end in self._text.decode_batch([token_ids[-self._reach :].tolist()], skip_special=False)[0]


def _may_complete(piece: str, step_end: str) -> bool:
    """Say whether a piece may complete ``step_end``: it starts with one of its proper suffixes, or holds unfinished bytes."""
    if _REPLACEMENT in piece and not step_end.isascii():
        return True
    return any(piece.startswith(step_end[i:]) for i in range(1, len(step_end)))
