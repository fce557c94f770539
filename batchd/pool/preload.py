"""The modules that the fork server loads once, for every worker to share:
imported there, and nowhere else.

The fork server ignores an import error here, and would then fork workers that load everything
themselves; the worker imports the same modules, so that the error shows there.

First it closes itself to other processes of its user: who could write into its memory could keep
the workers that it forks, which hold keys, from sealing themselves.
"""

from __future__ import annotations

import gc

from batchd import processes

processes.seal()  # nothing of weight may be imported before
# Nothing of what is loaded is garbage: to look for it again and again takes a sixth of the time.
gc.disable()

from batchd import llm, tokens  # noqa: E402
from batchd.pool import (  # noqa: E402
    code,
    worker as worker,  # imported for its weight: openai, the agent, the sandbox
)

code.fingerprint()
tokens.load()
llm.tls()
llm.transport()
# Objects that the collector never touches stay in pages that all workers share. What is garbage
# among them is next to nothing, and to look for it would take a tenth of a start.
gc.freeze()
gc.enable()
