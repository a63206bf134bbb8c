"""The public interface as a type checker sees it. Checked by mypy in `make check`, and never run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_type

from fastapi import FastAPI

import stagecast
from stagecast import Client, Operation, Row, Service, StagecastError

service = Service(nats=None, name="one", api_key="")
Service()
Service("nats://bus")  # type: ignore[call-arg]  # by name only


@service.performs("render", at_once=2)
async def render(operation: Operation) -> None:
    assert_type(operation.parameters, Mapping[str, str])
    assert_type(operation.done + operation.total + operation.attempt, int)
    assert_type(operation.is_stopped, bool)
    operation.advance()
    operation.advance(count=2)
    operation.advance(0.5)  # type: ignore[arg-type]  # whole units
    operation.tell("encoding")
    await operation.update(done=1, total=2, phase="verifying")
    await operation.update(phase="baking")  # type: ignore[arg-type]  # one of five
    operation.done = 3  # type: ignore[misc]  # read only


@service.performs("crunch")
def crunch(operation: Operation) -> None:
    operation.advance()


@service.performs("wrong")  # type: ignore[type-var]  # it is given the operation, and nothing else
async def wrong(operation: Operation, more: int) -> None: ...


async def decorated_functions_keep_their_types(operation: Operation) -> None:
    await render(operation)
    crunch(operation)
    await render("film")  # type: ignore[arg-type]


app = FastAPI(lifespan=service.lifespan)
app.mount("/jobs", service.app)


async def a_program() -> None:
    async with service.lifespan():
        row = assert_type(await service.submit("render", "film", total=240, parameters={"codec": "av1"}), Row)
        assert_type(await service.ended(row.job_id), Row)
        assert_type(await service.command(row.id, "cancel"), Row)
        await service.command(row.id, "stop")  # type: ignore[arg-type]  # one of five
        assert_type(service.operations(), list[Row])
        assert_type(service.row(row.id), Row)
        assert_type(service.revision, str)
        async with service.operation("index", "documents", total=3) as operation:
            assert_type(operation, Operation)
    async with Client("http://127.0.0.1:8080/jobs") as client:
        assert_type((await client.operations()).operations, list[Row])
    try:
        await service.submit("render", "film")
    except (stagecast.BadInput, stagecast.BusError) as error:
        assert_type(error.message, str)
        raise StagecastError(error.message) from error
