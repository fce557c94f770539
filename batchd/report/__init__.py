"""The report: what a batch did, as one self-contained page to look at.

``gathering`` reads the store, ``totals`` and ``timeline`` make sense of it, ``content`` is what the
page is given, ``html_page`` puts it together from ``assets/``.
``making`` is the child that makes the daemon's, ``report_process`` has it done.
"""
