"""``stepladder serve`` as a user starts it: a real model, the ``openai`` client, and a stop by a signal."""

import os
import re
import signal

import openai
import pytest

from stepladder.policy.prompts import StepFormat
from tests.models import save_tiny_policy
from tests.runs import started


@pytest.fixture
def model(tmp_path):
    """Save a policy whose solutions end with any digit."""
    folder = save_tiny_policy(tmp_path / "my-model")
    StepFormat(answer_pattern=r"(\d)").save(folder)
    return folder


def test_a_server_answers_and_stops_on_a_signal(model):
    """The printed address works with the client; an open request is answered after SIGTERM, and the exit code is 0."""
    arguments = ("--policy", model, "--port", 0, "--simulations", 4, "--set", "search.max_step_tokens=40", "--grace", 200)
    with started("serve", *arguments) as process:
        lines = iter(process.stderr.readline, "")
        address = next(found[1] for line in lines if (found := re.search(r"serving my-model at (http\S+)", line)))
        with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=300) as client:
            question = [{"role": "user", "content": "1+1"}]
            first = client.chat.completions.create(model="my-model", messages=question, seed=1)
            again = client.chat.completions.create(model="my-model", messages=question, seed=1)
            assert first.choices[0].message.content == again.choices[0].message.content
            assert first.usage.completion_tokens > 0
            with client.chat.completions.create(model="my-model@best-of-n-60", messages=question, seed=1, stream=True) as chunks:
                os.kill(process.pid, signal.SIGTERM)
                last = list(chunks)[-1].choices[0]
            assert last.finish_reason in ("stop", "length")
            assert last.stepladder["complete"]
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0
        assert "stopped" in err
