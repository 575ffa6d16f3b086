"""`mlx_dpo score`."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.evaluate import read_pairs
from mlx_dpo.cli.footer import printable, progress
from mlx_dpo.cli.screen import counted, say, share, show_json, table
from mlx_dpo.errors import DataError, UsageError

if TYPE_CHECKING:
    from mlx_dpo.insight.rewards import AnswerReward, Models
    from mlx_dpo.preferences.chat import ChatFormat
    from mlx_dpo.records import Preference


@click.command()
@options.policy
@options.adapter()
@options.reference
@click.option("--prompt", help="What was asked. It is put into the chat template.")
@click.option("--response", multiple=True, help="An answer to score. May be given several times.")
@options.path("--data", "Preference pairs to score instead.")
@options.drop_bad
@click.option("--per-token", is_flag=True, help="Also the reward of each token.")
@options.beta_of_run
@options.max_length_of_run
@click.option("--json", "as_json", is_flag=True, help="JSON lines on a terminal too.")
@options.keeps_awake
def score(
    model: str,
    adapter: str | None,
    reference: str | None,
    prompt: str | None,
    response: tuple[str, ...],
    data: str | None,
    drop_bad: bool,
    per_token: bool,
    beta: float | None,
    max_length: int | None,
    as_json: bool,
) -> None:
    """Score answers by their implicit reward, beta * log(policy / reference).

    On a terminal a table; into a file or pipe, or with --json, a JSON line for each answer, or with
    --data for each pair. Log-probs are sums over the answer's
    tokens, in nats. The two models are in memory one after the other; of an adapter it is one,
    which is its own reference with the adapter off.

    \b
    Examples:
      mlx_dpo score --model checkpoints/tiny-sft-dpo --prompt "I am late." \\
          --response "No problem, come in." --response "Hurry up." --per-token
      mlx_dpo score --model checkpoints/tiny-sft-dpo --data data/dpo/preferences.json
    """
    if (data is None) == (prompt is None) or (prompt is not None) != bool(response):
        raise UsageError("give --prompt with one --response or more, or --data")
    from mlx_dpo.convert.sources import locate, read_record
    from mlx_dpo.insight.evaluation import setting_of_run
    from mlx_dpo.insight.rewards import encode_answers, reward_tokens
    from mlx_dpo.insight.scoring import Named, reference_of

    policy = Named(model, adapter)
    record = read_record(locate(*policy).origin)
    models = policy, Named(reference) if reference else reference_of(policy)
    chat = options.chat_of(model, adapter)
    beta = beta or setting_of_run(record, "beta")
    max_length = max_length or setting_of_run(record, "max_length")
    options.opening(model, adapter, reference)
    as_json |= not sys.stdout.isatty()
    if data is not None:
        _score_file(models, chat, data, drop_bad, record, per_token, beta, max_length, as_json)
        return
    assert prompt is not None
    answers = encode_answers(chat, prompt, response, max_length=max_length)
    rewards = reward_tokens(models, chat, answers, beta=beta)
    if not as_json:
        _print_answers(response, rewards, per_token)
        return
    for text, reward in zip(response, rewards, strict=True):
        line = {"prompt": prompt, "response": text, **_as_record(reward, per_token)}
        show_json(line, indent=None)


def _print_answers(
    responses: Sequence[str], rewards: "Sequence[AnswerReward]", per_token: bool
) -> None:
    for text, reward in zip(responses, rewards, strict=True):
        say(f"{reward.reward:+8.3f}  {text}", bold=True)
        say(
            f"{'':8}  {counted(reward.num_tokens, 'token')}; log-prob {reward.logprob:.2f}, under "
            f"the reference {reward.reference_logprob:.2f}"
        )
        for token in reward.tokens or () if per_token else ():
            say(f"{token.reward:+8.3f}  {token.token!r}")


def _score_file(
    models: "Models",
    chat: "ChatFormat",
    data: str,
    drop_bad: bool,
    record: dict[str, Any],
    per_token: bool,
    beta: float,
    max_length: int,
    as_json: bool,
) -> None:
    from mlx_dpo.insight.evaluation import held_out_of_run
    from mlx_dpo.insight.rewards import reward_pairs, reward_tokens
    from mlx_dpo.preferences.encoding import encode_preferences
    from mlx_dpo.preferences.schema import by_code

    preferences = read_pairs(data, drop_bad)
    held_out = held_out_of_run(preferences, data, record)
    unseen = None if held_out is None else {row.id for row in held_out}
    pairs = encode_preferences(preferences, chat, max_length=max_length, drop_bad=drop_bad)
    examples = list(pairs.examples)
    if not examples:
        why = by_code(Counter(pairs.dropped))
        raise DataError(f"{data}: no pair is left to score ({why}); see --max-length")
    with progress() as advance:
        if per_token:
            answers = [(e.prompt_ids, side) for e in examples for side in e[1:]]
            total = 2 * len(answers)
            flat = reward_tokens(
                models,
                chat,
                answers,
                beta=beta,
                after_answer=lambda more: advance("answers", total, more),
            )
            rewards = list(zip(flat[::2], flat[1::2], strict=True))
        else:
            rewards = reward_pairs(
                models,
                chat,
                examples,
                beta=beta,
                max_length=max_length,
                after_batch=lambda more: advance("pairs", 2 * len(examples), more),
            )
    rows = list(zip(pairs.preferences, rewards, strict=True))
    if as_json:
        for row, (chosen, rejected) in rows:
            show_json(
                {
                    "id": row.id,
                    "kind": row.kind,
                    "trained_on": None if unseen is None else row.id not in unseen,
                    "margin": chosen.reward - rejected.reward,
                    "chosen": _as_record(chosen, per_token),
                    "rejected": _as_record(rejected, per_token),
                },
                indent=None,
            )
    else:
        _print_pairs(rows, unseen)
    _summarize("all pairs", rewards, beta, err=as_json)
    if unseen is not None:
        of_held_out = [each for row, each in rows if row.id in unseen]
        _summarize("held out of its run", of_held_out, beta, err=as_json)


def _print_pairs(
    rows: "Sequence[tuple[Preference, tuple[AnswerReward, AnswerReward]]]", unseen: set[str] | None
) -> None:
    cells = [["pair", "margin", "chosen", "rejected", "trained on"]]
    for row, (chosen, rejected) in rows:
        margin = chosen.reward - rejected.reward
        trained_on = "-" if unseen is None else "no" if row.id in unseen else "yes"
        name = f"{row.id} {row.kind}".strip()
        figures = (f"{each:+.3f}" for each in (margin, chosen.reward, rejected.reward))
        cells.append([" ".join(printable(name).split()), *figures, trained_on])
    say(table(cells, spare=(("trained on",),)))


def _summarize(
    name: str, rewards: "Sequence[tuple[AnswerReward, AnswerReward]]", beta: float, *, err: bool
) -> None:
    num = len(rewards)
    by_reward = sum(c.reward > r.reward for c, r in rewards)
    before = sum(c.reference_logprob > r.reference_logprob for c, r in rewards)
    after = sum(c.logprob > r.logprob for c, r in rewards)
    say(
        f"{name}: {num} at beta {beta:g}; reward accuracy {share(by_reward, num)}, log-prob "
        f"accuracy {share(before, num)} before, {share(after, num)} after",
        err=err,
    )


def _as_record(reward: "AnswerReward", per_token: bool) -> dict[str, Any]:
    record = asdict(reward)
    if not per_token:
        del record["tokens"]
    return record
