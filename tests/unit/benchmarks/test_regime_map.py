"""The map of regimes: accuracies, leads and picture by hand."""

from benchmarks.regime_map import BANDS, Place, draw, table

PROBLEMS = {"near": ["a", "b"], "middle": ["c", "d"], "far": ["e"]}


def place(noise: float, arm: str, *right: str) -> Place:
    """Return a place whose seeds solve the problems with these letters."""
    by_seed = {}
    for seed, solved in enumerate(right):
        bands = {band: {name: float(name in solved) for name in names} for band, names in PROBLEMS.items()}
        by_seed[seed] = {**bands, "all": {name: each for band in bands.values() for name, each in band.items()}}
    return Place(noise, arm, by_seed, 0.125 * noise)


FOUND = [
    place(0.0, "star-single", "ab", "a"),
    place(0.0, "search", "abc", "abc"),
    place(0.1, "star-single", "ab", "ab"),
    place(0.1, "search", "a", "b"),
    place(0.1, "search-random", "", ""),
]


def test_the_table_has_accuracies_by_band_and_leads() -> None:
    """Two seeds: samples solve 2 and 1 of 5 problems, the search 3 and 3, a lead of 20 and 40 points; with noise one behind the other."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(FOUND).splitlines()[2:]]
    assert [row[:7] for row in rows] == [
        ["none", "samples", "2", "75.0", "0.0", "0.0", "30.0"],
        ["none", "search", "2", "100.0", "50.0", "0.0", "60.0"],
        ["1 in 10", "samples", "2", "100.0", "0.0", "0.0", "40.0"],
        ["1 in 10", "search", "2", "50.0", "0.0", "0.0", "20.0"],
        ["1 in 10", "search, random scores", "2", "0.0", "0.0", "0.0", "0.0"],
    ]
    assert [row[7] for row in rows] == ["–", "+30.0", "–", "-20.0", "-40.0"]
    assert [row[10] for row in rows] == ["0.0", "0.0", "1.2", "1.2", "1.2"]
    # Means 20 and 40: standard error 10, times 12.706 with one degree of freedom.
    assert rows[1][8] == "-97.1 to +157.1" and rows[3][8] == "-20.0 to -20.0"


def test_seeds_that_one_arm_lacks_are_left_out_of_the_lead() -> None:
    """Only the first seed has both arms, and one seed has no interval over seeds."""
    found = [place(0.0, "star-single", "ab"), place(0.0, "search", "abc", "")]
    assert table(found).splitlines()[-1].split("|")[8:10] == [" +20.0 ", " – "]
    assert table(found[1:]).splitlines()[-1].split("|")[8:11] == [" – "] * 3


def test_the_picture_has_a_panel_for_each_band() -> None:
    """Means with the lowest and the highest seed, by noise."""
    picture = draw(FOUND)
    for text in ("75.0 % (50.0 to 100.0)", "60.0 % (60.0 to 60.0)", "1 in 10", ">random<"):
        assert text in picture
    assert all(f"greedy, {low} to {high} moves" in picture for low, high in BANDS.values())
