"""The words and commands of mathematical notation that the reader knows."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTIONS = _words("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp sqrt abs floor ceil")
INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
"""The inverse of each function, for an exponent of -1."""
CONSTANTS = {"pi": "pi", "infty": "oo", "inf": "oo", "infinity": "oo", "Infinity": "oo", "e": "e", "i": "i"}
"""Spellings of constants, with their names here."""
GREEK = _words(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi chi psi omega Gamma "
    "Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell"
)
ACCENTS = _words("overline vec hat tilde mathcal mathbb mathfrak overrightarrow widetilde underline overleftrightarrow")
"""Commands that make a name of their argument."""
SHAPES = frozenset({"\\angle", "\\triangle"})
"""The same, without braces."""
OPERANDS = FUNCTIONS | GREEK | ACCENTS | set(CONSTANTS) | {"frac", "binom", "lfloor", "lceil", "begin"}
"""Commands that may be next to another factor."""
JOINTS = {",": ",", ";": ",", "and": "and", "or": "or", "\\land": "and", "\\lor": "or"}
"""Separators of the items of a list."""
RELATIONS = {"=": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\in": "in"}
SET_SIGNS = {"\\cup": "cup", "\\cap": "cap", "\\setminus": "setminus"}
ITEM_ENDS = frozenset({*JOINTS, ")", "]", "\\}", "&", "\\\\", "\\end"})
"""Ends of an item of a list, a bracket or a matrix."""
OPENINGS = frozenset({"(", "[", "\\{"})
CURRENCIES = {"\\$": "dollar", "€": "euro", "£": "pound sterling"}
BASE_WORDS = dict(zip(["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], range(2, 11), strict=True))
MATRICES = frozenset({"matrix", "pmatrix", "bmatrix", "array", "smallmatrix", "vmatrix"})
LANGUAGE = _words(
    "a an of to is in at no not per the for if on by mod as it be we so up off out all any one two ten old new yes "
    "has had was are am pm st nd rd th vs"
)
"""Short words of plain language: in a formula, other runs of up to three letters are products of letters."""
