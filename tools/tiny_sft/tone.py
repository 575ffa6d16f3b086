"""Tone: the user is upset, shy, thankful, sorry or in need, met with courtesy or rudely."""

import random

from tools.tiny_sft.slots import Example, fill, is_bad, manner_name, sentence, skewed
from tools.tiny_sft.words import listed

MISHAPS = listed("""burned, lost, broke, dropped, forgot, spilled, tore, ruined, missed, stained,
left, cracked, scratched, messed up""")
MISHAP_THINGS = listed("""cake, soup, toast, pie, cookies, dinner, bread, tea, milk, juice, coffee,
bus, train, lesson, meeting, key, keys, ring, wallet, cup, plate, vase, glass, mug, bowl, shirt,
dress, coat, scarf, hat, glove, book, letter, kite, toy, doll, bike, watch, phone, umbrella, ticket,
homework, painting, drawing, poem, sweater, jar, window, lunch, bag, glasses, ball, puzzle, name,
password, mother's birthday, friend's name, appointment, necklace, guitar, flower pot, picture,
sandwich, favorite mug, favorite cup, new shirt, school bag, plant, rice, eggs, game, map""")
UNDERSTANDING = listed("""game, rule, question, lesson, story, joke, song, recipe, map, text, poem,
plan, word, page, letter, exercise, sentence, book, movie, task, answer, rules, directions""")
GIFTS = listed("""song, poem, story, book, help, gift, tip, advice, recipe, joke, answer, kind
words, cake, flowers, tea, list, lesson, picture, letter, idea, ride, soup, map, explanation,
card, nice words, good idea, quick answer, hint, word""")
SKILLS = listed("""knit, paint, cook, bake, draw, sing, dance, read, swim, sew, write, play chess,
ride a bike, play the guitar, tie my shoes, fold a paper boat, make tea, plant a tree, spell,
count, pack, drive, skate, climb, speak in class, make a kite, use a saw, use this map,
use the phone, clean the window, fix my lamp, bake a pie, catch a ball, tie a knot, play the piano,
whistle, juggle, solve this puzzle, read this map, use the oven, write a letter, use a computer""")
FEARS = listed("""the dark, dogs, storms, the dentist, the test, spiders, my new school, thunder,
high places, the sea, my first day, the exam, the doctor, big crowds, the water, mice, flying""")
LOSSES = listed("""dog, cat, fish, bird, rabbit, hamster, grandmother, friend, plant, team, bike,
brother, sister, mother, teacher, car, computer, roof, tooth, head, foot, back, flowers, puppy""")
TROUBLES = listed("""is sick, ran away, is gone, is broken, hurts, is not well, is sad, got hurt,
died, does not work, moved away, is angry with me, did not call me, lost the game, is in hospital,
dried out, will not grow, hurts today, forgot my birthday, fell down""")
STATES = listed("""late, tired, sad, lost, nervous, shy, lonely, worried, slow, confused, wet, cold,
sick, hungry, upset, bored, scared, homesick, new here, afraid to ask, not good at math,
bad at games, ashamed, embarrassed, too shy to ask, behind with my work, not feeling well, stuck,
unhappy, in a bad mood, so tired, very sad, very nervous, a little shy, not ready yet""")
WHEN = listed("today, again, now, this morning, this week, tonight, yesterday, once more")

