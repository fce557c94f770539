"""The web page: how things stand, live, in a browser; a process of its own that reads, and takes orders to the daemon where it may.

``serving`` is the process, ``application`` its routes. ``gate`` says who may look, ``shield`` guards every
request. ``watch`` looks at the spool once a second while somebody does, ``streams`` sends browsers what
is new, ``views`` says how. ``orders`` are what browsers may ask of the daemon, ``drafts`` keeps them until they are
confirmed, ``ordering`` gives them. What browsers run lies in ``assets/``.
"""
