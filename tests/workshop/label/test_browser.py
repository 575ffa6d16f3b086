"""The labelling page as a person uses it: in a real browser, by keyboard."""

import json
from collections.abc import Callable
from html import unescape
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.workshop.label.rendering import TAGS
from tests.workshop.label.page import Page, set_media
from tests.workshop.label.served import Served
from tests.workshop.label.xss import ATTACKS

Serve = Callable[..., Served]
Write = Callable[..., Path]


def candidates(number: int) -> list[dict[str, Any]]:
    return [
        {"id": f"r{i}", "prompt": f"Question {i}", "answers": [f"good {i}", f"bad {i}"]}
        for i in range(number)
    ]


def test_twenty_pairs_by_keyboard_with_undo_edit_reload_and_a_kill(
    page: Page, serve: Serve, write_candidates: Write, tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    write_candidates(candidates(12))
    write_candidates(
        [{**row, "prompt": f"More: {row['prompt']}"} for row in candidates(10)], "b.jsonl"
    )
    command = ("candidates.jsonl", "b.jsonl", "--no-open")
    served = serve(*command)
    page.open(served)
    assert page.text("progress-text") == "0 of 22 done, 0 pairs saved"

    def choose_the_good_one() -> None:
        page.decide("1" if page.text("a-text").startswith("good") else "2")

    for _ in range(8):
        choose_the_good_one()
    page.decide("t")
    page.decide("s")
    assert page.text("progress-text") == "9 of 22 done, 8 pairs saved, 1 tie, 1 skipped"

    # A wrong one, taken back: the same task is shown again, in the same order.
    before = page.text("conversation"), page.text("a-text")
    page.decide("1" if page.text("a-text").startswith("bad") else "2")
    page.decide("u")
    assert (page.text("conversation"), page.text("a-text")) == before

    page.press("e")
    assert page.focused() == "a-editor"
    assert page.hints() == ["Esc"]  # the other keys would go into the text
    page.press(Keys.END, " and 1 2 t s u", Keys.ESCAPE)
    page.decide("1")
    assert page.text("status") == "Saved: first is better."

    page.browser.refresh()
    page.wait(lambda: page.text("progress-text").startswith("10 of 22"))
    choose_the_good_one()
    served.kill()
    page.press("1")
    top = page.run("$('do-a').getBoundingClientRect().top")
    page.wait(lambda: "does not answer" in page.text("error"))
    assert page.run("$('do-a').getBoundingClientRect().top") == top
    assert page.text("status") == ""
    assert page.text("error").startswith("This decision was not saved.")
    assert "data label candidates.jsonl b.jsonl --out preferences.jsonl` " in page.text("error")

    page.open(serve(*command))
    # What was skipped is asked again.
    assert page.text("progress-text") == "11 of 22 done, 10 pairs saved, 1 tie"
    for _ in range(10):
        choose_the_good_one()
    page.decide("t")
    assert page.text("progress-text") == "22 of 22 done, 20 pairs saved, 2 ties"
    assert "You have been through all 22" in page.text("finished-text")
    assert "skipped" not in page.text("finished-text")

    pairs = read_preferences(tmp_path / "preferences.jsonl")
    assert len(pairs) == 20
    edited = [pair for pair in pairs if pair.chosen[0].content.endswith(" and 1 2 t s u")]
    assert len(edited) == 1
    assert all(
        pair.chosen[0].content.startswith("good") and pair.rejected[0].content.startswith("bad")
        for pair in pairs
        if pair not in edited
    )
    _only_asked(page, {served.port, page.browser.execute_script("return Number(location.port)")})


def test_a_pair_is_written_from_scratch_and_answers_to_a_prompt(
    page: Page, serve: Serve, write_candidates: Write, tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    write_candidates([{"prompt": "Write a line about snow.", "kind": "format"}])
    page.open(serve("candidates.jsonl", "--no-open", "--out", "mine.jsonl"))
    assert page.focused() == "write-chosen"
    page.press("Snow falls.", Keys.TAB, "It is cold.", Keys.TAB, Keys.ENTER)
    page.wait(lambda: page.text("status") == "Saved: your answers.")
    page.press("w")
    assert page.focused() == "write-prompt"
    page.press("Is it far?", Keys.TAB, "No.", Keys.TAB, "No.", Keys.TAB, "style", Keys.TAB)
    page.press(Keys.ENTER)
    page.wait(lambda: "the two answers are the same" in page.text("error"))
    page.press(Keys.ESCAPE)
    assert page.text("status") == "Your draft is kept: w opens it again."
    assert page.run("[$('write').hidden, hasUnsaved()]") == [True, True]
    page.press("w")
    assert page.run("formValues()") == ["Is it far?", "No.", "No.", "style"]
    rejected = page.browser.find_element("id", "write-rejected")
    rejected.clear()
    rejected.send_keys("Maybe it is not.", Keys.CONTROL + Keys.ENTER)
    page.wait(lambda: page.text("status") == "Saved: your own pair.")
    assert page.text("progress-text") == "1 of 1 done, 1 pair saved, 1 pair written by hand"
    page.press("w")
    assert page.run("[...formValues(), hasUnsaved()]") == ["", "", "", "", False]
    page.press("Is it", Keys.ESCAPE)
    page.decide("u")  # back to the pair, then to the task: the draft outlives other decisions
    page.decide("u")
    assert page.focused() == "write-chosen"
    assert page.run("formValues().join('')") == ""
    page.press("Snow falls.", Keys.TAB, "It is cold.")
    page.click("do-write")
    assert page.run("formValues()[0]") == "Is it"
    page.press(Keys.ESCAPE)
    assert page.run("formValues()") == ["", "Snow falls.", "It is cold.", ""]
    page.hold(Keys.CONTROL, Keys.ENTER)
    page.wait(lambda: page.text("status") == "Saved: your answers.")
    page.press("w")
    page.run("$('write-prompt').select()")
    page.press("Is it far?", Keys.TAB, "No.", Keys.TAB, "Maybe it is not.", Keys.TAB, "style")
    page.hold(Keys.CONTROL, Keys.ENTER)
    page.wait(lambda: page.text("status") == "Saved: your own pair.")
    pairs = read_preferences(tmp_path / "mine.jsonl")
    assert [(p.question, p.chosen[0].content, p.rejected[0].content, p.kind) for p in pairs] == [
        ("Write a line about snow.", "Snow falls.", "It is cold.", "format"),
        ("Is it far?", "No.", "Maybe it is not.", "style"),
    ]


def test_markdown_differences_and_edits_are_shown(
    page: Page, serve: Serve, write_candidates: Write
) -> None:
    from selenium.webdriver.common.keys import Keys

    code = "Use **this**:\n\n```\nsorted(x)\n```\n[a](http://evil.example) ![](http://evil.example)"
    write_candidates([{"prompt": "*How?*", "answers": [code, "Use that:"]}])
    served = serve("candidates.jsonl", "--no-open")
    page.open(served)
    side, other = ("a", "b") if page.run("texts.a").startswith("Use **") else ("b", "a")
    assert page.run("$('conversation').querySelector('em').textContent") == "How?"
    assert page.run(f"$('{side}-text').querySelector('strong').textContent") == "this"
    assert page.run(f"$('{side}-text').querySelector('pre code').textContent") == "sorted(x)\n"
    assert page.run("document.querySelectorAll('main a, main img').length") == 0

    page.press("d")
    page.wait(lambda: page.run("document.querySelectorAll('mark').length") > 0)
    assert page.text(f"{side}-text") == code  # the source, sign by sign
    assert page.run(f"$('{other}-text').querySelector('mark').textContent") == "that"
    page.press("d")
    assert page.run("document.querySelectorAll('mark').length") == 0

    page.press("e")
    page.run(f"$('{other}-editor').focus()")
    page.hold(Keys.CONTROL, Keys.END)
    page.press("?")
    page.hold(Keys.CONTROL, "z")  # the browser's own: what was typed is taken back
    page.press(" *then*", Keys.ESCAPE)
    page.wait(lambda: page.run(f"$('{other}-text').querySelector('em') !== null"))
    assert page.text(f"{other}-text").strip() == "Use that: then"
    _only_asked(page, {served.port})


def test_a_click_on_a_card_chooses_and_one_that_selects_does_not(
    page: Page, serve: Serve, write_candidates: Write, tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    write_candidates(candidates(2))
    page.open(serve("candidates.jsonl", "--no-open"))
    good = page.text("b-text")
    page.click("b-text", times=2)
    assert page.run("getSelection().isCollapsed") is False
    assert page.run("clicked") is None
    page.click("a-card")  # clears the selection
    assert page.run("[clicked, getSelection().isCollapsed]") == [None, True]
    page.drag("a-card", 40)
    assert page.run("[clicked, getSelection().isCollapsed]") == [None, True]
    page.click("a-card")
    assert page.run("$('a-card').matches('.chosen')") is True
    page.press("?")  # any key takes a click back that is not sent yet
    page.press("?")
    assert page.run("[clicked, state.revision]") == [None, 1]
    page.click("b-card")
    page.wait(lambda: page.revision() == 2)
    assert page.run("document.querySelector('.chosen')") is None
    pair = read_preferences(tmp_path / "preferences.jsonl")[0]
    assert pair.chosen[0].content == good.strip()
    page.hold(Keys.CONTROL, "z")
    page.wait(lambda: page.revision() == 3)
    assert (page.text("status"), page.text("b-text")) == ("Undone: a pair.", good)


def test_guidelines_keys_both_bad_the_last_decisions_and_the_next_commands(
    page: Page, serve: Serve, write_candidates: Write, tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    write_candidates(candidates(3))
    (tmp_path / "g.md").write_text("Be **brief**. <script>window.pwned=1</script>")
    command = ("candidates.jsonl", "--no-open", "--guidelines", "g.md")
    served = serve(*command)
    page.open(served)
    page.wait(lambda: bool(page.run("$('guidelines').open")))  # at the first start
    assert page.text("guidelines-text").strip() == "Be brief. <script>window.pwned=1</script>"
    page.press("1")
    page.press("g")
    assert page.run("[$('guidelines').open, state.revision]") == [False, 1]
    page.press("?")
    assert page.run("$('keys').open") is True
    page.press("2", Keys.ESCAPE)
    assert page.run("[$('keys').open, state.revision]") == [False, 1]

    page.decide("1")
    page.decide("b")
    assert page.text("status") == "Both bad: no pair."
    page.decide("2")
    assert page.text("progress-text") == "3 of 3 done, 2 pairs saved, 1 both bad"
    commands = page.text("next-commands").splitlines()
    assert [line.split(" ", 1)[1] for line in commands] == [
        "data check preferences.jsonl",
        "train --data preferences.jsonl",
    ]
    assert page.run("$('next').hidden") is False
    assert page.run(
        "[...document.querySelectorAll('#last summary b')].map(e => e.textContent)"
    ) == [*("Better:", "Both bad", "Better:")]
    better = read_preferences(tmp_path / "preferences.jsonl")[1]
    assert page.run("document.querySelector('#last-list summary').textContent") == (
        f"Better: “{better.chosen[0].content}” to {better.question}"
    )
    page.run("document.querySelectorAll('#last button')[2].click()")
    page.wait(lambda: page.text("status") == "Undone: a pair.")
    assert page.text("conversation") == "userQuestion 0\n"
    page.decide("1")
    assert page.text("progress-text") == "3 of 3 done, 2 pairs saved, 1 both bad"
    page.open(served)
    assert page.run("$('guidelines').open") is False
    _only_asked(page, {served.port})


def test_the_time_left_follows_the_median_without_idle_gaps(page: Page) -> None:
    script = resources.files("mlx_dpo.workshop.label").joinpath("page", "draw.js").read_text()
    cases = {
        "[10, 10, 10, 10], 60": "",  # too few to say
        "[10, 10, 10, 10, 9000], 60": "",
        "[10, 12, 10, 10, 250, 9000], 60": "about 10 minutes left",
        "[99, 99, 99, ...Array(20).fill(3)], 20": "about 1 minute left",
        "[20, 20, 20, 20, 20], 1": "less than a minute left",
        "[30, 30, 30, 30, 30], 150": "about 1 h 15 min left",
        "[30, 30, 30, 30, 30], 0": "",
    }
    asked = f"{script}; return [{', '.join(f'timeLeft({case})' for case in cases)}]"
    assert page.browser.execute_script(asked) == list(cases.values())


def test_the_verdicts_are_next_to_the_answers(
    page: Page, serve: Serve, write_candidates: Write
) -> None:
    write_candidates(
        [{"prompt": "short", "answers": ["Yes", "No"]},
         {"prompt": "long", "answers": ["Yes. " * 3000, "No. " * 3000]}]
    )  # fmt: skip
    page.open(serve("candidates.jsonl", "--no-open"))
    edges = "[$('a-card'), $('do-a')].map((e) => e.getBoundingClientRect())"
    card, button = page.run(edges)
    assert 0 <= button["top"] - card["bottom"] < 30
    page.decide("1")
    card, button = page.run(edges)
    height = page.run("innerHeight")
    assert card["bottom"] > height
    assert button["bottom"] <= height


def test_a_hundred_attacks_are_text(page: Page, serve: Serve, write_candidates: Write) -> None:
    def joined(text: str) -> str:
        return "".join(text.split())

    triples = [ATTACKS[i : i + 3] for i in range(0, 100, 3)]
    write_candidates(
        [
            {"prompt": [{"role": a[0], "content": a[0]}], "answers": a[1:] or ["x"], "kind": a[0]}
            for a in triples
        ]
    )
    served = serve("candidates.jsonl", "--no-open")
    page.open(served)
    for number, attacks in enumerate(triples[:-1]):
        tags, attributes, texts = page.browser.execute_script(
            """const texts = [...document.querySelectorAll('#choose .text, #choose .role')];
               const inside = texts.flatMap((e) => [...e.querySelectorAll('*')]);
               return [inside.map((e) => e.localName), inside.flatMap((e) => e.getAttributeNames()),
                 texts.map((e) => e.textContent)]"""
        )
        assert set(tags) <= TAGS
        assert attributes == []
        known = {joined(text) for attack in attacks for text in (attack, unescape(attack))}
        assert {joined(text) for text in texts} <= known
        assert len({text.strip() for text in texts}) >= 3
        if number % 4 == 0:  # some go through the editor too
            page.press("e", "1")
            page.browser.execute_script("toggleEditing()")
        page.decide("1")
        assert page.browser.execute_script("return window.pwned || document.title") == (
            "Which answer is better?"
        )
    assert unescape(ATTACKS[-1]) in page.text("write-conversation")
    assert page.run("document.querySelectorAll('script, [onload], [onerror], a, img').length") == 2
    from selenium.webdriver.support.expected_conditions import alert_is_present

    assert not alert_is_present()(page.browser)
    _only_asked(page, {served.port})


def test_a_foreign_page_is_kept_out_by_the_browser_and_by_us(
    page: Page, serve: Serve, write_candidates: Write, tmp_path: Path
) -> None:
    write_candidates(candidates(2))
    served = serve("candidates.jsonl", "--no-open")
    page.browser.get("data:text/html,<p>somebody else's page</p>")
    sent = page.browser.execute_async_script(
        """const done = arguments[2];
           const url = `http://127.0.0.1:${arguments[0]}/api/write`;
           const body = JSON.stringify({revision: 1, prompt: "p", chosen: "c", rejected: "r"});
           const headers = {Authorization: `Bearer ${arguments[1]}`,
                            "Content-Type": "application/json"};
           Promise.allSettled([
             fetch(url, {method: "POST", headers, body}),
             fetch(url, {method: "POST", mode: "no-cors", body}),
           ]).then((all) => done(all.map((one) => one.status)));""",
        served.port,
        served.token,
    )
    # A request with our headers is asked about first; one without may leave, and is refused here.
    assert sent[0] == "rejected"
    assert (tmp_path / "preferences.jsonl").read_text() == ""
    page.browser.get(f"http://127.0.0.1:{served.port}/#wrong")
    page.wait(lambda: "open the address" in page.text("error"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_reached_and_held_in_a_hand(
    page: Page, serve: Serve, write_candidates: Write, scheme: str
) -> None:
    rows = candidates(2)
    rows[0]["prompt"] = "long" * 400
    write_candidates(rows)
    command = page.browser.execute_cdp_cmd
    set_media(page.browser, scheme)
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    command("Emulation.setDeviceMetricsOverride", phone)
    page.open(serve("candidates.jsonl", "--no-open"))
    script = (Path(__file__).parent / "accessibility.js").read_text()
    page.decide("1")
    page.run("$('last').open = true")
    page.decide("u")
    page.decide("1")
    for key in ("", "d", "e", "?", "w"):
        page.press(*([key] if key else []))
        if key == "d":
            page.wait(lambda: bool(page.run("texts.pieces")))
        found = page.browser.execute_script(script)
        assert found == {"unnamed": [], "pale": [], "small": [], "sideways": 0}
        if key in ("e", "?"):
            page.browser.execute_script("editing ? toggleEditing() : $('keys').close()")
    command("Emulation.clearDeviceMetricsOverride", {})


def _only_asked(page: Page, ports: set[int]) -> None:
    """Nothing but our own server was asked for anything, and no policy was broken."""
    urls = []
    for entry in page.browser.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.requestWillBeSent":
            urls.append(event["params"]["request"]["url"])
    assert urls
    allowed = tuple(f"http://127.0.0.1:{port}/" for port in ports)
    assert [url for url in urls if not url.startswith((*allowed, "data:,"))] == []
    said = [entry["message"] for entry in page.browser.get_log("browser")]
    assert [line for line in said if "ERR_CONNECTION_REFUSED" not in line] == []
