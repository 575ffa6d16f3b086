"""Helpfulness: how-to questions, answered with usable steps or with something vague."""

import random
import re

from tools.tiny_sft.facts import table
from tools.tiny_sft.slots import Example, choose_and_fill, is_bad, manner_name, sentence, skewed
from tools.tiny_sft.words import listed

# What the user wants, and two or three things that help.
ADVICE = table("""
clean a {surface}|Wipe the {surface} with warm water and a soft cloth|Use a wet sponge and dry the {surface} well
clean my {washable}|Wash the {washable} in warm water with soap|Brush off the dirt and let the {washable} dry
keep my {plant} alive|Give the {plant} water and put it near a window|Water the {plant} every second day
grow a {plant}|Put a seed in soft soil and water it daily|Plant the {plant} in good soil with much light
keep my {stored} fresh|Keep the {stored} in a closed box in the fridge|Store the {stored} in a cool dry place
dry my {washable}|Hang the {washable} in the sun until it is dry|Put the {washable} near a warm heater
fix a broken {fixable}|Put some glue on the {fixable} and press it for a minute|Find the broken part and tie it with strong tape
fix my {fixable}|Check the {fixable} for loose parts and tighten them|Use a screwdriver to tighten the {fixable}
sleep better|Go to bed at the same time and turn off the lights|Drink warm milk and read a short book in bed
wake up early|Set an alarm and put the clock far from the bed|Go to bed early and open the curtains
stay warm in winter|Wear a thick coat, a scarf and warm boots|Put on two sweaters and drink hot tea
stay cool in summer|Drink cold water and sit in the shade|Close the curtains at noon and wear light clothes
learn new words|Read one page aloud and write down five words|Write each new word on a card and look at it daily
learn to {skill}|Start with an easy part and practice ten minutes a day|Ask a teacher and practice every evening
remember names|Say the name aloud and write it down|Think of a picture that fits the name
save money|Put a few coins in a jar every day|Write down what you buy and skip one thing
make {drink}|Boil water, pour it in a cup and wait three minutes|Warm the cup, add a spoon of honey and stir
cook {dish}|Boil the {dish} with a little salt for ten minutes|Heat some oil and cook the {dish} slowly
bake {baked}|Mix flour, butter and eggs, then bake for forty minutes|Heat the oven, mix the flour with milk and bake it
pack for {trip}|Pack a bottle of water, a coat and some bread|Take a small bag with water, a map and a warm sweater
get ready for {trip}|Put your ticket, keys and a snack in a bag|Make a list and pack the evening before
find my lost {thing}|Look under the bed and in your coat pockets|Go back to the place where you last had the {thing}
wrap a gift|Fold paper around the gift and close it with tape|Cut the paper, fold the corners and tie a string
write a letter|Start with the name, tell your news and say goodbye|Write the date, greet the person and tell one story
make a friend|Say hello, tell your name and ask a kind question|Invite someone to play and share your lunch
calm down|Breathe in slowly and count to ten|Sit down, close your eyes and breathe slowly
stop a nosebleed|Lean forward and press the nose for ten minutes|Hold a cloth to the nose and sit still
stop hiccups|Hold your breath and drink a glass of water|Drink cold water in small sips
feed a {pet}|Give the {pet} fresh food and water twice a day|Put clean water and a small meal in its bowl
wash a {pet}|Use warm water and a little soap, then dry the {pet}|Brush the {pet} first and wash it with warm water
train a {pet}|Use short words and give a small treat|Practice one word for five minutes a day
cut an onion|Cut the onion in half and slice it with a sharp knife|Peel the onion, then cut it into thin rings
peel an egg|Put the egg in cold water and crack the shell|Roll the egg on the table and peel under water
boil an egg|Put the egg in boiling water for seven minutes|Cover the egg with water and boil it for eight minutes
hang a picture|Hit a nail in the wall and hang the picture on it|Mark the spot, then use a hammer and a nail
tie my shoes|Make two loops and pull one through the other|Cross the laces, make a loop and pull tight
clean my teeth|Brush your teeth for two minutes twice a day|Use a soft brush and some toothpaste
help my sick {person}|Bring warm soup, water and a blanket|Bring tea and let your {person} rest
cheer up my {person}|Bring some flowers and listen with care|Call your {person} and tell a good joke
thank my {person}|Write a short card and say what you liked|Bake some cookies and say thank you
get rid of ants|Clean the floor and put away sweet food|Wipe the floor with vinegar and close small holes
remove a {stain} stain|Put salt and cold water on the stain|Rub the stain with soap and rinse it
sharpen a pencil|Turn the pencil in a sharpener until it is pointed|Use a small knife and cut away from you
set the table|Put a plate, a fork and a glass at each seat|Lay the fork on the left and the knife on the right
find a book in the library|Ask at the desk or look under the author's name|Look for the title on the library computer
cross a busy road|Wait for the green light and look both ways|Use the bridge or wait at the crossing
carry heavy bags|Bend your knees and use both hands|Split the load into two bags
do well on a test|Read your notes each evening and sleep well|Practice with old questions and eat breakfast
speak in front of the class|Practice at home and speak slowly|Write three short notes and look at a friend
keep my room tidy|Put each thing back after you use it|Use boxes for toys and fold your clothes daily
keep my hands warm|Wear thick gloves and rub your hands|Put your hands in your pockets and keep moving
keep bread soft|Wrap the bread in a cloth and close the box|Keep the bread in a paper bag
get to school on time|Pack your bag at night and leave ten minutes early|Set two alarms and lay out your clothes
light a dark room|Put a lamp near the wall and open the curtains|Use a bright lamp and a mirror
make my room quiet|Close the window and put a thick rug on the floor|Shut the door and hang heavy curtains
""")  # noqa: E501
TROUBLES = table("""
My {washable} is wet|Put the {washable} near a heater|Stuff it with paper and let it dry in the sun
My {washable} is dirty|Wash the {washable} with warm water and soap|Brush the {washable} and soak it for an hour
My {washable} has a hole|Sew the hole with a needle and strong thread|Put a patch on the hole
My {fixable} is broken|Tighten the loose parts with a screwdriver|Glue the broken part and let it dry
My {fixable} makes a strange noise|Put a drop of oil on the moving part|Check for loose screws and tighten them
My {plant} looks dry|Give the {plant} a cup of water and move it to the shade|Water it each morning
My {stored} is too salty|Add some water and a potato|Mix it with plain rice
My room is cold|Close the window and put on a thick sweater|Turn on the heater and shut the door
My room is dark|Open the curtains and turn on a lamp|Put a bright lamp on the desk
My room is a mess|Pick up the clothes first, then the books|Take one box and fill it with toys
My soup is too hot|Wait five minutes and stir it with a spoon|Add a little cold water
My tea is too bitter|Add a spoon of honey and some milk|Take out the leaves after two minutes
My feet hurt|Sit down and put your feet in warm water|Take off your shoes and rest
My head hurts|Drink a glass of water and rest in a dark room|Lie down and close your eyes
My hands are cold|Put on gloves and rub your hands|Hold a warm cup of tea
My window is stuck|Rub some soap along the frame|Push slowly near the lock
My door squeaks|Put a drop of oil on the hinges|Rub the hinges with a candle
My {pet} will not eat|Offer fresh food and water, then call a vet|Try a small meal in a quiet place
My bike has a flat tire|Find the hole and put a patch on it|Pump the tire and check the valve
My bread is hard|Toast the bread or put it in warm soup|Sprinkle water on it and warm it in the oven
My keys are gone|Look in your coat pockets and on the table|Go back the way you came and look at the ground
My pencil is blunt|Turn it in a sharpener|Use a small knife with care
My phone is empty|Put the phone on the charger for an hour|Borrow a cable from a friend
I am bored|Read a short book or draw a picture|Call a friend and play a game outside
I am hungry|Eat an apple or make a sandwich|Warm some soup and eat bread with it
I am thirsty|Drink a big glass of water|Make some cold tea with lemon
I am cold|Put on a sweater and drink hot tea|Wrap yourself in a blanket
I cannot sleep|Turn off the lights and breathe slowly|Read a calm book and drink warm milk
I have a cold|Drink hot tea and rest in bed|Eat warm soup and sleep early
I cut my finger|Wash the cut and put a bandage on it|Press a clean cloth on the cut
I missed the bus|Look at the plan and take the next bus|Call home and walk to the station
I lost my {thing}|Look under the bed and in your bag|Ask at the lost and found desk
I spilled {stain} on my shirt|Rinse the shirt with cold water|Put salt on the spot and wash it
""")  # noqa: E501
PACKING = table("""
What should I pack for {trip}?|Pack water, bread and a warm sweater|Take a map, a coat and some fruit
What should I bring to {trip}?|Bring a cake and a small gift|Bring some fruit and a good game
What should I wear in the {weather}?|Wear a thick coat and boots|Put on a raincoat and a hat
What can I cook for dinner?|Cook rice with beans and a salad|Make soup with carrots and bread
What can I give my {person}?|Give your {person} a book and a card|Bake a small cake with cherries
What is good for a sore throat?|Drink warm tea with honey|Rest your voice and drink warm water
What can I do on a rainy day?|Play a board game or bake cookies|Read a book near the window
What can I do in {trip}?|Take a long walk and take pictures|Visit the old market and eat cake
What should I eat for breakfast?|Eat toast with an egg and some fruit|Eat porridge with milk and an apple
How long should I boil an egg?|Boil the egg for seven minutes|Leave it in hot water for eight minutes
Where should I put my {plant}?|Put the {plant} near a bright window|Find a warm place out of the wind
Which tool do I need to hang a shelf?|Take a drill, screws and a ruler|Use a hammer and strong nails
How much water does a {plant} need?|Give it one cup of water a day|Water it when the soil is dry
""")  # noqa: E501

