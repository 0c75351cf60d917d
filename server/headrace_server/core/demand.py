"""What the requests that arrive ask of a batch, as one decision sees it."""

from __future__ import annotations

from dataclasses import dataclass

from headrace_server.core.policy import Opening
from headrace_server.core.request import Request
from headrace_server.core.timetable import Timetable


@dataclass(slots=True)
class Demand:
    """The load of the workers among which a batch may begin.

    Args:
        opening: where it may.
        load: seconds of work that arrive per second, each as slow as beside `opening.running` - 1
            other workers.
        uncertainty: how far off that may be, as a share of it.
        margin: factor between a planned duration and the one that deadlines are held against.
    """

    opening: Opening
    load: float
    uncertainty: float
    margin: float

    @property
    def need(self) -> float:
        """The work per second that every worker must do for all of them to keep up."""
        return self.load / len(self.opening.free_s)

    @property
    def least_need(self) -> float:
        """The need, if the load is as low as it may be."""
        return max(0.0, 1.0 - self.uncertainty) * self.need

    @property
    def most_need(self) -> float:
        """The need, if the load is as high as it may be."""
        return (1.0 + self.uncertainty) * self.need

    def rows_possible(self, head: Request, times: Timetable) -> int:
        """The largest batch that a request with the head's time to live can ride in.

        With m workers one becomes free every `1 / m` of a batch's duration: a request that just
        missed one waits for that long, and then for its own batch.
        """
        workers = len(self.opening.free_s)
        budget_s = head.deadline_s - head.arrival_s
        return max(head.rows, times.rows_within(budget_s * workers / (workers + 1)))

    def at_most(self, rate: float, head: Request, times: Timetable, possible: int) -> float:
        """That work per second, or what the largest `possible` batch does, if it is less: no more
        is asked of any."""
        # A hair less, since sums of durations differ from products in the last digit.
        return min(rate, times.rate(possible, head.rows) * (1 - 1e-9))
