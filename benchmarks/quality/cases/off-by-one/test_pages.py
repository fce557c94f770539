from pages import pages

assert pages([1, 2, 3, 4], 2) == [[1, 2], [3, 4]]
print("ok")
