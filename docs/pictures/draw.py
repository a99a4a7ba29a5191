"""Draw the pictures of the concepts page: run it after a change. They carry their own colours, for light and for dark pages."""

from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
STYLE = """
svg { font: 14px system-ui, sans-serif; }
text { fill: #222; text-anchor: middle; dominant-baseline: central; }
.small { font-size: 12px; fill: #555; }
.box { fill: #eef1fb; stroke: #4355b8; stroke-width: 1.5; }
.good { fill: #e2f4e5; stroke: #23803a; }
.bad { fill: #fbe7e7; stroke: #b3383f; }
.page { fill: #fff; }
.plain { fill: #fff; stroke: #888; }
.line { fill: none; stroke: #666; stroke-width: 1.5; }
.best { stroke: #23803a; stroke-width: 3; }
.head { fill: #666; }
@media (prefers-color-scheme: dark) {
  text { fill: #eee; } .small { fill: #bbb; } .box { fill: #2a3052; stroke: #9aa8f0; } .good { fill: #1f3d27; stroke: #6fce86; }
  .bad { fill: #472628; stroke: #ef8f95; } .page { fill: #1b1d24; }
  .plain { fill: #1b1d24; stroke: #999; } .line { stroke: #aaa; } .best { stroke: #6fce86; } .head { fill: #aaa; }
}
"""


def picture(name: str, title: str, width: int, height: int, parts: Iterable[str]) -> None:
    """Write a picture; the title is what a screen reader says."""
    arrow = '<path class="head" d="M0 0 8 4 0 8z"/>'
    marker = f'<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">{arrow}</marker>'
    page = f'<rect class="page" width="{width}" height="{height}" rx="10"/>'
    body = "\n".join([page, *parts])
    (HERE / f"{name}.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{title}">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n<defs>{marker}</defs>\n{body}\n</svg>\n",
        encoding="utf-8",
    )


def box(x: float, y: float, text: str, *, under: str = "", kind: str = "box", width: float = 110, height: float = 46) -> str:
    """Return a box around one or two lines of text, centred on a point."""
    lines = [f'<text x="{x}" y="{y - (8 if under else 0)}">{text}</text>']
    if under:
        lines.append(f'<text class="small" x="{x}" y="{y + 11}">{under}</text>')
    frame = f'<rect class="box {kind}" x="{x - width / 2}" y="{y - height / 2}" width="{width}" height="{height}" rx="8"/>'
    return frame + "".join(lines)


def line(*points: tuple[float, float], kind: str = "", arrow: bool = True) -> str:
    """Return a line through points, with an arrow at its end."""
    head = ' marker-end="url(#head)"' if arrow else ""
    return f'<path class="line {kind}" d="M{" L".join(f"{x} {y}" for x, y in points)}"{head}/>'


def note(x: float, y: float, text: str) -> str:
    """Return a line of small text."""
    return f'<text class="small" x="{x}" y="{y}">{text}</text>'


def rounds() -> None:
    """Draw the stages of a round in a circle."""
    stages = [
        ("search", "policy + PRM"),
        ("label", "trees to rows"),
        ("train", "policy, then PRM"),
        ("evaluate", "held-out, test"),
        ("gate", "better or refused"),
    ]
    xs = [80 + 150 * i for i in range(5)]
    parts = [box(x, 100, name, under=about, width=124) for x, (name, about) in zip(xs, stages, strict=True)]
    parts += [line((x + 62, 100), (x + 88, 100)) for x in xs[:-1]]
    parts += [
        line((xs[-1], 77), (xs[-1], 34), (xs[0], 34), (xs[0], 77)),
        note(380, 22, "the next round starts from the best models so far"),
    ]
    parts += [note(380, 160, "round 0, the warm-up, only trains and evaluates")]
    picture("rounds", "The five stages of a round: search, label, train, evaluate, gate; then the next round begins", 760, 176, parts)


