"""Trees of tokens as rows: merging, cutting, layout, and who sees whom."""

from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from stepladder.lm.packing import PackableRow, group_rows, lay_out, merge_prefixes, pack_rows
from stepladder.lm.schedule import batch_schedule
from stepladder.lm.tree_attention import block_mask, dense_mask, tree_inputs


@dataclass(frozen=True)
class Sequences:
    """A row of given sequences."""

    sequences: tuple[list[int], ...]
    group: str = "p"
    length: int = 0
    num_tokens: int = 0


def random_sequences(seed: int, *, num_sequences: int, longest: int, vocabulary: int) -> list[list[int]]:
    """Return sequences over few tokens, so that they share much; some are equal and some begin another."""
    rng = np.random.default_rng(seed)
    return [rng.integers(vocabulary, size=int(rng.integers(1, longest + 1))).tolist() for _ in range(num_sequences)]


def prefixes(sequences: list[list[int]]) -> set[tuple[int, ...]]:
    """Return every distinct prefix: what a tree has one token for."""
    return {tuple(ids[: i + 1]) for ids in sequences for i in range(len(ids))}


SHAPES = {
    "wide": {"num_sequences": 40, "longest": 3, "vocabulary": 6},
    "deep": {"num_sequences": 5, "longest": 40, "vocabulary": 2},
    "ragged": {"num_sequences": 12, "longest": 10, "vocabulary": 2},
    "single path": {"num_sequences": 1, "longest": 9, "vocabulary": 5},
}


def test_a_tree_by_hand() -> None:
    """Three sequences that begin with 7: two go on with 8; the tree is written down in the module's docstring."""
    tree = merge_prefixes([[7, 8, 9], [7, 8, 5, 6], [7, 4]])
    assert tree.token_ids.tolist() == [7, 4, 8, 5, 6, 9]
    assert tree.depths.tolist() == [0, 1, 1, 2, 3, 2]
    assert tree.ends.tolist() == [6, 2, 6, 5, 5, 6]
    assert [path.tolist() for path in tree.paths] == [[0, 2, 5], [0, 2, 3, 4], [0, 1]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(5))
def test_every_prefix_has_one_token_which_sees_its_prefix(shape: str, seed: int) -> None:
    """A sequence reads back along its path, depths count, a tree has as many tokens as there are prefixes, and each sees just its path."""
    sequences = random_sequences(seed, **SHAPES[shape])
    tree = merge_prefixes(sequences)
    assert len(tree.token_ids) == len(prefixes(sequences))
    layout = lay_out([tree])
    seen = dense_mask(torch.from_numpy(layout.ends), dtype=torch.float32)[0, 0] == 0
    for ids, path in zip(sequences, tree.paths, strict=True):
        assert tree.token_ids[path].tolist() == ids
        assert tree.depths[path].tolist() == list(range(len(ids)))
        for depth, token in enumerate(path):
            assert seen[token].nonzero().flatten().tolist() == path[: depth + 1].tolist()


def test_empty_and_equal_sequences_merge() -> None:
    """Nothing merges to nothing; equal sequences have equal paths; first tokens that differ make a forest."""
    assert merge_prefixes([]).token_ids.tolist() == []
    assert [path.tolist() for path in merge_prefixes([[], [3]]).paths] == [[], [0]]
    assert [path.tolist() for path in merge_prefixes([[3, 4], [3, 4]]).paths] == [[0, 1], [0, 1]]
    assert merge_prefixes([[3], [4]]).ends.tolist() == [1, 2]


@pytest.mark.parametrize("width", [0, 20, 64])
def test_layout_keeps_trees_apart(width: int) -> None:
    """Each token stands once at its offset, trees of a row do not see each other, and a padded token sees itself alone."""
    trees = [merge_prefixes(random_sequences(seed, **SHAPES["ragged"])) for seed in range(4)]
    layout = lay_out(trees, width=width)
    columns = layout.input_ids.shape[1]
    assert columns <= max(width, *(len(tree.token_ids) for tree in trees))
    real = np.zeros(layout.ends.size, dtype=bool)
    seen = dense_mask(torch.from_numpy(layout.ends), dtype=torch.float32)[:, 0] == 0
    for tree, offset in zip(trees, layout.offsets, strict=True):
        places = np.arange(offset, offset + len(tree.token_ids))
        assert not real[places].any()
        real[places] = True
        assert layout.input_ids.ravel()[places].tolist() == tree.token_ids.tolist()
        assert layout.position_ids.ravel()[places].tolist() == tree.depths.tolist()
        row, first = divmod(offset, columns)
        outside = np.setdiff1d(np.arange(columns), places - row * columns)
        assert not seen[row, first : first + len(places)][:, outside].any()
    for row, column in zip(*np.nonzero(~real.reshape(layout.ends.shape)), strict=True):
        assert seen[row, column].nonzero().flatten().tolist() == [column]


