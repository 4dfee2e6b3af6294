"""A local, OBS-compatible server: what a newcomer, the tests and the benchmarks upload to.

`LocalObs` starts it as a process of its own; `obs-engine serve` is the same server by hand. Nothing inside the engine
imports this room but that command. Knows the service's rules as documented; does not know encryption at rest,
policies, versions, or any account but one.
"""

from obs_engine.testing.local import LocalObs

__all__ = ["LocalObs"]
