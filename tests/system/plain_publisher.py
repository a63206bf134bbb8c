"""A process that knows WIRE sections 1 and 2 and nothing of us: core NATS, no JetStream, no record, no lease.

It publishes what it is told to, one JSON line each on its standard input: ``{"subject": …, "payload": …}``. Each
message that it hears is a JSON line on its standard output. A gallery that is cancelled it ends, as such systems do.
"""

from __future__ import annotations

import asyncio
import json
import sys

import nats
from nats.aio.msg import Msg


async def main(url: str) -> None:
    client = await nats.connect(url)
    galleries: dict[str, tuple[str, dict[str, object]]] = {}

    def say(**line: object) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    async def hear(message: Msg) -> None:
        say(subject=message.subject, payload=message.data.decode(errors="replace"))
        if message.subject.startswith("gallery.") and message.subject.endswith(".cancel"):
            job = json.loads(message.data)["id"]
            if job in galleries:
                subject, status = galleries.pop(job)
                ended = {"job_id": job, "status": status | {"cancelled": True, "processed": True}}
                await client.publish(subject, json.dumps(ended).encode())

    for subject in ("staging.*.progress", "gallery.*.progress", "gallery.*.cancel"):
        await client.subscribe(subject, cb=hear)
    await client.flush()
    say(ready=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        told = json.loads(line)
        subject, payload = told["subject"], told["payload"]
        if subject.startswith("gallery.") and isinstance(payload, dict):
            galleries[payload["job_id"]] = subject, payload["status"]
        await client.publish(subject, payload.encode() if isinstance(payload, str) else json.dumps(payload).encode())
        await client.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
