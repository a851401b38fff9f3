"""How many rows a member may cause: a stock that fills up again."""

from hypothesis import given, strategies as st

from fedtrain.core.allowance import Allowance, Stock, spend

STOCK = Stock(3, 100)


def test_a_stock_is_spent_and_fills_up_again() -> None:
    """Three rows at once, then none, and one more for each hundred milliseconds."""
    allowance, given_out = Allowance(), []
    for now_ms in (1_000, 1_000, 1_000, 1_000, 1_050, 1_100, 1_100, 1_500, 1_500, 1_500, 1_500):
        allowance, row = spend(allowance, STOCK, now_ms)
        given_out.append(row)
    assert given_out == [True, True, True, False, False, True, False, True, True, True, False]


def test_what_got_no_row_is_counted() -> None:
    """The next row can say how many came before it without one."""
    allowance = Allowance()
    for _ in range(5):
        allowance, _ = spend(allowance, STOCK, 0)
    assert allowance.skipped == 2
    assert spend(allowance, STOCK, 100) == (Allowance(400, 0), True)


@given(st.lists(st.integers(0, 300), max_size=60))
def test_rows_are_bounded_by_time(gaps_ms: list[int]) -> None:
    """Whatever the course of wishes, there are no more rows than the stock and what has come back."""
    allowance, now_ms, rows = Allowance(), 0, 0
    for gap_ms in gaps_ms:
        now_ms += gap_ms
        allowance, row = spend(allowance, STOCK, now_ms)
        rows += row
        assert rows <= STOCK.rows_max + now_ms // STOCK.row_every_ms
