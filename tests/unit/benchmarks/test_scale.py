"""The simulated cluster, worked out by hand."""

import pytest

from benchmarks.scale import Cluster, Scenario, Shard, round_on, simulate


def test_free_workers_take_the_next_shard() -> None:
    """Shards of 3, 1, 1, 1, 2 on two workers: one does 3 and 2, the other 1, 1 and 1, and is idle from 3 to 5."""
    outcome = simulate([3, 1, 1, 1, 2], Cluster(workers=2))
    assert outcome.makespan == 5
    assert outcome.useful == 8
    assert outcome.tail == 2


def test_workers_start_and_the_driver_takes_turns() -> None:
    """Both workers start at 10; the driver hands out for 1 s each: 10-11-21 and 10-12-22, then 22 is 21-22-32 and 32 is 22-23-33."""
    assert simulate([10, 10, 10, 10], Cluster(workers=2, start_s=10, schedule_s=1)).makespan == 33


def test_storage_takes_one_shard_after_the_other() -> None:
    """Four workers end at 1; the storage writes for 2 s each, until 9."""
    assert simulate([1, 1, 1, 1], Cluster(workers=4, store_s=2)).makespan == 9


def test_slow_shards_take_longer() -> None:
    """All shards are slow, three times as long: 2 shards of 2 on one worker take 12."""
    assert simulate([2, 2], Cluster(workers=1, slow_share=1.0, slow_factor=3.0)).makespan == 12


def test_lost_shards_are_done_again() -> None:
    """Failures cost time and repeat work, but every shard is done once: the useful work is that of all shards."""
    calm, stormy = simulate([5.0] * 200, Cluster(workers=4)), simulate([5.0] * 200, Cluster(workers=4, failure_s=50, start_s=1, notice_s=2))
    assert stormy.useful == calm.useful == 1000
    # A shard of 5 s meets a failure with probability 1 - exp(-1/10), so each is lost 1 / exp(-1/10) - 1 = 0.105 times on average.
    assert stormy.losses == pytest.approx(200 * 0.105, rel=0.4)
    assert stormy.makespan > calm.makespan == 250


def test_round_scales_measured_shards() -> None:
    """128 problems of 100 tokens at 10 tokens/s are two shards of 640 s; bytes follow from the 2 bytes per token of the measured shard."""
    scenario = Scenario(problems=128, tokens=100, search_rate=10, trained=10, train_rate=20, train_gpus=8, store_rate=1e9)
    row = round_on(2, [Shard(seconds=7.0, tokens=50, size=100)], scenario, Cluster(workers=1))
    assert row.shards == 2
    assert row.outcome.useful == pytest.approx(1280)
    assert row.size == 2 * 64 * 100 * 2
    assert row.training == 128 * 10 / 20 / 2
    assert row.utilisation == pytest.approx(1.0, abs=1e-4)
    assert row.bottleneck() == "GPUs"
