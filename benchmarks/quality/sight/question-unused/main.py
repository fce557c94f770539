from tools import clean, load

print(clean(load('in.txt')))
