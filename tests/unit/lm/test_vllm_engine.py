"""What is prepared and refused before a vLLM engine starts, and when sequences go to it; vLLM itself is not needed."""

from types import SimpleNamespace
from typing import Any

import numba
import pytest
import torch
from llvmlite.binding import ffi
from pydantic import BaseModel, ValidationError

from stepladder.errors import CheckpointError
from stepladder.lm.vllm_engine import Arrivals
from stepladder.lm.vllm_start import check_attention, check_cache, hide_llvmlite, told


def test_llvmlites_library_has_an_empty_dict_and_still_compiles() -> None:
    """Asked for ``__dict__`` it has nothing to look through; its functions work as before, and twice is once."""
    ffi.lib._fntab.pop("__dict__", None)
    assert not isinstance(ffi.lib.__dict__, dict), "llvmlite no longer makes a function of any name: remove hide_llvmlite"
    ffi.lib._fntab.pop("__dict__", None)
    hide_llvmlite()
    hide_llvmlite()
    assert ffi.lib.__dict__ == {}
    assert callable(ffi.lib.LLVMPY_GetVersionInfo)

    @numba.njit
    def double(x):
        return 2 * x

    assert double(21) == 42


def test_sequences_arrive_together_every_few_steps() -> None:
    """Every third step here; at once if nothing else is open, or none arrived for as long; in their order, without those dropped."""
    arrivals = Arrivals(3)
    arrivals.add("a", 1)
    assert arrivals.take(1) == [1]
    arrivals.add("b", 2)
    assert arrivals.take(2) == []
    arrivals.add("c", 3)
    arrivals.add("d", 4)
    assert arrivals.drop(["a", "c"]) == ["a"]
    assert arrivals.take(3) == []
    assert arrivals.take(3) == [2, 4]
    for _ in range(3):
        assert arrivals.take(3) == []
    arrivals.add("e", 5)
    assert arrivals.take(4) == [5]


def test_with_one_step_nothing_waits() -> None:
    """As on a CPU."""
    arrivals = Arrivals(1)
    for number in range(3):
        arrivals.add(str(number), number)
        assert arrivals.take(9) == [number]


class _Attention:
    """An attention backend with vLLM's names."""

    supported_dtypes = (torch.bfloat16, torch.float32)

    @staticmethod
    def get_name() -> str:
        return "FAKE_ATTN"

    @staticmethod
    def get_supported_head_sizes() -> list[int]:
        return [32, 64]

    @staticmethod
    def get_supported_kernel_block_sizes() -> list[Any]:
        return [8, SimpleNamespace(base=32)]

    @staticmethod
    def supports_head_size(size: int) -> bool:
        return size in (32, 64)

    @staticmethod
    def supports_dtype(dtype: torch.dtype) -> bool:
        return dtype in (torch.bfloat16, torch.float32)

    @staticmethod
    def supports_block_size(size: int | None) -> bool:
        return size is None or size == 8 or size % 32 == 0


def _engine_config(
    *,
    head_size: int = 32,
    dtype: torch.dtype = torch.float32,
    block_size: int = 32,
    chosen: bool = True,
    context: int = 100,
    cache_bytes: int | None = None,
    cache_dtype: str = "auto",
    window: int | None = None,
) -> Any:
    """Return the part of vLLM's configuration that is looked at: three layers with two heads of keys each."""
    model = SimpleNamespace(
        dtype=dtype,
        max_model_len=context,
        is_hybrid=False,
        get_head_size=lambda: head_size,
        hf_text_config=SimpleNamespace(sliding_window=window),
        get_num_layers=lambda parallel: 3,
        get_num_kv_heads=lambda parallel: 2,
    )
    cache = SimpleNamespace(
        block_size=block_size, user_specified_block_size=chosen, kv_cache_memory_bytes=cache_bytes, cache_dtype=cache_dtype
    )
    return SimpleNamespace(model_config=model, cache_config=cache, parallel_config=None)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"head_size": 24}, r"m: vLLM's attention .* \(FAKE_ATTN\) takes heads of size 32, 64: got 24 -- .*'transformers'"),
        ({"dtype": torch.float16}, r"takes weights in bfloat16, float32: got float16 -- set policy\.dtype"),
        ({"block_size": 16}, r"takes blocks of 8 or multiples of 32 tokens: got 16 -- leave policy\.vllm\.block_size out"),
    ],
)
def test_what_the_attention_of_the_machine_lacks_is_refused(changed: dict[str, Any], said: str) -> None:
    """The sentence names what the backend takes; a block size that vLLM is still to choose is no fault."""
    check_attention("m", _engine_config(), _Attention)
    check_attention("m", _engine_config(block_size=16, chosen=False), _Attention)
    with pytest.raises(CheckpointError, match=said):
        check_attention("m", _engine_config(**changed), _Attention)


def test_a_cache_must_hold_a_sequence_of_the_whole_context() -> None:
    """100 tokens are 4 blocks of 32: 128 tokens * 2 * 3 layers * 2 heads * 32 values * 4 bytes = 196,608 bytes."""
    needed = 196_608
    check_cache("m", _engine_config(cache_bytes=needed))
    with pytest.raises(CheckpointError, match=r"100 tokens take 0\.0 GiB, of 0\.0 -- set policy\.vllm\.max_context"):
        check_cache("m", _engine_config(cache_bytes=needed - 1))
    check_cache("m", _engine_config(cache_bytes=needed // 2, dtype=torch.bfloat16))
    # Of unknown size, of other values, or with layers that keep less: vLLM says it itself.
    for changed in ({"cache_bytes": None}, {"cache_bytes": 1, "cache_dtype": "fp8"}, {"cache_bytes": 1, "window": 8}):
        check_cache("m", _engine_config(**changed))


def test_errors_of_vllm_are_short_and_keep_their_reasons() -> None:
    """A validation error names the setting and not its values; the end of a long message stays, where the reasons are."""

    class Limits(BaseModel):
        tokens: int

    with pytest.raises(ValidationError) as caught:
        Limits.model_validate({"tokens": "many"})
    assert told(caught.value) == "tokens: Input should be a valid integer, unable to parse string as an integer"
    assert told(ValueError("a\n  b")) == "a b"
    assert told(ValueError()) == "ValueError"
    long = told(ValueError(f"begin {'x' * 999} the reason"))
    assert long.startswith("begin") and long.endswith("the reason") and len(long) < 420
