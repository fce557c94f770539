"""The signal that a child has ended, made fit for use:
the process that starts batchd may ignore it, or hold it back, and a program inherits that.
"""

from __future__ import annotations

import signal


def repair() -> None:
    """See to it that the ends of children are reported, with how they ended.

    Where the signal is ignored, the kernel reports none of them: no sandbox would be seen to work.
    Where it is held back, the fork server learns of none, and the daemon's end would wait for it.
    """
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
