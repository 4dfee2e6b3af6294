"""The processes that move the bytes, and what they say to each other.

caller ── launch ──► coordinator ── pool ──► workers ── transport ──► the service

Keeper of `pycurl` (transport), of clock and randomness (coordinator, upload) and of child processes (launch, pool).
"""
