"""The joining of workers on other machines.

The daemon's side: ``WorkerListener`` listens, ``Invitations`` says whose token is good,
``RemoteWorker`` is such a worker's life. The other side: ``keeper`` is what is run there;
it starts ``__main__``, the worker, and ends it with its lease.
"""
