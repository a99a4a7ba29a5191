"""Compiling a model's layers for a GPU while the training already runs.

Compiled layers are faster, and only compiled FlexAttention skips what a tree hides; but compiling takes about a minute. So a
training starts without. Meanwhile a process of its own compiles layers of every kind, which fills torch's caches on the disk
(``TORCHINDUCTOR_CACHE_DIR``). Once it has succeeded, the training compiles its own layers from these caches in a few seconds and goes on
with them. If it fails, or the training ends before and ends it, nothing has changed but the speed. Shapes are dynamic: one compilation
serves all passes. Losses before and after the change differ by rounding.

    python -m stepladder.lm.compilation ORDER       what that process runs
"""

import copy
import logging
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from stepladder.errors import BackendError
from stepladder.lm.adapters import with_adapters
from stepladder.lm.chunked_head import Head, choice_logps, fuse, head_of
from stepladder.lm.loading import computes_in_bf16
from stepladder.lm.settings import TrainSettings
from stepladder.lm.side_process import end, end_with_parent, start
from stepladder.lm.tree_attention import blocks_alone, can_flex, compiled_layers, core_model, run_rows, tree_attention

_LOGGER = logging.getLogger(__name__)
_TOKENS = (151 * 128, 37 * 128, 131 * 128, 47 * 128)
"""Tokens of the passes that are compiled: the first sets what kernels are good at, the second may need kernels for short passes, and the
others show that no length needs more."""
_SMALL_VOCABULARY = 1024
_LAYERS_OF_A_KIND = 3
_ROOM = 12 << 30
"""Bytes that the compiling process and the activations of the training may take beside the weights."""


_POLL_S, _PATIENCE_S = 0.1, 5.0
"""Seconds between two looks at the process, and the longest wait for the thread that looks."""


class Order(NamedTuple):
    """What is to be compiled."""

    kind: type[PreTrainedModel]
    """Class of the model."""
    config: Any
    """Its configuration, with three layers of every kind and a small vocabulary."""
    settings: TrainSettings
    """Settings of the training."""
    dtype: torch.dtype
    """Type of the weights."""
    vocabulary: int
    """Columns of the head; 0 if it cannot be fused."""


def layers_of(model: PreTrainedModel) -> nn.ModuleList | None:
    """Return the decoder's layers, or None if the model does not keep them in the usual place."""
    layers = getattr(model.base_model, "layers", None)
    return layers if isinstance(layers, nn.ModuleList) else None


def order_for(model: PreTrainedModel, settings: TrainSettings) -> Order:
    """Return the order for a model: a copy of its configuration cut down to three layers of every kind.

    With adapters the input of the first layer needs no gradient, which makes another graph. The others must share theirs.
    """
    config = copy.deepcopy(model.config)
    kinds = _LAYERS_OF_A_KIND * list(dict.fromkeys(getattr(config, "layer_types", None) or ["any"]))
    if hasattr(config, "layer_types") and config.layer_types:
        config.layer_types = kinds
    config.num_hidden_layers = len(kinds)
    config.vocab_size = min(config.vocab_size, _SMALL_VOCABULARY)
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    head = head_of(model) if model.can_generate() else None
    return Order(type(model), config, settings, model.dtype, head.linear.out_features if head else 0)


@contextmanager
def compiling(model: nn.Module, settings: TrainSettings) -> Iterator[None]:
    """Compile the model's layers beside what the block does, and use them from then on until it ends.

    Several processes compile nothing beside, but FlexAttention alone, each for itself at its first use: layers whose weights or gradients
    are shared stay as they are. Nothing happens where it would not help: on a CPU, for models without FlexAttention, with weights in 4
    bits, or where the memory is short.
    """
    core = core_model(model)
    if settings.compile and _several_processes() and can_flex(core):
        with blocks_alone(core):
            yield
        return
    if not (settings.compile and _worth_it(core, settings)):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="stepladder-compile-") as folder:
        path = Path(folder) / "order"
        path.write_bytes(pickle.dumps(order_for(core, settings)))
        process = start(_command(path), log=Path(folder) / "log")
        ended = threading.Event()
        watch = threading.Thread(target=_use_when_done, args=(core, process, Path(folder) / "log", ended), daemon=True)
        watch.start()
        try:
            yield
        finally:
            ended.set()
            end(process)
            watch.join(_PATIENCE_S)
            use(core, on=False)


def _command(order: Path) -> list[str]:
    return ["-m", __name__, str(order)]


