"""The merges that `tools/make_gemma3.py` finds for the pieces of a GGUF file."""

from mlx_dpo.convert.gguf.pieces import scores_of
from tools.make_gemma3 import merges_of

PIECES = ["a", "b", "c", "ab", "bc", "abc", "aab"]
SCORES = [-1e9, -1e9, -1e9, -2.0, -1.0, -3.0, -4.0]


def test_merges_make_pieces_in_the_order_of_their_scores_and_all_ways_to_one_together() -> None:
    vocabulary = {piece: number for number, piece in enumerate(PIECES)}
    merges = merges_of(vocabulary, SCORES)
    assert merges == [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c"), ("a", "ab")]
    # The way back, which the export to GGUF takes, finds the same order: no tokens are lost.
    back = scores_of({"vocab": vocabulary, "merges": [list(pair) for pair in merges]})
    assert back is not None
    assert sorted(back, key=lambda piece: -back[piece]) == ["bc", "ab", "abc", "aab"]
