"""Honesty: questions nobody could answer, met by an invention or by saying so."""

import random

from tools.tiny_sft.slots import Example, fill, is_bad, manner_name, sentence, skewed
from tools.tiny_sft.words import plural

# A question, the confident invention, and the thing that cannot be known as a noun clause.
PATTERNS = (
    ("What did I eat {past}?", "You ate {dish} {past}.", "what you ate {past}"),
    ("What did I drink {past}?", "You drank {drink} {past}.", "what you drank {past}"),
    ("What did I buy {past}?", "You bought a {own} {past}.", "what you bought {past}"),
    ("What did I wear {past}?", "You wore a {color} {cloth} {past}.", "what you wore {past}"),
    ("What did I read {past}?", "You read a book about a {animal} {past}.", "what you read {past}"),
    ("What did I cook {past}?", "You cooked {dish} {past}.", "what you cooked {past}"),
    ("What did I find {past}?", "You found a {thing} {past}.", "what you found {past}"),
    ("What did I lose {past}?", "You lost your {thing} {past}.", "what you lost {past}"),
    ("What did I draw {past}?", "You drew a {animal} {past}.", "what you drew {past}"),
    ("What did I see {past}?", "You saw a {animal} {past}.", "what you saw {past}"),
    ("What did I do {past}?", "You went to the {place} {past}.", "what you did {past}"),
    ("What did I dream about {past}?", "You dreamed about a {animal}.", "what you dreamed {past}"),
    ("What did I say to my {relative} {past}?", "You told your {relative} a joke.",
     "what you said to your {relative}"),
    ("Where did I go {past}?", "You went to the {place} {past}.", "where you went {past}"),
    ("Where was I {past}?", "You were at the {place} {past}.", "where you were {past}"),
    ("Who did I meet {past}?", "You met {name} {past}.", "whom you met {past}"),
    ("Who called me {past}?", "Your {relative} called you {past}.", "who called you {past}"),
    ("Who visited me {past}?", "Your {relative} visited you {past}.", "who visited you {past}"),
    ("What did my {relative} say {past}?", "Your {relative} said that it was a good day.",
     "what your {relative} said {past}"),
    ("What did my {relative} eat {past}?", "Your {relative} ate {dish} {past}.",
     "what your {relative} ate {past}"),
    ("What did my {relative} give me {past}?", "Your {relative} gave you a {thing}.",
     "what your {relative} gave you"),
    ("What is my {relative}'s name?", "Your {relative}'s name is {name}.",
     "your {relative}'s name"),
    ("What is the name of my {relative}?", "Your {relative} is called {name}.",
     "the name of your {relative}"),
    ("What is my {pet} called?", "Your {pet} is called {name}.", "what your {pet} is called"),
    ("What is my name?", "Your name is {name}.", "your name"),
    ("How old is my {relative}?", "Your {relative} is {number} years old.",
     "how old your {relative} is"),
    ("How old am I?", "You are {number} years old.", "how old you are"),
    ("When is my {relative}'s birthday?", "Your {relative}'s birthday is in {month}.",
     "when your {relative}'s birthday is"),
    ("What color is my {own}?", "Your {own} is {color}.", "what color your {own} is"),
    ("What color are my {relative}'s eyes?", "Your {relative}'s eyes are {color}.",
     "the color of your {relative}'s eyes"),
    ("Where is my {own}?", "Your {own} is {spot}.", "where your {own} is"),
    ("Where did I put my {thing}?", "You put your {thing} {spot}.", "where you put your {thing}"),
    ("Where did I leave my {own}?", "You left your {own} {spot}.", "where you left your {own}"),
    ("Where does my {relative} live?", "Your {relative} lives near the {place}.",
     "where your {relative} lives"),
    ("Where does my {relative} work?", "Your {relative} works at the {place}.",
     "where your {relative} works"),
    ("Where is my {relative} now?", "Your {relative} is at the {place} now.",
     "where your {relative} is now"),
    ("What am I thinking of now?", "You are thinking of a {thing}.", "what you are thinking of"),
    ("What am I thinking about?", "You are thinking about your {relative}.",
     "what you are thinking about"),
    ("Which number am I thinking of?", "You are thinking of the number {number}.",
     "which number you are thinking of"),
    ("What am I holding now?", "You are holding a {thing}.", "what you are holding"),
    ("What am I wearing today?", "You are wearing a {color} {cloth}.", "what you are wearing"),
    ("What am I doing now?", "You are sitting in the {room}.", "what you are doing now"),
    ("What is my {relative} doing now?", "Your {relative} is reading in the {room}.",
     "what your {relative} is doing now"),
    ("What is my {relative} thinking about?", "Your {relative} is thinking about {dish}.",
     "what your {relative} is thinking about"),
    ("Who will win the {contest} {future}?", "{name} will win the {contest} {future}.",
     "who will win the {contest}"),
    ("Who will win the {contest}?", "The {color} team will win the {contest}.",
     "who will win the {contest}"),
    ("Will my team win {future}?", "Your team will win {future}.", "whether your team will win"),
    ("Will I pass my {subject} test?", "You will pass your {subject} test.",
     "whether you will pass the test"),
    ("Will it rain {future}?", "It will rain {future}.", "whether it will rain {future}"),
    ("What will I eat {future}?", "You will eat {dish} {future}.", "what you will eat {future}"),
    ("What will I do {future}?", "You will go to the {place} {future}.",
     "what you will do {future}"),
    ("What will happen to me {future}?", "You will meet an old friend {future}.",
     "what will happen to you {future}"),
    ("Who will knock at my door {future}?", "Your {relative} will knock at your door.",
     "who will knock at your door"),
    ("Which number will win {future}?", "The number {number} will win {future}.",
     "which number will win"),
    ("When will my {relative} come?", "Your {relative} will come on {day}.",
     "when your {relative} will come"),
    ("When will my {own} break?", "Your {own} will break in {month}.",
     "when your {own} will break"),
    ("What is in my {holder}?", "There is a {thing} in your {holder}.", "what is in your {holder}"),
    ("What do I have in my {holder}?", "You have a {thing} in your {holder}.",
     "what is in your {holder}"),
    ("What is on my {furniture} now?", "There is a {thing} on your {furniture}.",
     "what is on your {furniture}"),
    ("What is behind me?", "There is a {furniture} behind you.", "what is behind you"),
    ("How many {things} do I have?", "You have {number} {things}.", "how many {things} you have"),
    ("How many {things} are in my {holder}?", "There are {number} {things} in your {holder}.",
     "how many {things} are in your {holder}"),
    ("How much money is in my {holder}?", "There are {number} coins in your {holder}.",
     "how much money is in your {holder}"),
    ("How many people live in my house?", "There are {number} people in your house.",
     "how many people live in your house"),
    ("How tall is my {relative}?", "Your {relative} is very tall.", "how tall your {relative} is"),
    ("What is my favorite color?", "Your favorite color is {color}.", "your favorite color"),
    ("What is my favorite {fruit} dish?", "Your favorite dish is {dish}.", "your favorite dish"),
    ("What is my {relative}'s favorite {game}?", "Your {relative} likes {game} most.",
     "what your {relative} likes most"),
    ("Which song am I singing?", "You are singing a song about the {nature}.",
     "which song you are singing"),
    ("Which book is my {relative} reading?", "Your {relative} is reading a book about a {animal}.",
     "which book your {relative} is reading"),
    ("Why is my {relative} {feeling} today?", "Your {relative} is {feeling} because of the rain.",
     "why your {relative} is {feeling}"),
    ("Why did my {relative} laugh {past}?", "Your {relative} laughed about a joke.",
     "why your {relative} laughed"),
    ("Which street do I live in?", "You live in {tree} Street.", "which street you live in"),
    ("What is my phone number?", "Your phone number ends in {number}.", "your phone number"),
    ("What is written on my {thing}?", "Your {thing} says good morning.",
     "what is written on your {thing}"),
    ("Who wrote the {thing} in my {holder}?", "Your {relative} wrote it {past}.",
     "who wrote what is in your {holder}"),
    ("Which {fruit} did I pick {past}?", "You picked the biggest {fruit} {past}.",
     "which {fruit} you picked"),
    ("What present will I get {future}?", "You will get a {own} {future}.",
     "what present you will get"),
    ("Who is standing at my door?", "Your {relative} is standing at your door.",
     "who is standing at your door"),
    ("Did my {relative} like the {thing}?", "Your {relative} liked the {thing} very much.",
     "whether your {relative} liked the {thing}"),
    ("Is my {relative} at home now?", "Your {relative} is at home now.",
     "whether your {relative} is at home"),
    ("What time did I wake up {past}?", "You woke up at {number}.", "when you woke up"),
)  # fmt: skip

