"""The memory of decoding rows, counted on the shapes of a large model: nothing is computed, and nothing is allocated."""

from types import SimpleNamespace

import numpy as np
import torch

from stepladder.lm.decoding import DecodeRows

GIB = 1 << 30


def _large(**options) -> DecodeRows:
    """Return rows of a model of 7B parameters: 28 layers, 4 key heads of 128 numbers, two bytes each: 57,344 bytes a token."""
    shape = {"num_layers": 28, "num_kv_heads": 4, "head_dim": 128, "dtype": torch.bfloat16, "num_outputs": 0}
    model = SimpleNamespace(**shape, device=torch.device("meta"), bytes_per_token=2 * 28 * 4 * 128 * 2)
    model.zeros = lambda *sizes: torch.zeros(28, *sizes, 4, 128, dtype=torch.bfloat16, device="meta")
    return DecodeRows(model, num_lanes=8, **options)  # pyright: ignore[reportArgumentType]


def test_no_more_rows_are_added_than_memory_allows() -> None:
    """64 rows of 4,096 tokens would take 64 * 4160 * 57,344 bytes = 14.2 GiB; 8 GiB hold 32 of them, and rows of 1,024 tokens 128."""
    rows = _large()
    assert rows.fits([4096] * 32)
    assert not rows.fits([4096] * 64)
    assert rows.fits([1024] * 128)
    assert not rows.fits([1024] * 160)
    rows.allocate([4096] * 32, [1] * 32)
    assert rows.num_bytes == 32 * 4160 * 57344
    assert not rows.fits([100])
    assert _large(max_bytes=1).fits([4096])


def test_rows_that_end_give_their_memory_back() -> None:
    """Of 160 rows of 3,000 tokens one stays: a block of 32 rows is kept. When it ends, nothing is."""
    rows = _large(max_bytes=32 * GIB)
    numbers = rows.allocate([3000] * 160, [2] * 160)
    before = rows.num_bytes
    assert before == 160 * 3008 * 57344
    for number in numbers[1:]:
        rows.release(number)
    rows.tidy()
    assert rows.num_bytes == 32 * 3008 * 57344
    rows.release(numbers[0])
    rows.tidy()
    assert (rows.num_rows, rows.num_bytes) == (0, 0)


def _small(num_lanes: int, num_outputs: int = 0) -> DecodeRows:
    """Return rows on the CPU of a model with one number per key."""
    model = SimpleNamespace(dtype=torch.float32, device=torch.device("cpu"), num_outputs=num_outputs, bytes_per_token=8)
    model.zeros = lambda *sizes: torch.zeros(1, *sizes, 1, 1)
    return DecodeRows(model, num_lanes=num_lanes)  # pyright: ignore[reportArgumentType]


def test_what_is_in_use_survives_a_change_of_memory() -> None:
    """Keys, masks and positions of a row stay what they were while memory grows and shrinks around it."""
    torch.manual_seed(0)
    rows = _small(num_lanes=2, num_outputs=2)
    (number,) = rows.allocate([5], [2])
    keys, values = torch.randn(1, 5, 1, 1), torch.randn(1, 5, 1, 1)
    rows.load([number], keys, values)
    rows._outputs[number, :5] = np.arange(10).reshape(5, 2)
    found = []
    for num_rows, num_slots in ((rows.num_rows, rows.num_slots), (96, 640), (32, 64)):
        rows._resize(num_rows, num_slots)
        held = [*rows.contents()]
        begin = number * num_slots
        own = slice(begin, begin + 5)
        found.append([held[0][:, own], held[1][:, own], rows._mask[number, :, :64], rows._positions[number, :5]])
        np.testing.assert_array_equal(held[2][own], np.arange(10).reshape(5, 2))
    torch.testing.assert_close(found[1:], [found[0], found[0]])
    torch.testing.assert_close(found[0][:2], [keys, values])


@torch.inference_mode()
def test_only_what_is_in_use_is_copied_when_memory_grows() -> None:
    """Of rows 0 to 3, row 1 has ended, and each holds 5 tokens of 64 slots: what else the memory holds is left behind."""
    rows = _small(num_lanes=1)
    numbers = rows.allocate([5] * 4, [1] * 4)
    rows._keys.fill_(1)
    rows.release(numbers[1])
    rows._resize(64, 128)
    copied = rows.contents()[0].view(64, 128)
    expected = torch.zeros(64, 128)
    expected[[numbers[0], numbers[2], numbers[3]], :5] = 1
    torch.testing.assert_close(copied, expected)
