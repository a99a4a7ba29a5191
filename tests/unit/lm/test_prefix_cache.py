import numpy as np
import psutil
import pytest
import torch

from stepladder.lm.flat import FlatModel
from stepladder.lm.prefix_cache import PathGroup, PrefixCache
from tests.families import family_model
from tests.models import tiny_policy, tiny_scorer


def _paths(groups):
    return [group.prefix_ids + branch for group in groups for branch in group.branches]


GROUPS = [
    PathGroup(prefix_ids=(5, 6, 7, 8), branches=((9, 10), (9, 11, 12), ())),
    PathGroup(prefix_ids=(5, 6, 20), branches=((9,), (9,))),
    PathGroup(prefix_ids=(30,) * 25),
]


@pytest.mark.parametrize("arch", ["qwen2", "llama"])
@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("pass_tokens", [4096, 3])
def test_outputs_of_every_token_equal_a_plain_forward(arch, kv_heads, pass_tokens):
    """Whatever is shared between branches and groups, and however the work is cut into passes, each token's output is the plain one."""
    model, _ = tiny_scorer(arch=arch, kv_heads=kv_heads)
    cache = PrefixCache(FlatModel(model), num_outputs=1, pass_tokens=pass_tokens)
    placed = [placement for group in cache.extend(GROUPS) for placement in group]
    for path, placement in zip(_paths(GROUPS), placed, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([path])).logits[0, :, 0]
        np.testing.assert_allclose(cache.outputs(placement.slots)[:, 0], expected, atol=1e-5)


def test_each_distinct_token_is_forwarded_once():
    """The groups hold 4 + 2 + 2 new tokens, then 1 + 1, then 25: shared beginnings cost nothing, and a second call costs nothing."""
    model, _ = tiny_scorer()
    flat = FlatModel(model)
    cache = PrefixCache(flat, num_outputs=1)
    cache.extend(GROUPS)
    assert flat.forwarded_tokens == cache.num_tokens == (4 + 2 + 2) + (1 + 1) + 25
    cache.extend(GROUPS)
    assert flat.forwarded_tokens == 35


@pytest.mark.parametrize("max_tokens", [1, 40])
def test_a_full_pool_changes_the_work_but_not_the_outputs(max_tokens):
    """With room for next to nothing, sequences are dropped and computed again with equal outputs; what one call needs always fits."""
    model, _ = tiny_scorer()
    small, large = PrefixCache(FlatModel(model), num_outputs=1, max_tokens=max_tokens), PrefixCache(FlatModel(model), num_outputs=1)
    for turn in range(12):
        path = tuple((np.arange(20) * (turn % 5 + 1) % 50 + 4).tolist())
        got, expected = (cache.outputs(cache.extend([PathGroup(prefix_ids=path)])[0][0].slots) for cache in (small, large))
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert small.num_tokens <= 60 < large.num_tokens


def test_the_model_is_left_as_it_was():
    """After passes through the cache, an ordinary call with padding gives what it gave before."""
    model, _ = tiny_policy()
    batch = {"input_ids": torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]), "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])}
    with torch.no_grad():
        before = model(**batch).logits
        PrefixCache(FlatModel(model)).extend([PathGroup(prefix_ids=(4, 5, 6))])
        torch.testing.assert_close(model(**batch).logits, before, rtol=0, atol=0)


def test_room_for_keys_takes_memory_only_where_it_is_written_and_gives_it_back():
    """One token in each of 32 rows and two layers is 64 pages of the system, where a huge page each would be 128 MB."""
    model, this = FlatModel(family_model("llama")), psutil.Process()
    before = this.memory_info()
    room = model.zeros(32, 1 << 15)
    assert room.numel() * room.element_size() == 2 * 32 * (1 << 15) * 64
    room[:, :, 0] = 1
    assert this.memory_info().rss - before.rss < 16 << 20
    assert not room[:, :, 1:65].any()
    del room
    assert this.memory_info().vms - before.vms < 16 << 20


def test_too_much_room_is_a_lack_of_memory():
    """No machine has an exabyte."""
    with pytest.raises(MemoryError, match="of keys and values"):
        FlatModel(family_model("llama")).zeros(1 << 20, 1 << 31)
