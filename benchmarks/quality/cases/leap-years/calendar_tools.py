"""Dates, as the office needs them."""


def is_leap(year: int) -> bool:
    """Return whether a year of the Gregorian calendar has a 29th of February."""
    return year % 4 == 0 and year % 100 != 0


def days_in_february(year: int) -> int:
    return 29 if is_leap(year) else 28
