"""A stand-in for vLLM's engines: the same streams, computed by transformers, with nothing cached."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from stepladder.loops.assembly import prms


@dataclass
class _Params:
    """What is asked of a sequence; nothing of it matters here."""

    options: dict[str, Any] = field(default_factory=dict)

    def __init__(self, **options: Any) -> None:
        self.options = options


class FakeVLLMEngine:
    """``VLLMEngine`` on transformers."""

    started: list["FakeVLLMEngine"] = []  # noqa: RUF012 - set anew by ``install_fake_vllm``

    def __init__(self, source: Any, *, task: str, settings: Any) -> None:
        self.source, self.task, self.settings, self.closed = str(source), task, settings, False
        auto = AutoModel if task == "embed" else AutoModelForCausalLM
        self._model = auto.from_pretrained(source).eval()
        config = self._model.config
        self.context, self.vocab_size = config.max_position_embeddings, config.vocab_size
        self._queue: list[tuple[str, tuple[int, ...]]] = []
        self.started.append(self)

    def add(self, key: str, token_ids: Sequence[int], params: Any) -> None:
        self._queue.append((key, tuple(token_ids)))

    @torch.no_grad()
    def step(self) -> list[Any]:
        if not self._queue:
            return []
        key, ids = self._queue.pop(0)
        output = self._model(torch.tensor([ids]))
        given: dict[str, Any] = {"outputs": None, "prompt_logprobs": None}
        if self.task == "embed":
            given["outputs"] = SimpleNamespace(data=output.last_hidden_state[0, -1])
        else:
            logps = output.logits[0].log_softmax(-1)
            rows = [{token: SimpleNamespace(logprob=logps[i, token].item())} for i, token in enumerate(ids[1:])]
            given["prompt_logprobs"] = [None, *rows]
        return [SimpleNamespace(request_id=key, finished=True, prompt_token_ids=ids, num_cached_tokens=0, **given)]

    def reset(self) -> None:
        self._queue.clear()

    def close(self) -> None:
        self.closed = True


def install_fake_vllm(monkeypatch: pytest.MonkeyPatch) -> list[FakeVLLMEngine]:
    """Let process reward models find the stand-in, and return the engines that will be started."""
    for name, kind in (("pooling_params", "PoolingParams"), ("sampling_params", "SamplingParams")):
        module = ModuleType(f"vllm.{name}")
        setattr(module, kind, _Params)
        monkeypatch.setitem(sys.modules, f"vllm.{name}", module)
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setattr(FakeVLLMEngine, "started", [])
    monkeypatch.setattr(prms, "VLLMEngine", FakeVLLMEngine)
    return FakeVLLMEngine.started