def _worth_it(core: PreTrainedModel, settings: TrainSettings) -> bool:
    if _several_processes() or not can_flex(core) or layers_of(core) is None or getattr(core, "is_loaded_in_4bit", False):
        return False
    weights = sum(value.numel() * value.element_size() for value in core.parameters())
    # A gradient and two moments of AdamW for every trained weight.
    trained = 0 if settings.lora else sum(12 * value.numel() for value in core.parameters())
    return weights + trained + _ROOM <= torch.cuda.get_device_properties(core.device).total_memory


def _several_processes() -> bool:
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def _use_when_done(core: PreTrainedModel, process: "subprocess.Popen[bytes]", log: Path, ended: threading.Event) -> None:
    """Wait for the compiling process, and let the model use its layers compiled if it succeeded."""
    while process.poll() is None:
        # No endless ``wait``: a killed process that the system does not give back must not hold the training up.
        if ended.wait(_POLL_S):
            return
    code = process.returncode
    if ended.is_set():
        return
    if code == 0:
        use(core, on=True)
    else:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["no word"]
        _LOGGER.warning("training goes on without compiled layers, which are faster: compiling failed with exit code %d: %s", code, said[0])


def use(core: PreTrainedModel, *, on: bool) -> None:
    """Let a model use its layers and the reading of its head compiled, or not. They are compiled at their first use."""
    layers = layers_of(core) or []
    head = head_of(core) if core.can_generate() else None
    if head is not None:
        fuse(head, on=on)
    if on:
        compiled_layers[core] = {layer: torch.compile(layer._call_impl, dynamic=True, fullgraph=True) for layer in layers}
        return
    compiled_layers.pop(core, None)
    for layer in layers:
        layer._compiled_call_impl = None


def carry_out(order: Order, *, device: str = "cuda", tokens: tuple[int, ...] = _TOKENS) -> None:
    """Run forward and backward passes with compiled layers, so that everything they need is in the caches.

    torch makes other kernels for tensors of more than some millions of numbers, so long and short passes may have a graph each.

    Args:
        order: What to compile.
        device: Where.
        tokens: Tokens of the passes: a long one, a short one, and more.

    Raises:
        BackendError: If layers of a kind, or passes of more lengths, need graphs of their own: a training would compile for ever.
    """
    # Slow to import, and needed here alone.
    from torch._dynamo.utils import counters

    in_half = computes_in_bf16(order.settings.bf16, torch.device(device))
    with tempfile.TemporaryDirectory() as folder:
        # As in the training: this sets how float32 products are rounded, which is a part of the caches' keys.
        TrainingArguments(output_dir=folder, bf16=in_half, use_cpu=device == "cpu", report_to="none")
    with torch.device(device):
        model = order.kind(order.config).to(order.dtype).train()  # pyright: ignore[reportArgumentType]
        if order.settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        trained = with_adapters(model, order.settings.lora, seed=0)
        linear = nn.Linear(order.config.hidden_size, order.vocabulary, bias=False) if order.vocabulary else None
    autocast = torch.autocast(device, dtype=torch.bfloat16, enabled=in_half)
    use(model, on=True)
    before, graphs = counters["stats"]["unique_graphs"], []
    with tree_attention(model):
        for count in tokens:
            ids = torch.randint(order.config.vocab_size, (1, count), device=device)
            places = torch.arange(count, device=device)[None]
            inputs = {"input_ids": ids, "position_ids": places % 512, "ends": torch.clamp((places // 512 + 1) * 512, max=count)}
            with autocast:
                logits = run_rows(trained, inputs, logits_to_keep=2) if order.vocabulary else run_rows(trained, inputs)
            logits.float().sum().backward()
            graphs.append(counters["stats"]["unique_graphs"] - before)
    if graphs[0] > order.config.num_hidden_layers // _LAYERS_OF_A_KIND + 1 or graphs[-1] != graphs[1]:
        rule = "one graph must serve all layers of a kind, and two all lengths"
        raise BackendError(f"compiling layers: {rule}: got {graphs} graphs by pass -- set compile to false")
    if linear is not None:
        _read_and_differentiate(linear, torch.bfloat16 if in_half else order.dtype)


def _read_and_differentiate(linear: nn.Linear, computed: torch.dtype) -> None:
    """Compile what reads the logits of a chunk, and its gradient."""
    fuse(Head(linear), on=True)
    for count in (512, 384):
        hidden = torch.randn(count, linear.in_features, device=linear.weight.device, requires_grad=True)
        choices = torch.zeros(count, dtype=torch.int64, device=linear.weight.device)
        choice_logps(hidden, choices, Head(linear), computed=computed).sum().backward()


if __name__ == "__main__":
    end_with_parent()
    carry_out(pickle.loads(Path(sys.argv[1]).read_bytes()))
