"""The JSON Schema of task files, for editors: what ``taskspec`` takes, each key described."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import Field, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import ModelSchema

from batchd.records.tasks import Amount
from batchd.spool import taskspec
from batchd.spool.taskspec import Defaults, Earlier, Parallel, Spec, TaskSpec


class _Whole(Spec):
    """What may stand at the top of a file alone."""

    schema_: str | None = Field(None, alias="$schema")
    """What an editor checks the file by; no part of any task."""
    budget_usd: Amount | None = None
    """Caps the whole batch; 0: no cap."""
    parallel: Parallel | None = None
    """How many of its tasks work at a time, at most; default: as many as there are slots."""
    after_batches: Earlier | None = None
    """Names of batches that must have completed before any of its tasks starts."""


class Alone(TaskSpec, _Whole):
    """A file of one task."""


class BatchSpec(Defaults, _Whole):
    """A batch of tasks, and defaults for them."""

    tasks: list[TaskSpec] = Field(min_length=1)
    """The tasks."""


class _Described(GenerateJsonSchema):
    """The generator, which takes what stands below a key in the source for its description.

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
    """Return, by model and key, what stands below the key."""
    return {
        found.name: dict(_below(found))
        for module in (taskspec, sys.modules[__name__])
        for found in ast.parse(inspect.getsource(module)).body
        if isinstance(found, ast.ClassDef)
    }


def _below(model: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for pair in pairwise(model.body):
        match pair:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, inspect.cleandoc(text)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a task file: a batch, a bare list of tasks or a single task."""
    models: TypeAdapter[Any] = TypeAdapter(BatchSpec | list[TaskSpec] | Alone)
    document = models.json_schema(schema_generator=_Described)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "batchd task file",
        **document,
    }
