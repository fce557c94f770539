"""One batch with a task of each fault:
every task ends with one typed result, and the tokens are the server's.
"""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from typing import Any

#: What the stand-in does, and how a task must end: status and reason.
FAULTS: dict[str, tuple[str, str | None]] = {
    "steps-2": ("completed", None),
    "latency-0.5+steps-2": ("completed", None),
    "rate-limit-1+retry-after-0.2+steps-2": ("completed", None),
    "500-1+steps-2": ("completed", None),
    "503-1+steps-2": ("completed", None),
    "no-usage+steps-2": ("completed", None),
    "length-1+steps-2": ("completed", None),
    "length-tool+steps-2": ("completed", None),
    "text-tool": ("completed", None),
    "bad-tool-json": ("completed", None),
    "unknown-tool": ("completed", None),
    "surrogate": ("completed", None),
    "loop": ("completed", None),
    "judge-no-2+steps-2": ("completed", None),
    "judge-no-always+steps-1": ("timeout", "max_iterations"),
    "judge-prose+steps-1": ("error", "evaluator"),
    "401": ("error", "auth"),
    "402": ("error", "quota"),
    "403": ("error", "bad_request"),
    "404": ("error", "bad_request"),
    "insufficient-quota": ("error", "quota"),
    "content-filter": ("error", "content_filter"),
    "context-overflow": ("error", "context_overflow"),
    "429-always": ("error", "provider_unavailable"),
    "500-always": ("error", "provider_unavailable"),
    "hang": ("error", "provider_unavailable"),
    "hang-body": ("error", "provider_unavailable"),
    "drip": ("error", "provider_unavailable"),
    "cut": ("error", "provider_unavailable"),
    "cut-body": ("error", "provider_unavailable"),
    "html": ("error", "provider_unavailable"),
    "broken-json": ("error", "provider_unavailable"),
    "no-choices": ("error", "provider_unavailable"),
}
#: Counted here, since the provider sends no usage.
_UNCOUNTED = {"no-usage+steps-2"}


def test_a_batch_of_all_faults_ends_with_one_typed_result_a_task(
    spool: Any, model_server: str
) -> None:
    """None hangs, the good ones are untouched, and tokens add up to what the server delivered,
    judge included; of an answer that came too late, to the one that it was asked for again.
    """
    config = spool.folder / "config.toml"
    text = config.read_text().replace('by = "none"', 'by = "judge"')
    text = text.replace("processes = 2", "processes = 2\nagents_per_process = 20")
    text += "[limits]\ncall_timeout_s = 1.0\nmax_iterations = 4\n"
    # A provider each: a refused key is everybody's who uses it.
    text += "".join(f'[providers.p{i}]\nbase_url = "{model_server}"\n' for i in range(len(FAULTS)))
    config.write_text(text)
    tasks = [
        {"id": f"t{i:02}", "first_prompt": f"do {fault}", "model": f"p{i}/{fault}"}
        for i, fault in enumerate(FAULTS)
    ]
    server = model_server.removesuffix("/v1")
    urllib.request.urlopen(f"{server}/control", data=b'{"reset": true}').close()
    ran = spool.batchd("run", spool.write("faults.json", tasks))
    assert ran.returncode == 1, ran.stderr
    ended = {}
    for task, fault in zip(tasks, FAULTS, strict=True):
        result = spool.result("faults", task["id"])
        ended[fault] = (result["status"], result["reason"])
        assert (result["error"] is None) == (result["reason"] is None)
    assert ended == FAULTS

    with urllib.request.urlopen(f"{server}/log") as answer:
        log = [entry for entry in json.load(answer) if entry["delivered"] and entry["usage"]]
    answers = Counter(entry["model"] for entry in log)
    results = (spool.folder / "outbox/faults/results.jsonl").read_text().splitlines()
    ours: Counter[str] = Counter()
    for fault, line in zip(FAULTS, results, strict=True):
        usage = json.loads(line)["usage"]
        assert usage["estimated"] == (fault in _UNCOUNTED)
        calls = 0
        for part in usage["by_purpose"].values():
            if not part["estimated"]:
                calls += part["calls"]
                ours += Counter({k: part[k] for k in ("input_tokens", "output_tokens")})
        # None is paid twice but one that came too late.
        assert 0 <= answers[fault] - calls <= usage["unsettled_calls"], fault
    paid = {entry["hash"]: entry["usage"] for entry in log}
    assert ours == Counter({k: sum(usage[k] for usage in paid.values()) for k in ours})
