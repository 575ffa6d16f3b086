"""The proof of a conversion: weights bit by bit, and PyTorch's logits compared with MLX's."""

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_dpo.convert import record as records
from mlx_dpo.convert.hf.model import Model, mlx_model, torch_model
from mlx_dpo.convert.hf.names import BUFFERS, listed, skeleton
from mlx_dpo.convert.weights import cast, largest_change, num_parameters, read_weights
from mlx_dpo.errors import MlxDpoError, UsageError, one_line
from mlx_dpo.extras import to_install
from mlx_dpo.models.course import CourseArgs, CourseModel
from mlx_dpo.models.parameters import same_bits
from mlx_dpo.models.tokenizer import load_tokenizer
from mlx_dpo.models.verified import exact_up_to, language_config

Logits = npt.NDArray[np.float32]

TOLERANCE = 2e-4  # of the largest logit, or of 1 where all are smaller
_LENGTH = 64
_TEXT = (
    "A lighthouse keeper counts ships: seven at dawn, 12 by noon, none after the fog came in. "
    '"Is anyone out there?" she asked, and wrote the answer down. ',
    "def area(width, height):\n    return width * height  # 3.5 x 2 = 7.0\n\nZürich, café, 東京, "
    "and a sentence in plain words that ends here. ",
)


@dataclass(frozen=True)
class Agreement:
    """Two sets of logits compared.

    Attributes:
        difference: Largest absolute difference.
        largest: Largest absolute logit of the first.
        num_agreeing: Positions with the same likeliest token in both.
        num_tokens: All positions.
    """

    difference: float
    largest: float
    num_agreeing: int
    num_tokens: int

    @property
    def allowed(self) -> float:
        """The largest difference that float32 rounding explains."""
        return TOLERANCE * max(1.0, self.largest)

    def __str__(self) -> str:
        return (
            f"largest difference {self.difference:.2g} of {self.largest:.3g}, likeliest token "
            f"equal at {self.num_agreeing} of {self.num_tokens} positions"
        )


def compare(first: Logits, second: Logits) -> Agreement:
    """Compare logits of the same tokens.

    Args:
        first: float32 (B, T, V).
        second: float32 (B, T, V).
    """
    return Agreement(
        difference=float(np.abs(first - second).max()),
        largest=float(np.abs(first).max()),
        num_agreeing=int((first.argmax(-1) == second.argmax(-1)).sum()),
        num_tokens=first.shape[0] * first.shape[1],
    )


def check_same(expected: Mapping[str, mx.array], converted: Mapping[str, mx.array]) -> str:
    """Compare weights with those that were converted there and back, bit by bit.

    Returns:
        The line to show.

    Raises:
        MlxDpoError: If a tensor is missing or differs.
    """
    for name, value in expected.items():
        if name not in converted or not same_bits(value, converted[name]):
            raise MlxDpoError(f"{name}: is not the same after conversion there and back")
    return f"weights: there and back is bit-identical, all {len(expected)} tensors"


def check_weights(source: Path, result: Path, dtype: mx.Dtype | None) -> str:
    """Convert the written folder back, and compare it with the source bit by bit.

    Args:
        source: The folder that was converted.
        result: The folder that was written.
        dtype: What the weights were cast to, if they were.

    Returns:
        The line to show.

    Raises:
        MlxDpoError: If a tensor differs.
    """
    is_fresh = (result / records.FILE).exists() and not (source / records.FILE).exists()
    if is_fresh and not records.read_record(result).left_out:
        original, back = read_weights(source).arrays, torch_model(result).arrays
    else:
        # To torch, the way back is the way mlx-lm reads it. Where the way back is closed, the
        # written folder is compared with what mlx-lm makes of the source.
        original, back = mlx_model(source).arrays, mlx_model(result).arrays
    if original.keys() != back.keys():
        names = listed(sorted(original.keys() ^ back.keys()))
        raise MlxDpoError(f"not the same tensors after conversion there and back: {names}")
    num_tensors, changes = len(original), []
    for name in list(original):  # each is read from the files here, and freed
        before = {name: original.pop(name)}
        expected = cast(before, dtype)
        check_same(expected, {name: back.pop(name)})
        if expected[name].dtype != before[name].dtype:
            changes.append(largest_change(before[name], expected[name]))
    same = f"there and back is bit-identical, all {num_tensors} tensors"
    if not changes:
        return f"weights: {same}"
    return f"weights: the cast changes none by more than {max(changes):.2g}; otherwise {same}"


