"""Requests in flight are answered together: one model call for all that wait, and no wait when nobody does."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from nbdeploy.errors import ServiceError

MAX_BATCH_ROWS = 2_048
MAX_WAITING_ROWS = 200_000
MAX_WAITING = 2_000  # requests
MAX_WAIT = 30.0  # seconds
MAX_GATHER = 0.05
IDLE_GATHERS = 16  # calls without a try after one that was in vain

Item = TypeVar("Item")
Result = TypeVar("Result")


class Overloaded(ServiceError):
    """More is waiting than will be answered in time.

    Attributes
    ----------
    retry_after : int
        Seconds after which it is worth asking again.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__("the service is overloaded", f"Ask again in {retry_after} s.")
        self.retry_after = retry_after


@dataclass
class _Waiting(Generic[Item, Result]):
    item: Item
    rows: int
    answer: asyncio.Future[Result] = field(repr=False)


class Batcher(Generic[Item, Result]):
    """One thread that calls `run` with all items that wait, up to a number of rows.

    A lone item never waits for company. Where several ask, those who were just answered may be about to ask again: the
    next call waits for them, at most half as long as a call takes and 50 ms. Without that, who comes back first would
    have a call of its own, and the others would wait a whole call for the next. Where they do not come back, it is not
    tried again for a while.

    Small requests do not wait behind large ones: a request of more than half a batch goes alone, and after it
    whoever else is waiting has its turn before the next large one.

    A batch that raises is tried again item by item, so that only the guilty item gets its error.

    Parameters
    ----------
    run : callable
        Answers a list of items with as many results, in another thread, one call at a time. A result that is an
        exception is raised to whoever asked.
    together : bool
        False calls `run` with one item at a time: for a model whose answer to a row depends on the others.
    max_wait : float
        Seconds; what would wait longer, judged by how long calls take, is refused at once.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result | Exception]],
        *,
        together: bool = True,
        max_rows: int = MAX_BATCH_ROWS,
        max_waiting_rows: int = MAX_WAITING_ROWS,
        max_waiting: int = MAX_WAITING,
        max_wait: float = MAX_WAIT,
    ) -> None:
        self._run = run
        self._together = together
        self._max_rows, self._max_waiting_rows, self._max_waiting = max_rows, max_waiting_rows, max_waiting
        self._max_wait = max_wait
        self._small: deque[_Waiting[Item, Result]] = deque()
        self._large: deque[_Waiting[Item, Result]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._working: asyncio.Task[None] | None = None
        self._last_was_large = False
        self._wanted, self._enough, self._idle_gathers = 0, asyncio.Event(), 0
        self._seconds_per_call = self._begun = 0.0
        self.waiting_rows = 0

    @property
    def thread(self) -> ThreadPoolExecutor:
        """The model's own thread, for whatever else must not run beside it."""
        return self._thread

    async def answer(self, item: Item, rows: int) -> Result:
        """What `run` says to `item`.

        Raises
        ------
        Overloaded
            Too much is waiting already.
        """
        waiting = len(self._small) + len(self._large)
        full = self.waiting_rows + rows > self._max_waiting_rows or waiting >= self._max_waiting
        if waiting and (full or self.expected_wait > self._max_wait):
            raise Overloaded(max(1, round(self.expected_wait)))
        entry = _Waiting[Item, Result](item, rows, asyncio.get_running_loop().create_future())
        (self._large if rows > self._max_rows // 2 else self._small).append(entry)
        self.waiting_rows += rows
        if self._wanted and len(self._small) >= self._wanted:
            self._enough.set()
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        try:
            return await entry.answer
        except asyncio.CancelledError:
            entry.answer.cancel()  # its client is gone: it is not worth a model call any more
            raise

    @property
    def expected_wait(self) -> float:
        """Seconds until what waits now is answered, as far as past calls, and the one under way, tell."""
        calls = len(self._large)
        calls += -(-self.waiting_rows // self._max_rows) if self._together else len(self._small)
        elapsed = time.perf_counter() - self._begun if self._begun else 0.0
        # One that takes longer than others did will take as long again, for all that is known.
        under_way = max(self._seconds_per_call - elapsed, elapsed - self._seconds_per_call, 0.0) if elapsed else 0.0
        return under_way + calls * self._seconds_per_call

    async def _gather(self, answered: int) -> None:
        """Wait for those who were just answered, where others wait too or they were several."""
        before = len(self._small)
        if not self._together or self._large or answered + before <= 1:
            return
        if self._idle_gathers:
            self._idle_gathers -= 1
            return
        self._wanted, self._enough = before + answered, asyncio.Event()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._enough.wait(), min(MAX_GATHER, self._seconds_per_call / 2))
        self._wanted = 0
        if len(self._small) - before < answered / 2:
            self._idle_gathers = IDLE_GATHERS

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        answered = 0
        try:
            while True:
                if answered:
                    await self._gather(answered)
                if not (batch := self._next()):
                    break
                answered = len(batch)
                self._begun = time.perf_counter()
                results = await loop.run_in_executor(self._thread, self._answers, [each.item for each in batch])
                taken, known = time.perf_counter() - self._begun, self._seconds_per_call
                self._seconds_per_call = 0.9 * known + 0.1 * taken if known else taken
                self._begun = 0.0
                for each, result in zip(batch, results, strict=True):
                    if each.answer.done():
                        continue
                    if isinstance(result, BaseException):
                        each.answer.set_exception(result)
                    else:
                        each.answer.set_result(result)
        finally:
            self._working, self._begun = None, 0.0

    def _next(self) -> list[_Waiting[Item, Result]]:
        while self._small or self._large:
            batch: list[_Waiting[Item, Result]] = []
            rows = 0
            if self._large and (self._last_was_large is False or not self._small):
                batch, self._last_was_large = [self._large.popleft()], True
            else:
                self._last_was_large = False
                while self._small and (not batch or (self._together and rows + self._small[0].rows <= self._max_rows)):
                    batch.append(self._small.popleft())
                    rows += batch[-1].rows
            self.waiting_rows -= sum(each.rows for each in batch)
            if wanted := [each for each in batch if not each.answer.done()]:  # else their clients are gone
                return wanted
        return []

    def _answers(self, items: list[Item]) -> list[Result | BaseException]:
        try:
            results = list(self._run(items))
            return [_raisable(each) if isinstance(each, BaseException) else each for each in results]
        except BaseException as error:  # noqa: BLE001  whatever a model raises: a library in Rust panics, it may exit
            if len(items) == 1:
                return [_raisable(error)]
        return [self._answers([item])[0] for item in items]


def _raisable(error: BaseException) -> Exception:
    """`error` as a future can hold it, and no loop ends of."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
