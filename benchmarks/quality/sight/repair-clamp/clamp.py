def clamp(x, low, high):
    """Return x, but never below low nor above high."""
    if x < low:
        return low
    if x > high:
        return low
    return x
