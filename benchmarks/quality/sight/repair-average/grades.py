def average(grades):
    total = 0
    for grade in grades:
        total = total + grade
    return total / len(grades)


if __name__ == '__main__':
    print(average([]))
