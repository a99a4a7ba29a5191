"""Loading models and tokenizers from a directory or a hub id, with errors that say what is missing."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_layers import GenericForTokenClassification
from transformers.utils import logging as hf_logging

from stepladder.errors import CheckpointError, ConfigError
from stepladder.files import file_fault, read_json, read_json_object, reading, too_large
from stepladder.hub import absent, cached_where_unreachable, why_unreachable
from stepladder.lm.families import soft_cap_of
from stepladder.lm.threads import fit_threads
from stepladder.terminal import one_line

HEAD_NAMES = ("score", "classifier", "v_head.summary", "v_head", "value_head", "reward_head")
"""Names of the heads of reward models in public checkpoints; the first one found counts."""
HEAD_PREFIXES = tuple(f"{name}." for name in HEAD_NAMES)
"""Prefixes of the names of such a head's weights."""

FORMAT_FILE = "stepladder_format.json"
"""File of a policy directory that describes its step format. Training copies it to the new policy."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LOGGER = logging.getLogger(__name__)
_PROBES = ("is 1+1?", "1234 = 12\n\n", "  a\tb\n c", "½ of é, x² 語 🙂", "don't  stop.")
"""Texts that families split differently: blanks, digits, line breaks, characters that a normaliser changes."""
_SMALL_BYTES = 1 << 20
"""Larger JSON files, vocabularies, are left to the library that needs them: reading them twice takes time."""
_GENERATION_FILE = "generation_config.json"
_GENERIC_CLASSES = {"PreTrainedTokenizerFast", "TokenizersBackend"}


def silence_bars() -> None:
    """Switch off transformers' progress bars in this process, because several processes would overwrite each other's lines and ours."""
    hf_logging.disable_progress_bar()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the library's progress bars and log lines: progress goes through callbacks, and failures are exceptions."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def resolve_device(device: str) -> torch.device:
    """Return a device: ``auto`` is the first GPU if there is one, else the CPU.

    Raises:
        ConfigError: If the device is malformed, or is a GPU that this machine does not have.
    """
    _claim_gpu()
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = None
    if resolved is None or resolved.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: must be 'auto', 'cpu', 'cuda' or 'cuda:N': got {device!r}")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {device!r} must exist: this machine has {torch.cuda.device_count()} GPUs -- use 'auto' or 'cpu'")
    return resolved


def _claim_gpu() -> None:
    """Make "cuda" mean this process's own GPU if a launcher started one process per GPU."""
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """Return the type of the weights: ``auto`` is float32 on the CPU, and the checkpoint's own type on a GPU.

    Raises:
        ConfigError: If the name is unknown.
    """
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype: must be one of {['auto', *_DTYPES]}: got {dtype!r}")
    return _DTYPES[dtype]


def computes_in_bf16(bf16: bool | None, device: torch.device) -> bool:
    """Return whether a training on a device computes in bfloat16: as its setting says, or if that is None on GPUs that have it."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported() if bf16 is None else bf16


def has_format(directory: str | Path) -> bool:
    """Say whether a model directory holds the step format of its policy."""
    return (Path(directory) / FORMAT_FILE).is_file()


def load_tokenizer(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model directory or hub id.

    A ``tokenizer.json`` that a generic tokenizer class saved is used unchanged: ``AutoTokenizer`` would replace its splitting rules with
    those of the model family (Qwen2's drop whitespace that a small custom vocabulary does not know). If the two read a probe differently,
    a warning is logged, once per directory and process. Directories that stepladder wrote get no warning.

    Raises:
        CheckpointError: If there is no tokenizer, it cannot be read, or it fails on a character that it does not know.
    """
    settings = Path(source) / "tokenizer_config.json"
    complete = (Path(source) / "tokenizer.json").is_file()
    if Path(source).is_dir() and not complete and not settings.is_file():
        raise CheckpointError(
            f"{source}: a model directory must hold a tokenizer: found neither tokenizer.json nor tokenizer_config.json "
            "-- save the model's tokenizer there too"
        )
    generic = complete and settings.is_file() and _tokenizer_class(settings) in _GENERIC_CLASSES
    if not generic:
        return _able_to_read(_loaded(source, "tokenizer", AutoTokenizer.from_pretrained, trust_remote_code=trust_remote_code), source)
    tokenizer = _able_to_read(_loaded(source, "tokenizer", PreTrainedTokenizerFast.from_pretrained), source)
    if not has_format(source):
        _warn_of_family(str(source))
    return tokenizer


