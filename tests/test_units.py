"""How numbers are printed."""

from shoestring.units import count, duration, gib, usd


def test_amounts_a_person_can_read():
    assert [usd(x) for x in (0, 0.00002, 0.0012, 0.42, 1234.5)] == ["$0", "<$0.0001", "$0.0012", "$0.42", "$1,234.50"]
    assert [duration(x) for x in (3.21, 48, 200, 7500)] == ["3.2 s", "48 s", "3 min 20 s", "2 h 05 min"]
    assert [gib(x) for x in (5 * 1024**2, 3 * 1024**3)] == ["5.0 MiB", "3.00 GiB"]
    assert [count(x) for x in (12_345, 1_230_000, 7_620_000_000)] == ["12,345", "1.23M", "7.62B"]
