"""CPU threads of a process that runs models."""

from threading import Thread

import pytest
import torch

from stepladder.lm import threads


@pytest.fixture
def several(monkeypatch):
    """A process that began with three threads, and has loaded nothing yet."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(threads, "_SEVERAL", 3)
    monkeypatch.setattr(threads, "_largest", 0)
    yield
    torch.set_num_threads(before)


def in_another_thread():
    """Return the number of threads that torch uses in a Python thread that begins now."""
    found = []
    worker = Thread(target=lambda: found.append(torch.get_num_threads()))
    worker.start()
    worker.join()
    return found[0]


def test_small_models_use_one_thread(several):
    """So do Python threads that begin later, as that of the server does."""
    threads.fit_threads(threads.SMALL_MODEL - 1)
    assert torch.get_num_threads() == in_another_thread() == 1


def test_the_largest_model_counts(several):
    """A large policy keeps its threads when a small PRM is loaded after it, or before it."""
    threads.fit_threads(1000)
    threads.fit_threads(threads.SMALL_MODEL)
    assert torch.get_num_threads() == 3
    threads.fit_threads(1000)
    assert torch.get_num_threads() == 3


def test_the_environment_has_the_say(several, monkeypatch):
    """A number of threads that was chosen outside stays."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads.fit_threads(1000)
    assert torch.get_num_threads() == 3
