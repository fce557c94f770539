"""Batches and the ends of their tasks: whether results can be written,
and that each task and batch has its files.
"""
