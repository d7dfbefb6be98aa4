"""The order in which tasks reach the workers: what is done is passed over, what lies far away is copied ahead."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Final, Protocol

from mupd_wsi.batch.matching import Match, ModelFacts, match
from mupd_wsi.batch.tasks import Outcome, SlideTask
from mupd_wsi.batch.work import one_line

#: Seconds that :meth:`TodoFeed.take` looks at slides that are done before it lets others have their turn.
LOOK_S: Final = 0.05


class Books(Protocol):
    """Who wants to know what does not become a worker's task."""

    def skip(self, task: SlideTask, found: Match) -> None:
        """A task was done before."""

    def end(self, task: SlideTask, outcome: Outcome) -> None:
        """A task is over before it has begun."""


class TodoFeed:
    """Hands out the tasks that are still to be done; see :class:`~mupd_wsi.batch.tasks.Feed`.

    Args:
        tasks: in order.
        model: that they are to be stained with.
        begun: keys of tasks that an earlier run has begun: what lies in their place without a record is left of it.
        books: where the others are told.
    """

    def __init__(self, tasks: Iterable[SlideTask], model: ModelFacts, begun: frozenset[str], books: Books) -> None:
        self._tasks = deque(tasks)
        self._model = model
        self._begun = begun
        self._books = books

    @property
    def exhausted(self) -> bool:
        """Whether all tasks have been handed out or passed over."""
        return not self._tasks

    def take(self) -> SlideTask | None:
        """The next task that is not done; None where none was found quickly."""
        end = time.monotonic() + LOOK_S
        while self._tasks and time.monotonic() < end:
            task = self._tasks.popleft()
            try:
                found = match(task, self._model)
            except OSError as error:
                self._books.end(task, Outcome(False, one_line(error)))
                continue
            if found.found == "same":
                self._books.skip(task, found)
            elif found.found == "nothing" or task.options.overwrite:
                return task
            elif found.found == "unknown" and task.key in self._begun:
                return replace(task, options=replace(task.options, overwrite=True))
            else:
                self._books.end(task, Outcome(False, _in_the_way(task, found), lasting=True))
        return None


def _in_the_way(task: SlideTask, found: Match) -> str:
    advice = "give --overwrite to replace it, or another folder with -o"
    place = task.remote or task.output
    if found.found == "unknown":
        return f"{place} exists and has no record of how it was made; {advice}"
    return f"{place} exists and was made otherwise: {found.difference}; {advice}"
