"""Tool calls that models write as text: what is taken as a call, and what is not."""

from __future__ import annotations

import json

import pytest

from batchd.agent import evaluate, tools
from batchd.records import Answer, ToolCall

CALL = '{"name": "shell", "arguments": {"command": "ls"}}'
WRITE = '{"name": "write_file", "arguments": {"path": "a.py", "content": "x = 1\ny = 2\n"}}'


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (CALL, ["shell"]),
        (f"```json\n{CALL}\n```", ["shell"]),
        (f"```json\n{CALL}\n{WRITE}\n```", ["shell", "write_file"]),
        (f"```json\n{CALL}\n```\n```json\n{WRITE}\n```", ["shell", "write_file"]),
        (f"[{CALL}, {WRITE}]", ["shell", "write_file"]),
        (f"```json\r\n{CALL}\r\n{WRITE}\r\n```\r\n", ["shell", "write_file"]),
        (f"{CALL}[{WRITE}],{CALL}", ["shell", "write_file", "shell"]),
        (
            f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{WRITE}</tool_call>",
            ["shell", "write_file"],
        ),
        (f"I will list the files:\n{CALL}", []),
        (f"{CALL}\nThat is how a call looks.", []),
        ('{"name": "rm_rf", "arguments": {}}', []),
        ('{"name": "shell", "arguments": {"cmd": "ls"}}', []),
        ('{"name": "shell"}', []),
        ('{"name": "Ann", "age": 7}', []),
        ("[" * 100_000, []),
        (f'{{"name": "shell", "arguments": {"[" * 990 + "]" * 990}}}', []),
        ("", []),
    ],
)
def test_only_an_answer_that_is_nothing_but_valid_call_objects_makes_calls(
    content: str, names: list[str]
) -> None:
    """Fences, tags, lists and raw newlines are fine;
    any prose around, or an invalid call, makes it plain text.
    """
    found, text = tools.calls(Answer(content=content), "auto", native_seen=False)
    assert [call.name for call in found] == names
    assert not text
    assert all(isinstance(tools.parse(call), tools.ToolRequest) for call in found)


def test_native_calls_win_and_end_the_guessing() -> None:
    """A native call is taken as it is, and after one,
    or under `native`, text is never read as a call.
    """
    native = (ToolCall("1", "shell", '{"command": "ls"}'),)
    answer = Answer(content=CALL, tool_calls=native)
    assert tools.calls(answer, "auto", native_seen=False) == (native, False)
    assert tools.calls(Answer(content=CALL), "auto", native_seen=True) == ((), False)
    assert tools.calls(Answer(content=CALL), "native", native_seen=False) == ((), False)


@pytest.mark.parametrize(
    ("content", "command"),
    [
        ("I look.\n```bash\nls -l\n```\nThen:\n```bash\nrm x\n```", "ls -l"),
        ("```bash\ncat > a.py <<'EOF'\nx = 1\nEOF", "cat > a.py <<'EOF'\nx = 1\nEOF"),
        ("```sh\nls\n```", "ls"),
        ("Use it like this:\n```python\nimport os\n```", None),
        ("Done. `bash` was fun.", None),
        ("```bash\n\n```", None),
        ("I look.\r\n```bash\r\ncd a\r\nls -l\r\n```\r\nThen.", "cd a\nls -l"),
        ("```BASH\nls\n```", "ls"),
        ("```Shell \nls\n```", "ls"),
        (
            "1. I look:\n   ```bash\n   for i in 1; do\n     ls\n   done\n   ```\n2. ",
            "for i in 1; do\n  ls\ndone",
        ),
        ("\t```sh\n\tls\n```\nIt printed", "ls"),
        ("````bash\ncat > a.md <<E\n```\nx\n```\nE\n````", "cat > a.md <<E\n```\nx\n```\nE"),
        ("~~~bash\nls\n~~~\nIt printed:\n```\na\n```", "ls"),
        (
            "```bash\ncat > a.md <<E\n- a\n  ```\n  x\n  ```\nE\n```\nb",
            "cat > a.md <<E\n- a\n  ```\n  x\n  ```\nE",
        ),
        ("In a line ```bash ls``` is no block.", None),
        ("```bashful\nls\n```", None),
    ],
)
def test_the_first_bash_block_is_the_call(content: str, command: str | None) -> None:
    """Under the text protocol the first block counts,
    also where the stop sequence cut its end off.
    """
    found, text = tools.calls(Answer(content=content), "text", native_seen=False)
    assert text
    assert [json.loads(c.arguments)["command"] for c in found] == ([command] if command else [])


