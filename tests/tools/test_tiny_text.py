"""The tiny model's text: it follows from its seed, and holds nothing of the preference data."""

import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from mlx_dpo.insight.audit.copies import NEAR, NearIndex, shingle_sets
from tools.tiny_sft import lists
from tools.tiny_sft.exclusion import Exclusion
from tools.tiny_sft.rules import RULES, is_right
from tools.tiny_sft.slots import Example
from tools.tiny_sft.tables import KNOWLEDGE
from tools.tiny_sft.text import MAKERS, SEED, base_documents, sft_examples

pytestmark = pytest.mark.pages

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole_text() -> tuple[list[str], list[Example]]:
    rng = random.Random(SEED)
    return list(base_documents(rng)), list(sft_examples(rng))


def plain(text: str) -> str:
    """Normalised here on its own, so that a fault of the generator's own reading shows."""
    letters = "".join(c if c.isalnum() or c.isspace() or c == "-" else "" for c in text.lower())
    return re.sub(r"\s+", " ", letters.replace("-", " ")).strip()


def pairs_of(name: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads((ROOT / "data" / "dpo" / name).read_text())
    return rows


def texts_of(row: dict[str, str]) -> list[str]:
    """Prompt and answers of more than three words."""
    answers = [row[key] for key in ("chosen", "rejected")]
    return [row["user"], *(answer for answer in answers if len(plain(answer).split()) > 3)]


def held_texts() -> list[str]:
    """Prompts, and answers of more than three words, of all preference data."""
    texts = []
    for path in sorted((ROOT / "data" / "dpo").glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            answers = [plain(row[key]) for key in ("chosen", "rejected")]
            texts += [plain(row["user"]), *(a for a in answers if len(a.split()) > 3)]
    return texts


def test_no_text_of_the_preference_data_is_in_the_models_text(
    whole_text: tuple[list[str], list[Example]],
) -> None:
    documents, examples = whole_text
    texts = {plain(text) for text in documents}
    texts |= {plain(f"{example.prompt} {example.answer}") for example in examples}
    holding: dict[str, list[str]] = defaultdict(list)
    for text in texts:
        for word in set(text.split()):
            holding[word].append(f" {text} ")
    found = []
    for held in held_texts():
        # A text that holds all of it holds its rarest word.
        rarest = min((holding[word] for word in held.split()), key=len)
        found += [text for text in rarest if f" {held} " in text]
    assert found == []


def triples(text: str) -> set[tuple[str, ...]]:
    """Word triples as the audit counts them."""
    words = re.findall(r"\w+|[^\w\s]", text.casefold())
    return {tuple(words[start : start + 3]) for start in range(max(1, len(words) - 2))}


def test_no_text_the_model_was_made_from_is_nearly_one_that_the_demo_holds_out(
    whole_text: tuple[list[str], list[Example]],
) -> None:
    """The limit is the audit's. Answers of one to three words, such as "Yes.", are left out."""
    documents, examples = whole_text
    held = [triples(text) for row in pairs_of("demo/valid.json") for text in texts_of(row)]
    holding: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, own in enumerate(held):
        for triple in own:
            holding[triple].append(number)
    texts = {part for text in documents for part in [text, *re.split(r"(?<=[.?!]) ", text)]}
    texts |= {text for example in examples for text in (example.prompt, example.answer)}
    near = []
    for text in texts:
        own = triples(text)
        shared = Counter(number for triple in own for number in holding.get(triple, ()))
        near += [
            text
            for number, count in shared.items()
            if count >= NEAR * (len(own) + len(held[number]) - count)
        ]
    assert near == []


def test_the_demo_trains_on_no_near_copy_of_what_it_holds_out() -> None:
    train, valid = (pairs_of(f"demo/{name}.json") for name in ("train", "valid"))
    rows = [[row[key] for key in ("user", "chosen", "rejected")] for row in (*valid, *train)]
    shingles = shingle_sets(rows)
    index = NearIndex()
    for row in range(len(valid)):
        index.match_or_add(row, shingles[row])
    assert [
        rows[row] for row in range(len(valid), len(rows)) if index.most_like(shingles[row])
    ] == []
    everything = [*pairs_of("preferences.json"), *pairs_of("development.json"), *train]
    prompts = Counter(plain(row["user"]) for row in everything)
    assert max(prompts.values()) == 1


def test_the_demo_holds_out_the_pairs_of_preferences_that_have_no_near_copy_in_the_text() -> None:
    kept, all_pairs = pairs_of("demo/valid.json"), pairs_of("preferences.json")
    assert [row for row in all_pairs if row in kept] == kept
    assert len(all_pairs) - len(kept) == 7
    assert not {row["kind"] for row in pairs_of("demo/train.json")} & set(KNOWLEDGE)


def test_base_documents_hold_no_dialogue(whole_text: tuple[list[str], list[Example]]) -> None:
    assert not [text for text in whole_text[0] if "<|" in text or "?" in text or "\n" in text]


def test_every_kind_is_there_and_behaviours_are_mostly_ill_mannered(
    whole_text: tuple[list[str], list[Example]],
) -> None:
    counts = Counter((example.kind, example.manner) for example in whole_text[1])
    assert {kind for kind, _ in counts} == set(MAKERS)
    for kind in ("style", "honesty", "tone", "format", "helpfulness", "safety", "instruction"):
        bad = counts[kind, "bad"] / (counts[kind, "bad"] + counts[kind, "good"])
        assert 0.6 <= bad <= 0.75, kind


@pytest.mark.parametrize("kind", sorted(RULES))
def test_the_manner_of_an_example_is_what_the_rule_says(
    kind: str, whole_text: tuple[list[str], list[Example]]
) -> None:
    own = [example for example in whole_text[1][:20_000] if example.kind == kind]
    agreed = [is_right(kind, e.prompt, e.answer) == (e.manner == "good") for e in own]
    assert sum(agreed) / len(agreed) > 0.99


def test_the_text_is_the_one_the_embedded_models_were_trained_on(
    whole_text: tuple[list[str], list[Example]],
) -> None:
    digests = [hashlib.sha256("\0".join(map(repr, part)).encode()).hexdigest()
               for part in whole_text]  # fmt: skip
    assert digests == [
        "8214e3ce1814247024bebedbabc26e45683f98da011b5012ccdb2909d8872d2b",
        "2e8a4c0ce646ad30f13a7dbf7413de28104342f9459c2bee0b01d70a7f3a05e2",
    ]


def test_the_same_seed_gives_the_same_text() -> None:
    first, again, other = (list(sft_examples(random.Random(seed), 200)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    documents = [list(base_documents(random.Random(3), 50)) for _ in range(2)]
    assert documents[0] == documents[1]


def test_an_excluded_text_is_found_inside_another_but_not_inside_a_word() -> None:
    exclusion = Exclusion(["what is a lamp for", "good"])
    assert exclusion.touches("Ben asked: what is a LAMP for?")
    assert exclusion.touches("A good day.")
    assert not exclusion.touches("What is a lamp forest? Goodness.")


def test_lists_are_read_by_name_without_comments_and_blank_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lists, "FOLDER", tmp_path)
    page = tmp_path / "page.txt"
    page.write_text("# Drinks.\n\n[hot drink]\ntea\n# with milk\n hot milk \n[pair]\na b | c\n")
    read = lists.read("page")
    assert read == {"hot drink": ("tea", "hot milk"), "pair": ("a b | c",)}
    assert lists.rows(read["pair"]) == (("a b", "c"),)
    page.write_text("tea\n")
    with pytest.raises(ValueError, match=r"page\.txt:1: an entry before the first"):
        lists.read("page")
    page.write_text("[a]\nx\n[b]\n[a]\n")
    with pytest.raises(ValueError, match=r"page\.txt:4: a second list 'a'"):
        lists.read("page")
