"""The report: what a batch did, as one self-contained page to look at.

``gathering`` reads the store, ``totals`` and ``timeline`` make sense of it, ``content`` is what the
page is given, ``html_page`` puts it together from ``assets/``.
``maker`` has the daemon's reports made in a process apart.
"""
