"""What the benchmark of bfloat16 shows, of runs made up here."""

from benchmarks import rounding
from mlx_dpo.records import PreferenceExample


def test_pairs_are_cut_and_those_that_become_equal_left_out() -> None:
    pairs = [
        PreferenceExample(list(range(50)), [1] * 60, [2] * 3),
        PreferenceExample([1], [5] * 41, [5] * 45),
    ]
    (cut,) = rounding._short(pairs)
    assert cut.prompt_ids == list(range(50 - rounding.PROMPT, 50))
    assert (len(cut.chosen_ids), cut.rejected_ids) == (rounding.RESPONSE, [2] * 3)


def test_the_table_and_curves_name_every_run() -> None:
    run = {
        "train_loss": [0.7] * 40 + [0.5] * 20,
        "val_step": [14, 59],
        "val_loss": [0.6, 0.4],
        "val_reward_margin": [0.1, 0.25],
        "moved": 0.5,
        "distance": 1.0,
    }
    table = rounding._table([run] * 3)
    assert table.count("| 0.5000 | 0.4000 | +0.2500 | 50.0% | 1.000 |") == 3
    drawn = rounding.pictures([run] * 3)
    assert all(arm.name in svg for svg in drawn.values() for arm in rounding.ARMS)