def tree() -> None:
    """Draw a search tree with visits and scores, and its best path."""
    at = {
        "root": (350, 36),
        "a": (170, 126),
        "b": (350, 126),
        "c": (530, 126),
        "d": (90, 222),
        "e": (250, 222),
        "f": (440, 222),
        "g": (600, 222),
    }
    edges = ["root-a", "root-b", "root-c", "a-d", "a-e", "c-f", "c-g"]
    best = {"root-a", "a-e"}
    parts = []
    for edge in edges:
        (x, y), (u, v) = (at[end] for end in edge.split("-"))
        parts.append(line((x, y + 24), (u, v - 26), kind="best" if edge in best else ""))
    names = {
        "root": ("25143678", "16 visits", ""),
        "a": ("f2 52143678", "score 0.8, 10 visits", ""),
        "b": ("f8 87634152", "score 0.1, 1 visit", ""),
        "c": ("f5 34152678", "score 0.4, 5 visits", ""),
        "d": ("f5 34125678", "score 0.3, 2 visits", ""),
        "e": ("f3 12543678", "score 0.9, 7 visits", "good"),
        "f": ("f3 14352678", "score 0.2, 1 visit", ""),
        "g": ("f8 87625143", "score 0.5, 3 visits", ""),
    }
    parts += [box(*at[key], text, under=under, kind=kind, width=144) for key, (text, under, kind) in names.items()]
    picture("tree", "A search tree: the question, three first steps, and four second steps with scores and visits", 700, 256, parts)


def scores() -> None:
    """Draw what the PRM reads, and the target that it learns at a step."""
    parts = [box(70, 60, "question", kind="plain", width=100)]
    steps = [("step 1", "score 0.6"), ("step 2", "score 0.8"), ("step 3", "score 0.3")]
    for i, (name, score) in enumerate(steps):
        parts += [box(205 + 135 * i, 60, name, under=score), line((205 + 135 * i - 80 if i else 120, 60), (205 + 135 * i - 57, 60))]
    ends = [("right", "good", 120), ("wrong", "bad", 170), ("right", "good", 220)]
    for name, kind, y in ends:
        parts += [box(560, y, name, kind=kind, width=90, height=32), line((340, 84), (340, y), (513, y))]
    parts += [note(440, 252, "rollouts after step 2: two of three end right, so its target is 2/3")]
    picture(
        "prm",
        "The PRM scores the end of every step; the target of a step is the share of rollouts after it that end right",
        660,
        270,
        parts,
    )


def labels() -> None:
    """Draw the rows that one tree becomes."""
    parts = [line((120, 54), (60, 126), kind="best"), line((120, 54), (180, 126))]
    parts += [
        box(120, 36, "prefix", width=90),
        box(60, 148, "step", under="value 0.9", kind="good", width=96),
        box(180, 148, "step", under="value 0.2", kind="bad", width=96),
    ]
    rows = [("trace", "right solution", "SFT"), ("pair", "0.9 over 0.2", "preferences"), ("value", "0.9 and 0.2", "PRM")]
    for (name, about, use), y in zip(rows, (40, 95, 150), strict=True):
        parts += [
            line((240, 95), (318, y)),
            box(385, y, name, under=about, width=130),
            line((450, y), (508, y)),
            box(570, y, use, kind="plain", width=116),
        ]
    picture("labels", "One tree becomes traces for SFT, pairs for preferences, and values for the PRM", 640, 190, parts)


def gate() -> None:
    """Draw the gate between a round's models and the best ones."""
    parts = [
        box(90, 90, "new policy", under="held-out 52 %"),
        line((145, 90), (238, 90)),
        box(310, 90, "gate", under="held-out problems", width=140),
        line((380, 78), (468, 44)),
        line((380, 102), (468, 138)),
        box(545, 44, "accepted", under="it is the best now", kind="good", width=150),
        box(545, 138, "refused", under="the best one stays", kind="bad", width=150),
        box(310, 24, "best policy", under="held-out 47 %", width=120),
        line((310, 47), (310, 65)),
    ]
    picture("gate", "The gate compares a new model with the best one on held-out problems, and accepts or refuses it", 640, 180, parts)


if __name__ == "__main__":
    for draw in (rounds, tree, scores, labels, gate):
        draw()
