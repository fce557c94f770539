"""The web page: how things stand, live, in a browser; a process of its own that reads, and takes
orders to the daemon where it may. The report is its page of a batch, with the data within.

``serving`` is the process, ``application`` its routes. ``shield`` says who may look, and guards
every request. ``store_queries`` reads, and looks at the spool once a second while somebody does,
``page_updates`` sends browsers what is new, ``page_data`` says how. ``orders`` takes those of
browsers to the daemon. ``batch_page`` makes the data of a batch, from the tasks that ``gathering``
reads, ``made`` what came of a task; ``report`` puts both into one file, in the child that
``report_process`` keeps. What browsers run lies in ``assets/``, which ``pages`` puts together.
"""
