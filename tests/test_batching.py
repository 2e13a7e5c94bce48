"""Requests in flight share a model call, none waits for nothing, and none pays for another's mistake."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from nbdeploy import batching
from nbdeploy.batching import Batcher, Overloaded


class Model:
    """Answers each item with its double; remembers the batches. `slow` seconds a call."""

    def __init__(self, slow: float = 0.0) -> None:
        self.slow, self.batches, self.begun = slow, [], threading.Event()

    def __call__(self, items):
        self.batches.append(list(items))
        self.begun.set()
        time.sleep(self.slow)
        if any(item < 0 for item in items):
            msg = "negative"
            raise ValueError(msg)
        return [item * 2 for item in items]


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def test_a_lone_request_is_answered_at_once():
    model = Model()
    batcher = Batcher(model)

    assert run(batcher.answer(3, 1)) == 6
    assert model.batches == [[3]]


def test_what_waits_while_the_model_works_goes_together():
    model = Model(slow=0.1)

    async def ask():
        batcher = Batcher(model)
        return await asyncio.gather(*(batcher.answer(i, 1) for i in range(50)))

    assert run(ask()) == [i * 2 for i in range(50)]
    assert len(model.batches) <= 2


def test_a_batch_has_at_most_its_rows():
    model = Model(slow=0.02)

    async def ask():
        batcher = Batcher(model, max_rows=10)
        return await asyncio.gather(*(batcher.answer(i, 3) for i in range(10)))

    assert run(ask()) == [i * 2 for i in range(10)]
    assert max(map(len, model.batches)) == 3


def test_only_the_guilty_gets_the_error():
    model = Model(slow=0.05)

    async def ask():
        batcher = Batcher(model)
        return await asyncio.gather(*(batcher.answer(i, 1) for i in (1, 2, -3, 4)), return_exceptions=True)

    one, two, guilty, four = run(ask())

    assert (one, two, four) == (2, 4, 8)
    assert isinstance(guilty, ValueError)


def test_a_model_that_must_not_be_batched_gets_one_request_at_a_time():
    model = Model(slow=0.01)

    async def ask():
        batcher = Batcher(model, together=False)
        return await asyncio.gather(*(batcher.answer(i, 1) for i in range(5)))

    assert run(ask()) == [0, 2, 4, 6, 8]
    assert model.batches == [[0], [1], [2], [3], [4]]


def test_small_requests_do_not_wait_for_all_the_large_ones():
    model = Model(slow=0.05)
    done = []

    async def ask():
        batcher = Batcher(model, max_rows=10)

        async def one(item, rows):
            await batcher.answer(item, rows)
            done.append(item)

        large = [asyncio.create_task(one(100 + i, 1000)) for i in range(5)]
        await asyncio.sleep(0.01)
        small = [asyncio.create_task(one(i, 1)) for i in range(5)]
        await asyncio.gather(*large, *small)

    run(ask())

    assert sorted(done[1:6]) == [0, 1, 2, 3, 4]


def test_what_cannot_be_answered_in_time_is_told_so_at_once():
    async def ask():
        batcher = Batcher(Model(slow=0.2), max_waiting=3, max_waiting_rows=100)
        first = asyncio.create_task(batcher.answer(0, 1))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(batcher.answer(i, 1)) for i in range(3)]
        await asyncio.sleep(0)
        begun = time.perf_counter()
        with pytest.raises(Overloaded) as refused:
            await batcher.answer(9, 1)
        assert time.perf_counter() - begun < 0.05
        assert refused.value.retry_after >= 1
        await asyncio.gather(first, *waiting)
        assert await batcher.answer(5, 1_000_000) == 10  # alone, any size is welcome

    run(ask())


def test_a_client_that_is_gone_costs_no_model_call():
    model = Model(slow=0.1)

    async def ask():
        batcher = Batcher(model)
        first = asyncio.create_task(batcher.answer(1, 1))
        await asyncio.sleep(0.02)
        gone = asyncio.create_task(batcher.answer(7, 1))
        kept = asyncio.create_task(batcher.answer(2, 1))
        await asyncio.sleep(0)
        gone.cancel()
        assert await asyncio.gather(first, kept) == [2, 4]
        assert batcher.waiting_rows == 0

    run(ask())

    assert [item for batch in model.batches for item in batch] == [1, 2]


def test_clients_that_ask_again_at_once_are_answered_together_again():
    model = Model(slow=0.04)
    batcher = Batcher(model)

    async def client(number):
        await asyncio.sleep(0.001 * number)
        for _ in range(6):
            await batcher.answer(number, 1)
            await asyncio.sleep(0.001 * number)  # the answer travels, the next question too

    async def crowd():
        await asyncio.gather(*(client(number) for number in range(8)))

    run(crowd())

    sizes = [len(batch) for batch in model.batches]
    assert sum(sizes) == 48
    assert len(sizes) <= 9  # one for each of the six, and a few while they find together


def test_a_lone_client_never_waits_for_company(monkeypatch):
    monkeypatch.setattr(batching, "MAX_GATHER", 9)
    monkeypatch.setattr(batching, "IDLE_GATHERS", 0)
    batcher = Batcher(Model(slow=0.3))

    async def alone():
        await batcher.answer(0, 1)
        begun = time.perf_counter()
        for number in range(4):
            await batcher.answer(number, 1)
        return time.perf_counter() - begun

    assert run(alone()) < 4 * 0.3 + 0.4  # to wait would take 0.6 more


@pytest.mark.parametrize("fault", [StopIteration("no more"), KeyboardInterrupt(), SystemExit(3)])
def test_whatever_a_model_raises_only_its_own_item_gets_an_error(fault):
    class Raising(Model):
        def __call__(self, items):
            if any(item == 13 for item in items):
                raise fault
            return super().__call__(items)

    batcher = Batcher(Raising(slow=0.02))

    async def three():
        return await asyncio.gather(*(batcher.answer(n, 1) for n in (1, 13, 2)), return_exceptions=True)

    first, bad, other = run(three())

    assert (first, other) == (2, 4)
    assert isinstance(bad, RuntimeError)
    assert run(batcher.answer(5, 1)) == 10


def test_thousands_whose_clients_are_gone_hold_nobody_up():
    model = Model(slow=0.2)
    batcher = Batcher(model, together=False)

    async def crowd():
        first = asyncio.create_task(batcher.answer(1, 1))
        await asyncio.sleep(0.05)
        gone = [asyncio.create_task(batcher.answer(n, 1)) for n in range(1_500)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        last = asyncio.create_task(batcher.answer(21, 1))
        return await first, await last

    assert run(crowd()) == (2, 42)
