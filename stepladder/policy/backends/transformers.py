"""The embedded policy: step sampling from any causal language model of transformers, on the CPU or one GPU.

Continuous batching: a row holds one prefix and several of its samples (lanes). Rows come and go while the batch runs, and only lanes that
are alive go through the model. The prefix of a request is read from the prefix cache. So a step that continues a sampled step costs one
forwarded token before its own first token, and that token is decoded together with everything else.

Value heads may be attached to the policy's body. Then every token's outputs are kept beside its keys and values, so a scorer that shares
the cache finds those of every step. A head that reads at the token before a step's end, in the pass that samples the end, costs no pass.
For one that reads at the end itself, the last token of a sample, whose hidden state no further token needs, goes through the model once,
together with the next token of the other lanes.

Axes: R rows, M lanes, V vocabulary, T tokens of a sample.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepladder.errors import BackendError
from stepladder.interfaces import StepRequest, StepResult, TokenCounts, check_ticket
from stepladder.lm.decoding import DecodeRows
from stepladder.lm.flat import FlatModel
from stepladder.lm.loading import load_causal_lm, load_tokenizer
from stepladder.lm.prefix_cache import AttachedHead, CachedSequence, PathGroup, PrefixCache, StepOutputs
from stepladder.lm.sampling import TakenMass, sample_tokens, stream_keys, uniforms
from stepladder.lm.slots import SlotNode
from stepladder.lm.step_rules import forks
from stepladder.policy.backends.steps import StepRules, refusal, refused, room_of
from stepladder.policy.prompts import StepFormat
from stepladder.types import Step, StopReason

_STEP_LANES = 8
_SOLUTION_LANES = 4
"""Lanes of a row when whole solutions are sampled: their tokens outgrow the prefix that the lanes share, and every lane reads past the
others' tokens."""


class _KnownStep(NamedTuple):
    """A step that a sample must differ from."""

    token_ids: tuple[int, ...]
    masses: np.ndarray
    """Probability of its tokens from each one to the last."""

    @classmethod
    def of(cls, step: Step) -> "_KnownStep":
        """Read a step; its probability is the one it was sampled with."""
        logps = step.logps if step.sampling_logps is None else step.sampling_logps
        return cls(step.token_ids, np.exp(np.cumsum(logps[::-1])[::-1]))


@dataclass(kw_only=True, slots=True, eq=False)
class _Job:
    """An open request."""

    request: StepRequest
    open_lanes: int
    steps: list[list[Step]]
    keys: np.ndarray
    known: list[_KnownStep] | None = None
    """Steps that the next sample must differ from; None if samples are independent."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Row:
    """Some samples of a request, decoded together after one copy of its prefix."""

    job: _Job
    first_sample: int
    num_lanes: int
    keys: np.ndarray
    open_lanes: int
    prefix_end: SlotNode | None = None
    others: list[_KnownStep] | None = None
    """Known steps that begin with the tokens of the row's only lane so far; None if samples are independent."""


class _Lanes:
    """The state of every lane as arrays [R, M], of every row as arrays [R], and what was sampled as arrays [R, M, T]."""

    def __init__(self, num_lanes: int) -> None:
        shape = (0, num_lanes)
        self.live = np.zeros(shape, dtype=bool)
        # A closing lane has its step, and forwards the step's last token for the attached heads.
        self.closing = np.zeros(shape, dtype=bool)
        self.token = np.zeros(shape, dtype=np.int64)
        self.count = np.zeros(shape, dtype=np.int64)
        self.step_begin = np.zeros(shape, dtype=np.int64)
        self.steps_left = np.zeros(shape, dtype=np.int64)
        self.key = np.zeros(shape, dtype=np.uint64)
        self.tokens = np.zeros((*shape, 0), dtype=np.int64)
        self.logps = np.zeros((*shape, 0), dtype=np.float32)
        self.sampling_logps = np.zeros((*shape, 0), dtype=np.float32)
        self.slots = np.zeros((*shape, 0), dtype=np.int64)
        # A fresh row first forwards the last token of its prefix, once for all its lanes.
        self.fresh = np.zeros(0, dtype=bool)
        self.prefix_length = np.zeros(0, dtype=np.int64)
        self.temperature = np.zeros(0, dtype=np.float64)
        self.step_cap = np.zeros(0, dtype=np.int64)
        self.room = np.zeros(0, dtype=np.int64)

    def reserve(self, num_rows: int, num_tokens: int) -> None:
        """Make room for so many rows, and for so many tokens in every sample."""
        for name, array in vars(self).items():
            wanted = (num_rows, *array.shape[1:]) if array.ndim < 3 else (num_rows, array.shape[1], num_tokens)
            shape = tuple(max(a, b) for a, b in zip(array.shape, wanted, strict=True))
            if shape != array.shape:
                if array.ndim == 3 and shape[2] > array.shape[2]:
                    shape = (*shape[:2], max(shape[2], 2 * array.shape[2]))
                setattr(self, name, np.pad(array, [(0, new - old) for old, new in zip(array.shape, shape, strict=True)]))

    def reorder(self, order: np.ndarray) -> None:
        """Move rows to the front: new row i is what row ``order[i]`` was; the rows behind hold nothing alive."""
        for array in vars(self).values():
            array[: len(order)] = array[order]
        self.live[len(order) :] = self.closing[len(order) :] = False


