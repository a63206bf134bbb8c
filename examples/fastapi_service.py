"""A FastAPI service whose jobs show the same on every replica, and survive the one that does them.

    NATS_URL=nats://127.0.0.1:4222 uvicorn fastapi_service:app --port 8001

Start it as often as you like on one NATS server with JetStream, or once without NATS_URL. ``/jobs`` lists what runs,
``/jobs/stream`` tells it as it happens, ``POST /jobs/{id}/cancel`` ends it: on whichever replica a request lands.
"""

import asyncio
import os

from fastapi import FastAPI, Response

import stagecast

progress = stagecast.Service(nats=os.environ.get("NATS_URL"))
app = FastAPI(lifespan=progress.lifespan, exception_handlers={stagecast.StagecastError: progress.refuse})
app.mount("/jobs", progress.app)


@progress.performs("render")
async def render(operation: stagecast.Operation) -> None:
    for _frame in range(operation.done, operation.total):
        await asyncio.sleep(0.05)  # the work
        operation.advance()


@app.post("/render/{name}")
async def submit(name: str, response: Response, frames: int = 240):
    row = await progress.submit("render", name, total=frames)
    response.headers["Stagecast-Revision"] = progress.revision
    return row
