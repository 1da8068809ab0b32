"""How reports write numbers."""

import math


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits; a dash where nothing is known."""
    if not math.isfinite(value):
        return "–"
    whole = 10**digits <= abs(value) < 1e6
    text = f"{abs(value):,.0f}" if whole else f"{abs(value):#.{digits}g}".rstrip(".")
    return f"−{text}" if value < 0 else text


def percent(share: float, digits: int = 3) -> str:
    """A share of 1 in per cent; a dash where nothing is known."""
    text = number(100 * share, digits)
    return text if text == "–" else f"{text}\N{NO-BREAK SPACE}%"


def chi(rank: int | None) -> str:
    """The alignment's name with the rank k below it, such as χ₁₀."""
    digits = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
    return "χ" + (str(rank).translate(digits) if rank else "ₖ")
