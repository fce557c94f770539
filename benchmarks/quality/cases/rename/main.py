from lib.geometry import area, circumference

print(area(2, 3), circumference(2, 3))