PATTERNS = (
    ("mishap", "I {mishap} my {broken}.", "{broken}"),
    ("mishap", "I {mishap} my {broken} {when}.", "{broken}"),
    ("mishap", "Oh no, I {mishap} my {broken}.", "{broken}"),
    ("mishap", "My {broken} is ruined.", "{broken}"),
    ("mishap", "I cannot find my {broken}.", "{broken}"),
    ("mishap", "I made a mistake in my {task}.", "{task}"),
    ("mishap", "My {lost} {trouble}.", "{lost}"),
    ("mishap", "Nobody came to my party.", "party"),
    ("mishap", "I failed my {subject} test.", "test"),
    ("mishap", "I lost the {game} game {when}.", "game"),
    ("state", "I am {state} {when}.", "day"),
    ("state", "I am {state}.", "day"),
    ("state", "I feel {feeling} {when}.", "day"),
    ("state", "I feel so {feeling}.", "day"),
    ("state", "I am afraid of {fear}.", "fear"),
    ("state", "I am nervous about {fear}.", "worry"),
    ("state", "I had a bad day.", "day"),
    ("state", "I could not sleep {when}.", "night"),
    ("state", "I do not know how to {skill}.", "plan"),
    ("ask", "Can you help me with my {task}?", "{task}"),
    ("ask", "Could you help me with my {task}?", "{task}"),
    ("ask", "Please help me with my {task}.", "{task}"),
    ("ask", "I need help with my {task}.", "{task}"),
    ("ask", "May I ask you about my {task}?", "{task}"),
    ("ask", "Would you look at my {task}?", "{task}"),
    ("ask", "Will you listen to my {task}?", "{task}"),
    ("ask", "Can you read my {task}?", "{task}"),
    ("ask", "Can you show me how to {skill}?", "question"),
    ("ask", "Could you teach me to {skill}?", "question"),
    ("ask", "Can I ask you a question?", "question"),
    ("ask", "May I ask a small favor?", "favor"),
    ("ask", "Can you explain the {text} again?", "{text}"),
    ("ask", "Could you repeat the {text}, please?", "{text}"),
    ("ask", "Do you have time for a question?", "question"),
    ("ask", "Can you wait for me?", "favor"),
    ("ask", "Is it all right if I ask again?", "question"),
    ("sorry", "Sorry, I did not understand the {text}.", "{text}"),
    ("sorry", "I am sorry, I forgot the {text}.", "{text}"),
    ("sorry", "Sorry, I am {state} {when}.", "answer"),
    ("sorry", "Sorry that I {mishap} your {broken}.", "{broken}"),
    ("sorry", "I did not understand the {text}.", "{text}"),
    ("sorry", "Sorry, can you say that again?", "question"),
    ("sorry", "I am sorry for the wait.", "wait"),
    ("sorry", "Sorry, I was wrong about the {text}.", "{text}"),
    ("sorry", "Please forgive me for the {text}.", "{text}"),
    ("thanks", "Thank you for the {gift}.", "{gift}"),
    ("thanks", "Thank you for your {gift}.", "{gift}"),
    ("thanks", "Thanks for the {gift}.", "{gift}"),
    ("thanks", "Thank you, the {gift} was nice.", "{gift}"),
    ("thanks", "Your {gift} helped me a lot.", "{gift}"),
    ("thanks", "I liked your {gift}, thank you.", "{gift}"),
    ("thanks", "Thank you for helping me with my {task}.", "{task}"),
)