@pytest.mark.parametrize("window", [None, 300])
def test_block_mask_is_the_dense_mask(window: int | None) -> None:
    """FlexAttention's rule, written out over rows longer than a block, is the dense mask, and blocks without anything are left out.

    With a window some of them may stay, but none with something is left out. Blocks that are called whole hide nothing.
    """
    trees = [merge_prefixes(random_sequences(seed, num_sequences=60, longest=12, vocabulary=3)) for seed in range(4)]
    # A long trunk with two branches has blocks that hide nothing.
    trees.append(merge_prefixes([[*range(400), *[branch] * 90] for branch in (1, 2)]))
    inputs = tree_inputs(lay_out(trees, width=600))
    more = -inputs["ends"].shape[1] % 128
    own = torch.arange(1, inputs["ends"].shape[1] + more + 1)
    ends = torch.nn.functional.pad(inputs["ends"], (0, more))
    ends = torch.where(ends == 0, own, ends)
    depths = torch.nn.functional.pad(inputs["position_ids"], (0, more))
    mask = block_mask(ends, depths, window)
    dense = dense_mask(ends, depths, window, dtype=torch.float32)
    index = torch.arange(dense.shape[-1])
    rows = torch.arange(len(dense))[:, None, None]
    written = mask.mask_mod(rows, torch.tensor(0), index[None, :, None], index[None, None])
    assert torch.equal(written, dense[:, 0] == 0)
    kept = mask.to_dense()[:, 0].bool()
    assert mask.full_kv_num_blocks is not None and mask.full_kv_indices is not None
    whole = torch.zeros_like(kept)
    for place in np.ndindex(*kept.shape[:2]):
        count = int(mask.full_kv_num_blocks[:, 0][place])
        whole[place][mask.full_kv_indices[:, 0][place][:count].long()] = True
    assert bool(whole.any()) and not bool(kept.all())
    for row in range(len(dense)):
        for query in range(kept.shape[1]):
            for key in range(kept.shape[2]):
                block = dense[row, 0, query * 128 : (query + 1) * 128, key * 128 : (key + 1) * 128]
                something = bool((block == 0).any())
                assert bool(kept[row, query, key]) == something if window is None else kept[row, query, key] or not something
                assert bool((block == 0).all()) == bool(whole[row, query, key]) if window is None else True
                assert bool((block == 0).all()) or not whole[row, query, key]


