"""Inspect: an evaluation whose solver calls one tool, that runs a command in a plain subprocess."""

from __future__ import annotations

import tempfile

import inspect_ai
from inspect_ai.dataset import Sample
from inspect_ai.model import get_model
from inspect_ai.solver import generate, system_message, use_tools
from inspect_ai.tool import Tool, tool
from measuring import AT_ONCE, Work, main, ran


@tool
def shell() -> Tool:
    """Return a tool that runs a command."""

    async def execute(command: str) -> str:
        """Run a shell command.

        Args:
            command: the command

        """
        return await ran(command)

    return execute


def _run(work: Work) -> None:
    samples = [Sample(input=f"task {number}", target="Done.") for number in range(work.tasks)]
    solver = [system_message("You are an agent. " * 40), use_tools(shell()), generate()]
    with tempfile.TemporaryDirectory() as folder:
        (log,) = inspect_ai.eval(
            inspect_ai.Task(dataset=samples, solver=solver),
            model=get_model(
                f"openai/{work.model}",
                base_url=work.base_url,
                api_key="none",
                responses_api=False,
            ),
            log_dir=folder,
            display="none",
            max_connections=AT_ONCE,
            max_samples=AT_ONCE,
            score=False,
        )
        if log.status != "success":
            raise SystemExit(
                f"Inspect ended with {log.status}: {log.error and log.error.message[:300]}"
            )


if __name__ == "__main__":
    main(_run)
