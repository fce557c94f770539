import sys


def by_age(lines):
    """Sort lines of the form NAME AGE, the youngest first."""
    return sorted(lines, key=lambda line: line.split()[1])


if __name__ == '__main__':
    print('\n'.join(by_age(open(sys.argv[1]).read().splitlines())))
