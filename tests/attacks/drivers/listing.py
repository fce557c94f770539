"""Prints what batchd lists of the directory that its argument names."""

import json
import sys

from batchd.sandbox.directory import files, opened

print(json.dumps(files(opened(sys.argv[1]), 5000, 30.0)))
