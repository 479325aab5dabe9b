"""Amounts of bytes, read and written."""

import pytest

from llmengine.quantity import enough, readable, whole_bytes


@pytest.mark.parametrize(
    ("quantity", "size"),
    [
        ("6Gi", 6 << 30),
        ("1.5Gi", 3 << 29),
        ("100M", 100_000_000),
        ("1500m", 1),
        ("1e9", 10**9),
        (1024, 1024),
    ],
)
def test_a_quantity_is_so_many_bytes(quantity: int | str, size: int) -> None:
    assert whole_bytes(quantity) == size


@pytest.mark.parametrize("size", [1, 5 << 20, (1 << 30) + 1, 7 << 30])
def test_what_is_called_enough_is(size: int) -> None:
    assert whole_bytes(enough(size)) >= size


def test_sizes_are_written_as_people_read_them() -> None:
    assert [readable(n) for n in (17, 538 << 20, 3 << 29)] == ["17 B", "538 MiB", "1.50 GiB"]
