"""What a task file may hold: the models that pydantic validates it with, and their JSON Schema, in
which the comment above a key describes it.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    TypeAdapter,
    WithJsonSchema,
    create_model,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import ModelSchema

from batchd.config import providers, sections
from batchd.config.sections import left_open
from batchd.records import CheckFirst, CheckIn, Effort, Evaluator, Tier
from batchd.records.tasks import Amount

#: Files of a batch that are no task's.
RESERVED = frozenset({"request", "results", "summary", "report"})

TaskId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
#: What can be an argument or a variable's value: anything but NUL.
Word = Annotated[str, Field(pattern=r"^[^\x00]*$")]
#: Long enough for any word, short enough to be a key of the ledger.
TagName = Annotated[str, Field(pattern=r"^[^\x00]*$", min_length=1, max_length=200)]
#: How a directory is worked on.
Workspace = Literal["in_place", "copy"]
_INT32 = 1 << 31
#: Of a batch's tasks, how many work at a time.
Parallel = Annotated[int, Field(ge=1, lt=_INT32)]
#: A batch's name, as ``outbox.batch_name`` makes it: of ASCII it holds letters, digits, _ and -.
BatchName = Annotated[str, Field(pattern=r"^[^\x00-,./:-@\[-^`{-\x7f]+$", max_length=100)]
Earlier = Annotated[list[BatchName], Field(max_length=100)]
#: The key by which editors find the schema of a file.
SCHEMA = "$schema"


def _read(read: Callable[[object], object], kind: str) -> PlainValidator:
    """Return how the configuration reads a value, as pydantic wants it."""

    def validated(value: object) -> object:
        try:
            return read(value)
        except ValueError as error:
            raise PydanticCustomError(kind, "{why}", {"why": str(error)}) from None

    return PlainValidator(validated)


_NEVER_OR_SECONDS = {"anyOf": [{"const": "never"}, {"type": "number", "minimum": 0}]}
_HOSTS = {"type": "array", "items": {"type": "string"}}
Fallback = Annotated[
    float | Literal["never"],
    _read(providers.fallback, "fallback"),
    WithJsonSchema(_NEVER_OR_SECONDS),
]
Reach = Annotated[
    bool | tuple[str, ...],
    _read(sections.reach, "hosts"),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, _HOSTS]}),
]

_Model = TypeVar("_Model", bound=BaseModel)


class Spec(BaseModel):
    """An object of a task file."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
    )


def _with_limits(cls: type[_Model]) -> type[_Model]:
    """Give a model all limits as its keys; each may be left open."""
    keys: dict[str, Any] = {name: (kind, None) for name, kind in left_open().items()}
    return create_model(cls.__name__, __base__=cls, __doc__=cls.__doc__, **keys)


@_with_limits
class Limits(Spec):
    """What a task may use up; 0 means no limit. What is not given comes from the configuration."""

    def given(self) -> dict[str, Any]:
        """Return what is given, by name."""
        return self.model_dump(exclude_none=True)


class SecretSpec(Spec):
    """The value of a variable that only the task's commands may see: one of these keys."""

    #: The value itself, of at least 6 characters.
    #:
    #: It stays in the dropped file: see `from_env` and `from_file`.
    secret: Word | None = None
    #: The name of an environment variable of batchd's own, which [secrets] env must name.
    from_env: str | None = None
    #: The name of a file in [secrets.files].
    from_file: str | None = None


def _kind(value: Any) -> str:
    return "secret" if isinstance(value, dict | SecretSpec) else "plain"


#: Distinguished by its form, so that what is wrong with one is not reported of the other too.
Value = Annotated[
    Annotated[Word, Tag("plain")] | Annotated[SecretSpec, Tag("secret")], Discriminator(_kind)
]