def _able_to_read(tokenizer: PreTrainedTokenizerBase, source: str | Path) -> PreTrainedTokenizerBase:
    """Return a tokenizer that reads any text: one without an unknown token may fail at the first character that it does not know."""
    _check_settings(tokenizer, source)
    for probe in _PROBES:
        try:
            tokenizer.encode(probe, add_special_tokens=False)
        # tokenizers raises this class itself, for everything.
        except Exception as error:
            raise CheckpointError(
                f"{source}: a tokenizer must read any text: {probe!r} raises {one_line(str(error))!r} "
                "-- give its model an unknown token (unk_token) that the vocabulary contains, and save it again"
            ) from error
    return tokenizer


def _check_settings(tokenizer: PreTrainedTokenizerBase, source: str | Path) -> None:
    """Refuse settings of a tokenizer that the library takes as they are, and fails on when it needs them."""
    templates: Any = tokenizer.chat_template
    wrong = {
        "model_max_length must be a number": not isinstance(tokenizer.model_max_length, int | float),
        "chat_template must be text": not all(
            text is None or isinstance(text, str) for text in (templates.values() if isinstance(templates, dict) else [templates])
        ),
    }
    for rule in (rule for rule, broken in wrong.items() if broken):
        found = getattr(tokenizer, rule.partition(" ")[0])
        raise CheckpointError(f"{source}: {rule} in tokenizer_config.json: got {found!r:.80} -- correct it, or save the tokenizer again")


@lru_cache(maxsize=64)
def _warn_of_family(source: str) -> None:
    """Log a warning if the tokenizer of the model's family, which other tools load, reads a text differently from the saved one."""
    try:
        with reading(source, what="a tokenizer", remedy="save it again"):
            saved, other = PreTrainedTokenizerFast.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    # Whoever loads a broken checkpoint refuses it; here it only means that there is nothing to compare.
    except CheckpointError:
        return
    for probe in _PROBES:
        own, family = (each.encode(probe, add_special_tokens=False) for each in (saved, other))
        if own != family:
            _LOGGER.warning(
                "%s: tokenizer.json is used as it was saved, but AutoTokenizer, and so other tools, read it as a %s: %r gives the ids %s "
                "here and %s there -- save it with the class that the model was trained with",
                source, type(other).__name__, probe, own, family,
            )  # fmt: skip
            return


def _tokenizer_class(settings: Path) -> str | None:
    name = read_json_object(settings, what="the settings of a tokenizer", remedy="save the tokenizer again").get("tokenizer_class")
    return name if isinstance(name, str) else None


