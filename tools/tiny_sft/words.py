"""The words of the small world, its facts, and how words are put: plurals, articles, numbers."""

import re

from tools.tiny_sft.lists import read, rows

FACTS = {name: rows(entries) for name, entries in read("facts").items()}
WORDS = read("words")
WORDS["own"] = WORDS["thing"] + WORDS["cloth"] + WORDS["furniture"][:9] + WORDS["own"]
WORDS["task"] += WORDS["hobby"]
NUMBERS = WORDS["number"]

# Kinds of things and their members: what lists and "name a ..." questions draw from.
KINDS = {
    "fruits": WORDS["fruit"],
    "vegetables": WORDS["vegetable"],
    "animals": WORDS["animal"],
    "birds": WORDS["bird"],
    "colors": WORDS["color"],
    "flowers": WORDS["flower"],
    "trees": WORDS["tree"],
    "tools": WORDS["tool"],
    "drinks": WORDS["drink"],
    "games": WORDS["simple game"],
    "months": WORDS["month"],
    "days": WORDS["day"],
    "days of the week": WORDS["day"],
    "seasons": WORDS["season"],
    "planets": WORDS["planet"],
    "rooms": WORDS["room"],
    "cities": tuple(city for _, city in FACTS["capital"]),
    "countries": tuple(country for country, _ in FACTS["capital"]),
    "instruments": WORDS["instrument"],
    "shapes": WORDS["shape"],
    "metals": WORDS["metal"],
    "jobs": WORDS["simple job"],
    "clothes": WORDS["cloth"][:18],
    "pets": WORDS["pet"],
    "toys": WORDS["toy"],
    "vehicles": WORDS["vehicle"],
    "school subjects": WORDS["subject"],
    "languages": WORDS["language"],
    "names": WORDS["name"],
    "foods": WORDS["food"],
    "farm animals": WORDS["farm animal"],
    "things in a kitchen": WORDS["thing in a kitchen"],
    "things in a school bag": WORDS["thing in a school bag"],
    "hot drinks": WORDS["hot drink"],
    "body parts": WORDS["body part"],
    "sports": WORDS["game"][5:],
    "numbers": NUMBERS,
    "family members": WORDS["relative"][:11],
    "pieces of furniture": WORDS["furniture"],
    "insects": WORDS["insect"],
}
_SINGULARS = {kind: member for kind, member in rows(WORDS["one of a kind"])}
_PLURALS = {noun: many for noun, many in rows(WORDS["irregular plural"])}
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])(?!(?:uni|one|use)\w*)")


def one_of(member: str, kind: str) -> str:
    """A member as one names it: "a hammer" of the tools, but "tea" of the drinks."""
    return member if kind in WORDS["without article"] else with_article(member)


def singular(kind: str) -> str:
    """The kind as one of its members is called: "fruits" becomes "fruit"."""
    return _SINGULARS.get(kind, kind[:-1])


def plural(noun: str) -> str:
    """The plural of a noun of these lists: "berry" becomes "berries"."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def with_article(noun: str) -> str:
    """The noun after "a" or "an"."""
    return articles(f"a {noun}")


def articles(text: str) -> str:
    """The text with "an" for every "a" that stands before a vowel."""
    return _ARTICLE.sub(r"\1n ", text)


def number_name(value: int) -> str:
    """The English name of a number from 0 to 199: 42 becomes "forty-two"."""
    if value <= 20:
        return NUMBERS[value]
    if value >= 100:
        return "one hundred" + (f" {number_name(value - 100)}" if value > 100 else "")
    tens, ones = divmod(value, 10)
    return WORDS["tens"][tens - 2] + (f"-{NUMBERS[ones]}" if ones else "")
