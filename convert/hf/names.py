"""How mlx-lm names and lays out tensors, architecture by architecture, and Hugging Face's way.

These rules turn an MLX folder into a Hugging Face folder with nothing recorded about where it came
from. Where a conversion recorded the source's own tensors, `trace` follows those instead.
"""

import re
from dataclasses import dataclass

_GPT2_LINEAR = re.compile(r"\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")

# Buffers that models compute for themselves and older checkpoints hold all the same.
BUFFERS = re.compile(
    r"(^|\.)(attn\.(masked_)?bias|attention\.(masked_)?bias|rotary_emb\.inv_freq|position_ids)$"
)


@dataclass(frozen=True)
class Rule:
    """The way from MLX names to Hugging Face names.

    Attributes:
        prefixes: Beginnings of names and what stands in their place; the first that fits counts.
        transposed: Names of matrices that PyTorch holds the other way round.
    """

    prefixes: tuple[tuple[str, str], ...] = ()
    transposed: re.Pattern[str] | None = None

    def torch_name(self, name: str) -> str:
        """The Hugging Face name of an MLX parameter."""
        for ours, theirs in self.prefixes:
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return name

    def is_transposed(self, name: str) -> bool:
        """Whether PyTorch holds this MLX parameter the other way round."""
        return self.transposed is not None and self.transposed.search(name) is not None


_SAME_NAMES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3"),
    *("olmo2", "smollm3", "starcoder2"),
)
RULES = {
    **{architecture: Rule() for architecture in _SAME_NAMES},
    # Conv1D: a linear layer whose matrix is (in, out).
    "gpt2": Rule((("model.", "transformer."),), _GPT2_LINEAR),
    "gpt_neox": Rule(
        (
            ("model.h.", "gpt_neox.layers."),
            ("model.embed_out.", "embed_out."),
            ("model.", "gpt_neox."),
        )
    ),
}
