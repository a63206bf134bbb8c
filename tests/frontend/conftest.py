"""One replica for all tests of a file: each test has its own models, operations and nodes on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.alone import Alone, alone


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Alone]:
    async with alone(tmp_path_factory.mktemp("here")) as running:
        yield running
