"""Text from outside as token ids: a question, a written solution or a step never becomes a control token.

A tokenizer matches its added tokens anywhere in a text, so a question that holds ``<|im_end|>`` would end its own turn. Here the caller
says which stretches of a text are control tokens (those that a template wrote), and everything else is encoded as text. A text without a
stray control token gets exactly the ids that the tokenizer gives it.

Control tokens are the special added tokens and any others that the caller names. All other added tokens (``<think>``, ``<tool_call>``)
are text that models write themselves, both here and in decoding.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerBase

from stepladder.errors import DataFormatError

Span = tuple[int, int]
"""Begin and end of a stretch of text, in characters."""

_PRIVATE = 0xF0000
"""First code point of a private plane that no text uses. It holds stand-ins for control tokens and for the characters of their names."""


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of all special tokens: added tokens marked as special, and those that the tokenizer names (begin, end, padding)."""
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)


class Encoded(NamedTuple):
    """The tokens of a text."""

    ids: list[int]
    """Token ids, without those that the tokenizer puts around a text."""
    offsets: list[Span]
    """The characters that each token stands for; (0, 0) for every token of a slow tokenizer."""


class TextEncoder:
    """Encodes text with one tokenizer. This is the only place where text becomes ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, template: str = "") -> None:
        """Find the control tokens of a tokenizer, and the tokens that it puts around a text.

        Args:
            tokenizer: The tokenizer.
            template: Text whose added tokens are control tokens even if they are not special: the role names of some families.
        """
        self._tokenizer = tokenizer
        special = special_ids(tokenizer)
        added = tokenizer.added_tokens_decoder
        self._controls: dict[str, int] = {
            token.content: i for i, token in added.items() if i in special or (token.content.strip() and token.content in template)
        }
        # Other added tokens compete for the same characters; the longest match wins, as in the tokenizer.
        names = sorted((token.content for token in added.values() if token.content), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        letters = sorted({letter for name in self._controls for letter in name if not letter.isspace()})
        self._masks = {ord(letter): _PRIVATE + i for i, letter in enumerate(letters)}
        self._unmasks = {mask: letter for letter, mask in self._masks.items()}
        self._edges = frozenset(letter for name in self._controls for letter in (name[:1], name[-1:]))
        # The unknown token can appear anywhere in encoded text; it is not a control token there.
        unknown: Any = tokenizer.unk_token_id
        self._watched = set(self._controls.values()) - {unknown}
        self._unknown, self._drops = _unknown_of(tokenizer)
        self._shown: set[str] = set()
        self.prefix_ids, self.suffix_ids = _frame(tokenizer)

    def find_controls(self, text: str) -> list[Span]:
        """Return where the tokenizer would see control tokens, in order."""
        return [match.span() for match in self._pattern.finditer(text) if match[0] in self._controls]

    def control_ids(self, text: str, controls: Sequence[Span]) -> list[int]:
        """Return the ids of the control tokens at some stretches of a text."""
        return [self._controls[text[begin:end]] for begin, end in controls]

    def compose(self, render: Callable[[Callable[[str], str]], str], *, place: str) -> tuple[str, list[Span]]:
        """Return a text made of a template and foreign text, and the places of the template's own control tokens in it.

        Args:
            render: Returns the text. It receives a function that it must apply to every piece of foreign text.
            place: Where the foreign text comes from, for messages.

        Raises:
            DataFormatError: If the foreign text holds a control token and the template changes that text.
        """
        pieces: list[str] = []

        def noted(piece: str) -> str:
            pieces.append(piece)
            return piece

        text = render(noted)
        found = self.find_controls(text)
        if not found or not any(map(self._may_add, pieces)):
            return text, found
        # With its letters replaced, foreign text cannot be part of a control token, so every match is the template's own.
        masked = render(lambda piece: piece.translate(self._masks))
        own = self.find_controls(masked)
        if [text[begin:end] for begin, end in found] == [masked[begin:end] for begin, end in own]:
            return text, found
        if masked.translate(self._unmasks) != text:
            foreign = sorted({text[begin:end] for begin, end in found} or set(self._controls))
            raise DataFormatError(
                f"{place}: text must not hold control tokens where the template rewrites it: got one of {', '.join(map(repr, foreign))} "
                "-- remove them from the text"
            )
        return text, own

    def encode_own(self, text: str) -> list[int]:
        """Return the ids of a text of our own, in which every control token is intended."""
        return self.encode(text, controls=self.find_controls(text))

    def encode(self, text: str, *, controls: Sequence[Span] = (), place: str = "text") -> list[int]:
        """Return the ids of a text without those that the tokenizer puts around it. Arguments and errors are those of ``encode_places``."""
        return self.encode_places(text, controls=controls, place=place).ids

    def encode_places(self, text: str, *, controls: Sequence[Span] = (), place: str = "text") -> Encoded:
        """Return the ids of a text and the place of each in it.

        Args:
            text: The text.
            controls: The stretches that are control tokens, in order; everything else is text.
            place: Where the text comes from, for messages.

        Raises:
            DataFormatError: If the tokenizer can write a part of the text only as a control token.
        """
        expected = self.control_ids(text, controls)
        if self.find_controls(text) == list(controls):
            encoded = self._plain(text)
            if self._watched_in(encoded.ids) == [i for i in expected if i in self._watched]:
                return encoded
        encoded = self._shielded(text, controls)
        if self._watched_in(encoded.ids) != [i for i in expected if i in self._watched]:
            stray = next((name for name in self._controls if name in text), "")
            raise DataFormatError(
                f"{place}: must not hold the control token {stray!r}: this tokenizer cannot write it as text -- remove it from the text"
            )
        return encoded

    def unknown_in(self, text: str, *, controls: Sequence[Span] = (), place: str = "text") -> list[str]:
        """Return the different pieces of a text that the tokenizer has no token for, in order; arguments as for ``encode_places``.

        They are read as the unknown token or, by a tokenizer without one, left out. A piece is a character, or as much as the tokenizer
        takes for one: a word, or several characters. Blanks that a tokenizer leaves out separate words; nobody needs a token for them.
        """
        encoded = self.encode_places(text, controls=controls, place=place)
        found: dict[str, int] = {}
        if not self._unknown.isdisjoint(encoded.ids):
            written = {begin for begin, _ in controls}
            spans = [span for i, span in zip(encoded.ids, encoded.offsets, strict=True) if i in self._unknown]
            for begin, end in spans:
                if end > begin and begin not in written:
                    found.setdefault(text[begin:end], begin)
            if not any(end for _, end in spans):
                found = {letter: text.index(letter) for letter in set(text) if not self._unknown.isdisjoint(self._plain(letter).ids)}
        if self._drops:
            found |= {letter: text.index(letter) for letter in set(text) - self._shown if self._is_dropped(letter)}
        return sorted(found, key=found.__getitem__)

    def _is_dropped(self, letter: str) -> bool:
        """Say whether nothing of a visible character is left; one that is not is remembered."""
        if unicodedata.category(letter)[0] in "LNPS" and not str(self._tokenizer.decode(self._plain(letter).ids)).strip():
            return True
        self._shown.add(letter)
        return False

    def _may_add(self, piece: str) -> bool:
        """Say whether a piece of text can be part of a control token: it holds the start or end of a name, or lies within one."""
        return not self._edges.isdisjoint(piece) or (bool(piece) and any(piece in name for name in self._controls))

    def _watched_in(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self._watched]

    def _plain(self, text: str) -> Encoded:
        if not self._tokenizer.is_fast:
            ids: Any = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
            return Encoded(list(ids), [(0, 0)] * len(ids))
        both: Any = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return Encoded(list(both["input_ids"]), list(both["offset_mapping"]))

    def _shielded(self, text: str, controls: Sequence[Span]) -> Encoded:
        """Encode a text in which only some stretches are control tokens, although others look like them."""
        core: Any = getattr(self._tokenizer, "_tokenizer", None)
        if not isinstance(core, Tokenizer):
            return self._shielded_slow(text, controls)
        pieces, places, end = [], [], 0
        for begin, stop in controls:
            pieces += [text[end:begin], self._shield.stand_ins[text[begin:stop]]]
            places += [*range(end, begin), begin]
            end = stop
        places += [*range(end, len(text) + 1)]
        encoded = self._shield.core.encode("".join([*pieces, text[end:]]), add_special_tokens=False)
        ids = [self._shield.ids.get(i, i) for i in encoded.ids]
        return Encoded(ids, [(places[begin], places[stop]) for begin, stop in encoded.offsets])

    def _shielded_slow(self, text: str, controls: Sequence[Span]) -> Encoded:
        ids: list[int] = []
        end = 0
        for begin, stop in [*controls, (len(text), len(text))]:
            if piece := text[end:begin]:
                ids += self._tokenizer.encode(piece, add_special_tokens=False, split_special_tokens=True, verbose=False)
            ids += self.control_ids(text, [(begin, stop)]) if stop > begin else []
            end = stop
        return Encoded(ids, [(0, 0)] * len(ids))

    @cached_property
    def _shield(self) -> "_Shield":
        """The same tokenizer, in which private characters are the control tokens and their names are text."""
        core = Tokenizer.from_str(self._tokenizer._tokenizer.to_str())  # type: ignore[attr-defined]
        core.no_truncation()
        core.no_padding()
        added: dict[int, Any] = self._tokenizer.added_tokens_decoder
        tokens = {i: added[i] for i in self._controls.values()}
        # A token that is special only in the tokenizer's settings must be special here too, or its name would still be matched.
        core.add_special_tokens([_copy(token, token.content, special=True) for token in tokens.values()])
        core.encode_special_tokens = True
        # These code points lie after the masks, so that no text holds both.
        stand_ins = {token.content: chr(_PRIVATE + len(self._masks) + n) for n, token in enumerate(tokens.values())}
        core.add_tokens([_copy(token, stand_ins[token.content], special=False) for token in tokens.values()])
        ids: dict[Any, int] = {core.token_to_id(stand_in): self._controls[name] for name, stand_in in stand_ins.items()}
        return _Shield(core, stand_ins, ids)


class _Shield(NamedTuple):
    core: Tokenizer
    stand_ins: dict[str, str]
    """Private character of every control token."""
    ids: dict[int, int]
    """Maps the id of a private character to the id of its control token."""


def _copy(token: AddedToken, content: str, *, special: bool) -> AddedToken:
    return AddedToken(
        content, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip, normalized=token.normalized, special=special
    )


def _unknown_of(tokenizer: PreTrainedTokenizerBase) -> tuple[set[int], bool]:
    """Return the ids for text without a token, and whether the tokenizer leaves such text out instead.

    The settings of a tokenizer and its model may name different ones, or one of the two none. A byte-level model has a token for every
    byte and needs none; one that was trained without all bytes leaves out what it lacks.
    """
    named: Any = tokenizer.unk_token_id
    core: Any = getattr(tokenizer, "_tokenizer", None)
    if not isinstance(core, Tokenizer):
        return {named} - {None}, False
    own = getattr(core.model, "unk_token", None)
    read = None if own is None else core.token_to_id(own)
    return {named, read} - {None}, own is None and isinstance(core.model, models.BPE)


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids that a tokenizer adds before and after a text."""
    whole: Any = tokenizer.encode("a", add_special_tokens=True)
    bare: Any = tokenizer.encode("a", add_special_tokens=False)
    for begin in range(len(whole) - len(bare) + 1):
        if whole[begin : begin + len(bare)] == bare:
            return list(whole[:begin]), list(whole[begin + len(bare) :])
    return [], []
