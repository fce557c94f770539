"""How workers on other machines join the pool.

The daemon's side: ``Gate`` listens, ``Invitations`` says whose token is good, ``Joined`` is such a worker's life.
The other side: ``keeper`` is what is run there; it starts ``__main__``, the worker, and ends it with its lease.
"""
