"""The web page: how things stand, live, in a browser;
a process of its own that reads, and takes orders to the daemon where it may.

``serving`` is the process, ``application`` its routes. ``shield`` says who may look, and guards
every request. ``store_queries`` reads, and looks at the spool once a second while somebody does,
``page_updates`` sends browsers what is new, ``page_data`` says how. ``orders`` takes those of
browsers to the daemon. What browsers run lies in ``assets/``.
"""
