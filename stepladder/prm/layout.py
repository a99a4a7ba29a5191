"""From a question and its steps to the tokens that a model reads, and the token of every step at which its output is taken.

Nothing is guessed. The end of every step's marker is a known position in the text before tokenisation, and the tokenizer says which token
that is. The reader refuses a solution if that token is not the marker, or if the marker appears anywhere else. Question and steps are text:
the name of a control token in them is encoded as its characters.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.interfaces import Ranges
from stepladder.lm.chat import FIXED_DATE, render_chat
from stepladder.lm.encoding import TextEncoder
from stepladder.prm.specs import PRMSpec

_SENTINEL = "\ue000"
"""Stands for every marker until the text is complete: a private character, which no text may hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The tokens of one solution."""

    token_ids: tuple[int, ...]
    """The model's input, up to the last token that matters."""
    begin: int
    """Index of the first token of the first step; 0 if the spec reads at markers."""
    reads: tuple[int | None, ...]
    """Per step, the index at which its output is taken; None for a step without tokens."""
    observations: Ranges = ()
    """Ranges of tokens that the policy did not sample. Sums over tokens leave them out."""

    @property
    def read_indices(self) -> list[int]:
        """The indices of the steps that have one."""
        return [read for read in self.reads if read is not None]


class SolutionLayout:
    """Lays out solutions under a spec."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: PRMSpec) -> None:
        """Check that the tokenizer is the one that the spec means.

        Raises:
            CheckpointError: If a token of the spec has another id here, or the tokenizer lacks what the spec needs.
            ConfigError: If the spec reads the policy's tokens, which are no text.
        """
        if spec.prompt == "tokens":
            raise ConfigError("PRM spec: must say how text is read: got the prompt 'tokens', the policy's own tokens -- give --spec")
        if spec.read != "piece-end" and not tokenizer.is_fast:
            raise CheckpointError("tokenizer: must tell where in the text its tokens stand: it is a slow one -- save a tokenizer.json")
        if spec.prompt in ("chat", "turns") and not tokenizer.chat_template:
            raise CheckpointError("tokenizer: must have a chat template for this spec: it has none -- use the model's own tokenizer")
        self.spec = spec
        self._tokenizer = tokenizer
        self._encoder = TextEncoder(tokenizer)
        self._marker_id = self._checked_marker() if spec.read == "marker" else None

    def lay_out(self, question: str, steps: Sequence[str], *, place: str = "solution") -> Layout:
        """Return the tokens of a solution.

        Args:
            question: The question.
            steps: Its steps.
            place: Source of the solution, for messages.

        Raises:
            DataFormatError: If the question or a step contains the marker, or the tokenizer merges it with the text around it.
            CheckpointError: If the chat template does not render every step.
        """
        if self.spec.read == "piece-end":
            return self._pieces(question, steps, place)
        return self._whole(question, steps, place)

    def _pieces(self, question: str, steps: Sequence[str], place: str) -> Layout:
        text, controls = self._encoder.compose(lambda mask: self._asked(mask(question)), place=place)
        ids = self._encoder.encode(text, controls=controls, place=place)
        bos: Any = self._tokenizer.bos_token_id if self.spec.bos else None
        if bos is not None and bos not in self._encoder.control_ids(text, controls):
            ids = [bos, *ids]
        begin, reads = len(ids), []
        marker = self._encoder.encode_own(self.spec.marker) if self.spec.marker else []
        for number, step in enumerate(steps, 1):
            piece = [*self._encoder.encode(step, place=f"{place}, step {number}"), *marker]
            ids += piece
            reads.append(len(ids) - 1 if piece else None)
        return Layout(token_ids=tuple(ids), begin=begin, reads=tuple(reads))

    def _encode_whole(self, question: str, steps: Sequence[str], place: str) -> tuple[list[str], list[int], np.ndarray]:
        """Return the text around the markers, its tokens with all markers, and the characters that each token stands for, [T, 2]."""
        drafts: list[list[str]] = []
        marker = self.spec.marker

        def render(mask: Callable[[str], str]) -> str:
            # A marker in the text stays a marker, so that the check of the markers finds it and names its place.
            keep = (lambda text: marker.join(map(mask, text.split(marker)))) if marker else mask
            drafts.append(self._text(keep(question), [keep(step) for step in steps]).split(_SENTINEL))
            return marker.join(drafts[-1])

        text, controls = self._encoder.compose(render, place=place)
        ids, offsets = self._encoder.encode_places(text, controls=controls, place=place)
        if self.spec.prompt == "plain":
            # Tokens that the tokenizer adds around a text have no place in it. A begin token that the spec writes is not doubled.
            written = set(self._encoder.control_ids(text, controls))
            before = [] if written & set(self._encoder.prefix_ids) else self._encoder.prefix_ids
            after = self._encoder.suffix_ids
            ids = [*before, *ids, *after]
            offsets = [*[(0, 0)] * len(before), *offsets, *[(0, 0)] * len(after)]
        return drafts[0], ids, np.asarray(offsets, dtype=np.int64).reshape(-1, 2)

    def _whole(self, question: str, steps: Sequence[str], place: str) -> Layout:
        for name, text in [("the question", question), *((f"step {i}", step) for i, step in enumerate(steps, 1))]:
            if _SENTINEL in text:
                raise DataFormatError(f"{place}: {name} must not hold the private character U+E000: got {text[:80]!r} -- remove it")
        parts, ids, offsets = self._encode_whole(question, steps, place)
        if len(parts) != len(steps) + 1:
            raise CheckpointError(
                f"{place}: the chat template must render every step once: got {len(parts) - 1} of {len(steps)} "
                "-- use the model's own tokenizer"
            )
        marker = self.spec.marker
        ends = np.cumsum([len(part) + len(marker) for part in parts[:-1]], dtype=np.int64)
        # Special tokens that the tokenizer adds have no place in the text.
        real = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
        last = real[np.searchsorted(offsets[real, 0], ends, side="left") - 1] if len(real) else np.zeros(0, dtype=np.int64)
        at = [int(index) for index in last]
        begin, reads = 0, list[int | None](at)
        if self.spec.read == "text-end":
            # The others end texts of their own.
            reads = [*[None] * (len(steps) - 1), len(ids) - 1] if steps else []
        elif self.spec.read == "step-end":
            reads = [read if step else None for read, step in zip(at, steps, strict=True)]
            start = len(parts[0]) - len(filled(self.spec.step, step=steps[0], marker="")) if steps else 0
            begin = int(real[np.searchsorted(offsets[real, 0], start, side="right") - 1]) if len(real) else 0
        else:
            self._check_markers(ids, offsets, at=at, ends=ends.tolist(), place=place)
            if self.spec.read == "before-marker":
                reads = [index - 1 for index in at]
        stop = max((read for read in reads if read is not None), default=-1) + 1
        return Layout(token_ids=tuple(ids[:stop]), begin=begin, reads=tuple(reads))

    def _text(self, question: str, steps: Sequence[str]) -> str:
        """Return the whole input, with a sentinel instead of every marker."""
        spec = self.spec
        if spec.prompt == "turns":
            messages = []
            for i, step in enumerate(steps):
                content = filled(spec.question, question=question, step=step) if i == 0 else filled(spec.step, step=step)
                messages += [{"role": "user", "content": content}, {"role": "assistant", "content": _SENTINEL}]
            return self._chat(messages) if messages else ""
        body = spec.joiner.join(filled(spec.step, step=step, marker=_SENTINEL) for step in steps)
        ask = filled(spec.question, question=question)
        if spec.prompt == "plain":
            return ask + body
        return self._chat([*self._system(), {"role": "user", "content": ask}, {"role": "assistant", "content": body}])

    def _asked(self, question: str) -> str:
        """Return the text before the first piece; in a chat, up to where the assistant begins."""
        ask = filled(self.spec.question, question=question)
        if self.spec.prompt == "plain":
            return ask
        return render_chat(self._tokenizer, [*self._system(), {"role": "user", "content": ask}], date=FIXED_DATE, open_turn=True)

    def _system(self) -> list[dict[str, str]]:
        return [] if self.spec.system is None else [{"role": "system", "content": self.spec.system}]

    def _chat(self, messages: list[dict[str, str]]) -> str:
        return render_chat(self._tokenizer, messages, date=FIXED_DATE)

    def _checked_marker(self) -> int:
        spec = self.spec
        # The marker as it closes a step; that it does so after a given text as well is checked for every solution.
        text = filled(spec.step, step="", marker=spec.marker)
        ids, places = self._encoder.encode_places(text, controls=self._encoder.find_controls(text))
        wanted = spec.marker_id if spec.marker_id is not None else (ids[-1] if ids else None)
        if wanted is None or ids[-1] != wanted:
            raise CheckpointError(
                f"tokenizer: the marker {spec.marker!r} must be the token {wanted}: got {ids} "
                "-- use the model's own tokenizer, or another --spec"
            )
        if text.endswith(spec.marker) and places[-1][0] > len(text) - len(spec.marker):
            raise CheckpointError(
                f"tokenizer: the marker {spec.marker!r} must be one token: got {ids} -- use the model's own tokenizer, or another --spec"
            )
        return wanted

    def _check_markers(self, ids: Sequence[int], offsets: np.ndarray, *, at: Sequence[int], ends: Sequence[int], place: str) -> None:
        for number, (index, end) in enumerate(zip(at, ends, strict=True), 1):
            begin = end - len(self.spec.marker)
            # A space before the marker may belong to its token.
            alone = offsets[index, 1] == end and offsets[index, 0] >= begin - 1
            if not alone or (self._marker_id is not None and ids[index] != self._marker_id):
                raise DataFormatError(
                    f"{place}: the marker {self.spec.marker!r} of step {number} must be a token of its own: the tokenizer made token "
                    f"{ids[index]} of characters {offsets[index].tolist()}, expected {[begin, end]} -- change what the step ends with"
                )
        if self._marker_id is None:
            return
        found = [i for i, token in enumerate(ids) if token == self._marker_id]
        if len(found) != len(at):
            stray = next(i for i in found if i not in set(at))
            number = sum(index < stray for index in at) + 1
            where = "the question or step 1" if number == 1 else f"step {number}"
            raise DataFormatError(
                f"{place}: the marker {self.spec.marker!r} must stand once after every step: got {len(found)} for {len(at)} steps, one of "
                f"them in {where} -- remove it from the text"
            )


def token_id(tokenizer: PreTrainedTokenizerBase, entry: str, expected: int | None) -> int:
    """Return the id of a vocabulary entry.

    Raises:
        CheckpointError: If the tokenizer does not have it, or has it under another id than expected.
    """
    found = tokenizer.get_vocab().get(entry)
    if found is None or (expected is not None and found != expected):
        raise CheckpointError(
            f"tokenizer: the token {entry!r} must have id {expected if expected is not None else 'of its own'}: got {found} "
            "-- use the model's own tokenizer, or another --spec"
        )
    return found


def filled(template: str, **values: str) -> str:
    """Fill in a template in one pass, so that an inserted text is never read as a placeholder."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)
