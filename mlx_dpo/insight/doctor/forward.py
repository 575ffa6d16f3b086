"""Whether a model's forward pass is its own: its config looked up, and transformers' logits."""

from pathlib import Path
from tempfile import TemporaryDirectory

from mlx_dpo.convert.conversion import Kind, Options, convert, kind_of
from mlx_dpo.convert.sources import find, is_adapter, locate
from mlx_dpo.convert.verify import check_logits
from mlx_dpo.errors import MlxDpoError, UsageError
from mlx_dpo.insight.doctor.bench import FAIL, LOOK, OK, Outcome, without_paths
from mlx_dpo.models.config import is_quantised, read_config
from mlx_dpo.models.tokenizer import load_tokenizer
from mlx_dpo.models.verified import known


def forward_pass(name: str) -> Outcome:
    """Compare a model's logits with those of transformers, where torch is installed.

    Args:
        name: A folder, hub id or adapter, as the user gave it.

    Raises:
        UsageError: If it is not there or can't be read.
    """
    found = find(name)
    folder = locate(name).folder if is_adapter(found) else found
    config = read_config(folder)
    is_known, text = known(config)
    try:
        line = without_paths(_beside_transformers(folder))
    except UsageError as error:
        line = f"logits: not compared with torch: {without_paths(str(error))}"
    except MlxDpoError as error:
        value = without_paths(str(error)).removesuffix("; nothing was written")
        return Outcome(FAIL, value, "A run would train another model than this one.", {})
    is_compared = not line.startswith("logits: not compared")
    verdict = OK if is_known or is_compared else LOOK
    here = "; compared here" if is_compared else ""
    figures = {"verified": is_known, "compared": is_compared}
    return Outcome(verdict, line, f"{text}{here}.", figures)


def _beside_transformers(folder: Path) -> str:
    """The line of the comparison, or why there is none."""
    kind = kind_of(folder)
    if kind not in (Kind.HUGGING_FACE, Kind.MLX):
        return f"logits: not compared with torch: a {kind.value} is compared by convert"
    if is_quantised(read_config(folder)):
        return "logits: not compared with torch: transformers does not read weights packed by MLX"
    with TemporaryDirectory() as place:
        torch_side = folder
        if kind is Kind.MLX:
            torch_side = Path(place) / "torch"
            convert(folder, torch_side, Options(to="torch", verify=False), lambda line: None)
        return check_logits(torch_side, folder, load_tokenizer(folder), exact=True, written=False)
