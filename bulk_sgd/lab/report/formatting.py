"""How reports write numbers."""

import math
import re


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits; a dash where nothing is known."""
    if not math.isfinite(value):
        return "–"
    whole = 10**digits <= abs(value) < 1e6
    text = f"{abs(value):,.0f}" if whole else f"{abs(value):#.{digits}g}".rstrip(".")
    return _signed(value, text)


def exact(value: float) -> str:
    """A number that somebody chose, such as a learning rate or a tick of an axis."""
    if isinstance(value, int) or (abs(value) < 1e6 and value == round(value)):
        return _signed(value, f"{abs(value):,.0f}")
    return _signed(value, f"{abs(value):g}")


def _signed(value, text):
    """The text with a true minus sign, and with 1e6 for 1e+06."""
    text = re.sub(r"e([+-])0*(\d)", lambda e: f"e{e[1].strip('+')}{e[2]}", text)
    return f"−{text}" if value < 0 else text


def whole(count: int | None) -> str:
    """A whole number; a dash where nothing is known."""
    return "–" if count is None else f"{count:,}"


def percent(share: float, digits: int = 3) -> str:
    """A share of 1 in per cent; a dash where nothing is known."""
    text = number(100 * share, digits)
    return text if text == "–" else f"{text}\N{NO-BREAK SPACE}%"


def chi(rank: int | None) -> str:
    """The alignment's name with the rank k below it, such as χ₁₀."""
    digits = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
    return "χ" + (str(rank).translate(digits) if rank else "ₖ")
