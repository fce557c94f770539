"""mini-swe-agent: its own agent, text protocol and local environment,
in as many threads as there are agents at a time.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from measuring import AT_ONCE, Work, main
from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.litellm_textbased_model import LitellmTextbasedModel


def _one(work: Work, number: int) -> None:
    model = LitellmTextbasedModel(
        model_name=f"openai/{work.model}",
        model_kwargs={"api_base": work.base_url, "api_key": "none"},
        cost_tracking="ignore_errors",
        action_regex=r"```bash\s*\n(.*?)\n```",
    )
    agent = DefaultAgent(
        model,
        LocalEnvironment(),
        system_template="You are an agent. " * 40,
        instance_template="{{task}}",
        # Its last answer has no command, which it does not take for an end.
        step_limit=work.calls,
    )
    agent.run(f"task {number}")


def _run(work: Work) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda number: _one(work, number), range(work.tasks)))


if __name__ == "__main__":
    main(_run)
