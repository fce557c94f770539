import sys


def total(path):
    """Return the sum of the column "amount"."""
    with open(path) as file:
        header = file.readline().strip().split(",")
        column = header.index("amount")
        return sum(float(line.strip().split(",")[column]) for line in file)


if __name__ == "__main__":
    print(total(sys.argv[1]))
