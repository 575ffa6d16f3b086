"""A look at the lengths before training: DPO learns length when the data teaches it."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_dpo.records import PreferenceExample

# Outside these shares "the longer one wins" is a rule the model can learn instead of the behaviour.
LOPSIDED = (0.35, 0.65)


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How the lengths of chosen and rejected responses compare.

    Attributes:
        chosen_longer: Share of pairs whose chosen response has more tokens.
        rejected_longer: Share of pairs whose rejected response has more tokens.
        mean_gap: Mean of chosen minus rejected, in tokens.
    """

    chosen_longer: float
    rejected_longer: float
    mean_gap: float

    @property
    def is_lopsided(self) -> bool:
        """Whether length alone would predict the preference suspiciously well."""
        low, high = LOPSIDED
        decided = self.chosen_longer + self.rejected_longer
        return decided > 0 and not low <= self.chosen_longer / decided <= high


def length_bias(examples: Sequence[PreferenceExample]) -> LengthBias:
    """Compare response lengths over at least one pair."""
    gaps = [len(e.chosen_ids) - len(e.rejected_ids) for e in examples]
    return LengthBias(
        chosen_longer=sum(gap > 0 for gap in gaps) / len(gaps),
        rejected_longer=sum(gap < 0 for gap in gaps) / len(gaps),
        mean_gap=sum(gaps) / len(gaps),
    )
