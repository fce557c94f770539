"""The version of this batchd: a file of its own, so that all may name it without ``batchd``."""

__version__ = "0.2.0"
