"""A policy whose steps call a tool: the tool's output follows the step as an observation, as tokens that the policy did not sample.

``ToolPolicy`` wraps any policy. It asks for one step at a time, so a sample of several steps goes on after each observation. So searches,
rollouts and evaluations see observations without code of their own.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from stepladder.errors import DataFormatError
from stepladder.interfaces import Observation, Policy, Ranges, StepRequest, StepResult, Tool, ToolCall, cancel_requests, sampled_runs
from stepladder.policy.observations import ObservationStore, path_key
from stepladder.types import Step, StopReason, derive_seed

OUTPUT = "{output}"
"""Placeholder of a tool's output in the form of an observation."""


class TextCodec(Protocol):
    """The part of a renderer that turns observations into tokens and steps into text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of some ids."""
        ...

    def encode_text(self, text: str, *, place: str) -> tuple[int, ...]:
        """Return the ids of text inside a sequence; the names of control tokens are characters."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolSettings:
    """What follows a step that calls a tool."""

    form: str = OUTPUT + "\n"
    """Text of an observation, with ``{output}`` in place of the tool's output."""
    max_tokens: int = 256
    """Tokens of an observation, >= 1; a longer one is cut."""
    max_errors: int = 2
    """Errors of the tool in a row after which a path ends, >= 1."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Job:
    """An open request of the caller."""

    request: StepRequest
    samples: list[list[Step]]
    open_samples: int
    prefixes: list[tuple[int, ...]]
    """Per sample, everything before its next step."""
    given: list[Ranges]
    """Per sample, the given ranges of that."""
    is_dropped: bool = False
    """Whether the caller no longer waits for it."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Turn:
    """A step of a sample."""

    job: _Job
    sample: int
    step: Step


_Batch = dict[str, list[_Turn]]
"""Calls that run together: the steps that wait for the observation of each path."""


