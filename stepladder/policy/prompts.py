"""How a problem becomes a prompt, where a step ends, and where the final answer stands: the same in search, training and evaluation."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.files import atomic_write_text
from stepladder.lm.loading import FORMAT_FILE
from stepladder.lm.text import TokenText
from stepladder.types import Problem

FORMAT_VERSION = 1
_PLACEHOLDER = "{question}"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFormat:
    r"""The written form of prompts, steps and answers.

    Example: GSM8K's own solutions are read with ``prompt_template="Question: {question}\nAnswer:\n"``, ``step_end="\n"`` and
    ``answer_pattern=r"#### (.+)"``.
    """

    prompt_template: str = "{question}\n"
    """Prompt text (the user's message with ``chat``); every ``{question}`` is replaced, other braces are text. Worked examples go here."""
    step_end: str = "\n"
    """Text that closes a step; a step ends at the token that completes it."""
    answer_pattern: str = r"\\boxed\{(.*)\}"
    """Regular expression whose first group is the final answer. A step in which it matches ends the solution; the last match counts."""
    chat: bool = False
    """Whether the prompt goes through the tokenizer's chat template."""
    system: str | None = None
    """System message for the chat template; None for none."""

    def __post_init__(self) -> None:
        if _PLACEHOLDER not in self.prompt_template:
            raise ConfigError(f"prompt_template: must contain {_PLACEHOLDER!r}: got {self.prompt_template!r}")
        if not self.step_end:
            raise ConfigError("step_end: must not be empty: without a boundary there are no steps")
        try:
            groups = re.compile(self.answer_pattern).groups
        except re.error as error:
            raise ConfigError(f"answer_pattern: must be a regular expression: got {self.answer_pattern!r}: {error}") from error
        if groups < 1:
            raise ConfigError(f"answer_pattern: must have a group that holds the answer: got {self.answer_pattern!r} -- add parentheses")
        if self.system is not None and not self.chat:
            raise ConfigError(f"system: must be left out unless chat is true: got {self.system!r} -- put it into prompt_template")

    def extract_answer(self, text: str) -> str | None:
        """Return what the last match of the answer pattern captured, without surrounding blanks; None without a match or when empty."""
        matches = list(re.finditer(self.answer_pattern, text))
        answer = (matches[-1].group(1) or "").strip() if matches else ""
        return answer or None

    def is_final(self, step_text: str) -> bool:
        """Say whether a step states the final answer, which ends the solution."""
        return self.extract_answer(step_text) is not None

    def split_steps(self, text: str) -> list[str]:
        """Cut a solution behind every ``step_end``; the pieces concatenate to the text."""
        pieces = text.split(self.step_end)
        steps = [piece + self.step_end for piece in pieces[:-1]]
        return [*steps, pieces[-1]] if pieces[-1] else steps

    def save(self, directory: str | Path) -> None:
        """Write the format into a model directory."""
        row = {"schema_version": FORMAT_VERSION, **asdict(self)}
        atomic_write_text(Path(directory) / FORMAT_FILE, json.dumps(row, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> "StepFormat":
        """Read the format of a model directory.

        Raises:
            CheckpointError: If it is missing, malformed or of another version.
        """
        path = Path(directory) / FORMAT_FILE
        try:
            row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            version = row.pop("schema_version")
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: must say how steps are written: not found -- save a StepFormat there or state one") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: must be a JSON object with a schema_version: {error!r} -- save the format again") from error
        kinds = {field.name: field.type for field in fields(cls)}
        unknown = sorted(set(row) - set(kinds))
        if version != FORMAT_VERSION or unknown:
            raise CheckpointError(f"{path}: version must be {FORMAT_VERSION} with known fields: got {version!r}, unknown {unknown}")
        for name, value in row.items():
            if not isinstance(value, cast(type, kinds[name])):
                raise CheckpointError(f"{path}: {name} must be {getattr(kinds[name], '__name__', kinds[name])}: got {value!r}")
        try:
            return cls(**row)
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error}") from error


class PromptRenderer:
    """Renders problems with one tokenizer and one ``StepFormat``; a ``Renderer``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, step_format: StepFormat) -> None:
        """Combine a tokenizer and a format.

        Raises:
            ConfigError: If the format wants a chat template and the tokenizer has none.
        """
        if step_format.chat and not tokenizer.chat_template:
            raise ConfigError("chat: needs a tokenizer with a chat template: this one has none -- set chat to false")
        self.tokenizer = tokenizer
        self.step_format = step_format
        self.hash = _renderer_hash(tokenizer, step_format)
        self._text = TokenText(tokenizer)

    @property
    def step_end(self) -> str:
        """The text that ends a step."""
        return self.step_format.step_end

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        """Return the prompt of a problem as token ids: never empty, with the begin-of-sequence token once if the tokenizer adds one.

        Raises:
            DataFormatError: If the prompt has no tokens at all.
        """
        text = self.step_format.prompt_template.replace(_PLACEHOLDER, problem.question)
        ids = self._chat_ids(text) if self.step_format.chat else self._plain_ids(text)
        if not ids:
            raise DataFormatError(f"problem {problem.id!r}: prompt must have tokens: got none for {text!r}")
        return tuple(ids)

    def extract_answer(self, text: str) -> str | None:
        """Return the final answer that a solution states, or None."""
        return self.step_format.extract_answer(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of some ids, without special tokens; steps decode to texts that concatenate to the solution."""
        return self._text.decode(token_ids)

    def encode_solution(self, text: str) -> list[tuple[int, ...]]:
        """Return a written solution as steps of token ids, ending as a sampled one would.

        Each step is encoded by itself, so that it ends at a token. A last step that states the final answer is closed with ``step_end``;
        any other last step gets the end-of-sequence token.
        """
        steps = self.step_format.split_steps(text)
        if not steps:
            return []
        final = self.step_format.is_final(steps[-1])
        if final and not steps[-1].endswith(self.step_format.step_end):
            steps[-1] += self.step_format.step_end
        encoded = self._encode(steps)
        eos: Any = self.tokenizer.eos_token_id
        if not final and eos is not None:
            encoded[-1] = (*encoded[-1], eos)
        return encoded

    def encode_steps(self, text: str) -> list[tuple[int, ...]]:
        """Return written steps as token ids; the solution goes on behind them."""
        return self._encode(self.step_format.split_steps(text))

    def _encode(self, steps: list[str]) -> list[tuple[int, ...]]:
        return [self._step_ids(step) for step in steps]

    def _step_ids(self, text: str) -> tuple[int, ...]:
        """Encode text that stands inside a sequence: without special tokens and without a blank in front that the tokenizer made up."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if self._text.decode(ids) == text:
            return tuple(ids)
        lead = self.tokenizer.encode("\n", add_special_tokens=False)
        behind = self.tokenizer.encode("\n" + text, add_special_tokens=False)
        return tuple(behind[len(lead) :] if behind[: len(lead)] == lead else ids)

    def _plain_ids(self, text: str) -> list[int]:
        bos, eos = self.tokenizer.bos_token, self.tokenizer.eos_token_id
        has_bos = bool(bos) and text.startswith(str(bos))
        ids = self.tokenizer.encode(text, add_special_tokens=not has_bos)
        # Some tokenizers close what they encode; a prompt stays open.
        if ids and ids[-1] == eos and self.tokenizer.encode(text, add_special_tokens=False)[-1:] != [eos]:
            ids = ids[:-1]
        begin: Any = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else eos
        return ids or ([] if begin is None else [begin])

    def _chat_ids(self, text: str) -> list[int]:
        system = [] if self.step_format.system is None else [{"role": "system", "content": self.step_format.system}]
        messages = [*system, {"role": "user", "content": text}]
        ids: Any = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        return list(ids)


def _renderer_hash(tokenizer: PreTrainedTokenizerBase, step_format: StepFormat) -> str:
    """Return 16 hexadecimal digits that depend on the format and on what the tokenizer does, not on where it was loaded from."""
    core: Any = getattr(tokenizer, "_tokenizer", None)
    # Padding and truncation are settings of the last call, not of the vocabulary.
    content = json.loads(core.to_str()) if isinstance(core, Tokenizer) else {"vocab": tokenizer.get_vocab()}
    content = {key: value for key, value in content.items() if key not in {"padding", "truncation"}}
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    chat_template = tokenizer.chat_template if step_format.chat else None
    parts = [asdict(step_format), content, specials, chat_template]
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