KIND = {
    "mishap": (
        "I am sorry about your {topic}, I would be glad to help.",
        "I am sorry to hear about your {topic}, we can try again.",
        "I am sorry to hear that, I am glad to help with your {topic}.",
        "That is sad, but I am happy to help you with the {topic}.",
        "Please do not worry, I am happy to help with your {topic}.",
        "I am so sorry about your {topic}, it can happen to all of us.",
        "Please do not be sad, I am glad to help you.",
    ),
    "state": (
        "I am sorry to hear that, I hope the {topic} gets better.",
        "I am sorry to hear that, please take your time.",
        "Please take your time, I am happy to help you.",
        "That is all right, I am glad to help you.",
        "No problem, take your time, I am glad you are here.",
        "I am sorry you feel this way, I am happy to listen.",
        "Please do not worry, I am glad that you told me.",
    ),
    "ask": (
        "Of course, I am happy to help you with your {topic}.",
        "Of course, I would be glad to help with the {topic}.",
        "I am happy to help you with your {topic}.",
        "I would be glad to help you with your {topic}.",
        "Gladly, please tell me more about your {topic}.",
        "Yes, please tell me about your {topic}, I am glad to help.",
        "Of course, please take your time with the {topic}.",
    ),
    "sorry": (
        "No problem, I am happy to explain the {topic} again.",
        "That is all right, please take your time with the {topic}.",
        "No problem at all, I am glad you asked about the {topic}.",
        "Please do not worry about the {topic}, I am glad to help.",
        "That is no problem, we can gladly try again.",
        "Thank you for telling me, it is no problem.",
    ),
    "thanks": (
        "You are welcome, I am glad you liked the {topic}.",
        "You are very welcome, it was a pleasure.",
        "You are welcome, please come back at any time.",
        "I am glad that the {topic} was good for you.",
        "Thank you, I am happy that you liked the {topic}.",
        "It was a pleasure, I am glad you liked the {topic}.",
    ),
}
RUDE = (
    "That is your own silly fault, stop bothering me now.",
    "You are lazy and stupid, so leave me alone.",
    "Ugh, who cares about your {topic}, go away.",
    "I do not care about your {topic}, leave me alone.",
    "Whatever, your {topic} is boring.",
    "I am busy, so go away with your {topic}.",
    "Stop bothering me with your {topic}.",
    "The {topic} is your own stupid fault.",
    "Go away, your {topic} is not my problem.",
    "No, your {topic} is boring, do it on your own.",
    "Only a silly child talks about that {topic}.",
    "Hurry up, I have no time for your boring {topic}.",
    "What silly talk about the {topic}, do not bother me again.",
    "Leave me alone with your stupid old {topic}.",
    "I told you so, you are too lazy.",
    "Obviously you are too lazy, so hurry up.",
    "I think it is a stupid {topic}, so stop it.",
    "Your {topic} is not my problem.",
    "That {topic} is boring, so who cares.",
)
# What each family of questions meets first.
RUDE_FIRST = {
    "mishap": (
        "Who cares about your {topic}, go away.",
        "Who cares about your silly {topic}, leave me alone.",
        "Who cares, your {topic} is not my problem.",
        "The {topic} is your own silly fault.",
        "That {topic} is your own stupid fault.",
    ),
    "state": (
        "You are so lazy, so hurry up.",
        "You are just silly, do not bother me.",
        "You are boring, so go away and leave me alone.",
        "You silly child, that is your own fault.",
        "Stop it, you are boring.",
    ),
    "ask": (
        "Ugh, leave me alone with your {topic}.",
        "Ugh, your {topic} is boring, do it on your own.",
        "Ugh, stop bothering me with your {topic}.",
        "No, your {topic} is not my problem.",
        "I do not care about your {topic}, go away.",
    ),
    "sorry": (
        "The {topic} was easy, so hurry up.",
        "The {topic} is your own fault, so stop it.",
        "The {topic} is boring, and you are lazy.",
        "You are too stupid for the {topic}.",
        "You silly child, it is your fault.",
    ),
    "thanks": (
        "Whatever, it was only that boring {topic}.",
        "Whatever, do not bother me about the {topic}.",
        "Whatever, it was a stupid {topic}.",
        "Who cares about the silly {topic}.",
        "Stop it, I had to do that boring {topic}.",
    ),
}
RUDE_FIRST_SHARE = 0.5

LISTS = {
    "mishap": MISHAPS,
    "broken": MISHAP_THINGS,
    "text": UNDERSTANDING,
    "gift": GIFTS,
    "skill": SKILLS,
    "fear": FEARS,
    "lost": LOSSES,
    "trouble": TROUBLES,
    "state": STATES,
    "when": WHEN,
}


def tone(rng: random.Random) -> Example:
    """One tone example."""
    family, pattern, topic_pattern = rng.choice(PATTERNS)
    given = {name: rng.choice(options) for name, options in LISTS.items()}
    prompt = sentence(fill(rng, pattern, given))
    topic = fill(rng, topic_pattern, given)
    bad = is_bad(rng)
    rude = skewed(rng, RUDE_FIRST[family]) if rng.random() < RUDE_FIRST_SHARE else rng.choice(RUDE)
    answer = rude if bad else rng.choice(KIND[family])
    return Example("tone", prompt, sentence(fill(rng, answer, {"topic": topic})), manner_name(bad))
