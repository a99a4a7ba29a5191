"""Loading public process reward models into one shape: a causal transformer whose logits are the few outputs of a spec.

This runs no code of a checkpoint: heads that transformers does not know (two layers, TRL's value head) are read from the weights. Of a
language model's head, only the needed rows are kept.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepladder.errors import CheckpointError
from stepladder.files import reading
from stepladder.hub import absent, cached_where_unreachable, why_unreachable
from stepladder.lm.loading import HEAD_NAMES, HEAD_PREFIXES, load_causal_lm, load_token_classifier, quiet
from stepladder.prm.layout import token_id
from stepladder.prm.specs import PRMSpec

_VOCABULARY_HEADS = ("lm_head.weight", "embed_tokens.weight", "wte.weight")
"""How the names of a language model's head end, or of the input embeddings that it shares; the first that is found counts."""
_REMEDY = "save the model again, as safetensors"


def load_reward_model(
    source: str | Path,
    spec: PRMSpec,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    quantization: Any = None,
) -> PreTrainedModel:
    """Return a model with a head on every token, whose logits are ``spec.num_outputs`` numbers; of two, the second means a good step.

    Raises:
        CheckpointError: If there is no such model, or its head has another number of outputs.
        ConfigError: If device or dtype is not available.
    """
    with quiet():
        head = load_head(source, spec)
        model: Any = load_token_classifier(
            source,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            quantization=quantization,
            num_labels=spec.num_outputs,
        )
    name = "score" if hasattr(model, "score") else "classifier"
    setattr(model, name, head.to(device=model.device, dtype=model.dtype))
    return model


