"""What a run says of the lengths of its pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample

# Outside these shares "the longer one wins" is a rule the model can learn instead of the behaviour.
LOPSIDED = (0.35, 0.65)
ENOUGH_PAIRS = 30  # under this many, such a share is often chance


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How the lengths of chosen and rejected responses compare.

    Attributes:
        num_pairs: Pairs compared.
        chosen_longer: Share of pairs whose chosen response has more tokens.
        rejected_longer: Share of pairs whose rejected response has more tokens.
        mean_gap: Mean of chosen minus rejected, in tokens.
    """

    num_pairs: int
    chosen_longer: float
    rejected_longer: float
    mean_gap: float

    @property
    def chosen_share(self) -> float:
        """Share of chosen among the longer responses; one half where none differ in length."""
        decided = self.chosen_longer + self.rejected_longer
        return self.chosen_longer / decided if decided else 0.5

    @property
    def is_lopsided(self) -> bool:
        """Whether length alone would predict the preference suspiciously well."""
        low, high = LOPSIDED
        return self.num_pairs >= ENOUGH_PAIRS and not low <= self.chosen_share <= high


def length_bias(examples: Sequence[PreferenceExample]) -> LengthBias:
    """Compare response lengths over at least one pair."""
    _, chosen, rejected = lengths(examples).T
    gaps = chosen - rejected
    return LengthBias(
        num_pairs=len(gaps),
        chosen_longer=float((gaps > 0).mean()),
        rejected_longer=float((gaps < 0).mean()),
        mean_gap=float(gaps.mean()),
    )
