"""Units of measure: their spellings, and the one name that each has here."""

import re

_SPELLINGS = {
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "inch": "in inch inches",
    "foot": "ft foot feet",
    "yard": "yd yard yards",
    "mile": "mi mile miles",
    "unit": "unit units",
    "mg": "mg milligram milligrams",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms",
    "ounce": "oz ounce ounces",
    "pound": "lb lbs pound pounds",
    "ton": "ton tons tonne tonnes",
    "ml": "ml mL milliliter milliliters millilitre millilitres",
    "l": "L liter liters litre litres",
    "gallon": "gal gallon gallons",
    "quart": "quart quarts",
    "pint": "pint pints",
    "cup": "cup cups",
    "tablespoon": "tbsp tablespoon tablespoons",
    "teaspoon": "tsp teaspoon teaspoons",
    "second": "s sec secs second seconds",
    "minute": "min mins minute minutes",
    "hour": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
    "dollar": "dollar dollars usd USD \\$",
    "cent": "cent cents \\cent ¢",
    "euro": "euro euros EUR €",
    "pound sterling": "GBP £",
    "degree": "degree degrees deg \\circ",
    "radian": "radian radians rad",
    "acre": "acre acres",
    "hectare": "ha hectare hectares",
    "hertz": "Hz hertz",
    "volt": "volt volts",
    "watt": "watt watts",
    "joule": "joule joules",
    "newton": "newton newtons",
}
_NAMES = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_WHOLE = {"mph": "mile/hour", "kph": "km/hour", "kmh": "km/hour"}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}

OPTIONAL_UNITS = frozenset({"degree", "dollar"})
"""Units that are mere signs (60 degrees, 18 dollars): they may be left out on either side."""

_PART = re.compile(
    r"""
    (?: (?P<before> square | sq\.? | cubic | cu\.? ) \s* )?   # square feet
    (?P<name> \\?[A-Za-z]+ | \\?[$¢€£] ) \.?                  # cm
    (?: \s* \^? \s* (?P<power> [23] ) | \s* (?P<after> squared | cubed ) )?
    """,
    re.VERBOSE,
)
_PER = re.compile(r"\s*(?:/|\bper\b)\s*")


def unit_name(text: str) -> str | None:
    r"""Return the name of a unit by any of its spellings (``square cm``, ``cm^2``, ``miles per hour``, ``m/s``), or None.

    Case matters for abbreviations and not for words.
    """
    text = " ".join(text.split())
    if text in _WHOLE:
        return _WHOLE[text]
    parts = [_part_name(part) for part in _PER.split(text)]
    known = [part for part in parts if part is not None]
    return "/".join(known) if len(known) == len(parts) <= 2 else None


def _part_name(text: str) -> str | None:
    match = _PART.fullmatch(text)
    if match is None:
        return None
    spelt = match["name"]
    name = _NAMES.get(spelt) or (_NAMES.get(spelt.lower()) if len(spelt) > 3 else None)
    if name is None:
        return None
    stated = [int(match["power"])] if match["power"] else []
    stated += [_POWERS[match["before"].rstrip(".")]] if match["before"] else []
    stated += [{"squared": 2, "cubed": 3}[match["after"]]] if match["after"] else []
    if len(stated) > 1:
        return None
    return f"{name}^{stated[0]}" if stated else name
