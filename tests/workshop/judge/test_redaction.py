"""An endpoint that says the key back: it is in no message and no file, in whatever form."""

import base64
import json
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from mlx_dpo.errors import MlxDpoError
from mlx_dpo.workshop.judge.endpoint import Endpoint
from mlx_dpo.workshop.judge.redaction import Redaction
from mlx_dpo.workshop.judge.verdicts import NoReplyError
from tests.cli.test_cli import exit_code
from tests.workshop.judge.bad_endpoint import BadEndpoint, garbage, reply, status
from tests.workshop.judge.test_endpoint import Ask

KEY = "sk-Secret/+123=&x"
ECHOES = {
    "as it is": KEY,
    "in capitals": KEY.upper(),
    "spaced": " ".join(KEY),
    "over lines": f"{KEY[:7]}\n  {KEY[7:]}",
    "in a URL": quote(KEY, safe=""),
    "in a URL in a URL": quote(quote(KEY, safe=""), safe=""),
    "in JSON": json.dumps("".join(f"\\u{ord(c):04x}" for c in KEY)),
    "in JSON with slashes": KEY.replace("/", "\\/"),
    "in HTML": "<p>" + "".join(f"&#{ord(c)};" for c in KEY),
    "in hex HTML": "<p>" + "".join(f"&#x{ord(c):X};" for c in KEY),
    "in named HTML": "<p>" + KEY.replace("&", "&amp;"),
    "torn by a tag": f"<p>{KEY[:8]}<b>{KEY[8:]}</b>",
    "in hex": KEY.encode().hex(),
    "in base64": base64.b64encode(KEY.encode()).decode(),
    "in a header": base64.b64encode(f"user:{KEY}".encode()).decode(),
    "in another header": base64.urlsafe_b64encode(f"Bearer {KEY}".encode()).decode(),
    "cut": KEY[:12] + "...",
    "behind dots": "..." + KEY[5:],
    "over a cut": "x" * 290 + KEY,
    "over a far cut": "<p>" + "<i>" * 6660 + " " * 11 + KEY,
}


def pieces_of_key_in(text: str) -> list[str]:
    """What is left of the key, in any of the forms above."""
    forms = [KEY.lower(), KEY.encode().hex()]
    forms += [
        base64.b64encode(b"x" * before + KEY.encode()).decode()[4:-4].lower() for before in range(3)
    ]
    heard = "".join(unquote(unquote(text)).lower().split())
    return [
        form[i : i + 8] for form in forms for i in range(len(form) - 7) if form[i : i + 8] in heard
    ]


def test_an_echo_of_the_key_is_in_no_message() -> None:
    behaviours, said = [], []
    for echo in ECHOES.values():
        inside = json.dumps({"error": {"message": echo}}).encode()
        answers = [(401, echo.encode()), (401, inside), (500, echo.encode()), (200, inside)]
        behaviours += [status(*answer) for answer in answers]
    with BadEndpoint(*behaviours) as server:
        endpoint = Endpoint(
            server.url, key=KEY, max_tokens=16, timeout=20.0, wait=lambda seconds: True
        )
        for _ in behaviours:
            with pytest.raises((MlxDpoError, NoReplyError), match=r"status \d+: ") as caught:
                endpoint.ask("hello")
            said.append(str(caught.value))
        endpoint.close()
    names = [name for name in ECHOES for _ in range(4)]
    assert [(n, each) for n, each in zip(names, said, strict=True) if pieces_of_key_in(each)] == []
    unmarked = {name for name, each in zip(names, said, strict=True) if "***" not in each}
    assert unmarked <= {"over a far cut"}  # where JSON is quoted only up to it


def test_an_echo_of_the_key_is_in_no_file_and_not_on_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_DPO_JUDGE_KEY", KEY)
    echoes = [echo for echo in ECHOES.values() if len(echo) < 1000]
    rows = [{"prompt": f"Q{i}", "answers": ["x", "y"]} for i in range(len(echoes))]
    Path("candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Long enough for the journal to leave out the middle of each.
    said = [reply(f"A\n{'x' * 1990}{echo}{'y' * 3000}\nA") for echo in echoes]
    with BadEndpoint(*said) as server:
        command = ["data", "judge", "candidates.jsonl", "--judge", server.url]
        assert exit_code(*command, "--concurrency", "1") == 0
    kept = Path("preferences.jsonl.replies.jsonl").read_text().splitlines()
    assert len(kept) == 2 * len(echoes)
    for line in kept:
        assert pieces_of_key_in(json.loads(line)["reply"]) == []
    screen = capsys.readouterr()
    assert f"{len(echoes)} flipped" in screen.out
    assert pieces_of_key_in(screen.out + screen.err) == []


def test_a_key_in_parts_of_a_reply_is_found_where_they_meet() -> None:
    parts = [{"type": "text", "text": part} for part in (KEY[:6], KEY[6:12], KEY[12:])]
    body = {"choices": [{"message": {"content": parts}}]}
    with BadEndpoint(garbage(json.dumps(body).encode())) as server:
        assert Ask(server, key=KEY)() == "***"


def test_texts_without_the_key_are_left_as_they_are() -> None:
    text = "A\n\nBecause 100 % of it \\u00e9 &amp; %20 is sk-Secr and t/+123=, I think."
    assert Redaction(KEY)(text) == text
    assert Redaction("")(text) == text


def test_a_key_too_short_to_be_one_does_not_hide_verdicts() -> None:
    assert Redaction("tie")("tie") == "tie"
    assert Redaction("ollama")("the key OLLAMA is wrong") == "the key *** is wrong"
