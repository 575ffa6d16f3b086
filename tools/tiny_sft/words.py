"""The word lists of the small world, one kind of thing each.

Written as comma-separated lines so that a list stays easy to read and to extend.
"""


def listed(text: str) -> tuple[str, ...]:
    """The comma-separated entries of a text, in order, blanks and line ends removed."""
    return tuple(" ".join(entry.split()) for entry in text.split(",") if entry.strip())


NAMES = listed("""Anna, Ben, Clara, David, Emma, Felix, Grace, Henry, Ida, Jack, Kate, Leo, Mia,
Nora, Oscar, Paul, Rosa, Sam, Tom, Vera, Will, Zoe, Lucy, Max, Ella, Peter, Ruth, Simon""")
FAMILY = listed("""sister, brother, mother, father, aunt, uncle, cousin, grandmother, grandfather,
son, daughter, wife, husband, friend, best friend, neighbor, teacher, boss, doctor, roommate,
class, team, baby, dentist, grandma, grandpa, mom, dad""")
PETS = listed("dog, cat, horse, rabbit, bird, fish, hamster, parrot, goat, turtle, pony, puppy")
ANIMALS = listed("""dog, cat, cow, horse, sheep, goat, pig, hen, duck, goose, rabbit, mouse, fox,
wolf, bear, lion, tiger, elephant, monkey, frog, snake, spider, bee, ant, owl, eagle, robin,
fish, whale, shark, camel, deer, donkey, turtle, swan, crow, bat, snail, zebra, giraffe,
penguin, dolphin, butterfly, parrot, worm, kitten, puppy, lamb, chick, calf, octopus""")
BIRDS = listed("""robin, owl, eagle, crow, swan, duck, goose, parrot, hen, penguin, sparrow, dove,
pigeon, gull, hawk, swallow, stork""")
FRUITS = listed("""apple, pear, plum, cherry, grape, lemon, orange, banana, peach, melon, kiwi,
mango, fig, berry, strawberry, lime, apricot, raspberry, pineapple""")
VEGETABLES = listed("""carrot, potato, onion, pea, bean, cabbage, tomato, cucumber, pepper,
pumpkin, leek, radish, beet, lettuce, spinach, corn, garlic, turnip, celery""")
DISHES = listed("""soup, rice, pasta, toast, porridge, pizza, salad, stew, pancakes, fish, eggs,
bread, cheese, cake, pie, noodles, beans, an omelet, a sandwich, an apple, a pear, honey, jam,
butter, chicken, cereal, yogurt, soup with bread, toast with jam, rice with beans, a bowl of soup,
a slice of cake, a boiled egg, fried fish, a cookie, ice cream, chocolate, a muffin, a banana""")
DRINKS = listed("""tea, coffee, milk, water, juice, cocoa, lemonade, apple juice, hot milk,
cold water, orange juice, mint tea, soda""")
COLORS = listed("""red, blue, green, yellow, white, black, brown, gray, orange, pink, purple,
dark blue, light green, gold, silver""")
BASIC_COLORS = COLORS[:11]
FLOWERS = listed("rose, tulip, daisy, lily, sunflower, violet, poppy, iris, orchid, daffodil")
TREES = listed("oak, pine, birch, maple, willow, elm, palm, apple tree, beech, cedar")
TOOLS = listed("""hammer, saw, drill, spade, rake, axe, shovel, knife, ladder, brush, wrench,
screwdriver, broom, ruler, needle, nail, file, hoe, mop, pair of scissors, wheelbarrow""")
CLOTHES = listed("""coat, hat, scarf, shirt, sweater, jacket, dress, skirt, belt, cap, glove, sock,
shoe, boot, tie, raincoat, apron, vest, mitten, sandal, blouse, uniform, pair of pants""")
FURNITURE = listed("""table, chair, bed, desk, shelf, sofa, lamp, mirror, cupboard, carpet, bench,
drawer, closet, stool, couch, bookcase""")
ROOMS = listed("""kitchen, bedroom, bathroom, hall, garden, cellar, attic, garage, office,
living room, classroom, yard, basement, dining room, shed, porch""")
PLACES = listed("""park, school, market, station, library, beach, museum, farm, forest, village,
lake, river, harbor, bakery, shop, church, zoo, mountain, hospital, town, city, street, bridge,
field, castle, cinema, theater, island, garden, pool, playground, post office, bank, cafe,
restaurant, airport, hill, valley, store, mall, gym, sea, desert, square, corner""")
VEHICLES = listed("""car, bus, train, bike, boat, ship, plane, truck, tram, taxi, van, scooter,
motorbike, tractor, ferry, rocket, wagon, sled, bicycle, subway""")
INSTRUMENTS = listed("piano, guitar, violin, flute, drum, trumpet, harp, cello, organ, recorder")
GAMES = listed("""chess, football, tennis, cards, hide and seek, basketball, hockey, golf, checkers,
volleyball, baseball, soccer, table tennis, swimming, running, skating""")
CONTESTS = listed("""race, game, match, cup, contest, final, election, chess game, football match,
bike race, boat race, tennis match, spelling contest, singing contest, baking contest, big game,
soccer game, quiz, dance contest, card game, school race, prize, lottery, vote, raffle, marathon""")
SHAPES = listed("circle, square, triangle, star, cube, ball, heart, ring, oval, rectangle")
METALS = listed("iron, gold, silver, copper, tin, lead, steel, zinc")
DAYS = listed("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
MONTHS = listed("""January, February, March, April, May, June, July, August, September, October,
November, December""")
SEASONS = listed("spring, summer, autumn, winter")
PLANETS = listed("Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune")
SMALL_THINGS = listed("""key, coin, pen, pencil, book, letter, cup, plate, spoon, fork, bowl, glass,
bottle, watch, ring, phone, bag, wallet, ticket, map, ball, doll, toy, kite, candle, button,
stamp, card, notebook, eraser, comb, towel, umbrella, basket, box, clock, bell, mug, pillow,
blanket, purse, suitcase, backpack, photo, picture, poem, drawing, story, diary, stone, shell,
feather, rope, lunch box, house key, vase, jar, puzzle, camera, radio, tent, kettle, remote,
necklace, bracelet, envelope, marble, crayon, sponge, bucket, hose, pan, pot, tray, flashlight""")
BELONGINGS = (
    SMALL_THINGS
    + CLOTHES
    + FURNITURE[:9]
    + listed("""bike, car, house, front door, room,
garden, desk, homework, window, kitchen, school bag, new coat, old hat, left shoe, best shirt,
winter coat, red scarf, lunch, bedroom wall, garden gate, favorite cup, roof, door, fence, boat,
toothbrush, hair, wall, curtains, hat, mailbox, bathroom, new bike, first car, kitchen table""")
)
OTHER_CITIES = listed("""Lyon, Milan, Seville, Osaka, Luxor, Sparta, Bergen, Hamburg, Sochi, Munich,
Naples, Porto, Cork, Graz, Kyoto, Venice, Florence, Barcelona, Nice, Bonn, Zurich, Sydney,
New York, Toronto, Glasgow, Marseille, Turin, Malaga, Geneva, Krakow, Bombay, Shanghai, Rio""")
LANGUAGES = listed("English, French, Spanish, German, Italian, Greek, Danish, Polish, Japanese")
SUBJECTS = listed("""math, history, music, art, science, reading, writing, spelling, geography,
English, biology, drawing, sports""")
HOBBIES = listed("""knitting, painting, cooking, baking, drawing, singing, dancing, reading,
gardening, fishing, sewing, running, swimming, writing, hiking, chess, skating, climbing""")
TASKS = (
    listed("""homework, letter, essay, report, speech, song, poem, painting, garden, sewing,
bike, puzzle, reading, spelling, math, computer, map, project, recipe, story, sentence, list,
exercise, presentation, suitcase, luggage, bags, tent, form, test, lesson, music lesson, recital,
science project, garden work, resume, shopping list, packing, painting""")
    + HOBBIES
)
TIMES_PAST = listed("""this morning, yesterday, last night, last week, last summer, today, an
hour ago, on Monday, last Sunday, last year, at noon, on my birthday, on Friday, two days ago,
this afternoon, in the evening, before lunch, last month, yesterday evening, for breakfast,
after school, on the weekend, earlier today""")
TIMES_FUTURE = listed("""tomorrow, next week, tonight, next summer, next year, on Sunday, next
month, on Friday, this evening, this weekend, later, on my birthday, in ten years, in May, next
Tuesday""")
SPOTS = listed("""under the bed, on the table, in the drawer, behind the door, in the kitchen,
on the shelf, in the car, under the chair, near the window, in the garden, on the sofa,
in the hall, next to the lamp, in the bag, in the box, at school, on the desk, in the closet,
under the stairs, at home, in the bathroom, by the door, behind the sofa, in the basket""")
HOLDERS = listed("""left pocket, right pocket, bag, school bag, box, hand, right hand, left hand,
desk drawer, lunch box, basket, suitcase, fridge, top drawer, coat pocket, cupboard, backpack,
closet, purse, freezer, wallet, drawer, garage, mailbox, jacket pocket, cup, trunk, bottom drawer,
kitchen cupboard, jar, shopping bag, other hand, desk, envelope""")
FEELINGS = listed("""sad, tired, nervous, shy, lonely, afraid, worried, lost, confused, upset, cold,
hungry, sick, bored, angry, scared, slow, homesick, unhappy, weak, embarrassed, stuck, new here,
late, ashamed, sleepy, busy, stressed""")
ADJECTIVES = listed("""small, big, old, new, quiet, bright, warm, cold, soft, round, long, short,
happy, tired, kind, clean, dark, heavy, light, strong, fresh, sweet, calm, busy, pretty, tall,
wet, dry, deep, slow, fast, loud, young, empty, full, wide, narrow, smooth, rough, brave, funny,
sharp, thick, thin, gentle, strange, plain, wooden, broken, golden, tiny, huge, friendly, shiny""")
NATURE = listed("""sun, moon, rain, snow, wind, sky, sea, river, cloud, star, storm, fog, ice, fire,
grass, leaf, hill, stone, sand, lake, forest, rainbow, wave, shadow, frost, thunder, mud, field,
mountain, night, morning, beach, island, ocean, garden, path, road, bridge, house, farm""")
NUMBER_NAMES = listed("""zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven,
twelve, thirteen, fourteen, fifteen, sixteen, seventeen, eighteen, nineteen, twenty""")
TENS_NAMES = listed("twenty, thirty, forty, fifty, sixty, seventy, eighty, ninety")


def number_name(value: int) -> str:
    """The English name of a number from 0 to 199: 42 becomes "forty-two"."""
    if value <= 20:
        return NUMBER_NAMES[value]
    if value >= 100:
        return "one hundred" + (f" {number_name(value - 100)}" if value > 100 else "")
    tens, ones = divmod(value, 10)
    return TENS_NAMES[tens - 2] + (f"-{NUMBER_NAMES[ones]}" if ones else "")


def plural(noun: str) -> str:
    """The plural of a noun of these lists: "berry" becomes "berries"."""
    irregular = {
        "mouse": "mice", "goose": "geese", "fish": "fish", "sheep": "sheep", "wolf": "wolves",
        "calf": "calves", "leaf": "leaves", "knife": "knives", "shelf": "shelves", "deer": "deer",
        "scarf": "scarves", "corn": "corn", "spinach": "spinach", "garlic": "garlic",
        "lettuce": "lettuce", "potato": "potatoes", "tomato": "tomatoes", "mango": "mangoes",
        "homework": "homework", "hair": "hair", "curtains": "curtains", "child": "children",
    }  # fmt: skip
    if noun in irregular:
        return irregular[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"
