"""mini-swe-agent on one case:
its own prompts, text protocol and local environment, in the working directory.

See ``quality``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import minisweagent
import yaml
from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.litellm_textbased_model import LitellmTextbasedModel


def main() -> None:
    """Do what standard input asks for, and print how it ended."""
    asked = json.load(sys.stdin)
    file = Path(minisweagent.__file__).parent / "config" / "mini_textbased.yaml"
    config = yaml.safe_load(file.read_text("utf-8"))
    model = LitellmTextbasedModel(
        model_name=f"openai/{asked['model']}",
        model_kwargs={"api_base": asked["base_url"], "api_key": asked["key"]},
        cost_tracking="ignore_errors",
        **{k: v for k, v in config["model"].items() if k.endswith(("regex", "template"))},
    )
    own = {k: config["agent"][k] for k in ("system_template", "instance_template")}
    agent = DefaultAgent(model, LocalEnvironment(), **own, step_limit=asked["calls"])
    ended = agent.run(asked["prompt"]).get("exit_status", "")
    used = [
        m["extra"]["response"]["usage"] for m in agent.messages if "response" in m.get("extra", {})
    ]
    tokens = sum(usage["total_tokens"] for usage in used)
    print(json.dumps({"ended": ended, "calls": agent.n_calls, "tokens": tokens}))


if __name__ == "__main__":
    main()
