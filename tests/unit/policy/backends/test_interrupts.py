"""Policies that can be interrupted, and whose requests can be cancelled."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from stepladder.interfaces import StepRequest, collect_all
from stepladder.policy.backends.completion_server import CompletionServer
from stepladder.policy.backends.openai import OpenAIPolicy
from stepladder.policy.backends.server_settings import ServerSettings
from stepladder.policy.backends.transformers import TransformersPolicy
from stepladder.policy.prompts import StepFormat
from tests.models import tiny_policy
from tests.servers import FakeServer, serving

FORMAT = StepFormat(answer_pattern=r"(\d)")


@pytest.fixture(scope="module")
def parts():
    """Make a tiny model and its tokenizer."""
    return tiny_policy()


def request(ticket, *, num_samples=3, max_step_tokens=12, seed=5):
    """Return a request for some samples."""
    return StepRequest(ticket=ticket, prefix_ids=(5, 6, 7), num_samples=num_samples, seed=seed, max_step_tokens=max_step_tokens)


def test_cancelled_requests_give_nothing_and_change_nothing(parts):
    """What is cancelled while it runs or waits never comes back; the others get the samples that they get alone."""
    model, tokenizer = parts
    alone = collect_all(TransformersPolicy(model, tokenizer, FORMAT), [request(1, seed=8)])[0]
    policy = TransformersPolicy(model, tokenizer, FORMAT, max_batch=6)
    policy.submit([request(0, max_step_tokens=200), request(1, seed=8), request(2), request(3, num_samples=9)])
    policy.interrupt()
    assert policy.collect() == []
    policy._admit()
    policy._advance()
    policy.cancel([0, 3])
    found = {}
    while results := policy.collect():
        found |= {result.ticket: result for result in results}
    assert set(found) == {1, 2}
    assert [[step.token_ids for step in sample] for sample in found[1].samples] == [[step.token_ids for step in s] for s in alone.samples]
    assert policy._num_live == 0
    policy.reset()
    assert len(collect_all(policy, [request(0)])) == 1


def test_after_a_cancelled_request_of_new_steps_nothing_is_taken_off(parts):
    """Probability is taken off next tokens only while a request that wants new steps runs; it costs time in every token."""
    model, tokenizer = parts
    policy = TransformersPolicy(model, tokenizer, FORMAT)
    policy.submit([replace(request(0, max_step_tokens=200), excluded=())])
    policy._admit()
    policy._advance()
    assert policy._taken(np.zeros(1, np.int64), np.ones(1, np.int64)) is not None
    policy.cancel([0])
    assert policy._taken(np.zeros(0, np.int64), np.zeros(0, np.int64)) is None


def test_an_interrupt_returns_and_loses_nothing(parts):
    """A collect that is interrupted may be empty; the next ones have every result."""
    model, tokenizer = parts
    policy = TransformersPolicy(model, tokenizer, FORMAT)
    expected = collect_all(TransformersPolicy(model, tokenizer, FORMAT), [request(1)])
    policy.submit([request(1)])
    found, rounds = [], 0
    while not found:
        policy.interrupt()
        found, rounds = policy.collect(), rounds + 1
        if not found:
            policy._admit()
            policy._advance()
    assert rounds > 1
    assert found == expected


def test_a_server_that_does_not_answer_can_be_left(parts):
    """An interrupt wakes a collect that waits for a server, and cancelled requests are hung up."""
    model, tokenizer = parts
    hold, asked = threading.Event(), threading.Event()

    def before(number, body):
        asked.set()
        hold.wait(30)
        return None

    fake = FakeServer()
    fake.before = before
    with serving(fake) as url:
        server = CompletionServer(ServerSettings(url=url))
        policy = OpenAIPolicy(server, tokenizer, FORMAT, model.config, model.generation_config, vocab_size=model.config.vocab_size)
        policy.submit([request(1), request(2)])
        assert asked.wait(30)
        threading.Timer(0.05, policy.interrupt).start()
        assert policy.collect() == []
        policy.cancel([1])
        hold.set()
        results = policy.collect()
        assert [result.ticket for result in results] == [2]
        assert policy.collect() == []
        server.close()