def load_vocabulary_model(
    source: str | Path,
    spec: PRMSpec,
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Return a language model with two logits, those of the bad token and of the good token.

    Raises:
        CheckpointError: If there is no such model, or the tokenizer is another model's.
        ConfigError: If device or dtype is not available.
    """
    rows = vocabulary_ids(tokenizer, spec)
    return load_vocabulary_rows(source, rows, device=device, dtype=dtype, trust_remote_code=trust_remote_code)


def load_vocabulary_rows(
    source: str | Path, rows: Sequence[int], *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return a language model with the logits of some tokens only, in their order; errors as for ``load_vocabulary_model``."""
    with quiet():
        model = load_causal_lm(source, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    model.set_output_embeddings(_kept_rows(model.get_output_embeddings(), list(rows)))
    return model


def load_head(source: str | Path, spec: PRMSpec) -> nn.Module:
    """Return the head alone, in the checkpoint's type on the CPU. It maps a last hidden state to ``spec.num_outputs`` numbers.

    Raises:
        CheckpointError: If there is no such model, or its head has another number of outputs.
    """
    directory = _local_directory(source)
    head = _read_head(directory, source) if spec.head_file is None else _read_head_file(directory / spec.head_file)
    outputs = out_features(head)
    if outputs != spec.num_outputs:
        raise CheckpointError(
            f"{source}: the head of a {spec.family} model must have {spec.num_outputs} outputs per token: got {outputs} "
            "-- use another --spec"
        )
    return head


def load_vocabulary_head(source: str | Path, spec: PRMSpec, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """Return the head that maps a last hidden state to the logits of the bad and of the good token; otherwise as ``load_head``.

    Raises:
        CheckpointError: If there is no such model, it has no embeddings, or the tokenizer is another model's.
    """
    tensors = _tensors(_local_directory(source), lambda key: key.endswith(_VOCABULARY_HEADS))
    # A language model without a head of its own predicts with its input embeddings.
    weight = next((tensors[key] for name in _VOCABULARY_HEADS for key in tensors if key.endswith(name)), None)
    if weight is None:
        raise CheckpointError(f"{source}: must be a language model: found none of {', '.join(_VOCABULARY_HEADS)} -- use another --spec")
    return _linear({"weight": weight[list(vocabulary_ids(tokenizer, spec))]}, "")


def load_bare_lm(
    source: str | Path, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, nn.Module]:
    """Return a language model whose logits are its last hidden states, and its head.

    Raises:
        CheckpointError: If there is no such model, or it transforms its logits after the head.
        ConfigError: If device or dtype is not available.
    """
    model = load_causal_lm(source, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        raise CheckpointError(f"{source}: logits must be linear in the hidden states: the model caps them -- use another model")
    head = model.get_output_embeddings()
    # A causal language model has a head; transformers' annotation allows for models without one.
    assert head is not None
    model.set_output_embeddings(nn.Identity())
    return model, head


def has_head(source: str | Path) -> bool:
    """Say whether a checkpoint has a head on its tokens.

    Raises:
        CheckpointError: If there is no such model.
    """
    return bool(_head_tensors(_local_directory(source)))


def vocabulary_ids(tokenizer: PreTrainedTokenizerBase, spec: PRMSpec) -> tuple[int, int]:
    """Return the ids of the bad and of the good token of a ``vocabulary`` spec; the second output means a good step.

    Raises:
        CheckpointError: If the tokenizer is another model's.
    """
    assert spec.good is not None and spec.bad is not None, "a vocabulary spec has both"
    return token_id(tokenizer, spec.bad, spec.bad_id), token_id(tokenizer, spec.good, spec.good_id)


def _kept_rows(head: Any, rows: list[int]) -> nn.Linear:
    kept = nn.Linear(head.in_features, len(rows), bias=head.bias is not None, device=head.weight.device, dtype=head.weight.dtype)
    with torch.no_grad():
        kept.weight.copy_(head.weight[rows])
        if head.bias is not None:
            kept.bias.copy_(head.bias[rows])
    return kept


def out_features(head: nn.Module) -> int:
    """Return how many outputs a head has."""
    if isinstance(head, _Heads):
        return sum(map(out_features, head))
    return [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1].out_features


def check_fit(head: nn.Module, source: str | Path, *, width: int) -> None:
    """Check that a head reads hidden states of a body's width.

    Raises:
        CheckpointError: If it does not.
    """
    found = next(layer for layer in head.modules() if isinstance(layer, nn.Linear)).in_features
    if found != width:
        raise CheckpointError(
            f"{source}: a value head must have been trained on the policy that it reads: it takes {found} numbers per token, and the "
            f"policy's hidden states have {width} -- use the policy that its spec names"
        )


def _local_directory(source: str | Path) -> Path:
    """Return the directory of a model's files. A hub model is downloaded, or taken from the cache."""
    if Path(source).is_dir():
        return Path(source)
    if Path(source).exists():
        raise CheckpointError(f"{source}: must be a model directory or a hub id: it is a file -- check the path")
    try:
        with cached_where_unreachable():
            return Path(
                snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.bin", "*.pt", "*.txt", "*.model", "*.jinja"])
            )
    except (OSError, ValueError) as error:
        if why_unreachable() is not None:
            raise CheckpointError(absent(source, "model")) from error
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{source}: must be a model directory or a hub id: {first_line} -- check the path or the connection"
        ) from error


def _read_head(directory: Path, source: str | Path) -> nn.Module:
    """Return the head of a checkpoint: one linear layer, or two with a rectifier between them."""
    tensors = _head_tensors(directory)
    prefix = next((name for name in HEAD_NAMES if any(key.startswith(f"{name}.") for key in tensors)), None)
    if prefix is None:
        raise CheckpointError(
            f"{source}: must have a head on its tokens, called one of {', '.join(HEAD_NAMES)}: found none "
            "-- use a process reward model, or --spec of a model that reads the vocabulary"
        )
    own = {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
    if head := _one_head(own) or _ensemble(own):
        return head
    raise CheckpointError(
        f"{source}: the head must be one linear layer, or two with a ReLU between: got {sorted(own)} -- use another model"
    )


def _read_head_file(path: Path) -> nn.Module:
    """Return a head that a file holds alone, whatever its tensors are called before ``weight`` and ``bias``."""
    with reading(path, what="the weights of a head", remedy="use the model's own files, or another --spec"):
        state = torch.load(path, map_location="cpu", weights_only=True)
    own = {key.rpartition(".")[2]: value for key, value in state.items()} if isinstance(state, dict) else {}
    if "weight" not in own or not set(own) <= {"weight", "bias"} or len(own) != len(state):
        raise CheckpointError(
            f"{path}: must hold one linear layer: got {sorted(state) if own else type(state).__name__} -- use another model"
        )
    return _linear(own, "")


class _Heads(nn.ModuleList):
    """Heads side by side: the outputs of all, one after the other."""

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.cat([head(hidden) for head in self], dim=-1)


def _ensemble(tensors: dict[str, Tensor]) -> nn.Module | None:
    """Return heads that are numbered from 0; None if the tensors are something else."""
    numbered: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, rest = key.removeprefix("heads.").partition(".")
        # Without a name these are layers of one head.
        if rest in ("weight", "bias") and not key.startswith("heads."):
            return None
        numbered.setdefault(number, {})[rest] = value
    heads = [_one_head(numbered.get(str(number), {})) for number in range(len(numbered))]
    known = [head for head in heads if head is not None]
    return _Heads(known) if heads and len(known) == len(heads) else None


def _one_head(tensors: dict[str, Tensor]) -> nn.Module | None:
    """Return a head of one linear layer, or of two with a rectifier between them; None if the tensors are something else."""
    if "weight" in tensors:
        return _linear(tensors, "")
    if set(tensors) <= {"0.weight", "0.bias", "2.weight", "2.bias"} and {"0.weight", "2.weight"} <= set(tensors):
        return nn.Sequential(_linear(tensors, "0."), nn.ReLU(), _linear(tensors, "2."))
    return None


def _linear(tensors: dict[str, Tensor], prefix: str) -> nn.Linear:
    weight, bias = tensors[f"{prefix}weight"], tensors.get(f"{prefix}bias")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def _head_tensors(directory: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint whose names have the prefix of a head."""
    return _tensors(directory, lambda key: key.startswith(HEAD_PREFIXES))


def _tensors(directory: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint whose names are ``wanted``. The others are not read."""
    found: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with reading(path, what="weights in safetensors form", remedy=_REMEDY), safe_open(path, framework="pt") as file:
            found |= {key: file.get_tensor(key) for key in file.keys() if wanted(key)}  # noqa: SIM118
    for path in sorted(directory.glob("pytorch_model*.bin")) if not found else []:
        with reading(path, what="weights", remedy=_REMEDY):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            found |= {key: state[key] for key in state if wanted(key)}
    return found
