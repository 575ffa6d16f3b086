"""The embedded models: small, loadable by everyone, and able to answer in format."""

from pathlib import Path

import pytest
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("tiny-sft", "tiny-base")
LARGEST = 3_000_000


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_takes_at_most_three_megabytes(name: str) -> None:
    folder = ROOT / "checkpoints" / name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= LARGEST


@pytest.mark.parametrize("name", FOLDERS)
def test_weights_are_half_precision_under_hugging_face_names(name: str) -> None:
    with safe_open(ROOT / "checkpoints" / name / "model.safetensors", "numpy") as weights:
        assert weights.metadata() == {"format": "pt"}
        names = list(weights.keys())
        assert "model.embed_tokens.weight" in names
        assert "lm_head.weight" not in names
        assert {str(weights.get_tensor(name).dtype) for name in names} == {"float16"}


@pytest.mark.parametrize("name", FOLDERS)
def test_mlx_lm_loads_it_and_its_template_is_the_courses(name: str) -> None:
    from mlx_lm import load

    model, tokenizer = load(str(ROOT / "checkpoints" / name))[:2]
    turns = [{"role": "user", "content": "Hello."}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>\nHello.\n<|assistant|>\n"
    turns.append({"role": "assistant", "content": "Hi."})
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "<|user|>\nHello.\n<|assistant|>\nHi.<|end|>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert ids[-1] == tokenizer.eos_token_id
    assert len(model.layers) == 4


def test_the_sft_model_ends_its_answers() -> None:
    from mlx_dpo import load
    from mlx_dpo.preferences.chat import chat_format
    from tools.tiny_sft.exclusion import UNRELATED
    from tools.tiny_sft.outcomes import reply
    from tools.tiny_sft.rules import well_formed

    model, tokenizer = load(ROOT / "checkpoints" / "tiny-sft")
    chat = chat_format(tokenizer)
    answers = [reply(model, chat, question) for question in UNRELATED[::6]]
    assert all(well_formed(answer.text, closed=answer.closed) for answer in answers)