def check_logits(
    torch_side: Path, mlx_side: Path, tokenizer: Any, *, exact: bool, written: bool
) -> str:
    """Let transformers and MLX score the same text, both in float32.

    Args:
        torch_side: The Hugging Face folder.
        mlx_side: The MLX folder.
        tokenizer: The checkpoint's own; None takes token ids in order.
        exact: Whether the weights are equal; if they were cast, a difference is only reported.
        written: Whether the Hugging Face folder is the one that was written, which transformers
            must load. A source that it can't load is only reported.

    Returns:
        The line to show, which says why where there was no comparison.

    Raises:
        MlxDpoError: If the logits differ by more than float32 rounding, or transformers does not
            load what was written.
    """
    model = mlx_model(mlx_side)
    reason = _obstacle(model)
    if reason:
        return f"logits: not compared with torch: {reason}"
    ids = token_batch(tokenizer, model.config)
    try:
        expected = torch_logits(torch_side, ids)
    except MlxDpoError as error:
        if written and not isinstance(error, UsageError):
            raise
        return f"logits: not compared with torch: {error}"
    text = "text" if tokenizer else "token ids in order (there is no tokenizer)"
    return _verdict("transformers", text, compare(expected, mlx_logits(model, ids)), exact)


def check_course_logits(
    file: Path, arrays: Mapping[str, mx.array], args: CourseArgs, mlx_folder: Path, *, exact: bool
) -> str:
    """Let PyTorch and MLX score the same text through a course model, both in float32.

    Args:
        file: The artifact's model.pt, of either side of the conversion.
        arrays: The MLX parameters of the other side.
        args: The model's sizes.
        mlx_folder: Holds the tokenizer.
        exact: Whether the weights are equal; if they were cast, a difference is only reported.

    Returns:
        The line to show, which says so where there was no comparison.

    Raises:
        MlxDpoError: If the logits differ by more than float32 rounding.
    """
    if not _has_torch():
        return "logits: not compared with torch: it is not installed"
    sizes = {"vocab_size": args.vocab_size, "n_positions": args.max_seq_len}
    ids = token_batch(load_tokenizer(mlx_folder), sizes)
    model = CourseModel(args)
    model.load_weights([(name, value.astype(mx.float32)) for name, value in arrays.items()])
    agreement = compare(course_torch_logits(file, ids), np.array(model(mx.array(ids))))
    return _verdict("torch", "text", agreement, exact)


def token_batch(tokenizer: Any, config: dict[str, Any]) -> npt.NDArray[np.int64]:
    """Two rows of real text as token ids.

    Returns:
        int64 (2, T), T at most 64 and what the model's positions and window allow.
    """
    language = language_config(config)
    vocab = int(language["vocab_size"])
    limits = [language.get(key) for key in ("max_position_embeddings", "n_positions")]
    limits.append(exact_up_to(config))
    length = min([_LENGTH, *(limit for limit in limits if isinstance(limit, int) and limit > 0)])
    rows = []
    for start, text in enumerate(_TEXT):
        ids = tokenizer.encode(text, add_special_tokens=False) if tokenizer else []
        ids = [i for i in ids if 0 <= i < vocab] or [(start + 3 * i) % vocab for i in range(length)]
        rows.append(np.resize(ids, length))
    return np.array(rows, np.int64)


def mlx_logits(model: Model, ids: npt.NDArray[np.int64]) -> Logits:
    """MLX's logits in float32, whatever the weights are stored as.

    Args:
        model: From `mlx_model`.
        ids: int64 (B, T).

    Returns:
        float32 (B, T, V).
    """
    network = skeleton(model.config)
    if hasattr(network, "sanitize"):
        network.sanitize(dict(model.arrays))  # some decide here whether embeddings are tied
    network.load_weights(list(cast(model.arrays, mx.float32).items()))
    network.eval()
    return np.array(network(mx.array(ids)).astype(mx.float32))


