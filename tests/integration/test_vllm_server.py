"""The completions backend against a real vLLM server on loopback, also one that is killed during a search."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.lm.text import TokenText
from stepladder.policy.backends.completion_server import CompletionServer
from stepladder.policy.backends.openai import OpenAIPolicy
from stepladder.policy.backends.server_settings import ServerSettings
from stepladder.policy.backends.transformers import TransformersPolicy
from stepladder.policy.prompts import StepFormat
from stepladder.testing import check_policy
from tests.backends import samples_of, step_request
from tests.models import save_tiny_policy, tiny_policy

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

FORMAT = StepFormat(answer_pattern=r"=(\d)")
CONTEXT = 256
START_S = 180


@contextmanager
def _server(folder, port, log):
    """Run a server until the context is left; yields its process, the leader of a group of its own."""
    arguments = ["--model", folder, "--host", "127.0.0.1", "--port", port, "--served-model-name", "tiny", "--dtype", "float32"]
    arguments += ["--enforce-eager", "--block-size", 32, "--max-num-seqs", 64, "--enable-prompt-tokens-details"]
    arguments += ["--no-enable-chunked-prefill"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *map(str, arguments)]
    with log.open("a") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _await_health(process, port, log)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await_health(process, port, log):
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Save a model and its format."""
    folder = save_tiny_policy(tmp_path_factory.mktemp("policy"), max_positions=CONTEXT)
    FORMAT.save(folder)
    return folder


@pytest.fixture(scope="module")
def served(saved, tmp_path_factory):
    """Start a server for all tests; yields its process and its port."""
    port = _free_port()
    with _server(saved, port, tmp_path_factory.mktemp("log") / "server.log") as process:
        yield process, port


@pytest.fixture
def policy(served):
    """Return a policy on the server."""
    _, port = served
    server = CompletionServer(ServerSettings(url=f"http://127.0.0.1:{port}/v1"))
    model, tokenizer = tiny_policy()
    yield OpenAIPolicy(server, tokenizer, FORMAT, model.config, vocab_size=model.config.vocab_size)
    server.close()


def test_the_policy_keeps_the_contract(policy):
    """The shipped contract suite passes against a real server."""
    prefixes = [(5, 6, 7), (9,), (8,) * 40]
    check_policy(lambda: policy, prefix_ids=prefixes, decode=TokenText(tiny_policy()[1]).decode, over_long_prefix_ids=(5,) * CONTEXT)


def test_logps_and_steps_are_those_of_transformers(policy, saved):
    """Greedy steps are those of the transformers backend; log-probabilities of any sample are a plain forward's within 1e-4."""
    model, tokenizer = tiny_policy(max_positions=CONTEXT)
    requests = [step_request(i, (*range(5, 40), 5 + i), 4, seed=i, temperature=i / 2, max_step_tokens=20, max_steps=3) for i in range(4)]
    results = samples_of(policy, requests)
    for request, samples in zip(requests, results, strict=True):
        for steps in samples:
            ids = [*request.prefix_ids, *(token for step in steps for token in step.token_ids)]
            assert not set(tokenizer.all_special_ids) - {tokenizer.eos_token_id} & set(ids)
            with torch.no_grad():
                logps = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            expected = [logps[at - 1, ids[at]].item() for at in range(len(request.prefix_ids), len(ids))]
            np.testing.assert_allclose([logp for step in steps for logp in step.logps], expected, atol=1e-4)
    [other] = samples_of(TransformersPolicy.from_pretrained(saved, device="cpu"), requests[:1])
    assert [[(s.token_ids, s.text, s.stop_reason) for s in steps] for steps in results[0]] == [
        [(s.token_ids, s.text, s.stop_reason) for s in steps] for steps in other
    ]
    assert policy.cached_tokens > 0


def _solve(folder, port, output, retries=1):
    arguments = ["solve", "--policy", str(folder), "--input", str(output.parent / "questions.jsonl"), "--output", str(output)]
    arguments += ["--method", "mcts", "--simulations", "6", "--option", "wave=2", "--set", "search.max_trees=4"]
    arguments += ["--set", "search.max_step_tokens=16", "--set", "policy.backend=openai", "--set", "policy.openai.backoff_s=0.05"]
    chosen = [f"policy.openai.url=http://127.0.0.1:{port}/v1", f"policy.openai.retries={retries}"]
    return CliRunner().invoke(app, [*arguments, *(word for setting in chosen for word in ("--set", setting))])


def test_a_server_killed_during_a_search_loses_nothing(served, saved, tmp_path):
    """Killed without warning: one sentence, exit code 1, finished answers kept; with a new server the command ends as if undisturbed."""
    process, port = served
    (tmp_path / "questions.jsonl").write_text("".join(f'{{"id": "q{i}", "question": "{i}+{i}"}}\n' for i in range(24)))
    done = _solve(saved, port, tmp_path / "whole.jsonl")
    assert done.exit_code == 0, done.output
    output, part = tmp_path / "answers.jsonl", tmp_path / "answers.jsonl.part"

    def kill_early():
        while not (part.exists() and part.read_bytes().count(b"\n") > 1):
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_early)
    killer.start()
    failed = _solve(saved, port, output)
    killer.join()
    assert failed.exit_code == 1 and "the server must be there" in failed.output and "Traceback" not in failed.output
    kept = part.read_text().splitlines()[1:]
    assert 0 < len(kept) < 24
    with _server(saved, port, tmp_path / "second.log"):
        done = _solve(saved, port, output)
    assert done.exit_code == 0, done.output
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