class ToolPolicy:
    """A ``Policy`` whose steps may be followed by observations.

    The tool runs beside the policy. Its result depends on the path alone: equal paths call it once, and ``store`` keeps what it returned.
    Steps that end a solution, failed, or were cut call nothing.
    """

    def __init__(self, policy: Policy, tool: Tool, codec: TextCodec, settings: ToolSettings, store: ObservationStore) -> None:
        """Wrap a policy."""
        self._policy, self._tool, self._codec, self._settings, self._store = policy, tool, codec, settings, store
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tool")
        self._running: dict[Future[list[Observation | None]], _Batch] = {}
        self._awaited: _Batch = {}
        """The same of all batches that run."""
        self._inner: dict[int, tuple[_Job, list[int]]] = {}
        """Requests to the policy by ticket: the job, and its samples."""
        self._dropped: set[int] = set()
        """Dropped requests to the policy whose results are still to come."""
        self._next_ticket = 0
        self._done: list[StepResult] = []

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the policy, such as its counts of tokens."""
        return getattr(self._policy, name)

    def submit(self, requests: Sequence[StepRequest]) -> None:
        """Queue requests."""
        first = []
        for request in requests:
            count = request.num_samples
            job = _Job(
                request=request,
                samples=[[] for _ in range(count)],
                open_samples=count,
                prefixes=[request.prefix_ids] * count,
                given=[request.given or ((0, len(request.prefix_ids)),)] * count,
            )
            first.append(replace(request, ticket=self._ticket(job, list(range(count))), max_steps=1))
        self._policy.submit(first)

    def _ticket(self, job: _Job, samples: list[int]) -> int:
        self._next_ticket += 1
        self._inner[self._next_ticket] = (job, samples)
        return self._next_ticket

    def collect(self) -> list[StepResult]:
        """Return finished results, at least one; empty only when nothing is in flight, or when the policy was interrupted.

        Raises:
            DataFormatError: If the tool returned something that is no text.
            BackendError: If the policy failed, or the tool's process did not start.
        """
        while not self._done and (self._inner or self._running):
            if self._inner and not self._take_steps():
                break
            finished = {future for future in self._running if future.done()}
            if not finished and self._running and not self._inner and not self._done:
                finished, _ = wait_for(self._running, return_when="FIRST_COMPLETED")
            # In the order of their start, so that nothing depends on which thread was faster.
            for future in [future for future in self._running if future in finished]:
                self._take_observations(self._running.pop(future), future.result())
        done, self._done = self._done, []
        return done

    def cancel(self, tickets: Sequence[int]) -> None:
        """Drop open requests; a policy that can stops working on them. A call of the tool that runs goes on to its end."""
        dropped = set(tickets)
        self._done = [result for result in self._done if result.ticket not in dropped]
        inner = [ticket for ticket, (job, _) in self._inner.items() if job.request.ticket in dropped]
        waiting = [turn.job for turns in self._awaited.values() for turn in turns if turn.job.request.ticket in dropped]
        for job in (*waiting, *(self._inner.pop(ticket)[0] for ticket in inner)):
            job.is_dropped = True
        self._dropped.update(cancel_requests(self._policy, inner))

    def keep_observations(self, path: Path) -> None:
        """Keep observations in a file, and take those that it holds already; errors as for ``ObservationStore``."""
        self._store = ObservationStore(path)

    def end(self) -> None:
        """End the tool's processes, and delete the file of observations: what came of them is stored elsewhere."""
        self._tool.close()
        self._pool.shutdown()
        self._store.remove()

    def _take_steps(self) -> bool:
        """Take steps of the policy; return whether there were any results."""
        turns: list[_Turn] = []
        results = self._policy.collect()
        for result in results:
            if result.ticket in self._dropped:
                self._dropped.remove(result.ticket)
                continue
            job, samples = self._inner.pop(result.ticket)
            turns += [_Turn(job=job, sample=sample, step=step) for sample, (step, *_) in zip(samples, result.samples, strict=True)]
        calls: list[ToolCall] = []
        batch: _Batch = {}
        further: list[StepRequest] = []
        for turn in turns:
            if turn.step.stop_reason != StopReason.STEP:
                self._go_on(turn, None, further)
                continue
            key = path_key((*turn.job.prefixes[turn.sample], *turn.step.token_ids))
            if key in self._store:
                self._go_on(turn, self._store[key], further)
            elif key in self._awaited:
                self._awaited[key].append(turn)
            else:
                self._awaited[key] = batch[key] = [turn]
                calls.append(self._call(turn))
        if calls:
            self._running[self._pool.submit(self._tool.observe, calls)] = batch
        self._send(further)
        return bool(results)

    def _call(self, turn: _Turn) -> ToolCall:
        prefix, given = turn.job.prefixes[turn.sample], turn.job.given[turn.sample]
        runs = sampled_runs(prefix, given[1:], start=given[0][1])
        decode = self._codec.decode
        return ToolCall(
            question=turn.job.request.question,
            turns=tuple((decode(sampled), decode(observed)) for sampled, observed in runs),
            step=turn.step.text,
        )

    def _take_observations(self, batch: _Batch, observations: Sequence[Observation | None]) -> None:
        """Put observations after their steps, and continue the samples."""
        further: list[StepRequest] = []
        for (key, turns), observation in zip(batch.items(), observations, strict=True):
            del self._awaited[key]
            self._store.add(key, observation)
            for turn in turns:
                if not turn.job.is_dropped:
                    self._go_on(turn, observation, further)
        self._send(further)

    def _send(self, requests: list[StepRequest]) -> None:
        if requests:
            self._policy.submit(requests)

    def _go_on(self, turn: _Turn, observation: Observation | None, further: list[StepRequest]) -> None:
        """Add a step with its observation to its sample, and ask for the next one, unless the sample is finished."""
        job, sample = turn.job, turn.sample
        step = turn.step if observation is None else self._with_observation(turn, observation)
        cap, taken = job.request.max_tokens, sum(len(each.token_ids) for each in (*job.samples[sample], step))
        wants_more = step.stop_reason == StopReason.STEP and len(job.samples[sample]) + 1 < job.request.max_steps
        if wants_more and cap is not None and taken >= cap:
            step, wants_more = replace(step, stop_reason=StopReason.LENGTH), False
        job.samples[sample].append(step)
        begin = len(job.prefixes[sample]) + len(step.token_ids)
        job.prefixes[sample] = (*job.prefixes[sample], *step.token_ids, *step.given_ids)
        if step.given_ids:
            job.given[sample] = (*job.given[sample], (begin, len(job.prefixes[sample])))
        if wants_more:
            further.append(
                replace(
                    job.request,
                    ticket=self._ticket(job, [sample]),
                    prefix_ids=job.prefixes[sample],
                    given=job.given[sample],
                    num_samples=1,
                    max_steps=1,
                    max_tokens=None if cap is None else cap - taken,
                    seed=derive_seed(job.request.seed, "after observation", sample, len(job.samples[sample])),
                    excluded=None,
                )
            )
            return
        job.open_samples -= 1
        if not job.open_samples:
            self._done.append(StepResult(ticket=job.request.ticket, samples=tuple(map(tuple, job.samples))))

    def _with_observation(self, turn: _Turn, observation: Observation) -> Step:
        # A function may return half a surrogate pair, such as a name of a file has, which no tokenizer can read.
        text = self._settings.form.replace(OUTPUT, observation.text.encode(errors="replace").decode())
        failed = observation.failed
        try:
            ids = self._codec.encode_text(text, place="observation")
        except DataFormatError as error:
            ids, failed = self._codec.encode_text(self._settings.form.replace(OUTPUT, f"error: {error}"), place="observation"), True
        ids = tuple(ids[: self._settings.max_tokens])
        ends = failed and self._errors_before(turn) + 1 >= self._settings.max_errors
        reason = StopReason.TOOL if ends else turn.step.stop_reason
        return replace(turn.step, given_ids=ids, given_text=self._codec.decode(ids), stop_reason=reason)

    def _errors_before(self, turn: _Turn) -> int:
        """Return the errors of the tool in a row up to the step before."""
        prefix, count = turn.job.prefixes[turn.sample], 0
        for begin, _ in reversed(turn.job.given[turn.sample][1:]):
            key = path_key(prefix[:begin])
            if key not in self._store or not (known := self._store[key]) or not known.failed:
                break
            count += 1
        return count
