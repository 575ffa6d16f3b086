"""`mlx_dpo generate`."""

import shlex
import sys

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import footer
from mlx_dpo.cli.screen import Stream, say
from mlx_dpo.errors import UsageError


@click.command()
@options.model()
@options.adapter()
@click.option(
    "--prompt",
    help="What to ask, put into the chat template; - reads stdin, and a pipe needs no --prompt.",
)
@options.max_tokens(128)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 takes the most likely token each time.",
)
@options.seed("Random seed of the sampling above temperature 0.")
def generate(
    model: str,
    adapter: str | None,
    prompt: str | None,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> None:
    """Answer a prompt with a model.

    \b
    Examples:
      mlx_dpo generate --model checkpoints/tiny-sft-dpo --prompt "What does a baker do?"
      mlx_dpo generate --model path/to/base --adapter path/to/adapter --prompt "Hello"
      mlx_dpo generate --model checkpoints/tiny-sft-dpo --prompt - < question.txt
    """
    from mlx_dpo.insight.scoring import open_model
    from mlx_dpo.models.generate import answer
    from mlx_dpo.records import Message

    if prompt is None and sys.stdin.isatty():
        chat = shlex.join(["mlx_lm.chat", "--model", model])
        raise UsageError(f"--prompt is missing: what to ask; to talk with the model: {chat}")
    if prompt in (None, "-"):
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise UsageError("nothing came on stdin to answer; give --prompt")
    options.opening(model, adapter)
    loaded = open_model(model, adapter)
    stream = Stream() if sys.stdout.isatty() else None
    footer.doing("reading the prompt")
    reply = answer(
        loaded.model,
        loaded.chat,
        (Message("user", prompt),),
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        so_far=None if stream is None else stream.so_far,
    )
    if stream is None:
        say(reply.text)
    else:
        stream.end(reply.text)
    if not reply.closed:
        say(f"(cut off after {max_tokens} tokens: --max-tokens)", err=True)