def test_a_block_cut_at_the_output_limit_is_never_run() -> None:
    """Half a command may do anything: its call has broken arguments, which are refused."""
    answer = Answer(content="```bash\nrm -rf build/tm", finish_reason="length")
    (call,), _ = tools.calls(answer, "text", native_seen=False)
    assert isinstance(tools.parse(call), str)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("shell", '{"command": 5}', "must be a string"),
        ("shell", "{}", "Missing: command"),
        ("shell", '{"command": ""}', "empty"),
        ("shell", '{"command": "a\\u0000b"}', "NUL"),
        ("shell", '{"command": "ls", "timeout": 5}', "Unknown: timeout"),
        ("read_file", '{"path": "a", "start": true}', "whole number"),
        ("browse", "{}", "no tool 'browse'"),
        ("shell", '{"command": "l', "not valid JSON"),
        ("shell", '["ls"]', "must be a JSON object"),
    ],
)
def test_bad_arguments_are_reported_to_the_model(name: str, arguments: str, says: str) -> None:
    """What is wrong with a call is said in words that let the model fix it."""
    problem = tools.parse(ToolCall("1", name, arguments))
    assert isinstance(problem, str)
    assert says in problem


def test_half_a_letter_that_an_answer_holds_escaped_is_made_whole() -> None:
    r"""What ``\ud83d`` in JSON within an answer stands for can neither be sent nor stored:
    it becomes a sign that can.
    """
    half = '{"name": "shell", "arguments": {"command": "echo \\ud83d"}}'
    [call] = tools.call_objects(half)
    assert call.arguments == '{"command": "echo \ufffd"}'
    judged = evaluate.verdict('{"done": false, "feedback": "no \\ud83d"}')
    assert judged is not None
    assert judged.feedback == "no \ufffd"


@pytest.mark.parametrize(
    ("said", "done", "feedback"),
    [
        ('{"done": true, "feedback": null}', True, ""),
        ('{"done": true}', True, ""),
        ('```JSON\r\n{"done": false, "feedback": "no"}\r\n```\r\n', False, "no"),
        ('{"done": false, "feedback": ["a", {"b": "c"}]}', False, '["a", {"b": "c"}]'),
        ('{"done": false, "feedback": 7, "score": [1]}', False, "7"),
        ('{"done": false, "feedback": false}', False, ""),
    ],
)
def test_only_done_decides_what_a_judge_says(said: str, done: bool, feedback: str) -> None:
    """Feedback that is missing, null or no text is no reason
    to throw a verdict away, which is paid.
    """
    judged = evaluate.verdict(said)
    assert judged is not None
    assert (judged.done, judged.feedback) == (done, feedback)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "null",
        "{}",
        "[]",
        "true",
        '{"done": "true"}',
        '{"done": 1}',
        '{"done": null, "feedback": "x"}',
        '{"verdict": {"done": true}}',
        '[{"done": true}]',
        '{"done": true} {"done": true}',
        'Yes: {"done": true}',
        "[" * 100_000,
        f'{{"done": true, "feedback": {"[" * 100_000}',
        f'{{"done": true, "n": {"1" * 5000}}}',
    ],
)
def test_what_is_no_verdict_is_none(said: str) -> None:
    """Nothing but an object with a true or false `done` is one:
    never a phrase, never what is deeper in it.
    """
    assert evaluate.verdict(said) is None


def test_a_judge_that_never_stops_talking_is_cut() -> None:
    """Its feedback goes into the conversation, where it would fill the window."""
    judged = evaluate.verdict(json.dumps({"done": False, "feedback": "no " * 100_000}))
    assert judged is not None
    assert len(judged.feedback) < 10_000


def test_what_a_model_made_up_is_not_repeated_to_it_at_length() -> None:
    """The names of tools and arguments that are not there may be a megabyte long."""
    long = "x" * 1_000_000
    for call in (
        ToolCall("1", long, "{}"),
        ToolCall("1", "shell", json.dumps({long: 1, "command": "a"})),
    ):
        problem = tools.parse(call)
        assert isinstance(problem, str)
        assert len(problem) < 1000


def test_an_answer_has_only_so_many_calls() -> None:
    """Further ones are not taken, native or written out:
    the conversation says that the model made no more.
    """
    native = Answer(content="", tool_calls=(ToolCall("1", "shell", "{}"),) * 1000)
    found, _ = tools.calls(native, "auto", native_seen=False)
    assert len(found) == tools.MOST_CALLS
    found, _ = tools.calls(Answer(content=CALL * 1000), "auto", native_seen=False)
    assert [c.id for c in found] == [f"call_{i}" for i in range(tools.MOST_CALLS)]
