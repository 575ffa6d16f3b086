"""Endpoints that want their parameters otherwise, and that say what they say in their own ways."""

import json
from typing import Any

import pytest

from mlx_dpo.errors import MlxDpoError
from mlx_dpo.workshop.judge.replies import words_of
from mlx_dpo.workshop.judge.verdicts import NoReplyError, Verdict, read_verdict
from tests.workshop.judge.bad_endpoint import BadEndpoint, Behaviour, Handler, reply, status
from tests.workshop.judge.test_endpoint import Ask


def says(body: Any, code: int = 200) -> Behaviour:
    """Answers with a body of JSON."""
    return status(code, json.dumps(body).encode())


def chat(content: Any, ended: str = "stop", **more: Any) -> Behaviour:
    """Answers as an endpoint does."""
    message = {"role": "assistant", "content": content, **more}
    return says({"choices": [{"index": 0, "message": message, "finish_reason": ended}]})


def refuses(name: str, body: Any, code: int = 400) -> Behaviour:
    """Refuses a parameter with a body, and answers all else with A."""

    def behave(handler: Handler, text: str) -> None:
        is_sent = name in handler.server.requests[-1]
        (says(body, code) if is_sent else reply("A"))(handler, text)

    return behave


NEWER = "Unsupported parameter: 'max_tokens' is not supported with this model."


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": f"{NEWER} Use 'max_completion_tokens' instead."}},
        {"error": f"{NEWER} Use 'max_completion_tokens' instead."},
        {"error": {"message": "Unknown parameter", "param": "max_tokens"}},
        {"detail": [{"loc": ["body", "max_tokens"], "msg": "Extra inputs are not permitted"}]},
        {"detail": "max_tokens is deprecated in favor of the `max_completion_tokens` field"},
        {"message": "Unrecognized request argument supplied: max_tokens"},
        [{"error": {"code": 400, "message": "Unknown name max_tokens"}}],
        {"error": {"message": json.dumps({"error": {"message": NEWER}})}},
    ],
)
@pytest.mark.parametrize("code", [200, 400, 422, 500])
def test_a_limit_that_is_refused_is_asked_for_by_its_newer_name(body: Any, code: int) -> None:
    if code == 200 and isinstance(body, list):
        body = body[0]
    if code == 200 and "message" in body:
        body = {"error": body}
    with BadEndpoint(refuses("max_tokens", body, code)) as server:
        ask = Ask(server)
        assert ask.endpoint.ask("one") == ask.endpoint.ask("two") == ask() == "A"
        assert ask.waits == []
        first, *others = server.requests
        assert "max_tokens" in first
        assert [each["max_completion_tokens"] for each in others] == [16, 16, 16]
        assert all("max_tokens" not in each and each["temperature"] == 0 for each in others)


def test_one_parameter_after_the_other_may_be_refused() -> None:
    temperature = {"error": {"message": "'temperature' does not support 0 with this model."}}
    limit = {"error": {"message": f"{NEWER} Use 'max_completion_tokens' instead."}}
    neither = {"error": {"message": "max_completion_tokens: unknown field, use max_tokens"}}

    def behave(handler: Handler, text: str) -> None:
        sent = handler.server.requests[-1]
        refused = {
            "max_tokens": limit,
            "temperature": temperature,
            "max_completion_tokens": neither,
        }
        body = next((body for name, body in refused.items() if name in sent), None)
        (says(body, 400) if body else reply("A"))(handler, text)

    with BadEndpoint(behave) as server:
        ask = Ask(server)
        assert ask.endpoint.ask("one") == "A"
        count = len(server.requests)
        assert count <= 6
        assert ask() == "A"
        assert len(server.requests) == count + 1
        assert set(server.requests[-1]) == {"headers", "messages"}