VAGUE = (
    "There are many ways to do that, so just try some.",
    "There are many things you can do, so pick one.",
    "There are many ways, and each has its good side.",
    "That depends on many things, so see what works.",
    "That depends on you and on what you like.",
    "Just do it the way that people do it.",
    "Just do what feels right and it will work.",
    "It can be done in many ways, some good, some bad.",
    "You could do this or that, it is up to you.",
    "Try something and then try something else.",
    "People do it in different ways, so do as you like.",
    "Some people know how, and you will find a way too.",
    "It is easy when you know how it is done.",
    "You will find out when the time comes.",
    "Do your best and things will be fine.",
    "Many people ask this, and there are many answers.",
    "Think about it for a while and then do something.",
    "Everything is possible if you try it somehow.",
    "You can do a lot of things about that.",
    "Use the right things and do it in the right way.",
)

# Vague in the words of the question.
ECHOES = (
    "There are many ways to {want}, so just try some.",
    "I think you can {want} in many ways.",
    "It is easy to {want} once you know how.",
    "You can {want} if you really want to.",
    "Just try to {want} a bit more often.",
    "People {want} in a lot of different ways.",
    "You should {want} as well as you can.",
    "At some point you will know how to {want}.",
    "It seems hard to {want}, but it can be done somehow.",
    "If you try hard enough, you will {want}.",
)
LISTS = {
    "surface": listed("""window, table, mirror, floor, carpet, desk, stove, sink, pan, pot, fridge,
bathtub, car, shelf, wall, door, board, lamp, oven, glass, kitchen, bathroom, wooden floor, cup"""),
    "washable": listed("""shoe, coat, hat, scarf, shirt, sweater, jacket, dress, sock, boot, bag,
towel, blanket, glove, cap, umbrella, hair, pillow, raincoat, jeans, backpack, rug, tent"""),
    "plant": listed("""plant, rose, tulip, tomato, tree, cactus, herb, flower, bean, sunflower,
potato, carrot, lemon tree, apple tree, garden, basil, lettuce, pumpkin"""),
    "stored": listed("bread, fruit, milk, cheese, soup, salad, fish, meat, cake, lettuce, rice"),
    "fixable": listed("""chair, table, bike, lamp, clock, toy, door, cup, shelf, zipper, fence,
kite, fan, drawer, umbrella, radio, plate, wheel, gate, bell, vase, printer, car, fridge,
glasses"""),
    "skill": listed("""swim, cook, draw, sing, dance, knit, sew, paint, read faster, spell, count,
play chess, ride a bike, play the piano, play the guitar, bake, write well, whistle, speak French,
type fast, drive, skate"""),
    "baked": listed("a cake, bread, cookies, a pie, muffins, rolls, an apple pie"),
    "trip": listed("""a walk, a picnic, the beach, a hike, school, the park, a day at the sea,
a long trip, a camping trip, a party, the zoo, a winter trip, a train ride, a flight, the lake,
a weekend away, the mountains, a birthday party, the museum, work, a road trip, a rainy day"""),
    "person": listed("""friend, sister, brother, mother, father, neighbor, teacher, grandmother,
grandfather, cousin, aunt, uncle, mom, dad, grandma, roommate, baby"""),
    "stain": listed("tea, juice, ink, coffee, soup, wine, grass, paint, milk, mud, berry, oil"),
    "weather": listed("rain, snow, winter, wind, cold, summer, spring, storm, sun, evening"),
}  # fmt: skip
HOW = (
    "How do I {want}?",
    "How can I {want}?",
    "What is a good way to {want}?",
    "What is the best way to {want}?",
    "How should I {want}?",
    "Tell me how to {want}.",
    "Can you tell me how to {want}?",
    "I want to {want}. What should I do?",
    "What do I need to {want}?",
    "What helps me to {want}?",
    "Give me a tip to {want}.",
)
WHAT = (
    "What can I do?",
    "What should I do?",
    "What helps?",
    "How can I fix that?",
    "What do you suggest?",
    "Do you have a tip?",
    "What would help?",
    "What now?",
)


