"""A place in the tokens of an answer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from stepladder.data.grading.notation import NotationError, Token

_MAX_DEPTH = 30


class UnclearError(Exception):
    """The text is well-formed, but not of the reader's grammar."""


class TokenCursor:
    """The tokens of an answer, and how far they are read."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        """Begin at the first token."""
        self.tokens = tokens
        self.at = 0
        """Place of the next token."""
        self._depth = 0

    @contextmanager
    def deeper(self) -> Iterator[None]:
        """Count one level of nesting.

        Raises:
            NotationError: If there are too many.
        """
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise NotationError(f"it is nested more than {_MAX_DEPTH} deep")
        yield
        self._depth -= 1

    def raw_group(self) -> list[str]:
        """Take one token, or all between braces, as text."""
        token = self.take()
        if token.text != "{":
            return [token.text]
        texts, depth = [], 1
        while depth:
            token = self.take()
            depth += {"{": 1, "}": -1}.get(token.text, 0)
            texts.append(token.text)
        return texts[:-1]

    def peek_text(self) -> str:
        """Return the text of the next token; empty at the end."""
        return self.text_at(0)

    def text_at(self, offset: int) -> str:
        """Return the text of a later token; empty after the end."""
        place = self.at + offset
        return self.tokens[place].text if place < len(self.tokens) else ""

    def take(self) -> Token:
        """Take the next token.

        Raises:
            NotationError: If there is none.
        """
        if self.at >= len(self.tokens):
            raise NotationError("it ends too early")
        self.at += 1
        return self.tokens[self.at - 1]

    def expect(self, text: str) -> None:
        """Take a token that must be this one.

        Raises:
            UnclearError: If it is another.
        """
        if self.take().text != text:
            raise UnclearError
