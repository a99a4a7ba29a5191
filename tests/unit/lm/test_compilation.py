"""Compiling layers beside a training: what is ordered, what one compilation serves, and that results stay; on the CPU without kernels."""

import logging
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers.integrations.flex_attention import WrappedFlexAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from stepladder.errors import BackendError
from stepladder.lm import chunked_head, compilation
from stepladder.lm import tree_attention as attention
from stepladder.lm.compilation import compiling, order_for, use
from stepladder.lm.settings import TrainSettings
from stepladder.lm.side_process import start
from tests.families import family_model

# Tracing warns about torch's own code.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Let layers be traced as on a GPU, but run without kernels, and count the graphs."""
    monkeypatch.setattr(attention, "can_flex", lambda _: True)
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    found, real = CompileCounterWithBackend("eager"), torch.compile

    def traced(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return real(function, backend=found, **options)

    monkeypatch.setattr(torch, "compile", traced)
    torch._dynamo.reset()
    # What one test traced is nothing to the next.
    chunked_head._compiled.cache_clear()
    yield found
    chunked_head._compiled.cache_clear()
    torch._dynamo.reset()


def inputs_of(length: int) -> dict[str, torch.Tensor]:
    """Return trees of 90 tokens that do not branch, in one row."""
    places = torch.arange(length)[None]
    ends = torch.clamp((places // 90 + 1) * 90, max=length)
    return {"input_ids": places % 17 + 3, "position_ids": places % 90, "ends": ends}


def test_one_compilation_serves_layers_and_lengths(counter: CompileCounterWithBackend) -> None:
    """Of a model with full and sliding layers, passes of four lengths need one graph per kind of layer, and give what they gave before."""
    model = family_model("gemma 3").train()
    with attention.tree_attention(model):
        lengths = (300, 500, 700, 710)
        plain = [attention.run_rows(model, inputs_of(length)) for length in lengths]
        use(model, on=True)
        for length, expected in zip(lengths, plain, strict=True):
            found = attention.run_rows(model, inputs_of(length))
            torch.testing.assert_close(found[:, :length], expected, rtol=1e-4, atol=1e-4)
            found.sum().backward()
        assert counter.frame_count == 2
        # A batch that was laid out before, in several rows, goes through the layers as they are.
        two = {name: value.view(2, -1) for name, value in inputs_of(180).items()}
        two["ends"][1] -= 90
        torch.testing.assert_close(attention.run_rows(model, two).flatten(0, 1), plain[0][0, :180], rtol=1e-4, atol=1e-4)
        assert counter.frame_count == 2
        use(model, on=False)
    assert all(layer._compiled_call_impl is None for layer in model.model.layers)  # pyright: ignore
    assert not attention.takes_one_row(model)


def test_the_order_is_small() -> None:
    """Three layers of every kind and a small vocabulary are compiled; the order reaches another process, and the model stays as it was."""
    model = family_model("gemma 3", vocab_size=5000)
    order = pickle.loads(pickle.dumps(order_for(model, TrainSettings())))
    assert order.config.num_hidden_layers == 6 and set(order.config.layer_types) == {"sliding_attention", "full_attention"}
    assert order.config.vocab_size == 1024 and order.vocabulary == 5000 and model.config.vocab_size == 5000
    assert order_for(family_model("qwen2"), TrainSettings()).config.num_hidden_layers == 3


@pytest.mark.parametrize("code", [0, 3])
def test_layers_are_compiled_once_the_process_succeeded(code: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If it fails, the training goes on without, and a warning has its last words; if the training has ended, nothing happens."""
    model, log = family_model("qwen2"), tmp_path / "log"
    log.write_text("first\nno compiler here\n")
    ended = threading.Event()
    with caplog.at_level(logging.WARNING):
        compilation._use_when_done(model, subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"]), log, ended)
    assert attention.takes_one_row(model) == (code == 0)
    assert caplog.text.count("exit code 3: no compiler here") == (code == 3)
    use(model, on=False)
    ended.set()
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    compilation._use_when_done(model, process, log, ended)
    assert not attention.takes_one_row(model)


def test_several_processes_attend_by_blocks_from_the_start(counter: CompileCounterWithBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each compiles FlexAttention alone, for layers as they are, and gives the values and gradients of a dense mask."""
    monkeypatch.setattr(compilation, "_several_processes", lambda: True)
    monkeypatch.setattr(compilation, "can_flex", lambda _: True)
    monkeypatch.setattr(compilation, "start", lambda *_, **__: pytest.fail("no process is to be started"))
    # The compiled function is kept for good; what this test compiles is nothing to others.
    monkeypatch.setattr(WrappedFlexAttention, "_instance", None)
    model = family_model("gemma 3").train()
    found = []
    with attention.tree_attention(model):
        for settings in (TrainSettings(compile=False), TrainSettings()):
            with compiling(model, settings):
                assert attention.takes_one_row(model) == settings.compile
                logits = attention.run_rows(model, inputs_of(300))[:, :300]
            logits.square().mean().backward()
            found.append((logits.detach(), model.model.layers[0].self_attn.q_proj.weight.grad.clone()))  # pyright: ignore
            model.zero_grad()
    assert counter.frame_count > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    assert not attention.takes_one_row(model)


def test_the_end_of_a_training_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the training fails, and without waiting for what the process does."""
    model, started = family_model("qwen2"), []
    monkeypatch.setattr(compilation, "_worth_it", lambda *_: True)
    monkeypatch.setattr(compilation, "_command", lambda _: ["-c", "import time; time.sleep(100)"])
    monkeypatch.setattr(compilation, "start", lambda *args, **named: started.append(start(*args, **named)) or started[-1])
    begin = time.monotonic()
    with pytest.raises(ValueError, match="out of rows"), compiling(model, TrainSettings()):
        raise ValueError("out of rows")
    assert started[0].returncode == -signal.SIGKILL and time.monotonic() - begin < 50
    assert not attention.takes_one_row(model)


def test_nothing_is_compiled_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started there, nor anywhere if the setting is off."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("no process is to be started"))
    model = family_model("qwen2")
    with compiling(model, TrainSettings()):
        assert not attention.takes_one_row(model)
    monkeypatch.setattr(compilation, "_worth_it", lambda *_: True)
    with compiling(model, TrainSettings(compile=False)):
        assert not attention.takes_one_row(model)


def test_the_process_compiles_what_the_training_runs(counter: CompileCounterWithBackend) -> None:
    """The order's passes trace one graph per kind of layer and the two functions of the head, each once for all lengths."""
    model = family_model("gemma 3")
    compilation.carry_out(order_for(model, TrainSettings(bf16=True)), device="cpu", tokens=(512, 384))
    assert counter.frame_count == 4


@pytest.mark.parametrize(("limits", "graphs"), [([600], 4), ([350, 450, 600, 800], None)])
def test_short_and_long_passes_may_have_a_graph_each(
    limits: list[int], graphs: int | None, counter: CompileCounterWithBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For large tensors torch makes other kernels; a graph for every length is refused, since a training would compile for ever."""
    forward = Qwen2MLP.forward

    def by_size(self: Qwen2MLP, x: torch.Tensor) -> torch.Tensor:
        return forward(self, x) * (1 + sum(x.shape[1] >= limit for limit in limits))

    monkeypatch.setattr(Qwen2MLP, "forward", by_size)
    order = order_for(family_model("qwen2"), TrainSettings(bf16=True))
    if graphs is None:
        with pytest.raises(BackendError, match=r"two all lengths: got \[1, 2, 3, 3\] graphs"):
            compilation.carry_out(order, device="cpu", tokens=(900, 384, 512, 700))
        return
    compilation.carry_out(order, device="cpu", tokens=(900, 384, 512, 700))
    assert counter.frame_count == graphs
