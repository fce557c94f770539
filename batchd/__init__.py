"""batchd: a print spooler for LLM agents."""

__version__ = "0.2.0"
