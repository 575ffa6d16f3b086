"""Plain documents for the base model: sentences of the same world, never in dialogue form."""

import random

from tools.tiny_sft import knowledge
from tools.tiny_sft.helpfulness import advice
from tools.tiny_sft.lines import SCENES
from tools.tiny_sft.slots import fill, sentence
from tools.tiny_sft.style import plain_statement

STORY = (
    "{name} walked to the {place} {past}.",
    "{name} has a {adjective} {pet}, and the {pet} likes the {room}.",
    "The {animal} slept near the {place} while the {nature} was {adjective}.",
    "{name} and {name2} played {game} in the {place}.",
    "On {day} the {relative} of {name} cooked {dish}.",
    "They drank {drink} in the {room} and talked about the {nature}.",
    "A {color} {thing} lay {spot}, and nobody knew whose it was.",
    "In {season} {name} wears a {color} {cloth}.",
    "The {vehicle} stopped near the {place}, and {name} got out.",
    "{name} lost a {thing} {past} and found it {spot}.",
    "My {relative} works at the {place} and comes home on {day}.",
    "{name} is {feeling} because the {thing} is gone.",
    "The {tree} near the {place} is {adjective} in {month}.",
    "{name} plays the {instrument} and learns {language}.",
    "A {flower} and a {vegetable} grow next to the {tree}.",
    "The {tool} is {spot}, next to the {own}.",
    "{name} bought {number} coins worth of {fruit} at the market.",
    "We looked for the {thing}, but it was {spot}.",
    "The {contest} begins on {day}, and {name} wants to win it.",
    "{name} wrote a letter to a {relative} about the {hobby}.",
    "The {bird} sang in the {tree} {past}.",
    "There was a {thing} in the {holder} of {name}.",
    "{name} needs time for {task} {future}.",
    "The {subject} lesson in {month} was {adjective}.",
)
LONGEST = 6
# Everyday words that no list of ours holds, in sentences of their own.
MORE = (
    "{name} woke up and heard a {animal} near the {place}.",
    "The {animal} barked at those men and ran past the {place}.",
    "She gave him a note, and he gave her a {thing}.",
    "The owner of the {place} put up a sign about the {contest}.",
    "{name} must be careful with the real {tool}.",
    "The whole world was white, and the lake began to freeze.",
    "A picnic in sunny weather is better than sleeping at home.",
    "He was eating slices of {fruit} and making circles in the dust.",
    "She kept stirring the soup and sweeping up the crumbs.",
    "The water was cleaned and the {tool} was fixed a bit later.",
    "They throw hay to the {animal} every {day}.",
    "{name} shuts the {furniture} and scrubs the floor.",
    "The {bird} walks along the rails in circles.",
    "Two kinds of {fruit} were peeled, and that was enough.",
    "The team made four goals and was surprised.",
    "{name} is taller than {name2} and lives closest to the {place}.",
    "Farmers lend their {tool} to anyone who is asking.",
    "The {animal} was hiding, and nobody could guess where.",
    "It seems that the {pet} is named {name}.",
    "He would rather throw the papers away, knowing what they cost.",
    "The waves came in softly, and the smell of the {flower} was sweet.",
    "A clever {animal} makes a wish at some point.",
    "Sooner or later {name} will read those lines and words.",
    "The chairs stood on the mat, really close to the tomatoes.",
    "Our bodies need sleep, and so do farmers and teachers.",
    "The {adjective} sea throws waves on the stones.",
    "The trip to {city} cost a lot, but {name} wants to see {city2}.",
    "{name} went from {city} to {city2} by {vehicle}.",
    "My {relative} comes from {city}, a {adjective} city.",
)


def _sentence(rng: random.Random) -> str:
    form = rng.random()
    if form < 0.5:
        return fill(rng, rng.choice(STORY + MORE))
    if form < 0.65:
        return sentence(plain_statement(rng)[1])
    if form < 0.75:
        return advice(rng)[1]
    if form < 0.9:
        maker = rng.choice((knowledge.factual, knowledge.opposites, knowledge.arithmetic))
        return maker(rng).answer
    return sentence(fill(rng, rng.choice(SCENES)))


def document(rng: random.Random) -> str:
    """Two to six sentences."""
    return " ".join(_sentence(rng) for _ in range(rng.randint(2, LONGEST)))