@pytest.mark.parametrize("seed", range(3))
def test_updates_can_mix_problems(seed: int) -> None:
    """Of eight groups of ten rows, at most four rows stand together: updates of 16 have rows of more groups, and a pass has all rows."""
    groups = [list(range(begin, begin + 10)) for begin in range(0, 80, 10)]
    mixed = batch_schedule([1] * 80, epochs=2.0, batch_size=16, seed=seed, groups=groups, together=4).micro_batches
    whole = batch_schedule([1] * 80, epochs=2.0, batch_size=16, seed=seed, groups=groups).micro_batches
    per_update = [[len({row // 10 for row in update}) for update in updates] for updates in (mixed, whole)]
    assert np.mean(per_update[0]) > 3.5 > np.mean(per_update[1]) + 0.5
    order = [row for update in mixed for row in update]
    assert sorted(order[:80]) == sorted(order[80:]) == list(range(80))
    # Rows that stand together are neighbours of their group, but for its two ends.
    steps = [(b - a) % 10 for a, b in pairwise(order[:80]) if a // 10 == b // 10]
    assert steps.count(1) >= 0.9 * len(steps) >= 40


@pytest.mark.parametrize("seed", range(5))
def test_large_trees_are_cut_where_least_is_forwarded_twice(seed: int) -> None:
    """No contiguous cut into runs within the limit needs fewer tokens than the one chosen, and every row is in one piece."""
    rows = [Sequences((ids,)) for ids in random_sequences(seed, num_sequences=9, longest=8, vocabulary=2)]
    packed = pack_rows(rows, row_tokens=12)
    assert sorted(map(str, (row.sequences for tree in packed for row in tree.rows))) == sorted(str(row.sequences) for row in rows)
    assert all(tree.length <= 12 for tree in packed)
    ordered = [rows[i].sequences[0] for i in group_rows(rows)[0]]
    costs = []
    for cuts in (cut for count in range(len(rows)) for cut in combinations(range(1, len(rows)), count)):
        sizes = [len(prefixes(ordered[a:b])) for a, b in zip((0, *cuts), (*cuts, len(rows)), strict=True)]
        if max(sizes) <= 12:
            costs.append(sum(sizes))
    assert sum(tree.length for tree in packed) == min(costs)


def sibling_rows(seed: int) -> list[Sequences]:
    """Return the pairs of one problem: at three depths of a line its step against one to three others, steps of 2 to 6 tokens."""
    rng = np.random.default_rng(seed)
    step = lambda: rng.integers(9, size=int(rng.integers(2, 7))).tolist()  # noqa: E731
    prefix, rows = rng.integers(9, size=6).tolist(), []
    for siblings in (3, 2, 2):
        chosen = prefix + step()
        rows += [Sequences((chosen, prefix + step())) for _ in range(siblings)]
        prefix = chosen
    return rows


def fewest_tokens(rows: list[Sequences], row_tokens: int) -> int:
    """Return the tokens of the best partition of rows into trees within the limit, contiguous or not, by trying all of them."""
    sizes = {}
    for members in range(1, 1 << len(rows)):
        chosen = [row for i, row in enumerate(rows) if members >> i & 1]
        size = len(prefixes([sequence for row in chosen for sequence in row.sequences]))
        if size <= row_tokens or len(chosen) == 1:
            sizes[members] = size
    best = {0: 0}
    for members in range(1, 1 << len(rows)):
        first, part, found = members & -members, members, []
        while part:
            if part & first and part in sizes:
                found.append(sizes[part] + best[members ^ part])
            part = (part - 1) & members
        best[members] = min(found)
    return best[(1 << len(rows)) - 1]


@pytest.mark.parametrize(("row_tokens", "mean", "worst"), [(24, 1.05, 1.2), (32, 1.02, 1.2), (48, 1.0, 1.0)])
def test_cuts_are_near_the_best_of_all_partitions(row_tokens: int, mean: float, worst: float) -> None:
    """Even where a tree holds two or three rows only, cutting into runs costs few tokens more than any partition, which is bin packing."""
    ratios = []
    for seed in range(20):
        rows = sibling_rows(seed)
        packed = pack_rows(rows, row_tokens=row_tokens)
        ratios.append(sum(tree.length for tree in packed) / fewest_tokens(rows, row_tokens))
    assert min(ratios) >= 1 and max(ratios) <= worst and np.mean(ratios) <= mean


def test_both_sides_of_a_row_stay_together() -> None:
    """A row of several sequences is never cut, even where it is larger than the limit; rows of different groups never merge."""
    rows = [Sequences(([1, 2, 3], [1, 4, 5])), Sequences(([1, 2, 6], [1, 4, 7])), Sequences(([1, 2, 3],), group="q")]
    packed = pack_rows(rows, row_tokens=4)
    assert [[row.sequences for row in tree.rows] for tree in packed] == [[rows[0].sequences], [rows[1].sequences], [rows[2].sequences]]
    assert [tree.length for tree in packed] == [5, 5, 3]
    assert [tree.length for tree in pack_rows(rows, row_tokens=7)] == [7, 3]
    assert isinstance(rows[0], PackableRow)


def test_rows_in_group_order_keep_it() -> None:
    """Groups come in the order of their first rows; within one, rows that share most are neighbours; packing such rows permutes nothing."""
    ids = [[5, 1], [9], [5, 0], [2]]
    rows = [Sequences((sequence,), group=group) for sequence, group in zip(ids, "abab", strict=True)]
    order = [i for group in group_rows(rows) for i in group]
    assert order == [2, 0, 3, 1]
    ordered = [rows[i] for i in order]
    assert [row for tree in pack_rows(ordered, row_tokens=2) for row in tree.rows] == ordered


@pytest.mark.parametrize("seed", range(3))
def test_groups_stay_together_and_updates_keep_their_size(seed: int) -> None:
    """Every pass holds each row once, updates have the size asked for, and a group that an update can hold lies in at most two."""
    groups = [[0, 1, 2], [3], [4, 5, 6, 7], [8, 9]]
    schedule = batch_schedule([1] * 10, epochs=4.0, batch_size=4, seed=seed, groups=groups)
    assert [len(update) for update in schedule.micro_batches] == [4] * 10
    stream = np.concatenate(schedule.micro_batches).reshape(4, 10)
    for one_pass in stream.tolist():
        assert sorted(one_pass) == list(range(10))
        for group in groups:
            places = sorted(one_pass.index(row) for row in group)
            assert places == list(range(places[0], places[0] + len(group)))
    assert schedule == batch_schedule([1] * 10, epochs=4.0, batch_size=4, seed=seed, groups=groups)


@pytest.mark.parametrize("seed", range(5))
def test_updates_end_where_groups_end(seed: int) -> None:
    """Groups of 5 in updates of 16: every cut but the last moves by at most 2, to a group's end; split into passes, updates are exact."""
    groups = [list(range(i, i + 5)) for i in range(0, 80, 5)]
    schedule = batch_schedule([1] * 80, epochs=2.0, batch_size=16, seed=seed, groups=groups)
    sizes = [len(update) for update in schedule.micro_batches]
    assert len(sizes) == 10 and sum(sizes) == 160
    ends = np.cumsum(sizes)
    assert all(end % 5 == 0 and abs(end - 16 * (i + 1)) <= 2 for i, end in enumerate(ends))
    for update in schedule.micro_batches:
        for group in groups:
            assert len(set(update) & set(group)) in (0, 5)
    split = batch_schedule([1] * 80, epochs=2.0, batch_size=16, micro_batch_size=8, seed=seed, groups=groups)
    assert [len(part) for part in split.micro_batches] == [8] * 20
    assert np.concatenate(split.micro_batches).tolist() == np.concatenate(schedule.micro_batches).tolist()
    one = batch_schedule([1] * 80, epochs=2.0, batch_size=16, seed=seed, groups=[list(range(80))])
    assert [len(update) for update in one.micro_batches] == [16] * 10