class TransformersPolicy:
    """A ``Policy`` on a transformers causal language model.

    Log-probabilities are the model's at temperature 1. Special tokens other than end-of-sequence, and ids that the tokenizer does not
    know, are never sampled. A step ends at the token that completes ``step_end`` within it; a solution ends at an end-of-sequence token or
    with a step that states the final answer.

    Single steps can be drawn without replacement (``StepRequest.excluded``): the probability of every known step is taken off the
    next-token distributions along it, so that sample i follows the model's distribution over all steps but the
    excluded ones and samples 0 to i - 1. The samples of such a request are drawn one after another, beside those of other requests.
    """

    samples_distinct = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        step_format: StepFormat,
        *,
        max_batch: int = 256,
        refill_share: float = 0.05,
        cache_tokens: int | None = None,
    ) -> None:
        """Serve a model.

        Args:
            model: A causal language model with plain attention, on its device.
            tokenizer: Its tokenizer.
            step_format: Where steps and solutions end.
            max_batch: Samples decoded at once, >= 1; a request of more samples than that is decoded in parts.
            refill_share: Share of ``max_batch`` that must be free before waiting requests fill in, in [0, 1]; prefixes that are not cached
                are then forwarded together.
            cache_tokens: Tokens that the prefix cache keeps; None takes a share of the memory.

        Raises:
            BackendError: If the model's attention cannot be cached.
        """
        self._model = FlatModel(model)
        self._cache = PrefixCache(self._model, max_tokens=cache_tokens)
        self._rows = DecodeRows(self._model, num_lanes=_STEP_LANES)
        self._lanes = _Lanes(_STEP_LANES)
        self._sampled, self._at_end = StepOutputs(), np.zeros(0, dtype=bool)
        self._rules = StepRules(tokenizer, step_format, model.config, model.generation_config, vocab_size=self._model.vocab_size)
        self._bias = _sampling_bias(self._rules, self._model.device)
        self._max_batch, self._refill = max_batch, refill_share * max_batch
        self._waiting: deque[_Row] = deque()
        self._running: dict[int, _Row] = {}
        self._num_live = 0
        self._num_distinct = 0
        """Running lanes whose step must be a new one."""
        self._open_tickets: set[int] = set()
        self._done: list[StepResult] = []
        self._is_interrupted = False
        self.generated_tokens = 0
        """Tokens sampled so far."""
        self._prefix_tokens, self._num_begun, self._num_closed = 0, 0, 0

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        step_format: StepFormat | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        max_batch: int = 256,
    ) -> "TransformersPolicy":
        """Load model, tokenizer and, unless given, step format from a directory; a hub id needs the format to be given.

        Raises:
            CheckpointError: If a part is missing.
            ConfigError: If device or dtype is not available.
            BackendError: If the model's attention cannot be cached.
        """
        step_format = StepFormat.load(source) if step_format is None else step_format
        tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
        model = load_causal_lm(source, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        return cls(model, tokenizer, step_format, max_batch=max_batch)

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far, prefixes included."""
        return self._model.forwarded_tokens

    @property
    def token_counts(self) -> TokenCounts:
        """What went through the model so far."""
        # A sample's last token is forwarded for attached heads alone; what else was is prefixes.
        forwarded_prefixes = self.forwarded_tokens - (self.generated_tokens - self._num_begun + self._num_closed)
        return TokenCounts(
            prefix_tokens=self._prefix_tokens,
            cached_tokens=self._prefix_tokens - forwarded_prefixes,
            generated_tokens=self.generated_tokens,
            forwarded_tokens=self.forwarded_tokens,
        )

    @property
    def hidden_size(self) -> int:
        """Numbers of a hidden state, which value heads read."""
        return self._model.hidden_size

    def attach(self, head: torch.nn.Module, num_outputs: int, *, at_end: bool = True) -> AttachedHead:
        """Read a value head off the policy's hidden states from now on, and return its outputs, for a scorer that shares the cache.

        Args:
            head: As for ``FlatModel.attach``.
            num_outputs: Outputs per token, >= 1.
            at_end: Whether it is read at the last token of a step, or at the token before it.

        Raises:
            BackendError: If requests are in flight.
        """
        self._check_idle("attach")
        attached = self._cache.attach(head, num_outputs)._replace(sampled=self._sampled)
        self._at_end = np.concatenate([self._at_end, np.full(num_outputs, at_end)])
        self.reset()
        return attached

    def reset(self) -> None:
        """Drop the prefix cache and free its memory, so that later results are those of a fresh process.

        Raises:
            BackendError: If requests are in flight.
        """
        self._check_idle("reset")
        self._cache.clear()
        self._sampled.clear()
        self._rows.clear()
        self._lanes = _Lanes(_STEP_LANES)

    def _check_idle(self, what: str) -> None:
        if self._running or self._waiting:
            raise BackendError(f"{what}: nothing may be in flight: got {len(self._open_tickets)} open requests -- collect them first")

    def submit(self, requests: Sequence[StepRequest]) -> None:
        """Queue requests; one that cannot be served becomes a result with ERROR steps.

        Raises:
            BackendError: If a ticket is open already.
        """
        for request in requests:
            check_ticket(request.ticket, self._open_tickets)
            self._open_tickets.add(request.ticket)
            message = refusal(request, vocab_size=self._model.vocab_size, context=self._model.max_positions)
            if message is not None:
                self._done.append(refused(request, message))
            else:
                self._enqueue(request)

    @torch.inference_mode()
    def collect(self) -> list[StepResult]:
        """Return finished results, at least one; empty only when nothing is in flight.

        Raises:
            BackendError: If the model's output is not a number.
        """
        while not self._done and (self._running or self._waiting) and not self._is_interrupted:
            self._admit()
            self._advance()
        if not self._running:
            self._rows.tidy()
        self._is_interrupted = False
        done, self._done = self._done, []
        self._open_tickets.difference_update(result.ticket for result in done)
        return done

    def interrupt(self) -> None:
        """Make a ``collect`` that runs, or the next one, return after the present token, maybe with nothing. Safe from any thread."""
        self._is_interrupted = True

    def cancel(self, tickets: Sequence[int]) -> None:
        """Drop open requests: their samples end at once, and no results follow."""
        dropped = set(tickets)
        self._open_tickets -= dropped
        self._done = [result for result in self._done if result.ticket not in dropped]
        self._waiting = deque(row for row in self._waiting if row.job.request.ticket not in dropped)
        for number, row in [(number, row) for number, row in self._running.items() if row.job.request.ticket in dropped]:
            self._num_live -= row.open_lanes
            self._num_distinct -= row.others is not None
            self._lanes.live[number] = self._lanes.closing[number] = False
            del self._running[number]
            self._rows.release(number)

    def _enqueue(self, request: StepRequest) -> None:
        lanes = min(_STEP_LANES if request.max_steps == 1 else _SOLUTION_LANES, self._max_batch)
        keys = stream_keys(request.seed, request.num_samples)
        job = _Job(request=request, open_lanes=request.num_samples, steps=[[] for _ in range(request.num_samples)], keys=keys)
        if request.excluded is not None and request.max_steps == 1 and request.temperature > 0:
            job.known = [_KnownStep.of(step) for step in request.excluded if step.token_ids]
            self._waiting.append(_distinct_row(job, 0, job.known))
            return
        for begin, end in pairwise([*range(0, request.num_samples, lanes), request.num_samples]):
            self._waiting.append(_Row(job=job, first_sample=begin, num_lanes=end - begin, open_lanes=end - begin, keys=keys[begin:end]))

    def _admit(self) -> None:
        """Fill free lanes with waiting rows, in order of arrival, once enough are free."""
        if not self._waiting or (self._running and self._max_batch - self._num_live < self._refill):
            return
        admitted: list[_Row] = []
        lengths: list[int] = []
        while self._waiting and self._num_live + self._waiting[0].num_lanes <= self._max_batch:
            lengths.append(self._length_of(self._waiting[0]))
            if not self._rows.fits(lengths):
                break
            admitted.append(self._waiting.popleft())
            self._num_live += admitted[-1].num_lanes
        if not admitted:
            return
        paths = [row.job.request.prefix_ids[:-1] for row in admitted]
        placed = [branches[0] for branches in self._cache.extend([PathGroup(prefix_ids=path) for path in paths])]
        numbers = self._rows.allocate([len(path) for path in paths], [row.num_lanes for row in admitted])
        self._rows.load(numbers, *self._cache.load(np.concatenate([placement.slots for placement in placed])))
        self._lanes.reserve(self._rows.num_rows, 0)
        for number, row, placement in zip(numbers, admitted, placed, strict=True):
            row.prefix_end = placement.node
            self._start_lanes(number, row)

    def _length_of(self, row: _Row) -> int:
        """Return the tokens that a row may come to hold: its prefix, and a step of each lane."""
        request = row.job.request
        return len(request.prefix_ids) + row.num_lanes * min(request.max_step_tokens, self._model.max_positions - len(request.prefix_ids))

    def _start_lanes(self, number: int, row: _Row) -> None:
        state, request = self._lanes, row.job.request
        self._running[number] = row
        self._num_distinct += row.others is not None
        self._prefix_tokens += len(request.prefix_ids) * row.num_lanes
        self._num_begun += row.num_lanes
        state.live[number] = np.arange(_STEP_LANES) < row.num_lanes
        state.token[number] = request.prefix_ids[-1]
        state.count[number] = state.step_begin[number] = 0
        state.steps_left[number] = request.max_steps
        state.key[number, : row.num_lanes] = row.keys
        state.fresh[number] = True
        state.prefix_length[number] = len(request.prefix_ids)
        state.temperature[number] = request.temperature
        state.step_cap[number] = request.max_step_tokens
        state.room[number] = room_of(request, context=self._model.max_positions)

    def _advance(self) -> None:
        """Sample one token in every live lane, and finish the steps, lanes and requests that end with it."""
        order = self._rows.tidy()
        if order is not None:
            self._lanes.reorder(order)
            self._running = {new: self._running[old] for new, old in enumerate(order.tolist())}
        logits, rows, lanes = self._forward()
        state = self._lanes
        if not len(rows):
            return
        counts = state.count[rows, lanes]
        tokens, logps, sampling_logps = sample_tokens(
            logits,
            temperatures=state.temperature[rows],
            uniform=uniforms(state.key[rows, lanes], counts),
            bias=self._bias,
            taken=self._taken(rows, counts),
        )
        if not np.isfinite(logps).all():
            raise BackendError("model output must be finite: got log-probabilities that are not -- check the weights, or use float32")
        state.reserve(0, int(counts.max()) + 1)
        state.tokens[rows, lanes, counts], state.logps[rows, lanes, counts] = tokens, logps
        if sampling_logps is not None:
            state.sampling_logps[rows, lanes, counts] = sampling_logps
            self._leave_others(rows, counts, tokens)
        state.token[rows, lanes] = tokens
        state.count[rows, lanes] += 1
        state.fresh[:] = False
        self.generated_tokens += len(tokens)
        self._finish_steps(rows, lanes, tokens)

    def _taken(self, rows: np.ndarray, counts: np.ndarray) -> TakenMass | None:
        """Return what is taken off the next tokens of lanes whose step must be a new one; None without such a lane."""
        if not self._num_distinct:
            return None
        entries = [
            (i, other.token_ids[count], other.masses[count])
            for i, (number, count) in enumerate(zip(rows.tolist(), counts.tolist(), strict=True))
            for other in self._running[number].others or ()
        ]
        places, tokens, masses = zip(*entries, strict=True) if entries else ((), (), ())
        return TakenMass(np.array(places, np.int64), np.array(tokens, np.int64), np.array(masses, np.float64))

    def _leave_others(self, rows: np.ndarray, counts: np.ndarray, tokens: np.ndarray) -> None:
        """Forget the known steps that differ from a sample at its newest token."""
        for number, count, token in zip(rows.tolist(), counts.tolist(), tokens.tolist(), strict=True):
            row = self._running[number]
            if row.others:
                row.others = [other for other in row.others if other.token_ids[count] == token and len(other.token_ids) > count + 1]

    def _forward(self) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        """Forward the last token of every live lane, or of a fresh row's prefix, and end the closing lanes.

        Returns:
            One row of logits per lane that goes on, and these lanes.
        """
        state = self._lanes
        live, fresh = state.live, state.fresh
        forwarded = live & (~fresh[:, None] | (np.arange(_STEP_LANES) == 0))
        rows, lanes = np.nonzero(forwarded)
        shared, counts, goes_on = fresh[rows], state.count[rows, lanes], ~state.closing[rows, lanes]
        logits, slots = self._rows.forward(
            rows=rows,
            lanes=lanes,
            shared=shared,
            token_ids=state.token[rows, lanes],
            positions=state.prefix_length[rows] - 1 + counts,
            goes_on=goes_on,
        )
        own = ~shared
        state.slots[rows[own], lanes[own], counts[own] - 1] = slots[own]
        if not goes_on.all():
            closed = list(zip(rows[~goes_on].tolist(), lanes[~goes_on].tolist(), strict=True))
            self._num_closed += len(closed)
            self._end_lanes(closed)
            forwarded &= live
            rows, lanes = rows[goes_on], lanes[goes_on]
        if not shared.any():
            return logits, rows, lanes
        # Entry i of the logits belongs to the i-th lane that goes on; the lanes of a fresh row all take their first lane's.
        source = np.cumsum(forwarded).reshape(forwarded.shape) - 1
        rows, lanes = np.nonzero(live)
        index = source[rows, np.where(fresh[rows], 0, lanes)]
        return logits.index_select(0, torch.from_numpy(index).to(logits.device)), rows, lanes

    def _finish_steps(self, rows: np.ndarray, lanes: np.ndarray, tokens: np.ndarray) -> None:
        state, rules = self._lanes, self._rules
        if rules.rule.name == "surprise":
            goes_on = ~self._end_at_forks(rows, lanes)
            rows, lanes, tokens = rows[goes_on], lanes[goes_on], tokens[goes_on]
        at_end = rules.ends[tokens]
        closed = rules.boundary.closes[tokens] & ~at_end
        for i in np.flatnonzero(rules.boundary.may_close[tokens] & ~at_end):
            at = rows[i], lanes[i]
            closed[i] = rules.boundary.completes(state.tokens[at][state.step_begin[at] : state.count[at]])
        counts = state.count[rows, lanes]
        full = (counts - state.step_begin[rows, lanes] >= state.step_cap[rows]) | (counts >= state.room[rows])
        ended = np.flatnonzero(at_end | closed | full)
        places = list(zip(rows[ended].tolist(), lanes[ended].tolist(), strict=True))
        ids = [state.tokens[at][state.step_begin[at] : state.count[at]].tolist() for at in places]
        texts = rules.text.decode_batch(ids) if ids else []
        finished = [
            at
            for at, i, step_ids, text in zip(places, ended, ids, texts, strict=True)
            if self._end_step(at, step_ids, text, at_end=bool(at_end[i]), closed=bool(closed[i]))
        ]
        if self._at_end.any():
            # Their last token is forwarded in the next pass.
            for at in finished:
                state.closing[at] = True
        else:
            self._end_lanes(finished)

    def _end_at_forks(self, rows: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """End steps before the tokens that were just sampled where the rule says so, and say which lanes are finished with that.

        The other lanes begin their next step with these tokens.
        """
        state, finished = self._lanes, []
        over = np.zeros(len(rows), dtype=bool)
        for i, at in enumerate(zip(rows.tolist(), lanes.tolist(), strict=True)):
            begin, last = int(state.step_begin[at]), int(state.count[at]) - 1
            if not forks(self._rules.rule, num_tokens=last - begin, logp=float(state.logps[at][last])):
                continue
            state.count[at] = last
            ids = state.tokens[at][begin:last].tolist()
            if self._end_step(at, ids, self._rules.text.decode_batch([ids])[0], at_end=False, closed=True):
                finished.append(at)
                over[i] = True
            else:
                state.count[at] = last + 1
        # The last token of these steps has been forwarded: it predicted the token that was taken back.
        self._end_lanes(finished)
        return over

    def _end_step(self, at: tuple[int, int], ids: list[int], text: str, *, at_end: bool, closed: bool) -> bool:
        """Record a step and say whether its lane is finished."""
        state, row = self._lanes, self._running[at[0]]
        goes_on = state.steps_left[at] > 1
        starved = bool(goes_on and state.count[at] >= state.room[at[0]])
        reason = self._rules.stop_reason(text, question=row.job.request.question, at_end=at_end, closed=closed, starved=starved)
        logps = state.logps[at][state.step_begin[at] : state.count[at]].tolist()
        sampling_logps = None
        if row.others is not None:
            sampling_logps = tuple(state.sampling_logps[at][state.step_begin[at] : state.count[at]].tolist())
        step = Step(token_ids=tuple(ids), logps=tuple(logps), text=text, stop_reason=reason, sampling_logps=sampling_logps)
        row.job.steps[row.first_sample + at[1]].append(step)
        state.steps_left[at] -= 1
        state.step_begin[at] = state.count[at]
        return reason != StopReason.STEP or not goes_on

    def _end_lanes(self, places: Sequence[tuple[int, int]]) -> None:
        """End lanes. Keep what the attached heads say of their steps, and in the prefix cache what may be continued."""
        if len(self._at_end):
            for number, lane in places:
                self._keep_outputs(number, lane)
        self._keep_prefixes(places)
        for number, lane in places:
            self._end_lane(number, lane)

    def _keep_outputs(self, number: int, lane: int) -> None:
        """Keep the outputs of all steps of a lane, each at the token where its head reads."""
        row = self._running[number]
        path, end = row.job.request.prefix_ids, 0
        # Before the lane's own tokens comes the prefix's last one.
        slots = [len(path) - 1, *self._lanes.slots[number, lane, : self._lanes.count[number, lane]].tolist()]
        for step in row.job.steps[row.first_sample + lane]:
            path, end = path + step.token_ids, end + len(step.token_ids)
            outputs = self._rows.outputs(number, slots[end - 1]).copy()
            if self._at_end.any():
                outputs[self._at_end] = self._rows.outputs(number, slots[end])[self._at_end]
            self._sampled.put(path, outputs)

    def _keep_prefixes(self, places: Sequence[tuple[int, int]]) -> None:
        """Put what was computed for single steps that may be continued into the prefix cache: all but each step's last token."""
        sequences = []
        for number, lane in places:
            row, count = self._running[number], int(self._lanes.count[number, lane])
            request, step = row.job.request, row.job.steps[row.first_sample + lane][-1]
            # A search may go on after a step that was cut.
            if request.max_steps > 1 or step.stop_reason not in (StopReason.STEP, StopReason.LENGTH) or row.prefix_end is None:
                continue
            # The prefix's last token was the row's first after the cached ones.
            slots = np.concatenate([[len(request.prefix_ids) - 1], self._lanes.slots[number, lane, : count - 1]])
            token_ids = (request.prefix_ids[-1], *step.token_ids[:-1])
            sequences.append(CachedSequence(after=row.prefix_end, token_ids=token_ids, sources=number * self._rows.num_slots + slots))
        if sequences:
            self._cache.store(sequences, *self._rows.contents())

    def _end_lane(self, number: int, lane: int) -> None:
        row = self._running[number]
        self._lanes.live[number, lane] = self._lanes.closing[number, lane] = False
        self._num_live -= 1
        row.open_lanes -= 1
        row.job.open_lanes -= 1
        if row.open_lanes == 0:
            del self._running[number]
            self._rows.release(number)
        if row.job.known is not None:
            self._num_distinct -= 1
            self._draw_next(row)
        if row.job.open_lanes == 0:
            samples = tuple(tuple(steps) for steps in row.job.steps)
            self._done.append(StepResult(ticket=row.job.request.ticket, samples=samples))

    def _draw_next(self, row: _Row) -> None:
        """Queue the sample after the one of a row, which it must differ from."""
        job, number = row.job, row.first_sample + 1
        assert job.known is not None
        job.known.append(_KnownStep.of(job.steps[row.first_sample][0]))
        if number < len(job.steps):
            self._waiting.appendleft(_distinct_row(job, number, job.known))


def _distinct_row(job: _Job, number: int, known: Sequence[_KnownStep]) -> _Row:
    """Return the row of one sample that must differ from known steps."""
    return _Row(job=job, first_sample=number, num_lanes=1, open_lanes=1, keys=job.keys[number : number + 1], others=list(known))


def _sampling_bias(rules: StepRules, device: torch.device) -> torch.Tensor | None:
    """Return -inf for the ids that are never sampled and 0 for the others, [V], or None when all may be."""
    if not rules.never_sampled:
        return None
    bias = torch.zeros(rules.vocab_size)
    bias[rules.never_sampled] = -torch.inf
    return bias.to(device)
