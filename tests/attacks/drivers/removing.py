"""Removes the tree that its argument names, with no more than twelve descriptors."""

import resource
import sys

from batchd import trees

resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))
trees.remove(sys.argv[1])
