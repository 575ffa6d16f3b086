"""What computing again costs: both kinds of step are made, and told as one row."""

from benchmarks.checkpointing import row


def test_a_row_holds_both_times_and_a_ratio_within_its_range() -> None:
    name, kept, again, ratio, lowest, highest = row("tiny", steps=2)
    assert name == "tiny"
    assert float(kept) > 0
    assert float(again) > 0
    assert float(lowest) <= float(ratio) <= float(highest)