class Defaults(Spec):
    """The keys that a batch may set for all its tasks; a task's own win. null means not given."""

    #: The user's request: the first message of the conversation. Needed.
    first_prompt: str | None = None
    #: The directory to work in.
    #:
    #: Empty: a fresh one, outbox/BATCH/TASK. Relative: below [workspace] root.
    dir: str | None = None
    #: A repository to work on a clone of its own of, instead of dir:
    #: a path like dir's, or a URL of [workspace] repos.
    repo: str | None = None
    #: Of a repo: the branch, tag or commit to begin at; default: what it has checked out.
    ref: Annotated[str, Field(pattern=r"^[^\x00-\x20\x7f]+$", max_length=250)] | None = None
    #: copy: work on a copy of dir; in_place: in dir itself, the default.
    workspace: Workspace | None = None
    #: provider/model; default: [agent] model.
    model: str | None = None
    #: What its model's calls are sold at; default:
    #: that of [models."provider/model"], else of [agent].
    service_tier: Tier | None = None
    #: When a call whose tier has no room goes on at the standard price:
    #: never, or the seconds; default as for service_tier.
    tier_fallback: Fallback | None = None
    #: How much the model is to think; default: its table in [models],
    #: then [agent] effort, then as its provider sees fit.
    effort: Effort | None = None
    #: What else its model is asked for: temperature, top_p, seed, verbosity,
    #: as far as its dialect has them.
    #:
    #: A task's are laid over its batch's, these over those of its table in [models].
    options: dict[str, Any] | None = None
    #: Replaces the opening of batchd's own system prompt.
    system_prompt: str | None = None
    #: Higher goes first; default 0.
    priority: Annotated[int, Field(ge=-_INT32, lt=_INT32)] | None = None
    #: Who says that it is done; default: none where there is a check, else [evaluation] by.
    evaluator: Evaluator | None = None
    #: A shell command, run in the sandbox after each round; exit 0 accepts it.
    check: Word | None = None
    #: apart: with an empty HOME and /tmp; task: with those of the task's commands.
    #:
    #: Default: [evaluation] check_in.
    check_in: CheckIn | None = None
    #: true: it runs before the first call too, and a task whose check passes is done;
    #: must_fail: one whose check passes then ends as an error.
    check_first: CheckFirst | None = None
    #: How often a check must accept the same files; default 1.
    check_runs: Annotated[int, Field(ge=1, le=100)] | None = None
    #: A JSON Schema that the final answer must satisfy.
    output_schema: dict[str, Any] | None = None
    #: What it may use up, over [limits]; 0 means no limit.
    #:
    #: A task's keys are laid over its batch's.
    limits: Limits | None = None
    #: What its commands may reach: true (everything),
    #: false, or a list of host names; default false.
    network: Reach | None = None
    #: Environment variables of its commands, some of them secret.
    #:
    #: A task's are laid over its batch's.
    env: dict[Variable, Value] | None = None
    #: The machine of [pool] machines that it is to work on; default: any.
    machine: str | None = None
    #: Words to distinguish tasks by: `batchd cost --by tag`.
    tags: Annotated[list[TagName], Field(max_length=50)] | None = None
    #: Returned untouched in the result.
    metadata: dict[str, Any] | None = None


class TaskSpec(Defaults):
    """One job for one agent."""

    #: Unique in its batch; default: its place, as 001.
    id: TaskId | None = None
    #: Ids in this batch that must have completed before it starts.
    after: Annotated[list[str], Field(fail_fast=True)] | None = None


class OfBatches(Spec):
    """What is said of a batch as a whole, and is no default for its tasks."""

    #: Caps the whole batch; 0: no cap.
    budget_usd: Amount | None = None
    #: How many of its tasks work at a time, at most; default: as many as there are slots.
    parallel: Parallel | None = None
    #: Names of batches that must have completed before any of its tasks starts.
    after_batches: Earlier | None = None


class BatchKeys(Defaults, OfBatches):
    """A batch apart from its tasks, which are validated one by one."""


#: In the source: a model, or a key with what stands above it.
_COMMENTED = re.compile(r"^ *class (\w+)|((?:^ +#:.*\n)+) +(\w+): ", re.MULTILINE)


class _Described(GenerateJsonSchema):
    """The generator, which takes what stands above a key in the source for its description.

    pydantic can do so itself, but then reads the source whenever the models are loaded.
    """

    def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
        """Return the schema of a model."""
        document = super().model_schema(schema)
        for model in reversed(schema["cls"].__mro__):
            for name, text in _texts().get(model.__name__, {}).items():
                key = schema["cls"].model_fields[name].alias or name
                document["properties"][key]["description"] = text
        return document


@cache
def _texts() -> Mapping[str, Mapping[str, str]]:
    """Return, by model and key, what stands above the key."""
    found: dict[str, dict[str, str]] = {}
    for model, comment, key in _COMMENTED.findall(inspect.getsource(sys.modules[__name__])):
        if model:
            found[model] = texts = {}
        else:
            texts[key] = "\n".join(
                line.strip().removeprefix("#:").strip() for line in comment.splitlines()
            )
    return found


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a task file, for editors:
    a batch, a bare list of tasks or a single task, each key described.
    """

    class Addressed(Spec):
        #: What an editor checks the file by; no part of any task.
        schema_: str | None = Field(None, alias="$schema")

    class Alone(TaskSpec, OfBatches, Addressed):
        """A file of one task."""

    class BatchSpec(BatchKeys, Addressed):
        """A batch of tasks, and defaults for them."""

        #: The tasks.
        tasks: list[TaskSpec] = Field(min_length=1)

    models: TypeAdapter[Any] = TypeAdapter(BatchSpec | list[TaskSpec] | Alone)
    document = models.json_schema(schema_generator=_Described)
    return {
        SCHEMA: "https://json-schema.org/draft/2020-12/schema",
        "title": "batchd task file",
        **document,
    }
