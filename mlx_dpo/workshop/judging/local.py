"""A judge that is a model in this process."""

from collections.abc import Callable

from mlx_dpo.models.hub import model_digest, num_positions
from mlx_dpo.preferences.tokens import chat_format
from mlx_dpo.records import Message
from mlx_dpo.runs.answers import answer_ids
from mlx_dpo.runs.sources import find_mlx, load_folder


def local_model(name: str, *, max_tokens: int) -> tuple[Callable[[str], str], str]:
    """A model that is asked greedily, and what identifies it.

    Args:
        name: A folder or hub id.
        max_tokens: Longest reply.

    Returns:
        A function from a text to the reply, for one thread alone; a digest of the weights.

    Raises:
        UsageError: If there is no such model.
    """
    folder = find_mlx(name)
    model, tokenizer = load_folder(folder)
    chat = chat_format(tokenizer)
    positions = num_positions(model)

    def ask(text: str) -> str:
        ids = chat.prompt_ids([Message("user", text)])
        if positions is not None and len(ids) >= positions:
            return ""  # longer than it can read: that is an abstention
        return answer_ids(model, chat, ids, max_tokens=max_tokens).text

    return ask, model_digest(model, folder)
