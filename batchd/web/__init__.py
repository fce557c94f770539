"""The web page: how things stand, live, in a browser; a process of its own that can only read.

``serving`` is the process, ``application`` its routes. ``gate`` says who may look, ``shield`` guards every
request. ``watch`` looks at the spool once a second while somebody does, ``streams`` sends browsers what
is new, ``views`` says how. What browsers run lies in ``assets/``.
"""
