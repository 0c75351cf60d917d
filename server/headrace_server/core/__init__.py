"""The pure core: who waits, who rides, who is refused.

Standard library only. Nothing here awaits, reads a clock, does I/O, logs or counts: time is an
argument, decisions are return values. `Scheduler` is the entry; read it first.
"""
