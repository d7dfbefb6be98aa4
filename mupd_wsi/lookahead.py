"""Work done ahead in threads, its results taken in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Generator[tuple[Item, Result]]:
    """Give each item with its result, in the items' order.

    Memory bound: ``ahead + 1`` results.

    Args:
        pool: whose threads work.
        work: what it raises is raised here when its item's turn comes.
        items: taken lazily, in the caller's thread.
        ahead: how many items may be worked on before the taker asks for them.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(work, item)))
        if len(waiting) > ahead:
            first, result = waiting.popleft()
            yield first, result.result()
    while waiting:
        first, result = waiting.popleft()
        yield first, result.result()