def torch_logits(folder: Path, ids: npt.NDArray[np.int64]) -> Logits:
    """Logits of the folder as transformers loads it, in float32.

    Raises:
        UsageError: If transformers does not know the architecture, or can't run the model.
        MlxDpoError: If it can't load the folder, or finds tensors missing or superfluous.
    """
    import torch
    import transformers

    with _quiet(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # a config can be wrong in any way
            raise UsageError(f"transformers: {one_line(error)}") from None
        try:
            model, report = _auto_class(transformers, config).from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:  # transformers raises anything for a folder that is wrong
            raise MlxDpoError(f"transformers can't load the folder: {one_line(error)}") from None
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            names = [name for name in map(str, report.get(kind) or ()) if not BUFFERS.search(name)]
            if names:
                what = kind.replace("_", " ")
                raise MlxDpoError(f"transformers reports {what}: {listed(sorted(names))}")
        try:
            with torch.no_grad():
                output = model.eval()(torch.from_numpy(ids), use_cache=False)
        except Exception as error:  # and for a config it can load and not compute
            raise UsageError(f"transformers can't run the model: {one_line(error)}") from None
    logits: Logits = output.logits.float().numpy()
    return logits


def _auto_class(transformers: Any, config: Any) -> Any:
    """The class that loads a whole folder: a multimodal model's has the images' layers too."""
    tables = transformers.models.auto.modeling_auto
    whole = tables.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    alone = tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if whole and (alone is None or whole in (config.architectures or ())):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def course_torch_logits(file: Path, ids: npt.NDArray[np.int64]) -> Logits:
    """The course's forward pass in PyTorch, written from its description and not from our module.

    Args:
        file: A model.pt; every matrix in it is (in, out).
        ids: int64 (B, T).

    Returns:
        float32 (B, T, V).
    """
    import torch

    functional = torch.nn.functional
    content: Any = torch.load(file, map_location="cpu", weights_only=True)
    sizes = content["model_config"]
    params = iter([param.float() for param in content["params"]])
    dim, heads = sizes["embedding_dim"], sizes["num_heads"]

    def linear(x: Any) -> Any:
        return x @ next(params) + next(params)

    def norm(x: Any) -> Any:
        return functional.layer_norm(x, (dim,), next(params), next(params), 1e-5)

    def split(x: Any) -> Any:
        return x.view(*x.shape[:2], heads, dim // heads).transpose(1, 2)

    embedding, positions = next(params), next(params)
    x = embedding[torch.tensor(ids)] + positions[: ids.shape[1]]
    for _ in range(sizes["num_layers"]):
        normed = norm(x)
        q, k, v = (split(linear(normed)) for _ in range(3))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(mixed.transpose(1, 2).reshape(x.shape))
        x = x + linear(functional.gelu(linear(norm(x))))
    logits: Logits = (norm(x) @ embedding.T + next(params)).numpy()
    return logits


def free_memory() -> int | None:
    """Bytes this machine has free without swapping; None where it does not say."""
    try:
        line = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        return int(line[1]) * 1024 if line else None
    except OSError:
        pass
    try:
        vm_stat = subprocess.run(
            ["/usr/bin/vm_stat"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    pages = re.findall(r"Pages (?:free|inactive|speculative|purgeable):\s+(\d+)", vm_stat.stdout)
    return sum(map(int, pages)) * os.sysconf("SC_PAGE_SIZE")


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _verdict(library: str, text: str, agreement: Agreement, exact: bool) -> str:
    line = f"logits, {library} beside MLX on {agreement.num_tokens} tokens of {text}: {agreement}"
    if not exact:
        return f"{line}, cast included"
    if not agreement.difference <= agreement.allowed:
        raise MlxDpoError(f"{line}; float32 allows {agreement.allowed:.2g}; nothing was written")
    return f"{line} (float32 allows {agreement.allowed:.2g})"


def _obstacle(model: Model) -> str | None:
    """Why logits can't be compared with torch; None where they can."""
    if not _has_torch():
        return f"it is not installed ({to_install('torch')})"
    needed = 2 * 4 * num_parameters(model.arrays)
    free = free_memory()
    if free is not None and needed > free:
        return f"two copies in float32 need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
    return None


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from writing between our lines."""
    log = transformers.logging
    before, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        if bar:
            log.enable_progress_bar()
