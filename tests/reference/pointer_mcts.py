"""A slow, obvious search: one problem, node objects with pointers, no arrays, no event loop, no arrival order.

It is the oracle of the array engine: ``search`` must give the same tree, node for node, as ``SearchEngine`` does for every method. It
shares no code with the engine but the records. Sums are made in float32 in the same order, so that ties are ties in both.
"""

import math
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from stepladder.types import StopReason, derive_seed

NAN = np.float32(math.nan)


@dataclass(eq=False)
class Node:
    """One node."""

    index: int
    parent: "Node | None"
    ids: tuple
    reason: StopReason
    depth: int
    prior: float = 1.0
    score: float | None = None
    raw: np.float32 = NAN
    value: np.float32 = NAN
    visits: int = 0
    returns: int = 0
    virtual: int = 0
    busy: bool = False
    answer: str | None = None
    outcome: float | None = None
    count: int = 1
    children: list = field(default_factory=list)

    @property
    def ended(self):
        return self.reason != StopReason.STEP

    def path(self):
        return [] if self.parent is None else [*self.parent.path(), self]


class PointerSearch:
    """One problem's search with policy function ``propose(prefix, sample, seed)`` and score function ``score(prefix)``."""

    def __init__(self, *, problem, renderer, method, budget, provenance, propose, score=None, right_answer=None):
        self.method, self.budget, self.renderer, self.propose, self.score, self.right = (
            method,
            budget,
            renderer,
            propose,
            score,
            right_answer,
        )
        self.prompt = renderer.prompt_ids(problem)
        self.seed = derive_seed(provenance.seed, provenance.round, problem.id)
        self.nodes = [Node(0, None, (), StopReason.STEP, 0)]
        self.simulations = self.tokens = self.draws = 0
        self.width = method.wave
        self.stop = None

    def run(self):
        while True:
            self.stop = self.why_stop()
            if self.stop is not None:
                return self
            wave = self.select(self.allowed())
            if not wave:
                self.stop = StopReason.EXHAUSTED
                return self
            grown = [(leaf, *self.draw(leaf)) for leaf in wave]
            self.simulations += len(grown[0][2]) if self.method.selection == "sample" else len(wave)
            entered = [(leaf, self.enter(leaf, samples) if samples else None) for leaf, _, samples in grown]
            for node in self.nodes:
                node.virtual, node.busy = 0, False
            for leaf, result in entered:
                self.back_up(leaf, result)

    def why_stop(self):
        greedy_done = self.method.selection == "sample" and self.method.temperature == 0 and self.simulations
        if greedy_done or (self.method.selection != "sample" and not any(not n.ended and not n.children for n in self.nodes)):
            return StopReason.EXHAUSTED
        if self.simulations >= self.budget.num_simulations:
            return StopReason.SIMULATIONS
        if self.budget.max_tokens is not None and self.tokens >= self.budget.max_tokens:
            return StopReason.TOKENS
        return None

    def allowed(self):
        if self.method.selection == "sample" and self.method.temperature == 0:
            return 1
        most = min(self.method.wave, self.budget.num_simulations - self.simulations)
        if self.budget.max_tokens is not None and self.tokens:
            per_draw = self.tokens / self.draws
            cost = per_draw * (1 if self.method.selection == "sample" or self.method.temperature == 0 else self.method.num_children)
            most = min(most, int((self.budget.max_tokens - self.tokens) / cost))
        return max(most, 1)

    # ---- select

    def select(self, most):
        if self.method.selection == "sample":
            self.wanted = most
            return [self.nodes[0]]
        if self.method.selection == "beam":
            return self.select_beam(most)
        wave = []
        while len(wave) < most and self.reachable(self.nodes[0]):
            node = self.nodes[0]
            while node.children:
                options = [child for child in node.children if self.reachable(child)]
                node = max(options, key=partial(self.edge_score, node))
            wave.append(node)
            node.busy = not node.ended
            for on_path in [self.nodes[0], *node.path()]:
                on_path.virtual += 1
        return wave

    def reachable(self, node):
        if node.children:
            return any(self.reachable(child) for child in node.children)
        return self.method.terminals == "revisit" if node.ended else not node.busy

    def select_beam(self, most):
        deepest = self.nodes[-1].depth
        level = [node for node in self.nodes if node.depth == deepest]
        level.sort(key=lambda node: (1.0 if math.isnan(node.raw) else -float(node.raw), -float(np.float32(node.prior)), node.index))
        kept = level[: self.width]
        self.width -= sum(node.ended for node in kept)
        return [node for node in kept if not node.ended][:most]

    def edge_score(self, node, child):
        m = self.method
        visits, total = child.visits, sum(c.visits + c.virtual for c in node.children)
        node_visits = node.visits + node.virtual
        if m.normalise == "siblings":
            values = [float(self.q(c)) for c in node.children if c.visits and not math.isnan(c.value)]
            bounds = values + ([] if math.isnan(node.value) else [float(node.value)])
            known = child.visits and not math.isnan(child.value)
            q = (np.float32(self.q(child)) - np.float32(min(bounds))) / max(np.float32(max(bounds) - min(bounds)), 1e-8) if known else 0.0
        else:
            q = self.completed(node, child)
        q = float(q) * max(visits, 1) / (max(visits, 1) + child.virtual)
        n, prior = visits + child.virtual, float(np.float32(child.prior))
        if m.selection == "puct":
            return q + m.c * prior * math.sqrt(total) / (1 + n)
        if m.selection == "puct-mctx":
            return q + prior * math.sqrt(node_visits) / (1 + n) * (m.c + math.log((node_visits + m.c_base + 1) / m.c_base))
        return q + (m.c * math.sqrt(math.log(max(node_visits, 1)) / n) if n else 0.0)

    def q(self, child):
        return np.float32(self.method.discount) * child.value

    def completed(self, node, child):
        inherited = 0.5 if math.isnan(node.value) else float(node.value)
        if child.visits:
            return inherited if math.isnan(child.value) else float(self.q(child))
        if self.method.unvisited == "raw":
            return inherited if math.isnan(child.raw) else float(child.raw)
        return {"inf": math.inf, "zero": 0.0, "parent": inherited}[self.method.unvisited]

    # ---- propose and score

    def draw(self, leaf):
        m = self.method
        if leaf.ended:
            return 0, []
        sampling, greedy = m.selection == "sample", m.temperature == 0
        num = self.wanted if sampling else 1 if greedy else m.root_samples if leaf.depth == 0 else m.num_children
        seed = 0 if greedy else derive_seed(self.seed, leaf.index, self.simulations) if sampling else derive_seed(self.seed, leaf.index)
        start = self.prompt + tuple(i for node in leaf.path() for i in node.ids)
        samples = []
        for index in range(num):
            prefix, steps = start, []
            while len(steps) < (self.budget.max_depth if sampling else 1) and (not steps or steps[-1].stop_reason == StopReason.STEP):
                steps.append(self.propose(prefix, index, seed))
                prefix += steps[-1].token_ids
            samples.append(steps)
        self.draws += num
        self.tokens += sum(len(step.token_ids) for steps in samples for step in steps)
        return num, samples

    def enter(self, leaf, samples):
        """Add the samples below the leaf; return each sample's last node, and the new nodes."""
        sampling, new, ends = self.method.selection == "sample", [], []
        for steps in samples:
            at = leaf
            for i, step in enumerate(steps, start=1):
                same = [c for c in at.children if c.ids == step.token_ids and c.step_reason == step.stop_reason]
                if same and not (sampling and i == len(steps)):
                    at = same[0]
                    at.count += at in new
                    continue
                at = self.add(at, step)
                new.append(at)
            ends.append(at)
        if not sampling:
            self.set_priors(new)
        return ends, new

    def add(self, parent, step):
        node = Node(len(self.nodes), parent, step.token_ids, step.stop_reason, parent.depth + 1)
        node.step_reason = step.stop_reason
        node.logp = sum(step.logps) / len(step.logps) if step.logps else -math.inf
        if node.reason == StopReason.STEP and node.depth >= self.budget.max_depth:
            node.reason = StopReason.DEPTH
        self.nodes.append(node)
        parent.children.append(node)
        ids = tuple(i for on_path in node.path() for i in on_path.ids)
        if self.score is not None and step.token_ids:
            node.score = self.score(self.prompt + ids)
        if node.reason == StopReason.END:
            node.answer = self.renderer.extract_answer("".join(map(chr, ids)))
        node.raw = np.float32(self.worth(node))
        return node

    def worth(self, node):
        if node.ended and self.right is not None:
            node.outcome = float(node.answer is not None and node.answer == self.right)
            return node.outcome
        if node.ended and node.answer is None:
            return 0.0
        return math.nan if node.score is None else node.score

    def set_priors(self, siblings):
        rule, weights = self.method.prior, [1.0] * len(siblings)
        if rule == "frequency":
            weights = [node.count for node in siblings]
        elif rule == "mean-logp" and max(node.logp for node in siblings) > -math.inf:
            weights = [math.exp(node.logp - max(n.logp for n in siblings)) for node in siblings]
        for node, weight in zip(siblings, weights, strict=True):
            node.prior = weight / sum(weights)

    # ---- back up

    def back_up(self, leaf, result):
        if result is None:
            return self.visit(leaf, leaf.raw)
        ends, new = result
        if self.method.selection == "sample":
            for end in ends:
                self.visit(end, end.raw)
            return None
        if self.method.evaluation == "leaf":
            return self.visit(leaf, leaf.raw)
        for node in new:
            node.visits, node.returns, node.value = 1, int(not math.isnan(node.raw)), node.raw
        known = [(node.count, self.worth(node)) for node in new if not math.isnan(node.raw)]
        total = sum(count for count, _ in known)
        return self.visit(leaf, np.float32(sum(count * worth for count, worth in known) / total) if known else NAN)

    def visit(self, node, amount):
        while node is not None:
            node.visits += 1
            if not math.isnan(amount):
                node.returns += 1
                node.value = amount if node.returns == 1 else node.value + (amount - node.value) / np.float32(node.returns)
            if self.method.backup == "child-mean":
                valued = [c for c in node.children if c.visits and not math.isnan(c.value)]
                if valued:
                    node.value = np.float32(sum(float(self.q(c)) * c.visits for c in valued) / sum(c.visits for c in valued))
            amount = np.float32(self.method.discount) * amount
            node = node.parent