def load_model_settings(source: str | Path, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Return the configuration of a model and its generation settings (None if it has none), without loading its weights.

    Raises:
        CheckpointError: If there is no such model.
    """
    config = _loaded(source, "model configuration", AutoConfig.from_pretrained, trust_remote_code=trust_remote_code)
    if Path(source).is_dir():
        path = Path(source) / _GENERATION_FILE
        with reading(path, what="the settings of generation", remedy="save the model again"):
            return config, GenerationConfig.from_pretrained(source) if path.exists() else None
    try:
        with cached_where_unreachable():
            return config, GenerationConfig.from_pretrained(source)
    except OSError:
        return config, None


def load_causal_lm(
    source: str | Path, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False, quantization: Any = None
) -> PreTrainedModel:
    """Return a causal language model in evaluation mode.

    Args:
        source: Directory in Hugging Face form, or a hub id.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        trust_remote_code: Run code that ships with a hub model.
        quantization: A quantisation configuration of transformers; None takes the weights as they are.

    Raises:
        CheckpointError: If there is no such model, or it cannot be read.
        ConfigError: If device or dtype is not available.
    """
    options = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code, "quantization": quantization}
    return _load_model(source, "causal language model", AutoModelForCausalLM.from_pretrained, **options)


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageModelSource:
    """A causal language model and the device to load it on. Equal sources give equal weights."""

    model: str
    """Directory in Hugging Face form, or a hub id."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    dtype: str = "auto"
    """``auto``, ``float32``, ``bfloat16`` or ``float16``."""
    trust_remote_code: bool = False
    """Run code that ships with a hub model."""

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return model and tokenizer; errors as for ``load_causal_lm``."""
        model = load_causal_lm(self.model, device=self.device, dtype=self.dtype, trust_remote_code=self.trust_remote_code)
        return model, load_tokenizer(self.model, trust_remote_code=self.trust_remote_code)


def load_token_classifier(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    quantization: Any = None,
    **config: Any,
) -> PreTrainedModel:
    """Return a model with a head on every token, in evaluation mode; ``config`` overrides configuration entries, such as num_labels=1.

    Raises:
        CheckpointError: If there is no such model, or it cannot be read.
        ConfigError: If device or dtype is not available.
    """
    options = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code, "quantization": quantization}
    _ensure_token_classifier(type(_loaded(source, "model configuration", AutoConfig.from_pretrained, trust_remote_code=trust_remote_code)))
    return _load_model(source, "token classification model", AutoModelForTokenClassification.from_pretrained, **options, **config)


def _ensure_token_classifier(config: type[PretrainedConfig]) -> None:
    """Register a model with a head on every token for a family of decoders that transformers has none for, such as Gemma 3 and OLMo.

    It is transformers' own generic one, on the family's body. Other tools cannot load it by its name.
    """
    if config in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING or config not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return
    decoder: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config]
    family = next(each for each in decoder.__mro__ if PreTrainedModel in each.__bases__)
    name = decoder.__name__.replace("ForCausalLM", "ForTokenClassification")
    attributes = {"config_class": config, "base_model_prefix": decoder.base_model_prefix, "__module__": __name__}
    # transformers passes over models of others for its own configurations unless one may replace what is there; nothing is.
    AutoModelForTokenClassification.register(config, type(name, (GenericForTokenClassification, family), attributes), exist_ok=True)


def _load_model(
    source: str | Path, what: str, load: Callable[..., PreTrainedModel], *, device: str, dtype: str, quantization: Any, **options: Any
) -> PreTrainedModel:
    """Load a model onto its device. A quantised model goes there while it is loaded."""
    place = resolve_device(device)
    if quantization:
        options |= {"quantization_config": quantization, "device_map": {"": place}}
    model = _loaded(source, what, load, dtype=resolve_dtype(dtype, place), **options)
    if soft_cap_of(model.config.get_text_config()) is not None:
        # transformers' fused attention leaves the bound of the scores out.
        model.set_attn_implementation("eager")
    if place.type == "cpu":
        fit_threads(model.num_parameters())
    return (model if quantization else model.to(place)).eval()


def _loaded(source: str | Path, what: str, load: Callable[..., Any], **options: Any) -> Any:
    """Load, and turn any exception of a broken or absent checkpoint into one sentence."""
    if Path(source).is_dir():
        return _explained(source, what, load, **options)
    if Path(source).exists() or _looks_like_path(source):
        found = "it is a file" if Path(source).exists() else "no such directory"
        raise CheckpointError(f"{source}: must be a model directory or a hub id: {found} -- check the path")
    with cached_where_unreachable():
        return _explained(source, what, load, **options)


def _explained(source: str | Path, what: str, load: Callable[..., Any], **options: Any) -> Any:
    if Path(source).is_dir():
        _check_files(Path(source), what)
        with reading(source, what=f"a {what}", remedy="check that the directory is complete, or save the model again"):
            return load(source, **options)
    try:
        return load(source, **options)
    except Exception as error:
        reason = file_fault(error)
        if reason is None or isinstance(error, CheckpointError):
            raise
        if why_unreachable() is not None:
            raise CheckpointError(absent(source, what)) from error
        raise CheckpointError(f"{source}: could not load a {what}: {reason} -- check the name and the way to the hub") from error


def _check_files(directory: Path, what: str) -> None:
    """Check that the files of a model may be read, and what is small of them is whole: libraries report either as something else."""
    remedy = "save the model again"
    with reading(directory, what=f"the directory of a {what}", remedy=remedy):
        files = sorted(path for path in directory.iterdir() if path.suffix in (".json", ".safetensors", ".bin", ".jinja"))
    for path in files:
        with reading(path, what=f"a file of a {what}", remedy=remedy), path.open("rb"):
            pass
        if path.suffix == ".safetensors":
            with reading(path, what="weights in safetensors form", remedy=remedy), safe_open(path, framework="pt"):
                pass
        elif path.suffix == ".json" and path.stat().st_size <= _SMALL_BYTES:
            content = read_json(path, what=f"a JSON file of a {what}", remedy=remedy)
            # A tokenizer without a length has a larger number than any.
            if path.name in ("config.json", _GENERATION_FILE) and (large := too_large(content)) is not None:
                raise CheckpointError(f"{path}: must be a JSON file of a {what}: {large!r} must be below 2**63 -- {remedy}")


def _looks_like_path(source: str | Path) -> bool:
    """Say whether a source can only be a path: a hub id is ``name`` or ``owner/name``."""
    text = str(source)
    return isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1
