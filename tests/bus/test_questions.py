from __future__ import annotations

import asyncio

import pytest

from stagecast.bus.questions import Questions


async def asked(questions: Questions, answer: asyncio.Future[str]) -> asyncio.Task[str]:
    task = asyncio.create_task(questions.answered(answer))
    await asyncio.sleep(0)
    assert questions.count == 1
    return task


async def test_an_answer_is_an_answer() -> None:
    questions, answer = Questions(), asyncio.get_running_loop().create_future()
    task = await asked(questions, answer)
    answer.set_result("yes")
    assert await task == "yes"
    assert questions.count == 0


async def test_what_was_given_up_is_a_lost_connection_however_often() -> None:
    questions, answer = Questions(), asyncio.get_running_loop().create_future()
    task = await asked(questions, answer)
    questions.abandon()
    questions.abandon()
    with pytest.raises(ConnectionError, match="the connection was lost"):
        await task
    assert task.cancelling() == 0
    assert questions.count == 0
    questions.abandon()


async def test_the_client_s_own_timeout_stays_one() -> None:
    questions, answer = Questions(), asyncio.get_running_loop().create_future()
    task = await asked(questions, answer)
    answer.set_exception(TimeoutError("the client's"))
    with pytest.raises(TimeoutError, match="the client's"):
        await task


async def test_one_who_is_cancelled_while_the_connection_goes_is_cancelled() -> None:
    questions, answer = Questions(), asyncio.get_running_loop().create_future()
    task = await asked(questions, answer)
    questions.abandon()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert questions.count == 0
