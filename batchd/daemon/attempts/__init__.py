"""Attempts at tasks: whose turn it is, what a worker gets,
what it reports, and the calls that it asks for.
"""
