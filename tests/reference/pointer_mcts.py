"""A slow, obvious search: one problem, node objects with pointers, no arrays, no event loop, no arrival order.

It is the oracle of the array engine: ``search`` must give the same tree, node for node, as ``SearchEngine`` does for every method. It
shares no code with the engine but the records. Sums are made in float32 in the same order, so that ties are ties in both.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np

from stepladder.types import StopReason, derive_seed

NAN, ZERO = np.float32(math.nan), np.float32(0.0)


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
    gain: float = 0.0
    reward: np.float32 = ZERO
    busy: bool = False
    rolled: bool = False
    answer: str | None = None
    outcome: float | None = None
    count: int = 1
    samples: int = 0
    starts: int = 0
    unseen: float = 1.0
    drawn: set = field(default_factory=set)
    again: bool = False
    children: list = field(default_factory=list)

    @property
    def ended(self):
        return self.reason != StopReason.STEP

    @property
    def growable(self):
        return not self.ended and not self.busy and (not self.children or self.again)

    def path(self):
        return [] if self.parent is None else [*self.parent.path(), self]


class PointerSearch:
    """One problem's search with policy function ``propose(prefix, sample, seed)`` and score function ``score(prefix)``."""

    def __init__(self, *, problem, renderer, method, budget, provenance, propose, score=None, right_answer=None):
        # Flat, as users write settings; what the method does not take stands at its default.
        flat = SimpleNamespace(**method.all_settings(), root_samples=method.root_samples)
        self.method, self.budget, self.renderer, self.propose, self.score, self.right = (
            flat,
            budget,
            renderer,
            propose,
            score,
            right_answer,
        )
        self.sampling = method.samples_solutions
        self.prompt = renderer.prompt_ids(problem)
        self.seed = derive_seed(provenance.seed, provenance.round, problem.id)
        self.nodes = [Node(0, None, (), StopReason.STEP, 0)]
        self.simulations = self.tokens = self.draws = 0
        self.widths = [flat.wave // flat.groups] * flat.groups
        self.generation = [(self.nodes[0], flat.wave)]
        self.base, self.committed, self.calls, self.best, self.leaders = self.nodes[0], 0, 0, -1.0, []
        self.below, self.stream, self.drawn = None, derive_seed(self.seed, "ab-mcts"), 0
        self.tally, self.noise = {}, np.random.default_rng(derive_seed(self.seed, "gumbel")).gumbel(size=self.num_slots()).tolist()
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
            if self.method.stop_at_goal and self.best >= wave[0].raw:
                self.stop = StopReason.GOAL
                return self
            grown = [(leaf, *self.draw(leaf, place, len(wave))) for place, leaf in enumerate(wave)]
            if self.below is None:
                self.simulations += len(grown[0][2]) if self.sampling else len(wave)
            entered = [(leaf, self.enter(leaf, samples) if samples else None) for leaf, _, samples in grown]
            for node in self.nodes:
                node.virtual, node.busy = 0, False
            for leaf, result in entered:
                self.note(leaf, result)
            for leaf, result in entered:
                self.back_up(leaf, result)
            if self.method.selection == "resample":
                self.generation = self.kept + [(node, node.count) for _, result in entered for node in result[1]]
            self.leaders.append(self.leader())
            self.move_on(wave[0], grown[0][2])

    def move_on(self, leaf, samples):
        """Go on with a descent, or commit a step."""
        if self.method.count == "descents":
            self.below = leaf if samples and any(self.reachable(child) for child in leaf.children) else None
        first = self.method.commit_first is not None and self.base is self.nodes[0]
        needed = self.method.commit_first if first else self.method.commit
        if self.below is None and needed is not None and self.simulations - self.committed >= needed and self.base.children:
            self.base = max(self.base.children, key=self.merit)
            self.committed = self.simulations

    def num_slots(self):
        return max(self.method.num_children, self.method.root_samples)

    def merit(self, child):
        if self.method.commit_by == "visits":
            return child.visits
        return -math.inf if math.isnan(child.value) else float(self.q(child))

    def note(self, leaf, result):
        """Weigh the answers as ``weighted-vote`` does; of the other rules the twin knows those that follow a path."""
        reached = [(leaf, 1)] if result is None else [*result[2], *((node, node.count) for node in result[1])]
        for node, count in reached:
            if node.answer is not None:
                score = self.path_score(node)
                self.best = max(self.best, -1.0 if score is None else score)
                total, times = self.tally.get(node.answer, (None, 0))
                total = total if score is None else (total or 0.0) + count * score
                self.tally[node.answer] = (total, times + count)

    def leader(self):
        if self.method.answer_rule in ("robust-path", "value-path"):
            return self.end_of_robust_path(self.nodes[0])
        scored = any(total is not None for total, _ in self.tally.values())
        return max(self.tally, key=lambda answer: (self.tally[answer][0] or 0.0) if scored else self.tally[answer][1], default=None)

    def end_of_robust_path(self, node):
        if node.answer is not None:
            return node.answer
        leading = [child for child in node.children if self.end_of_robust_path(child) is not None]
        if not leading:
            return None
        by_visits = self.method.answer_rule == "robust-path"
        merit = lambda child: (child.visits * by_visits, -math.inf if math.isnan(child.value) else child.value)  # noqa: E731
        return self.end_of_robust_path(max(leading, key=merit))

    def path_score(self, node):
        scores = [on_path.score for on_path in node.path() if on_path.score is not None]
        if not scores:
            return None
        g, weight = self.aggregated(scores), self.method.ahead
        return g if node.score is None else (g + weight * node.score) / (1 + weight)

    def aggregated(self, scores):
        return {
            "last": lambda: scores[-1],
            "min": lambda: min(scores),
            "product": lambda: math.prod(scores),
            "mean": lambda: math.fsum(scores) / len(scores),
        }[self.method.aggregation]()

    def why_stop(self):
        greedy_done = self.sampling and self.method.temperature == 0 and self.simulations
        if greedy_done or (not self.sampling and not any(n.growable for n in self.nodes)):
            return StopReason.EXHAUSTED
        if self.method.stop_value is not None and self.best >= self.method.stop_value:
            return StopReason.VALUE
        if self.method.stop_agreement is not None:
            recent = [answer for answer in self.leaders[-self.method.stop_window :] if answer is not None]
            if any(recent.count(answer) >= self.method.stop_agreement for answer in recent):
                return StopReason.CONVERGED
        if self.budget.max_calls is not None and self.calls >= self.budget.max_calls:
            return StopReason.CALLS
        if self.simulations >= self.budget.num_simulations and self.below is None:
            return StopReason.SIMULATIONS
        if self.budget.max_tokens is not None and self.tokens >= self.budget.max_tokens:
            return StopReason.TOKENS
        return None

    def allowed(self):
        if self.sampling and self.method.temperature == 0:
            return 1
        most = min(self.method.wave, self.budget.num_simulations - self.simulations)
        if self.budget.max_calls is not None and not self.sampling:
            most = min(most, self.budget.max_calls - self.calls)
        if self.budget.max_tokens is not None and self.tokens:
            per_draw = self.tokens / self.draws
            one = self.sampling or self.method.share or self.method.temperature == 0
            cost = per_draw * (1 if one else self.method.num_children)
            most = min(most, int((self.budget.max_tokens - self.tokens) / cost))
        return max(most, 1)

    # ---- select

    def select(self, most):
        if self.sampling:
            self.wanted = most
            return [self.select_start(most)]
        if self.method.selection == "beam":
            return self.select_beam(most)
        if self.method.selection in ("best-first", "depth-first"):
            return self.select_frontier(most)
        if self.method.selection == "resample":
            return self.select_particles(most)
        wave = []
        while len(wave) < most and self.reachable(self.base):
            node = self.descend(self.below or self.base)
            wave.append(node)
            node.busy = not node.ended
            for on_path in [self.nodes[0], *node.path()]:
                on_path.virtual += 1
        return wave

    def select_start(self, draws):
        """Return the node of best score, weighed down by the draws from it; the root is worth the mean of its children."""
        root = self.nodes[0]

        def worth(node):
            known = [float(child.raw) for child in node.children if not math.isnan(child.raw)] if node is root else [float(node.raw)]
            return (
                -math.inf if math.isnan(sum(known)) else (sum(known) / max(len(known), 1)) / (1 + node.starts) ** self.method.restart_power
            )

        if self.method.selection == "sample" or root.starts < self.method.root_draws:
            best = root
        else:
            best = max((node for node in self.nodes if not node.ended), key=worth)
        best.starts += draws
        return best

    def descend(self, node):
        while node.children:
            options = [child for child in node.children if self.reachable(child)]
            if self.method.selection == "ab-mcts":
                chosen = self.choose(node, options) if options else None
            elif node.growable and (not options or self.widens(node)):
                chosen = None
            else:
                chosen = max(options, key=partial(self.edge_score, node))
            if chosen is None:
                return node
            node = chosen
        return node

    def reachable(self, node):
        if node.children:
            return node.growable or any(self.reachable(child) for child in node.children)
        return self.method.terminals == "revisit" if node.ended else not node.busy

    # ---- adaptive branching

    def uniform(self):
        self.drawn += 1
        mask = (1 << 64) - 1
        state = (self.stream + self.drawn * 0x9E3779B97F4A7C15) & mask
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & mask
        return ((state ^ (state >> 31)) >> 11) * 2.0**-53

    def normal(self):
        return math.sqrt(-2.0 * math.log(1.0 - self.uniform())) * math.cos(2.0 * math.pi * self.uniform())

    def gamma(self, shape):
        if shape < 1:
            return (1.0 - self.uniform()) ** (1.0 / shape) * self.gamma(shape + 1)
        d = shape - 1 / 3
        while True:
            x = self.normal()
            v = (1 + x / math.sqrt(9 * d)) ** 3
            if v > 0 and math.log(1.0 - self.uniform()) < 0.5 * x * x + d - d * v + d * math.log(v):
                return d * v

    def rewards(self, node):
        """Return the scores of a node and of everything below it."""
        below = [score for child in node.children for score in self.rewards(child)]
        return below if math.isnan(node.raw) else [float(node.raw), *below]

    def believe(self, scores):
        if self.method.belief == "beta":
            wins, losses = self.gamma(0.5 + sum(scores)), self.gamma(0.5 + len(scores) - sum(scores))
            return wins / (wins + losses)
        n, kappa = len(scores), 1.0 + len(scores)
        mean = sum(scores) / n if n else 0.0
        scatter = 0.1 + sum((score - mean) ** 2 for score in scores) + n * mean**2 / kappa
        variance = 0.5 * scatter / self.gamma(0.5 * (1 + n))
        return sum(scores) / kappa + math.sqrt(variance / kappa) * self.normal()

    def choose(self, node, options):
        if self.method.belief == "mixed":
            return self.choose_together(node, options)
        if node.growable:
            new = [float(child.raw) for child in node.children if not math.isnan(child.raw)]
            below = [score for child in node.children for grandchild in child.children for score in self.rewards(grandchild)]
            if self.believe(new) >= self.believe(below):
                return None
        drawn = [(self.believe(self.rewards(child)), child) for child in options]
        return max(drawn, key=lambda pair: pair[0])[1]

    def choose_together(self, node, options):
        groups = [self.rewards(child) for child in node.children]
        *drawn, new = self.draw_mixed(groups)
        best, highest = None, new if node.growable else -math.inf
        for child, scores, score in zip(node.children, groups, drawn, strict=True):
            rounded = [round(each * 100) for each in scores]
            settled = len(scores) >= 4 and max(map(rounded.count, rounded)) >= 0.75 * len(scores)
            if child in options and not (settled and node.growable) and score > highest:
                best, highest = child, score
        return best

    def draw_mixed(self, groups):
        quantiles = [NormalDist().inv_cdf((1 + (i + 0.5) / 24) / 2) for i in range(24)]
        spread, noise = (axis.ravel() for axis in np.meshgrid(0.2 * np.array(quantiles), 0.3 * np.array(quantiles), indexing="ij"))
        precision, weighted, logs = 25.0, 12.5, 0.0
        for scores in filter(None, groups):
            n, own = len(scores), sum(scores) / len(scores)
            variance = spread**2 + noise**2 / n
            precision, weighted = precision + 1 / variance, weighted + own / variance
            scatter = sum((score - own) ** 2 for score in scores)
            logs = logs - (n - 1) * np.log(noise) - 0.5 * scatter / noise**2 - 0.5 * np.log(variance) - 0.5 * own**2 / variance
        logs = logs - 0.5 * np.log(precision) + 0.5 * weighted**2 / precision + np.zeros(len(spread))
        reached = np.cumsum(np.exp(logs - logs.max()))
        at = min(int(np.searchsorted(reached, self.uniform() * reached[-1], side="right")), len(spread) - 1)
        spread, noise = spread[at], noise[at]
        precision, weighted = (value + np.zeros(len(logs)) for value in (precision, weighted))
        mu, found = weighted[at] / precision[at] + self.normal() / math.sqrt(precision[at]), []
        for scores in [*groups, []]:
            own = len(scores) / noise**2 + 1 / spread**2
            alpha = (sum(scores) / noise**2 + mu / spread**2) / own + self.normal() / math.sqrt(own)
            found.append(alpha + noise * self.normal())
        return found

    def widens(self, node):
        m = self.method
        if m.widen == "power":
            return node.samples < m.widen_base * float(max(node.visits + node.virtual, 1)) ** m.widen_power
        if m.widen == "gen":
            return True
        return m.widen == "stay" and (0 < float(node.value) <= m.stay_low or m.stay_high <= float(node.value) < 1)

    def select_beam(self, most):
        deepest = self.nodes[-1].depth
        level = [node for node in self.nodes if node.depth == deepest]
        level.sort(key=lambda node: (1.0 if math.isnan(node.raw) else -float(node.raw), -float(np.float32(node.prior)), node.index))
        left, kept = list(self.widths), []
        for node in level:
            group = 0 if node.parent is None else self.nodes[0].children.index(node.path()[0]) % len(left)
            if left[group]:
                left[group] -= 1
                kept.append(node)
                self.widths[group] -= node.ended
        return [node for node in kept if not node.ended][:most]

    def select_frontier(self, most):
        revisit = self.method.terminals == "revisit"
        allowed = [n for n in self.nodes if not n.raw < self.method.min_value]
        allowed = [n for n in allowed if not n.parent or math.exp(n.step_logp) >= self.method.least_probability]
        leaves = [n for n in allowed if (not n.children and (revisit or not n.ended)) or (n.growable and self.widens(n))]
        leaves = leaves or [n for n in allowed if n.growable]
        deep = self.method.selection == "depth-first"
        leaves.sort(key=lambda n: (-n.depth if deep else 0, -self.priority(n), n.index))
        return leaves[:most]

    def priority(self, node):
        m, raw = self.method, float(node.raw)
        if m.priority == "value":
            return -math.inf if math.isnan(raw) else raw
        if m.priority == "deepsearch":
            above = (node.parent or node).value
            q = 0.0 if math.isnan(above) else 2 * float(above) - 1
            depth = m.depth_weight * math.sqrt(node.depth / self.budget.max_depth)
            return m.value_weight * math.tanh(q) + m.surprisal_weight * (node.surprisal if node.ids else 0.0) + depth
        score = min(max(0.5 if math.isnan(raw) else raw, 1e-6), 1 - 1e-6)
        unseen = max(node.unseen, 1e-300) if m.widen == "gen" and node.samples else 1.0
        path = sum(on_path.step_logp for on_path in node.path())
        return m.path_weight * path + m.score_weight * math.log(score / (1 - score)) + math.log(unseen)

    def select_particles(self, most):
        """Draw every particle of the next generation by itself, through the list of all particles."""
        m = self.method
        if self.generation[0][0] is self.nodes[0]:
            self.copies, self.kept = {0: m.wave}, []
            return [self.nodes[0]]

        def weight(node, copies):
            value = 0.5 if math.isnan(node.raw) else float(node.raw)
            value = min(max(value, 2.0**-52), 1 - 2.0**-52)
            odds = value / (1 - value)
            return copies * (odds ** (1 / m.resample_temperature) if m.resample_by == "odds" else math.exp(value / m.resample_temperature))

        weights = [weight(*particle) for particle in self.generation]
        drawn = [0] * len(weights)
        for u in np.random.default_rng(derive_seed(self.seed, "resample", self.simulations)).random(m.wave):
            reached, place = weights[0], 0
            while reached <= u * sum(weights) and place < len(weights) - 1:
                place += 1
                reached += weights[place]
            drawn[place] += 1
        self.copies, self.kept, wave = {}, [], []
        for (node, _), number in zip(self.generation, drawn, strict=True):
            if number and node.ended:
                self.kept.append((node, number))
            elif number and most > 0:
                self.copies[node.index] = min(number, most)
                wave.append(node)
                most -= number
        return wave

    def edge_score(self, node, child):
        m = self.method
        if m.selection == "gumbel":
            return self.gumbel_score(node, child)
        visits, total = child.visits, sum(c.visits + c.virtual for c in node.children)
        node_visits = node.visits + node.virtual
        if m.normalise == "siblings":
            values = [float(self.q(c)) for c in node.children if c.visits and not math.isnan(c.value)]
            bounds = values + ([] if math.isnan(node.value) else [float(node.value)])
            known = child.visits and not math.isnan(child.value)
            q = (np.float32(self.q(child)) - np.float32(min(bounds))) / max(np.float32(max(bounds) - min(bounds)), 1e-8) if known else 0.0
        else:
            q = self.completed(node, child)
        if m.critic_mix and not math.isnan(child.raw):
            q = (1 - m.critic_mix) * float(q) + m.critic_mix * float(child.raw)
        q = float(q) * max(visits, 1) / (max(visits, 1) + child.virtual)
        n, prior = visits + child.virtual, float(np.float32(child.prior))
        if m.selection == "puct":
            return q + m.c * prior * math.sqrt(total) / (1 + n)
        if m.selection == "puct-mctx":
            return q + prior * math.sqrt(node_visits) / (1 + n) * (m.c + math.log((node_visits + m.c_base + 1) / m.c_base))
        if m.selection == "puct-muzero":
            return q + prior * math.sqrt(total) / (1 + n) * (m.c + math.log((total + m.c_base + 1) / m.c_base))
        return q + (m.c * math.sqrt(math.log(max(node_visits, 1)) / n) if n else 0.0)

    def gumbel_score(self, node, child):
        m, siblings = self.method, node.children
        logits = [math.log(np.float32(c.prior)) if c.prior else -math.inf for c in siblings]
        visits = [c.visits + c.virtual for c in siblings]
        known = [bool(c.visits) and not math.isnan(c.value) for c in siblings]
        own = node.raw if not math.isnan(node.raw) else 0.5 if math.isnan(node.value) else node.value
        done = sum(c.visits for c, k in zip(siblings, known, strict=True) if k)
        weights = [
            max(float(np.float32(c.prior)), float(np.finfo(np.float32).tiny)) if k else 0.0 for c, k in zip(siblings, known, strict=True)
        ]
        mean = sum(w * float(self.q(c)) for c, w in zip(siblings, weights, strict=True) if w) / (sum(weights) or 1.0)
        mixed = (float(own) + done * mean) / (1 + done)
        values = [float(self.q(c)) if k else mixed for c, k in zip(siblings, known, strict=True)]
        if m.rescale_values:
            span = max(max(values) - min(values), 1e-8)
            values = [(value - min(values)) / span for value in values]
        values = [(m.maxvisit_init + max(visits)) * m.value_scale * value for value in values]
        i = siblings.index(child)
        if node is not self.nodes[0]:
            improved = [logit + value for logit, value in zip(logits, values, strict=True)]
            shares = [math.exp(x - max(improved)) for x in improved]
            return shares[i] / sum(shares) - visits[i] / (1 + sum(visits))
        schedule = self.halving_schedule(min(len(siblings), m.max_considered))
        score = max(-1e9, m.gumbel_scale * self.noise[i] + logits[i] - max(logits) + values[i])
        return score if visits[i] == schedule[min(sum(visits), len(schedule) - 1)] else score - 1e12

    def halving_schedule(self, num_candidates):
        total = min(max(self.budget.num_simulations - 1, 1), 4096)
        visits, candidates, schedule = [0] * num_candidates, num_candidates, []
        rounds = max(math.ceil(math.log2(num_candidates)), 1)
        while len(schedule) < total:
            for _ in range(max(1, total // (rounds * candidates)) if num_candidates > 1 else 1):
                for i in range(candidates):
                    schedule.append(visits[i])
                    visits[i] += 1
            candidates = max(2, candidates // 2) if num_candidates > 1 else 1
        return schedule

    def q(self, child):
        return child.reward + np.float32(self.method.discount) * child.value

    def completed(self, node, child):
        inherited = 0.5 if math.isnan(node.value) else float(node.value)
        if child.visits:
            return inherited if math.isnan(child.value) else float(self.q(child))
        raw = inherited if math.isnan(child.raw) else float(child.raw)
        return {"inf": math.inf, "zero": 0.0, "parent": inherited, "raw": raw}[self.method.unvisited] + self.method.unvisited_bonus

    # ---- propose and score

    def draw(self, leaf, place, num_leaves):
        m = self.method
        if leaf.ended:
            return 0, []
        self.calls += 1
        sampling, greedy = self.sampling, m.temperature == 0
        num = self.wanted if sampling else 1 if greedy else m.root_samples if leaf.depth == 0 else m.num_children
        if leaf.samples:
            num = m.again_samples
        elif leaf.depth and not greedy and m.branch_entropy is not None and leaf.surprisal < m.branch_entropy:
            num = 1
        if leaf.depth and m.selection == "resample":
            num *= self.copies[leaf.index]
        if leaf.depth and m.share:
            num = min(num, sum(self.widths) // num_leaves + (place < sum(self.widths) % num_leaves))
        seed = 0 if greedy else derive_seed(self.seed, leaf.index, self.simulations) if sampling else derive_seed(self.seed, leaf.index)
        if leaf.samples and not sampling:
            seed = derive_seed(self.seed, leaf.index, "again", leaf.samples)
        start = self.prompt + tuple(i for node in leaf.path() for i in node.ids)
        samples, known = [], set(leaf.drawn)
        for index in range(num):
            if m.siblings == "distinct" and not sampling:
                samples.append([self.propose_other(start, index, seed, known)])
                continue
            prefix, steps = start, []
            longest = m.draw_steps if self.score else None
            most = min(longest or self.budget.max_depth, self.budget.max_depth - leaf.depth) if sampling else 1
            while len(steps) < most and (not steps or steps[-1].stop_reason == StopReason.STEP):
                steps.append(self.propose(prefix, index, seed))
                prefix += steps[-1].token_ids
            samples.append(steps)
        self.draws += num
        self.tokens += sum(len(step.token_ids) for steps in samples for step in steps)
        return num, samples

    def propose_other(self, start, index, seed, known):
        """As the scripted policy does: go on through the samples until one is new."""
        for at in range(index, index + 100):
            step = self.propose(start, at, seed)
            if step.token_ids not in known:
                break
        else:
            step = self.propose(start, index, seed)
        known.add(step.token_ids)
        return step

    def enter(self, leaf, samples):
        """Add the samples below the leaf; return each sample's last node, the new nodes, and repeated older ones with their numbers."""
        sampling, new, ends, repeats = self.sampling, [], [], {}
        for steps in samples:
            at = leaf
            for i, step in enumerate(steps, start=1):
                same = [c for c in at.children if self.equal(c, step) and c.step_reason == step.stop_reason]
                if not sampling and not step.token_ids:
                    same = [c for c in same if c in new]
                stops_short = step.stop_reason == StopReason.STEP and leaf.depth + i < self.budget.max_depth
                if same and not (sampling and i == len(steps) and not stops_short):
                    at = same[0]
                    at.count += at in new or not sampling
                    if at not in new:
                        repeats[at.index] = repeats.get(at.index, 0) + 1
                    continue
                at = self.add(at, step)
                new.append(at)
            ends.append(at)
        if not sampling:
            self.set_priors(leaf.children)
            self.roll_out(leaf, new)
            self.open_again(leaf, [step for (step,) in samples])
        return ends, new, [(self.nodes[index], count) for index, count in repeats.items()]

    def open_again(self, leaf, steps):
        leaf.samples += len(steps)
        for step in steps:
            if step.token_ids and step.token_ids not in leaf.drawn:
                leaf.drawn.add(step.token_ids)
                leaf.unseen -= min(math.exp(math.fsum(step.logps)), 1.0)
        leaf.again = self.method.widen != "once" and leaf.unseen >= self.method.least_unseen and any(step.token_ids for step in steps)

    def equal(self, child, step):
        if self.method.merge == "text" and not self.sampling:
            return child.text.split() == step.text.split()
        return child.ids == step.token_ids

    def add(self, parent, step):
        node = Node(len(self.nodes), parent, step.token_ids, step.stop_reason, parent.depth + 1)
        node.step_logp = sum(step.logps)
        node.step_reason, node.text = step.stop_reason, step.text
        node.surprisal = -math.fsum(step.logps) / len(step.logps) if step.logps else math.inf
        node.logp = sum(step.logps) / len(step.logps) if step.logps else -math.inf
        if self.method.prior == "sum-logp" and step.logps:
            node.logp = sum(step.logps)
        if self.method.prior in ("norm-logp", "exp-norm-logp") and step.logps:
            node.logp = sum(step.logps) / len(step.logps) ** 1.25
        if node.reason == StopReason.LENGTH and self.method.cut_steps == "continue":
            node.reason = StopReason.STEP
        if node.reason == StopReason.STEP and node.depth >= self.budget.max_depth:
            node.reason = StopReason.DEPTH
        self.nodes.append(node)
        parent.children.append(node)
        ids = tuple(i for on_path in node.path() for i in on_path.ids)
        if self.score is not None and step.token_ids:
            node.score = self.score(self.prompt + ids)
        if node.reason == StopReason.END:
            node.answer = self.renderer.extract_answer("".join(map(chr, ids)))
        node.estimate = self.worth(node)
        node.raw = np.float32(node.estimate)
        return node

    def roll_out(self, leaf, new):
        """Value new nodes by rollouts; then rewards."""
        able = [node for node in new if not node.ended]
        if self.method.rollout_of == "best" and new:
            best = max(new, key=lambda node: -1.0 if node.score is None else node.score)
            able = [node for node in able if node is best]
        reached = [answer for node in new for answer in [node.answer] * node.count if answer is not None]
        for node in able if self.method.rollouts else []:
            node.rolled = True
            self.calls += 1
            worths, self.reached = [], []
            seed = 0 if self.method.rollout_temperature == 0 else derive_seed(self.seed, "rollout", leaf.index, leaf.children.index(node))
            for index in range(self.method.rollouts):
                worths.append(self.roll_out_once(node, 0 if self.method.rollout_temperature == 0 else index, seed))
            known = [worth for worth in worths if not math.isnan(worth)]
            reached += self.reached
            if self.by_agreement():
                known = [max(map(self.reached.count, self.reached), default=0) / self.method.rollouts]
            if known:
                mean, mix = math.fsum(known) / len(known), self.method.rollout_mix
                node.estimate = mean if math.isnan(node.estimate) else (1 - mix) * node.estimate + mix * mean
                node.raw = np.float32(node.estimate)
        for node in new:
            if self.by_agreement() and node.answer is not None:
                node.estimate = reached.count(node.answer) / len(reached)
                node.raw = np.float32(node.estimate)
            self.set_gain(node)

    def by_agreement(self):
        return self.method.rollout_value == "agreement" and (self.right is None or self.method.end_value == "score")

    def roll_out_once(self, node, index, seed):
        """Grow a chain beside the tree, and value its end as a node is valued."""
        ids = self.prompt + tuple(i for on_path in node.path() for i in on_path.ids)
        end, before = node, len(self.nodes)
        while not end.ended and end.depth - node.depth < (self.method.rollout_steps or 10**9):
            step = self.propose(ids, index, seed)
            self.tokens += len(step.token_ids)
            ids += step.token_ids
            end = self.add(end, step)
            end.parent.children.pop()
            if step.stop_reason == StopReason.LENGTH:
                break
        if end.answer is not None:
            self.reached.append(end.answer)
        on_way = self.nodes[before:]
        del self.nodes[before:]
        known = [step.estimate for step in on_way if not math.isnan(step.estimate)]
        return max(known, default=math.nan) if self.method.rollout_value == "best" else end.estimate

    def set_gain(self, node):
        parent = node.parent
        if self.method.reward == "gain" and not math.isnan(node.raw):
            node.gain = node.estimate - (0.5 if math.isnan(parent.raw) else float(parent.raw))
            node.reward = np.float32(node.gain)

    def worth(self, node):
        if node.ended and self.right is not None:
            node.outcome = float(node.answer is not None and node.answer == self.right)
            if self.method.end_value == "outcome":
                return node.outcome
        if node.ended and node.answer is None:
            return 0.0
        score = self.path_score(node) if self.method.estimate == "path" else node.score
        return math.nan if score is None else score

    def set_priors(self, siblings):
        rule, weights = self.method.prior, [1.0] * len(siblings)
        heat = self.method.prior_temperature
        if rule == "frequency":
            weights = [node.count ** (1 / heat) for node in siblings]
        elif rule not in ("uniform", "ones") and max(node.logp for node in siblings) > -math.inf:
            weights = [math.exp((node.logp - max(n.logp for n in siblings)) / heat) for node in siblings]
            if rule.startswith("exp-"):
                weights = [math.exp(node.logp / heat) for node in siblings]
        total = sum(weights) if not rule.startswith("exp-") or max(node.logp for node in siblings) == -math.inf else 1.0
        total = 1.0 if rule == "ones" else total
        for node, weight in zip(siblings, weights, strict=True):
            node.prior = weight / total
        if siblings and siblings[0].parent is self.nodes[0] and self.method.root_noise:
            seed, share = derive_seed(self.seed, "root noise"), self.method.root_noise
            noise = np.random.default_rng(seed).dirichlet([self.method.root_noise_alpha] * len(siblings))
            for node, extra in zip(siblings, noise, strict=True):
                node.prior = (1 - share) * node.prior + share * float(extra)

    # ---- back up

    def back_up(self, leaf, result):
        if result is None:
            return self.visit(leaf, self.own(leaf))
        ends, new, repeats = result
        if self.sampling:
            for end in ends:
                self.visit(end, end.raw)
            return None
        ends = [node for node in new if node.answer is not None]
        if self.method.evaluation == "leaf":
            self.visit(leaf, self.own(leaf))
            return [self.visit(end, self.own(end)) for end in ends if self.method.terminals == "once"]
        born = [node for node in new if node not in ends and not math.isnan(node.raw)] if self.method.evaluation == "ends" else new
        if self.method.evaluation == "best":
            rolled = [node for node in new if node.rolled] if self.method.rollout_of == "best" else []
            born = rolled or sorted(new, key=lambda node: 1.0 if math.isnan(node.raw) else -node.raw)[:1]
        for node in born:
            node.visits, node.returns, node.value = 1, int(not math.isnan(node.raw)), self.own(node)
        if self.method.evaluation == "ends":
            return [self.visit(end, self.own(end)) for end in ends]
        if self.method.evaluation == "best":
            return self.visit(leaf, np.float32(self.brings(born[0])) if born else NAN)
        known = [(node.count, self.brings(node)) for node in new if not math.isnan(node.raw)]
        known += [
            (count, float(node.reward if self.method.reward == "gain" else node.raw)) for node, count in repeats if not math.isnan(node.raw)
        ]
        total = sum(count for count, _ in known)
        return self.visit(leaf, np.float32(sum(count * worth for count, worth in known) / total) if known else NAN)

    def own(self, node):
        return node.raw * ZERO if self.method.reward == "gain" else node.raw

    def brings(self, node):
        return (node.gain if not math.isnan(node.raw) else math.nan) if self.method.reward == "gain" else node.estimate

    def visit(self, node, amount):
        while node is not None:
            node.visits += 1
            if self.method.backup == "min" and not self.sampling and not math.isnan(node.raw):
                amount = min(amount, node.raw) if not math.isnan(amount) else amount
            if not math.isnan(amount):
                node.returns += 1
                node.value = amount if node.returns == 1 else node.value + (amount - node.value) / np.float32(node.returns)
            valued = [c for c in node.children if c.visits and not math.isnan(c.value)]
            if valued and not self.sampling:
                node.value = self.from_children(node, valued)
            amount = node.reward + np.float32(self.method.discount) * amount
            node = node.parent

    def from_children(self, node, valued):
        values = [float(self.q(c)) for c in valued]
        if self.method.backup == "child-mean":
            return np.float32(sum(v * c.visits for v, c in zip(values, valued, strict=True)) / sum(c.visits for c in valued))
        if self.method.backup == "uniform-child-mean":
            return np.float32(sum(values) / len(values))
        return np.float32(max(values)) if self.method.backup == "max" else node.value
