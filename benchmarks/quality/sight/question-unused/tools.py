def load(path):
    return open(path).read()


def clean(text):
    return text.strip()


def double(text):
    return text * 2
