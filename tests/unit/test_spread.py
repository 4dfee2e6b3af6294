"""Which address the next connection tries first."""

from __future__ import annotations

from collections import Counter

from obs_engine.transfer.spread import DEAD_S, Spread

FOUR = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::4")


def spread(first: int = 0) -> Spread:
    made = Spread("bucket.obs.test", 443, first)
    made.set(FOUR)
    return made


def test_every_address_is_first_in_turn() -> None:
    """And all others stand behind it, to be tried if it does not answer."""
    orders = [spread_order for made in [spread(7)] for spread_order in (made.order(0.0) for _ in range(12))]
    assert Counter(order[0] for order in orders) == dict.fromkeys(FOUR, 3)
    assert all(sorted(order) == sorted(FOUR) for order in orders)


def test_a_dead_address_comes_last_for_a_while() -> None:
    """Whether its connection failed, broke, or never stood while another one's did."""
    made = spread()
    made.on_failed(["10.0.0.2", *FOUR], "", 100.0)
    made.on_connected(["10.0.0.1", "10.0.0.3", "10.0.0.2"], "10.0.0.3", 100.0)
    for _ in range(8):
        assert made.order(100.0 + DEAD_S / 2)[0] in ("10.0.0.3", "2001:db8::4")
    assert {made.order(101.0 + DEAD_S)[0] for _ in range(8)} == set(FOUR)


def test_an_address_that_answers_again_is_no_longer_dead() -> None:
    """And where all are dead, the one that has been so for longest comes first."""
    made = spread()
    for at_s, address in enumerate(FOUR):
        made.on_failed([], address, float(at_s))
    assert made.order(5.0)[0] == "10.0.0.1"
    made.on_connected(["10.0.0.3"], "10.0.0.3", 5.0)
    assert made.order(5.0)[0] == "10.0.0.3"


def test_libcurls_words() -> None:
    """IPv6 addresses stand in brackets, and the entry is no permanent one."""
    made = spread()
    assert made.entry(["10.0.0.1", "2001:db8::4"]) == "+bucket.obs.test:443:10.0.0.1,[2001:db8::4]"


def test_addresses_that_are_gone_are_forgotten() -> None:
    """A host that moved has other ones."""
    made = spread()
    made.on_failed([], "10.0.0.1", 0.0)
    made.set(("10.0.0.1", "10.9.9.9"))
    assert [made.order(1.0)[0] for _ in range(3)] == ["10.9.9.9"] * 3
