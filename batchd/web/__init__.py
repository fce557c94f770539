"""The web page: how things stand, live, in a browser;
a process of its own that reads, and takes orders to the daemon where it may.

``serving`` is the process, ``application`` its routes. ``authentication`` says who may look,
``shield`` guards every request. ``store_watch`` looks at the spool once a second while somebody
does, ``event_streams`` sends browsers what is new, ``page_data`` says how. ``orders`` are what
browsers may ask of the daemon, ``drafts`` keeps them until they are confirmed,
``ordering`` gives them. What browsers run lies in ``assets/``.
"""
