"""Splits lists into pages."""


def pages(items, size):
    """Return the items in lists of at most ``size``, in order, none of them empty."""
    return [items[i : i + size] for i in range(0, len(items) - 1, size)]
