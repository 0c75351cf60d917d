"""What a terminal shows while models load: one line per model, with the state of its workers."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from headrace_server.engine.deployment import Deployment, DeploymentState
from headrace_server.engine.observer import Observer

REFRESHES_PER_S = 8


class _Line:
    """One deployment on its way from added to ready or broken."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self._spinner = Spinner("dots", style="cyan")
        self._began_s = time.monotonic()
        self._ended_s: float | None = None

    def end(self) -> None:
        self._ended_s = time.monotonic()

    def cells(self) -> tuple[RenderableType, ...]:
        """Mark, name, state of the workers, and seconds since loading began."""
        deployment = self.deployment
        mark: RenderableType = self._spinner
        if deployment.state is DeploymentState.READY:
            mark = Text("✓", style="green")
        elif deployment.state is DeploymentState.UNAVAILABLE:
            mark = Text("✗", style="red")
        counts = Counter(state.value for state in deployment.workers.copy().values())
        workers = ", ".join(
            f"{count} {state.replace('_', ' ')}"
            if len(counts) > 1 or count > 1
            else state.replace("_", " ")
            for state, count in counts.items()
        )
        if deployment.state is DeploymentState.UNAVAILABLE:
            workers = "cannot be served"
        seconds = (self._ended_s or time.monotonic()) - self._began_s
        return (
            mark,
            Text(f"{deployment.name} {deployment.version}", style="bold"),
            Text(workers),
            Text(f"{seconds:.1f} s", style="dim"),
        )


class LoadingView(Observer):
    """Shows the start of a server while entered, and leaves nothing behind.

    While it is shown, what is written to `sys.stderr` appears above it.
    """

    def __init__(self, console: Console) -> None:
        self._lines: dict[tuple[str, int], _Line] = {}
        self._live = Live(
            console=console,
            get_renderable=self._table,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
        )

    def deployment_added(self, deployment: Deployment) -> None:
        """One more line."""
        self._lines[deployment.name, deployment.version] = _Line(deployment)

    def deployment_changed(self, deployment: Deployment) -> None:
        """Its clock stops."""
        line = self._lines.get((deployment.name, deployment.version))
        if line is not None and deployment.state is not DeploymentState.LOADING:
            line.end()

    def deployment_removed(self, deployment: Deployment) -> None:
        """Its line goes, unless it is another one's by now."""
        key = (deployment.name, deployment.version)
        if key in self._lines and self._lines[key].deployment is deployment:
            del self._lines[key]

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def _table(self) -> Table:
        """Called on the display's thread."""
        grid = Table.grid(padding=(0, 2))
        for line in list(self._lines.values()):
            grid.add_row(*line.cells())
        return grid