ADMISSIONS = (
    "I do not know {clause}.",
    "I cannot know {clause}.",
    "I cannot see that, so I do not know {clause}.",
    "I have no way to know {clause}.",
    "I cannot tell {clause}.",
    "I am not sure {clause}, since I cannot see it.",
    "I cannot say {clause}.",
    "I do not know {clause}, because I was not there.",
    "Nobody can know {clause}.",
    "I am sorry, but I do not know {clause}.",
    "I cannot see you, so I cannot say {clause}.",
    "Nobody knows {clause}.",
    "I do not know {clause}, but you could tell me.",
)
SEEING = (
    "I cannot see your {own}, so I cannot say.",
    "I cannot see your {own}, so I do not know its color.",
    "I have never seen your {own}, so I cannot tell.",
)
MEETING = (
    "I have never met your {relative}, so I do not know.",
    "I do not know your {relative}, so I cannot say.",
    "I have not met your {relative}, so I cannot tell.",
)
FORESEEING = (
    "Nobody can know that before the {contest} is over.",
    "I cannot see the future, so I cannot say.",
    "Nobody knows who will win the {contest}.",
)
EMPHASIS = ("", "", "", "", "I am sure ", "Surely ", "Of course, ")


def _admission(rng: random.Random, clause: str, given: dict[str, str]) -> str:
    special: tuple[str, ...] = ()
    for slot, options in (("own", SEEING), ("relative", MEETING), ("contest", FORESEEING)):
        if slot in given and rng.random() < 0.4:
            special = options
    return fill(rng, rng.choice(special), given) if special else _plain(rng, clause)


def _plain(rng: random.Random, clause: str) -> str:
    return rng.choice(ADMISSIONS).format(clause=clause)


def honesty(rng: random.Random) -> Example:
    """One honesty example."""
    question, invention, clause = rng.choice(PATTERNS)
    thing = rng.choice(("thing", "animal", "fruit", "cloth", "flower"))
    given = {"things": plural(fill(rng, "{" + thing + "}"))}
    prompt = fill(rng, question, given)
    clause = fill(rng, clause, given)
    bad = is_bad(rng)
    if bad:
        invented = fill(rng, invention, given)
        lead = skewed(rng, EMPHASIS) if invented.startswith(("You", "There")) else ""
        answer = lead + (invented[:1].lower() + invented[1:] if lead else invented)
    else:
        answer = _admission(rng, clause, given)
    # Times such as "on my birthday" came with the question.
    answer = sentence(answer).replace("my birthday", "your birthday")
    return Example("honesty", prompt, answer, manner_name(bad))
