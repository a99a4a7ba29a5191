"""Presets that draw whole solutions, from the root or from a step on."""

from stepladder.mcts.presets.preset import row

SAMPLING_ROWS = (
    row(
        "best-of-n",
        "Independent full solutions, one per simulation, answer by best score.",
        source="Cobbe et al. 2021, Training verifiers to solve math word problems",
        selection="sample",
        wave=4,
        answer_rule="best",
    ),
    row(
        "majority",
        "Independent full solutions, one per simulation, answer by majority; needs no PRM.",
        source="Wang et al. 2022, Self-consistency improves chain of thought reasoning",
        selection="sample",
        wave=4,
        answer_rule="majority",
    ),
    row(
        "weighted-vote",
        "Independent full solutions, one per simulation, answer by score-weighted vote.",
        source="Uesato et al. 2022, Solving math word problems with process- and outcome-based feedback",
        selection="sample",
        wave=4,
    ),
    row(
        "greedy",
        "One full solution, the likeliest token at every place.",
        source="ours",
        selection="sample",
        temperature=0.0,
        answer_rule="majority",
    ),
    row(
        "restart",
        "Solutions from the most promising step of those drawn before, as the PRM sees it; the first from the question.",
        source="ours; Ecoffet et al. 2021, First return, then explore",
        selection="restart",
    ),
)
