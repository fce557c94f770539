def area(w, h):
    return w * h


def circumference(w, h):
    return 2 * (w + h)
