"""Format of prompts, step ends and final answers: the same in search, training and evaluation."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, fields
from datetime import date as Date
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from stepladder.boxes import boxed_answer, boxes
from stepladder.digests import current_digest
from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.files import atomic_write_text, read_json_object, reading
from stepladder.lm.chat import prints_date, render_chat, today, turn_end
from stepladder.lm.encoding import Span, TextEncoder
from stepladder.lm.loading import FORMAT_FILE
from stepladder.lm.step_rules import Boundary, StepRule, boundary_of, cut_steps
from stepladder.lm.text import TokenText
from stepladder.plugs import load_plug, names_function, plug_file, raised, without_folder
from stepladder.settings import RuleName
from stepladder.types import Problem

FORMAT_VERSION = 1
_REMEDY = "save a StepFormat there, or train the model again"
_PLACEHOLDER = "{question}"
_OPTIONAL = ("date", "answer", "prompt", "steps", "step_pattern", "step_tokens", "step_surprise", "thinking_end")
"""Fields that are not stored, nor hashed, with their default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFormat:
    r"""The written form of prompts, steps and answers.

    Example: GSM8K's own solutions are read with ``prompt_template="Question: {question}\nAnswer:\n"``, ``step_end="\n"`` and
    ``answer_pattern=r"#### (.+)"``.
    """

    prompt_template: str = "{question}\n"
    """Prompt text (with ``chat``, the user's message). Every ``{question}`` is replaced; other braces stay. Worked examples go here."""
    prompt: str | None = None
    """Name of a function that makes this text of a question instead; ``stepladder.plugs`` has the forms of names."""
    step_end: str = "\n"
    """Text that closes a step. A step ends at the token that completes this text."""
    steps: str = "text"
    """Rule for the end of a step: ``text`` is ``step_end``; ``stepladder.lm.step_rules`` has the others. Or the name of a function, as for
    ``prompt``."""
    step_pattern: str | None = None
    """Regular expression of rule ``pattern``."""
    step_tokens: int = 64
    """Tokens of a step under ``tokens``, and at least so many under ``surprise``, >= 1."""
    step_surprise: float = 3.0
    """Under ``surprise`` a step ends before a token with -log p of at least this many nats, > 0."""
    thinking_end: str | None = None
    """Text that ends a thinking block, such as ``</think>``. Answers are read after it, and a solution ends with the end token alone."""
    answer_pattern: str | None = None
    r"""Regular expression whose first group is the final answer; the last match counts. None reads the last ``\boxed{}`` with balanced
    braces. A step that states an answer ends the solution."""
    answer: Literal["stated", "solution"] = "stated"
    """``stated``, or ``solution``: the whole solution is the answer, and of the steps only one that matches ``answer_pattern`` ends it."""
    chat: bool = False
    """Whether the prompt goes through the tokenizer's chat template."""
    system: str | None = None
    """System message for the chat template; None for none."""
    date: str | None = None
    """Date that a chat template prints as today, as YYYY-MM-DD; None is the day on which the renderer is made."""

    def __post_init__(self) -> None:
        if _PLACEHOLDER not in self.prompt_template:
            raise ConfigError(f"prompt_template: must contain {_PLACEHOLDER!r}: got {self.prompt_template!r}")
        if not self.step_end:
            raise ConfigError("step_end: must not be empty: without a boundary there are no steps")
        self._check_rule()
        self._check_pattern()
        if self.prompt is not None and self.prompt_template != StepFormat.__dataclass_fields__["prompt_template"].default:
            raise ConfigError(f"prompt: takes the place of prompt_template: got both, {self.prompt!r} too -- leave one out")
        if self.answer not in ("stated", "solution"):
            raise ConfigError(f"answer: must be stated or solution: got {self.answer!r} -- choose one of these")
        if self.system is not None and not self.chat:
            raise ConfigError(f"system: must be left out unless chat is true: got {self.system!r} -- put it into prompt_template")
        if self.date is not None and not _is_date(self.date):
            raise ConfigError(f"date: must have the form YYYY-MM-DD: got {self.date!r} -- correct it, or leave it out for today")

    @property
    def rule(self) -> StepRule:
        """Where steps end."""
        return StepRule(
            name=self.steps,
            text=self.step_end,
            pattern=self.step_pattern,
            num_tokens=self.step_tokens,
            surprise=self.step_surprise,
            thinking_end=self.thinking_end,
        )

    def _check_rule(self) -> None:
        if self.steps not in get_args(RuleName) and not names_function(self.steps):
            raise ConfigError(
                f"steps: must be one of {', '.join(get_args(RuleName))}, or a function: got {self.steps!r} -- choose one, or write "
                "package.module:function or file.py:function"
            )
        if (self.steps == "pattern") != (self.step_pattern is not None):
            raise ConfigError(f"step_pattern: goes with steps = 'pattern': got {self.step_pattern!r} with {self.steps!r} -- give both")
        try:
            re.compile(self.step_pattern or "")
        except re.error as error:
            raise ConfigError(f"step_pattern: must be a regular expression: got {self.step_pattern!r}: {error}") from error
        if self.step_tokens < 1 or not self.step_surprise > 0:
            raise ConfigError(
                f"step_tokens, step_surprise: must be at least 1 and above 0: got {self.step_tokens}, {self.step_surprise} -- raise them"
            )
        if self.thinking_end == "":
            raise ConfigError("thinking_end: must not be empty -- leave it out for solutions without thinking blocks")

    def _check_pattern(self) -> None:
        if self.answer_pattern is None:
            return
        try:
            groups = re.compile(self.answer_pattern).groups
        except re.error as error:
            raise ConfigError(f"answer_pattern: must be a regular expression: got {self.answer_pattern!r}: {error}") from error
        if groups < 1:
            raise ConfigError(f"answer_pattern: must have a group that holds the answer: got {self.answer_pattern!r} -- add parentheses")

    def extract_answer(self, text: str) -> str | None:
        """Return what the last box holds, the last match of the answer pattern captured, or the solution itself; None if that is blank."""
        if self.thinking_end is not None:
            _, ended, text = text.rpartition(self.thinking_end)
            if not ended:
                return None
        if self.answer == "solution":
            return text.strip() or None
        if self.answer_pattern is None:
            return boxed_answer(text)
        matches = list(re.finditer(self.answer_pattern, text))
        answer = (matches[-1].group(1) or "").strip() if matches else ""
        return answer or None

    def is_final(self, step_text: str, question: str = "") -> bool:
        """Say whether a step states the final answer, which ends the solution; a box that the question holds already states none."""
        if self.thinking_end is not None:
            # A step does not show whether it is inside the block.
            return False
        if self.answer == "solution":
            return self.answer_pattern is not None and re.search(self.answer_pattern, step_text) is not None
        answer = self.extract_answer(step_text)
        if answer is None or self.answer_pattern is not None or not question:
            return answer is not None
        return all(box.content != answer for box in boxes(question))

    def save(self, directory: str | Path) -> None:
        """Write the format into a model directory."""
        row = {"schema_version": FORMAT_VERSION, **_stated(self)}
        atomic_write_text(Path(directory) / FORMAT_FILE, json.dumps(row, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> "StepFormat":
        """Read the format of a model directory.

        Raises:
            CheckpointError: If it is missing, malformed or of another version.
        """
        path = Path(directory) / FORMAT_FILE
        row = read_json_object(path, what="a step format", remedy=_REMEDY)
        version = row.pop("schema_version", None)
        kinds = {field.name: field.type for field in fields(cls)}
        unknown = sorted(set(row) - set(kinds))
        if version != FORMAT_VERSION or unknown:
            found = f"unknown {', '.join(map(repr, unknown))}" if version == FORMAT_VERSION else f"version {version!r:.80}"
            raise CheckpointError(f"{path}: version must be {FORMAT_VERSION} with known fields: got {found:.200} -- {_REMEDY}")
        for name, value in row.items():
            kind: Any = int | float if kinds[name] is float else kinds[name]
            if not (value in get_args(kind) if get_origin(kind) is Literal else isinstance(value, kind)):
                raise CheckpointError(f"{path}: {name} must be {getattr(kind, '__name__', kind)}: got {value!r:.80} -- {_REMEDY}")
        try:
            with reading(path, what="a step format", remedy="save the format again"):
                return cls(**row)
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error}") from error


def _is_date(text: str) -> bool:
    try:
        return Date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _stated(step_format: StepFormat) -> dict[str, Any]:
    """Return the fields of a format, without those that are optional and not used. So formats without them keep their stored form."""
    unused = {field.name: field.default for field in fields(step_format) if field.name in _OPTIONAL}
    return {name: value for name, value in asdict(step_format).items() if name not in unused or value != unused[name]}


class PromptRenderer:
    """A ``Renderer`` with one tokenizer and one ``StepFormat``.

    Questions and solutions are text: the name of a control token in one, such as ``<|im_end|>``, is encoded as its characters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, step_format: StepFormat) -> None:
        """Combine a tokenizer and a format.

        Raises:
            ConfigError: If the format wants a chat template and the tokenizer has none.
        """
        if step_format.chat and not tokenizer.chat_template:
            raise ConfigError("chat: needs a tokenizer with a chat template: this one has none -- set chat to false")
        self.tokenizer = tokenizer
        self.step_format = step_format
        self.date = step_format.date or today()
        """Date that the chat template prints as today."""
        self.hash = _renderer_hash(tokenizer, step_format, date=self.date)
        self._prompt = None if step_format.prompt is None else load_plug(step_format.prompt, setting="format.prompt")
        self._text = TokenText(tokenizer)
        self._encoder = TextEncoder(tokenizer)
        self._around: str | None = None
        # Controls of the template alone; the empty question represents all questions.
        self._prompts = TextEncoder(tokenizer, template=self._write(""))

    def variant(self, prompt: str) -> "PromptRenderer":
        """Return the renderer with another prompt text. Its ``hash`` stays that of the plain prompt, with which rows are trained.

        Args:
            prompt: The text; ``{prompt}`` in it is replaced by the plain prompt text, ``{question}`` by the question.
        """
        other = copy(self)
        other._around = prompt
        other._prompts = TextEncoder(self.tokenizer, template=other._write(""))
        return other

    @cached_property
    def end_id(self) -> int | None:
        """The token that ends a solution: with a chat template the end of the assistant's turn, else end-of-sequence."""
        closing = turn_end(self.tokenizer) if self.step_format.chat else None
        eos: Any = self.tokenizer.eos_token_id
        return eos if closing is None else closing

    @property
    def step_end(self) -> str:
        """The text that ends a step."""
        return self.step_format.step_end

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        """Return the prompt of a problem as token ids: never empty, with the begin-of-sequence token once if the tokenizer adds it.

        Raises:
            DataFormatError: If the prompt has no tokens at all, or the question holds a control token that cannot be written as text.
        """
        place = f"problem {problem.id!r}"
        return self._tokens(*self._prompts.compose(lambda mask: self._write(mask(problem.question)), place=place), place=place)

    def conversation_ids(self, messages: Sequence[Mapping[str, str]], *, place: str = "messages") -> tuple[int, ...]:
        """Return the prompt of a conversation that ends with a message of the user.

        With a chat template, the template renders it; the format's system message goes first unless the conversation has one. Without a
        template, the prompt is that of a question made of all messages, with blank lines between them.

        Args:
            messages: Each with ``role`` and ``content``, at least one.
            place: Source of the messages, for errors.

        Raises:
            ConfigError: If the template refuses the messages.
            DataFormatError: As for ``prompt_ids``.
        """
        if not self.step_format.chat:
            question = "\n\n".join(message["content"] for message in messages)
            return self._tokens(*self._prompts.compose(lambda mask: self._write(mask(question)), place=place), place=place)
        system = self.step_format.system
        if system is not None and all(message["role"] != "system" for message in messages):
            messages = [{"role": "system", "content": system}, *messages]

        def write(mask: Callable[[str], str]) -> str:
            masked = [{"role": message["role"], "content": mask(message["content"])} for message in messages]
            return render_chat(self.tokenizer, masked, date=self.date, open_turn=True)

        return self._tokens(*self._prompts.compose(write, place=place), place=place)

    def text_ids(self, text: str, *, place: str = "prompt") -> tuple[int, ...]:
        """Return a whole prompt that is given as text, without the template. Errors are those of ``prompt_ids``."""
        ids = (*self._prompts.prefix_ids, *self._encoder.encode(text, place=place))
        if not ids:
            raise DataFormatError(f"{place}: prompt must have tokens: got none for {text!r}")
        return ids

    def unknown_in_prompt(self, question: str) -> list[str]:
        """Return the different pieces of the prompt of a question that the tokenizer has no token for; of an empty one, those around it.

        Errors are those of ``prompt_ids``.
        """
        text, controls = self._prompts.compose(lambda mask: self._write(mask(question)), place="question")
        return self._prompts.unknown_in(text, controls=controls, place="question")

    def unknown_in(self, text: str) -> list[str]:
        """Return the different pieces of a text after the prompt that the tokenizer has no token for; errors as for ``encode_text``."""
        return self._encoder.unknown_in(text)

    def _tokens(self, text: str, controls: list[Span], *, place: str) -> tuple[int, ...]:
        """Return the tokens of a rendered prompt."""
        ids = self._prompts.encode(text, controls=controls, place=place)
        # Add the tokens that the tokenizer puts before a text, unless the template writes them or, as a chat template, decides about them.
        begun = self.step_format.chat or set(self._prompts.prefix_ids) & set(self._prompts.control_ids(text, controls))
        ids = ids if begun else [*self._prompts.prefix_ids, *ids]
        if not ids:
            # A prompt is never empty, because a model needs a token to continue from.
            ids = [i for i in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if i is not None][:1]
        if not ids:
            raise DataFormatError(f"{place}: prompt must have tokens: got none for {text!r}")
        return tuple(cast(list[int], ids))

    def extract_answer(self, text: str) -> str | None:
        """Return the final answer that a solution states, or None."""
        return self.step_format.extract_answer(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of some ids, without special tokens. The texts of the steps concatenate to the solution."""
        return self._text.decode(token_ids)

    def encode_text(self, text: str, *, place: str) -> tuple[int, ...]:
        """Return the ids of a text inside a sequence, such as an observation; the names of control tokens in it are characters.

        Raises:
            DataFormatError: If it holds a control token that cannot be written as text.
        """
        return tuple(self._inner_ids(text, place)) if text else ()

    def cut(self, token_ids: Sequence[int]) -> list[tuple[int, ...]]:
        """Cut the tokens after a prompt into steps, each ending where a sampler would end it. The last step may be open."""
        return cut_steps(self._boundary, token_ids)

    def encode_solution(self, text: str, *, place: str = "solution") -> list[tuple[int, ...]]:
        """Return a written solution as steps of token ids, with the step ends of a sampled one.

        The whole text is encoded, and a step ends at the token that completes ``step_end``. If the last step states the final answer, it is
        closed with ``step_end``. Otherwise the end token follows, as a separate step if the last step is closed.

        Args:
            text: The solution.
            place: Source of the text, such as file and line, for messages.

        Raises:
            DataFormatError: If the text ends with the text of a token that ends solutions, or holds a control token that cannot be written
                as text.
        """
        self._check_open(text, place)
        steps = self.encode_steps(text, place=place)
        if not steps:
            return []
        closed = self._is_closed(steps[-1])
        if self.step_format.is_final(self.decode(steps[-1])):
            if closed:
                return steps
            if self.step_format.steps == "text":
                return self.encode_steps(text + self.step_format.step_end, place=place)
        if self.end_id is None:
            return steps
        return [*steps, (self.end_id,)] if closed else [*steps[:-1], (*steps[-1], self.end_id)]

    def encode_steps(self, text: str, *, place: str = "solution") -> list[tuple[int, ...]]:
        """Return the steps of an unfinished written solution as token ids, cut like sampled ones. Errors are those of a solution."""
        return self.cut(self._inner_ids(text, place)) if text else []

    @cached_property
    def _boundary(self) -> Boundary:
        vocab_size = max(self.tokenizer.get_vocab().values()) + 1
        return boundary_of(self.tokenizer, self.step_format.rule, vocab_size=vocab_size)

    def _is_closed(self, step: tuple[int, ...]) -> bool:
        return bool(self._boundary.closes[step[-1]]) or self._boundary.completes(np.asarray(step))

    def _check_open(self, text: str, place: str) -> None:
        """Refuse a solution that ends with the text of an end token: it would be learned as text, followed by the real token."""
        eos: Any = self.tokenizer.eos_token_id
        ends = {self.end_id, eos} - {None}
        last = next(reversed(self._encoder.find_controls(text.rstrip())), None)
        if last is not None and last[1] == len(text.rstrip()) and self._encoder.control_ids(text, [last])[0] in ends:
            raise DataFormatError(
                f"{place}: a solution must not end with the end token, which is added to it: got {text[last[0] : last[1]]!r} -- remove it"
            )

    def _inner_ids(self, text: str, place: str) -> list[int]:
        """Encode text inside a sequence, without special tokens and without a leading blank that the tokenizer adds."""
        ids = self._encoder.encode(text, place=place)
        if self._text.decode(ids) == text:
            return ids
        lead, led = self._encoder.encode("\n", place=place), self._encoder.encode("\n" + text, place=place)
        return led[len(lead) :] if led[: len(lead)] == lead else ids

    def _write(self, question: str) -> str:
        """Return the whole prompt of a question as text."""
        return self._chat_text(question) if self.step_format.chat else self._user_text(question)

    def _user_text(self, question: str) -> str:
        plain = self._plain_text(question)
        if self._around is None:
            return plain
        return re.sub(r"\{(prompt|question)\}", lambda found: plain if found[1] == "prompt" else question, self._around)

    def _plain_text(self, question: str) -> str:
        if self._prompt is not None:
            # A function need not take the empty question, which asks for the template alone.
            return question and _called(self._prompt, question, name=str(self.step_format.prompt))
        return self.step_format.prompt_template.replace(_PLACEHOLDER, question)

    def _chat_text(self, question: str) -> str:
        system = [] if self.step_format.system is None else [{"role": "system", "content": self.step_format.system}]
        messages = [*system, {"role": "user", "content": self._user_text(question)}]
        return render_chat(self.tokenizer, messages, date=self.date, open_turn=True)


def _called(prompt: Callable[[str], Any], question: str, *, name: str) -> str:
    try:
        text = prompt(question)
    # Somebody's code, which may raise anything.
    except Exception as error:
        raise DataFormatError(
            f"format.prompt: {name!r} must make a prompt of a question: it raised {raised(error)} for {question[:80]!r} -- correct it"
        ) from error
    if not isinstance(text, str):
        raise DataFormatError(f"format.prompt: {name!r} must return a text: got {type(text).__name__} -- correct it")
    return text


def _renderer_hash(tokenizer: PreTrainedTokenizerBase, step_format: StepFormat, *, date: str) -> str:
    """Return 16 hexadecimal digits that depend on the format and on the tokenizer's behaviour, not on its source."""
    core: Any = getattr(tokenizer, "_tokenizer", None)
    # Padding and truncation are settings of the last call, not of the vocabulary.
    content = json.loads(core.to_str()) if isinstance(core, Tokenizer) else {"vocab": tokenizer.get_vocab()}
    content = {key: value for key, value in content.items() if key not in {"padding", "truncation"}}
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    chat_template = tokenizer.chat_template if step_format.chat else None
    # The date counts only if the template can print it.
    stated = {name: value for name, value in _stated(step_format).items() if name != "date"}
    functions = {"prompt": step_format.prompt, "steps": None if step_format.steps in get_args(RuleName) else step_format.steps}
    for key, name in functions.items():
        if name is not None:
            stated[key] = without_folder(name)
            file = plug_file(load_plug(name, setting=f"format.{key}"))
            stated[f"{key}_source"] = None if file is None else current_digest(file)
    parts = [stated, content, specials, chat_template, *([date] if step_format.chat and prints_date(tokenizer) else [])]
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
