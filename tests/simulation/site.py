"""What lies behind a simulated replica's gate: the routes' work, without their parsing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from stagecast.errors import StagecastError
from stagecast.frontend.gate import refuse

if TYPE_CHECKING:
    from tests.simulation.life import Life


class Site:
    """What lies behind the gate: the routes' work, without their parsing."""

    def __init__(self, life: Life) -> None:
        assert life.replica is not None
        self._life = life
        self._replica = life.replica

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        """Answer one request."""
        path = scope["path"]
        try:
            if scope["method"] == "GET":
                body = self._replica.participant.view.body
            else:
                body = msgspec.json.encode(await self._do(*path.split("/")[2:]))
        except StagecastError as error:
            await refuse(error, path, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def _do(self, what: str, *names: str) -> Any:
        replica, tracker = self._replica, self._replica.tracker
        if what == "stage":
            model, node = names
            records, at = await replica.stage(model, replica.targets([node]), "api")
            return [records[0], str(at)]
        if what == "install":
            record, at = await tracker.open("installation", names[0], cause="api", claim=True)
            if record.owner == tracker.process and self._life.duty is not None:
                self._life.duty.take(record)
            await tracker.reached(at, 2.0)
            return [tracker.fold.record(record.id) or record, str(at)]
        record, at = await replica.commands.give(names[0], what)  # type: ignore[arg-type]
        return [record, str(at)]