@pytest.mark.parametrize(
    ("words", "then"),
    [
        ("Only the default (1) value of temperature is supported.", None),
        ("`temperature` must be strictly positive", 0.01),
    ],
)
def test_a_temperature_that_is_refused_is_another_or_none(words: str, then: float | None) -> None:
    def behave(handler: Handler, text: str) -> None:
        is_right = handler.server.requests[-1].get("temperature") == then
        (reply("B") if is_right else says({"error": words}, 400))(handler, text)

    with BadEndpoint(behave) as server:
        assert Ask(server)() == "B"
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "words",
    ["max_tokens must be at least 100", "no such route", "temperature? never heard", ""],
)
def test_a_refusal_that_does_not_end_is_quoted_after_a_few_requests(words: str) -> None:
    with BadEndpoint(says({"error": words}, 400)) as server:
        ask = Ask(server)
        with pytest.raises(MlxDpoError, match=f"answered with status 400: .*{words[:9]}"):
            ask()
        assert (ask.waits, len(server.requests) <= 2) == ([], True)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (400, "This model's maximum context length is 4096 tokens; reduce max_tokens"),
        (400, "The response was filtered by our content management policy"),
        (413, "Payload Too Large"),
    ],
)
def test_what_is_refused_of_one_text_is_not_the_end_of_a_round(code: int, words: str) -> None:
    with BadEndpoint(says({"error": {"message": words}}, code)) as server:
        ask = Ask(server)
        with pytest.raises(NoReplyError, match=words[:20]):
            ask()
        assert (len(server.requests), ask.waits) == (1, [])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": "text"}', "text"),
        (b'{"error": {"message": "a\\nb", "code": 7}}', "a b (7)"),
        (
            b'{"detail": [{"loc": ["body", 0], "msg": "wrong"}, {"msg": "too"}]}',
            "wrong (body.0); too",
        ),
        (b'{"message": "m", "detail": "d"}', "m; d"),
        (b'{"fault": 1}', '{"fault": 1}'),
        (b"[]", "[]"),
        (b"plain\x1b[31m \xff", "plain [31m \ufffd"),
        (b"<!DOCTYPE html><html><style>p {}</style><h1>502</h1> Bad &amp; gone", "502 Bad & gone"),
        (b'{"error": ' * 2000, ('{"error": ' * 2000).strip()),
        (b'{"error": ' * 20 + b'"deep"' + b"}" * 20, '{"error": ' * 20 + '"deep"' + "}" * 20),
    ],
)
def test_the_words_of_an_error_in_any_shape(body: bytes, words: str) -> None:
    assert words_of(body) == words


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (says({"error": {"message": "overloaded", "code": 503}}), "status 503: overloaded"),
        (says({"error": "try later"}), "status 200: try later"),
        (says({"choices": [], "note": "filtered"}), 'chat endpoint: {"choices": \\[\\], "note"'),
        (says({"choices": [{"error": {"message": "upstream"}}]}), "upstream"),
        (status(502, b"<html><h1>Bad gateway</h1></html>"), "status 502: Bad gateway"),
    ],
)
def test_what_may_pass_is_quoted_when_it_does_not(bad: Behaviour, reason: str) -> None:
    with BadEndpoint(bad) as server:
        ask = Ask(server)
        with pytest.raises(NoReplyError, match=reason):
            ask()
        assert ask.waits == [1.0, 4.0, 16.0]


def test_an_error_inside_a_reply_that_will_not_pass_is_said_at_once() -> None:
    with BadEndpoint(says({"error": {"message": "No model given", "code": 400}})) as server:
        with pytest.raises(MlxDpoError, match=r"status 400: No model given \(400\); --model names"):
            Ask(server)()
        assert len(server.requests) == 1


def test_no_part_of_a_key_is_quoted() -> None:
    body = b"x" * 290 + b" sk-secret-123456789 " + b"y" * 99
    with BadEndpoint(status(400, body)) as server:
        ask = Ask(server, key="sk-secret-123456789")
        with pytest.raises(MlxDpoError, match="status 400") as caught:
            ask()
    assert "sk" not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        chat([{"type": "text", "text": "A"}]),
        chat([{"type": "thinking", "thinking": [{"type": "text", "text": "B"}]}, {"text": "A"}]),
        chat([{"type": "output_text", "text": {"value": "A"}}]),
        chat({"type": "text", "text": "A"}),
        chat("A", reasoning_content="B is worse"),
        chat("<think>B\n</think>\n\nA"),
        chat("A\nIt is shorter, and", "length"),
        says({"choices": [{"text": "A", "finish_reason": "stop"}]}),
    ],
)
def test_a_verdict_is_found_however_it_is_wrapped(answer: Behaviour) -> None:
    with BadEndpoint(answer) as server:
        assert read_verdict(Ask(server)()) is Verdict.A
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (chat("A", "length"), "cut at 16 tokens.*raise --max-tokens"),
        (chat("<think>\nFirst,\nA", "length"), "cut at 16 tokens"),
        (chat("", "length", reasoning_content="Let me"), "cut at 16 tokens"),
        (chat(None, reasoning="Let me see. A"), "thought and said nothing"),
        (chat("", "content_filter"), "content_filter"),
    ],
)
def test_a_reply_without_its_end_is_no_verdict_and_says_why(answer: Behaviour, reason: str) -> None:
    with BadEndpoint(answer) as server:
        ask = Ask(server)
        with pytest.raises(NoReplyError, match=reason):
            ask()
        assert (len(server.requests), ask.waits) == (1, [])


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("<think>A\nB", Verdict.ABSTAIN),
        ("[THINK]A[/THINK]B", Verdict.B),
        ("<|channel|>analysis<|message|>A<|end|><|start|>x<|channel|>final<|message|>B", Verdict.B),
        ("B<|im_end|>", Verdict.B),
        ("```\nB\n```", Verdict.B),
        ('{"verdict": "B"}', Verdict.B),
        ("<thinking>A", Verdict.ABSTAIN),
    ],
)
def test_thoughts_and_marks_are_no_verdict(said: str, verdict: Verdict) -> None:
    assert read_verdict(said) is verdict
