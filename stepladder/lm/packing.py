"""Training rows that hold trees of tokens, each shared token once.

Token sequences of one problem (solutions, sibling steps, value paths) share prefixes. Merged into a tree, a shared prefix is forwarded
once, and so is its gradient. The tokens of a tree stand in depth-first order. So the tokens below index i are exactly those at
i + 1 .. ends[i] - 1. Token q may look at token k if k <= q < ends[k]: at the tokens of its own sequence up to itself. The position of a
token is its depth. A position predicts its children, which need not stand next to it.

    sequences [7 8 9], [7 8 5 6], [7 4]  ->  token_ids  7 4 8 5 6 9
                                             depths     0 1 1 2 3 2
                                             ends       6 2 6 5 5 6

Nothing here knows models or losses; ``tree_attention.py`` runs a model on such rows.

Axes: N tokens of a tree, B rows, T columns of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int

from stepladder.lm.slots import num_shared
from stepladder.lm.training_rows import Row


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenTree:
    """Merged sequences in depth-first order; a forest if their first tokens differ."""

    token_ids: Int[np.ndarray, "N"]
    """The distinct tokens; the children of a token come in ascending order of their ids."""
    depths: Int[np.ndarray, "N"]
    """Number of tokens before each one in its sequence: its position id."""
    ends: Int[np.ndarray, "N"]
    """One past the index of the last token below each one."""
    paths: list[Int[np.ndarray, "_"]]
    """For every sequence, in the given order, the index of each of its tokens."""


@runtime_checkable
class PackableRow(Row, Protocol):
    """A row whose sequences may share a tree with those of other rows."""

    @property
    def group(self) -> str:
        """The group, usually a problem; the rows of one group are packed into one tree."""
        ...

    @property
    def sequences(self) -> tuple[list[int], ...]:
        """Token sequences that the row forwards."""
        ...


RowT = TypeVar("RowT", bound=PackableRow)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedRow(Generic[RowT]):
    """Rows of one group and the tree of their sequences."""

    rows: list[RowT]
    """The rows."""
    tree: TokenTree
    """Their merged sequences; ``tree.paths`` holds those of the first row, then those of the second, and so on."""

    @property
    def length(self) -> int:
        """Tokens of the tree."""
        return len(self.tree.token_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens forwarded."""
        return self.length


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedPass(Generic[RowT]):
    """The trees of one forward pass."""

    trees: list[PackedRow[RowT]]
    """The trees; not empty."""

    @property
    def length(self) -> int:
        """Tokens of the trees."""
        return sum(tree.length for tree in self.trees)

    @property
    def num_tokens(self) -> int:
        """Tokens forwarded."""
        return self.length


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Trees side by side in rows of equal width."""

    input_ids: Int[np.ndarray, "B T"]
    """Tokens; 0 in the padding."""
    position_ids: Int[np.ndarray, "B T"]
    """Depths; 0 in the padding."""
    ends: Int[np.ndarray, "B T"]
    """``TokenTree.ends``, counted from the start of the row; a padded token sees itself only."""
    offsets: list[int]
    """Index of the first token of each tree, in the given order, in the concatenated rows."""


def merge_prefixes(sequences: Sequence[list[int]]) -> TokenTree:
    """Merge sequences into a tree in which each of their distinct prefixes has one token.

    Args:
        sequences: Token ids. Sequences may be equal, or prefixes of each other.
    """
    token_ids: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    paths: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(sequences)
    path: list[int] = []
    # ``path`` holds the node of each token of ``previous``. A node's end is known once a sequence leaves it.
    previous: list[int] = []
    # In lexicographic order, sequences that begin alike are neighbours, and the tree comes out depth first.
    for index in sorted(range(len(sequences)), key=lambda index: sequences[index]):
        ids = sequences[index]
        shared = num_shared(previous, ids)
        for token in path[shared:]:
            ends[token] = len(token_ids)
        path = [*path[:shared], *range(len(token_ids), len(token_ids) + len(ids) - shared)]
        token_ids += ids[shared:]
        depths += range(shared, len(ids))
        ends += [0] * (len(ids) - shared)
        paths[index] = np.asarray(path, dtype=np.int64)
        previous = ids
    for token in path:
        ends[token] = len(token_ids)
    as_array = lambda values: np.asarray(values, dtype=np.int64)  # noqa: E731
    return TokenTree(token_ids=as_array(token_ids), depths=as_array(depths), ends=as_array(ends), paths=paths)


def group_rows(rows: Sequence[PackableRow]) -> list[list[int]]:
    """Return the indices of the rows of every group. Groups keep the order of their first rows; rows are in lexicographic order.

    So the rows that share most are neighbours.
    """
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.group, []).append(index)
    return [sorted(group, key=lambda index: rows[index].sequences) for group in groups.values()]


def pack_rows(rows: Sequence[RowT], *, row_tokens: int) -> list[PackedRow[RowT]]:
    """Merge the rows of every group into one tree. A tree above ``row_tokens`` is cut so that the fewest tokens are forwarded twice.

    Args:
        rows: Rows in any order.
        row_tokens: Maximum tokens of a tree, >= 1. A single row that needs more makes a tree of its own.

    Returns:
        Trees in the order of their groups' first rows; every row is in exactly one tree. Rows in the order of ``group_rows`` keep it.
    """
    packed = []
    for indices in group_rows(rows):
        group = [rows[index] for index in indices]
        whole = _packed(group)
        packed += [whole] if whole.length <= row_tokens else [_packed(piece) for piece in _pieces(group, row_tokens)]
    return packed


def _packed(rows: list[RowT]) -> PackedRow[RowT]:
    return PackedRow(rows=rows, tree=merge_prefixes([sequence for row in rows for sequence in row.sequences]))


def _pieces(rows: list[RowT], row_tokens: int) -> list[list[RowT]]:
    """Cut rows in lexicographic order into runs of at most ``row_tokens`` tokens each, with the fewest tokens in total.

    Dynamic programming from the last row to the first; among equal cuts, the one with the longest first run wins. No cut into runs is
    better. The best partition of any kind is bin packing; it saves a few percent more if runs hold only two or three rows.
    """
    # best[i] = (tokens, end of the first run) of the best cut of rows[i:].
    best: list[tuple[int, int]] = [(0, len(rows))] * (len(rows) + 1)
    for start in range(len(rows) - 1, -1, -1):
        trie: dict[int, dict] = {}
        tokens = 0
        choices = []
        # The trie counts only tokens that are new to this run. A first row above the limit still makes a run, so every row is trained on.
        for end in range(start, len(rows)):
            tokens += sum(_insert(trie, sequence) for sequence in rows[end].sequences)
            if tokens > row_tokens and end > start:
                break
            choices.append((tokens + best[end + 1][0], end + 1))
        best[start] = min(choices, key=lambda choice: (choice[0], -choice[1]))
    pieces, start = [], 0
    while start < len(rows):
        pieces.append(rows[start : best[start][1]])
        start = best[start][1]
    return pieces


def _insert(trie: dict[int, dict], sequence: list[int]) -> int:
    """Insert a sequence and return how many tokens were new."""
    for depth, token in enumerate(sequence):
        if token not in trie:
            for new in sequence[depth:]:
                trie[new] = {}
                trie = trie[new]
            return len(sequence) - depth
        trie = trie[token]
    return 0


def lay_out(trees: Sequence[TokenTree], *, width: int = 0) -> Layout:
    """Put trees into as few rows as first-fit finds, largest tree first.

    Args:
        trees: Trees, at least one.
        width: Tokens that a row may hold, or those of the largest tree if it has more. Dense attention costs the square of the width, so
            0 is best there.
    """
    width = max(width, *(len(tree.token_ids) for tree in trees), 1)
    fills: list[int] = []
    places: dict[int, tuple[int, int]] = {}
    # Largest first: first-fit then needs at most 11/9 of the best possible number of rows, plus one.
    for index in sorted(range(len(trees)), key=lambda index: -len(trees[index].token_ids)):
        size = len(trees[index].token_ids)
        row = next((row for row, fill in enumerate(fills) if fill + size <= width), len(fills))
        if row == len(fills):
            fills.append(0)
        places[index] = (row, fills[row])
        fills[row] += size
    width = max(*fills, 1)
    # Padding keeps ``ends`` = own index + 1: it sees itself only, so no softmax runs over nothing.
    input_ids = np.zeros((len(fills), width), dtype=np.int64)
    position_ids = np.zeros_like(input_ids)
    ends = np.tile(np.arange(1, width + 1), (len(fills), 1))
    for index, tree in enumerate(trees):
        row, column = places[index]
        part = slice(column, column + len(tree.token_ids))
        input_ids[row, part], position_ids[row, part], ends[row, part] = tree.token_ids, tree.depths, tree.ends + column
    offsets = [row * width + column for row, column in (places[index] for index in range(len(trees)))]
    return Layout(input_ids=input_ids, position_ids=position_ids, ends=ends, offsets=offsets)
