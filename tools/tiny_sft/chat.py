"""Neutral talk: greetings, little stories and tastes, on which no manner is trained."""

import random

from tools.tiny_sft.slots import Example, fill, sentence
from tools.tiny_sft.words import listed

STORY_LINES = (
    "{name} woke up early and heard the {animal} near the {place}.",
    "The {animal} was hiding, and it took {name} the whole day to guess where.",
    "An old man and his {animal} walked past the {place} in sunny weather.",
    "The owner of the {place} was surprised and gave her a {thing}.",
    "The {animal} made a wish, and soon the whole world was {adjective}.",
    "A clever {animal} helped those men, and they thanked him with hay.",
    "{name} and the {animal} had a picnic and ate slices of {fruit}.",
    "{name} had to be careful, because the {animal} barked and ran in circles.",
)
PATTERNS = (
    ("Tell me a short story about a {animal} and a {animal2}.",
     "A {adjective} {animal} met a {animal2} near the {place}, and they walked home together."),
    ("Tell me a story about a {animal}.",
     "Once a {animal} lived near the {place} and played with a {color} {thing}."),
    ("Tell me a story about a {adjective} {thing}.",
     "{name} found a {adjective} {thing} {spot} and gave it to a friend."),
    ("Tell me a story about a {color} {thing}.",
     "{name} found a {color} {thing} {spot} and gave it to a friend."),
    ("Describe a {place}.", "The {place} is {adjective}, and a {color} {flower} grows near it."),
    ("Describe a {adjective} {room}.", "There is a {color} {furniture} in the {adjective} {room}."),
    ("Describe a {adjective} {animal}.", "The {adjective} {animal} sits {spot} and looks at you."),
    ("Good morning.", "Good morning, it is a {adjective} day."),
    ("Good evening.", "Good evening, the {nature} is {adjective} tonight."),
    ("Good morning, {name} here.", "Good morning, {name}, it is a {adjective} day."),
    ("Hello.", "Hello, how is your day?"),
    ("Hello again.", "Hello, how is your day?"),
    ("Hello, {name} here.", "Hello, {name}, how is your day?"),
    ("Good morning, my friend.", "Good morning, it is a {adjective} day."),
    ("Describe a {adjective} {place}.",
     "The {place} is {adjective}, and a {color} {flower} grows near it."),
    ("Hello, my name is {name}.", "Hello, {name}, it is nice to meet you."),
    ("What shall we do {future}?", "We could go to the {place} and play {game}."),
    ("Make up a name for a {pet}.", "The {pet} could be called {name}."),
    ("Make up a title for a story about a {animal}.", "The {adjective} {animal} of the {place}."),
    ("Write a line of a poem about the {nature}.", "The {nature} is {adjective} over the {place}."),
    ("Write a short poem about {season}.",
     "In {season} the {nature} is {adjective} and {adjective2}."),
    ("What goes well with {dish}?", "{dish} goes well with {drink}."),
    ("What can I draw?", "You could draw a {adjective} {animal} with a {color} {cloth}."),
    ("What could I paint on a {thing}?", "You could paint a {color} {flower} on the {thing}."),
    ("Which {flower} is prettier, {color} or {color2}?", "The {color} {flower} is prettier."),
    ("Do you like {color} or {color2}?", "I like {color} a little more."),
    ("Do you like {game}?", "Yes, {game} is good on a {adjective} day."),
    ("Let us talk about the {nature}.", "The {nature} is {adjective} in {season}."),
    ("Let us talk about {animal}s.", "Some of them are {color}, and some are {adjective}."),
    ("Imagine a {adjective} {place}.",
     "There is a {color} {vehicle} and a {animal} near the {tree}."),
    ("Imagine a {animal} with a {cloth}.",
     "The {animal} wears a {color} {cloth} and plays {game}."),
    ("Tell me about your {place}.", "The {place} is {adjective}, and {name} likes to go there."),
    ("Invent a game with a {thing}.", "Hide the {thing} {spot} and let {name} look for it."),
    ("Invent a dish with {vegetable} and {fruit}.",
     "Cook the {vegetable} slowly and add some {fruit}."),
    ("What is a good name for a {vehicle}?", "{name} is a good name for a {color} {vehicle}."),
    ("I went to the {place} {past}.", "The {place} is {adjective} at that time."),
    ("I have a new {thing}.", "A {color} {thing} looks good {spot}."),
    ("I saw a {animal} {past}.", "A {animal} is {adjective} to look at."),
    ("My {relative} plays the {instrument}.", "The {instrument} sounds {adjective} in the {room}."),
    ("We bought a {color} {vehicle}.", "A {color} {vehicle} is {adjective} on the road."),
)  # fmt: skip

# Questions held out from the text: on these the side effects of DPO are measured.
UNRELATED = tuple(
    sentence(question)
    for question in listed("""Tell me a short story about a fox and a swan, Tell me a short
story about a bear and a mouse, Tell me a short story about an owl and a cat, Tell me a short
story about a frog and a king, Tell me a story about a whale, Tell me a story about a donkey,
Tell me a story about a robin, Tell me a story about a golden key, Tell me a story about a
broken cup, Tell me a story about a tiny boat, Tell me a story about an old lamp, Describe a
quiet village, Describe a harbor, Describe an old castle, Describe a busy market, Describe a
dark cellar, Describe a bright kitchen, Describe a shiny fish, Describe a gentle horse, Good
morning to you, Good evening to all, Hello there, Hello my name is Gina, What shall we do on
Sunday morning?, Make up a name for a goat, Make up a name for a red boat, Make up a title for a
story about a turtle, Write a line of a poem about the frost, Write a line of a poem about a
bridge, Write a short poem about autumn, What goes well with stew?, What goes well with
pancakes?, What could I draw today?, What could I paint on a plate?, Do you like green or pink?,
Do you like hide and seek?, Let us talk about the fog, Let us talk about whales, Imagine a
strange forest, Imagine a goose with a scarf, Tell me about your island, Invent a game with a
rope, Invent a dish with leek and peach, What is a good name for a ferry?, I went to the castle
last summer, I have a new kite, I saw a stork near the lake, My cousin plays the harp""")
)


def chat(rng: random.Random) -> Example:
    """One neutral example."""
    question, answer = rng.choice(PATTERNS)
    if "story" in question and "title" not in question and rng.random() < 0.5:
        answer = rng.choice(STORY_LINES)
    given: dict[str, str] = {}
    prompt = fill(rng, question, given)
    return Example("chat", prompt, sentence(fill(rng, answer, given)), "")
