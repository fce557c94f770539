import sys

name = sys.argv[1]
print(f'Hello, {name}!')
