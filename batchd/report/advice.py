"""What people can do about tasks that did not complete:
for each reason, what it means and how to go on.
"""

from __future__ import annotations

from collections.abc import Mapping

from batchd.records import Reason

_ADVICE: Mapping[Reason, str] = {
    Reason.MAX_ITERATIONS: "No round was accepted. Read the last verdict of one of them: make the task or its check"
    " clearer, or raise limits.max_iterations.",
    Reason.MAX_CALLS: "They were still at work at their last call. Raise limits.max_calls, or make the tasks smaller.",
    Reason.TOKENS: "They used up their tokens. Raise limits.max_tokens, or make the tasks smaller.",
    Reason.BUDGET: "What was left of the money was too little for the next call at its dearest. Raise limits.max_cost_usd, or"
    " the batch's budget_usd; or lower limits.max_output_tokens.",
    Reason.WALL_CLOCK: "They were still at work when their time was over. Raise limits.timeout_s.",
    Reason.AUTH: "The provider refused the key. Set a valid one, let `batchd check` confirm it, then retry.",
    Reason.QUOTA: "The account is empty. Top it up, then retry.",
    Reason.BAD_REQUEST: "The request was refused, by the provider or before it was sent, and would be again. The message"
    " says why; `batchd check` tries the model.",
    Reason.CONTENT_FILTER: "The provider's filter refused prompt or answer. Word the task differently, or take another"
    " model.",
    Reason.CONTEXT_OVERFLOW: "The request does not fit into the model's window. Make the task smaller, or take a model with a larger window.",
    Reason.PROVIDER_UNAVAILABLE: "The provider did not answer in spite of all retries. Retry once it is back.",
    Reason.EVALUATOR: "The judge gave no verdict that can be read. Give the tasks a check, or name another"
    " evaluation.judge_model.",
    Reason.LOOP: "The model repeated itself without getting on. A clearer task or another model helps.",
    Reason.SANDBOX: "Their commands could not be run. `batchd check` says what is missing.",
    Reason.DISK: "The disk took nothing more, or they hold more of it than they may: each message says which. Make room, or"
    " allow more in [sandbox], then retry.",
    Reason.WORKER_CRASHED: "The process that worked on them died each time, of memory perhaps. The daemon's log says"
    " more.",
    Reason.INTERNAL: "A fault of batchd's own. The daemon's log has the details; please report it.",
    Reason.USER: "Somebody cancelled them. Retry runs them again.",
    Reason.DEPENDENCY: "They come after tasks that did not complete. A retry of those takes these along.",
}


def advice(reason: str) -> str:
    """Return what a reason means, and how to go on."""
    return _ADVICE[Reason(reason)] if reason in _ADVICE else ""


def retry(batch: str) -> str:
    """Return the order that runs again what did not complete."""
    return f"batchd retry {batch} --failed"
