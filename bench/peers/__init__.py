"""Headrace beside Triton, mosec, LitServe and MLServer: the same models, loads and checks.

    python -m bench.peers

A peer (`peer`, one module for each) says how to install, start and address one server. A contender
is a peer under one load, a scenario is several contenders in turn (`scenarios`); `match` tunes,
starts, checks and measures them, `report` and `plots` write down what came out.
"""
