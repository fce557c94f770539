"""``python -m batchd`` is the command ``batchd``."""

from __future__ import annotations

import sys

from batchd.cli import main

sys.exit(main())