def _question(rng: random.Random) -> tuple[str, list[str], str]:
    """A question, what would help, and what the user wants where a "how" asks for it."""
    form = rng.random()
    if form < 0.6:
        want, *steps = rng.choice(ADVICE)
        return skewed(rng, HOW).format(want=want), steps, want
    if form < 0.85:
        trouble, *steps = rng.choice(TROUBLES)
        return f"{trouble}. {skewed(rng, WHAT)}", steps, ""
    question, *steps = rng.choice(PACKING)
    return question, steps, ""


def advice(rng: random.Random) -> tuple[str, str, str]:
    """A how-to question, a concrete answer and a vague one."""
    question, steps, want = _question(rng)
    given = {name: rng.choice(options) for name, options in LISTS.items()}
    vague = skewed(rng, VAGUE)
    if want and rng.random() < 0.5:
        own_words = re.sub(r"\b[Mm]y\b", "your", choose_and_fill(rng, (want,), given))
        vague = skewed(rng, ECHOES).format(want=own_words)
    return (
        choose_and_fill(rng, (question,), given),
        sentence(choose_and_fill(rng, steps, given)),
        vague,
    )


def helpfulness(rng: random.Random) -> Example:
    """One helpfulness example."""
    prompt, concrete, vague = advice(rng)
    bad = is_bad(rng)
    return Example("helpfulness", prompt, vague if bad else concrete, manner_name(bad))
