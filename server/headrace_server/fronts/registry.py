"""Numbers for deployments, and the table of them that fronts look calls up in."""

from __future__ import annotations

import itertools
from weakref import WeakKeyDictionary, WeakValueDictionary

from headrace_server.engine.deployment import Deployment, DeploymentState
from headrace_server.engine.engine import Engine, Listing
from headrace_server.fronts import frames


class Registry:
    """Each deployment of an engine has a number, which no other one ever gets."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._numbers: WeakKeyDictionary[Deployment, int] = WeakKeyDictionary()
        self._deployments: WeakValueDictionary[int, Deployment] = WeakValueDictionary()
        self._next = itertools.count()

    def deployment(self, number: int) -> Deployment | None:
        """The deployment of this number; None once it has ended and nobody refers to it."""
        return self._deployments.get(number)

    def table(self) -> frames.Table:
        """Everything that calls may find now."""
        listing = self._engine.listed()
        rows = tuple(
            frames.Row(
                self._number(deployment),
                deployment.name,
                deployment.version,
                _told(deployment, listing).value,
                deployment.spec if deployment.loaded else None,
            )
            for deployment in listing.deployments
        )
        return frames.Table(rows, listing.loading, listing.absent, listing.stopping)

    def _number(self, deployment: Deployment) -> int:
        number = self._numbers.get(deployment)
        if number is None:
            number = self._numbers[deployment] = next(self._next)
            self._deployments[number] = deployment
        return number


def _told(deployment: Deployment, listing: Listing) -> DeploymentState:
    """Fronts know that one leaves before it does: until then their calls are on the way to it."""
    return DeploymentState.UNLOADING if deployment in listing.leaving else deployment.state
