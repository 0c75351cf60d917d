"""The asyncio shell around the scheduler: clock, futures and timers.

`deployment.py` performs the actions of one scheduler and is the only place that resolves futures;
`engine.py` knows all deployments; `observer.py` is how others learn what happened.
"""
