"""Kinds of things and their members: what lists and "name a ..." questions draw from."""

from tools.tiny_sft import facts, words
from tools.tiny_sft.slots import with_article

CATEGORIES = {
    "fruits": words.FRUITS,
    "vegetables": words.VEGETABLES,
    "animals": words.ANIMALS,
    "birds": words.BIRDS,
    "colors": words.BASIC_COLORS,
    "flowers": words.FLOWERS,
    "trees": words.TREES,
    "tools": words.TOOLS,
    "drinks": words.DRINKS,
    "games": ("chess", "football", "tennis", "cards", "golf", "checkers", "hockey"),
    "months": words.MONTHS,
    "days": words.DAYS,
    "days of the week": words.DAYS,
    "seasons": words.SEASONS,
    "planets": words.PLANETS,
    "rooms": words.ROOMS,
    "cities": tuple(city for _, city in facts.CAPITALS),
    "countries": tuple(country for country, _ in facts.CAPITALS),
    "instruments": words.INSTRUMENTS,
    "shapes": words.SHAPES,
    "metals": words.METALS,
    "jobs": ("baker", "farmer", "teacher", "doctor", "cook", "driver", "singer", "pilot", "nurse"),
    "clothes": words.CLOTHES[:18],
    "pets": words.PETS,
    "toys": ("ball", "doll", "kite", "puzzle", "car", "train", "drum", "teddy bear"),
    "vehicles": words.VEHICLES,
    "school subjects": words.SUBJECTS,
    "languages": words.LANGUAGES,
    "names": words.NAMES,
    "foods": ("bread", "cheese", "rice", "soup", "pasta", "cake", "fish", "salad", "honey", "jam"),
    "farm animals": ("cow", "hen", "sheep", "pig", "goat", "horse", "duck", "goose"),
    "things in a kitchen": ("pan", "pot", "spoon", "plate", "cup", "stove", "fridge", "knife"),
    "things in a school bag": ("pen", "book", "ruler", "notebook", "pencil", "lunch", "eraser"),
    "hot drinks": ("tea", "coffee", "cocoa", "hot milk"),
    "body parts": ("arm", "leg", "hand", "foot", "nose", "ear", "eye", "mouth", "knee", "back"),
    "sports": words.GAMES[5:],
    "numbers": words.NUMBER_NAMES,
    "family members": words.FAMILY[:11],
    "pieces of furniture": words.FURNITURE,
    "insects": ("bee", "ant", "fly", "beetle", "butterfly", "wasp", "moth"),
}


BARE = frozenset(
    ("colors", "drinks", "hot drinks", "games", "sports", "months", "days", "days of the week",
     "seasons", "planets", "cities", "countries", "metals", "school subjects", "languages", "names",
     "foods", "numbers", "body parts")
)  # fmt: skip


def one_of(member: str, category: str) -> str:
    """A member as one names it: "a hammer" of the tools, but "tea" of the drinks."""
    return member if category in BARE else with_article(member)


def singular(category: str) -> str:
    """The category as one of its members is called: "fruits" becomes "fruit"."""
    special = {"countries": "country", "cities": "city", "days of the week": "day of the week",
               "things in a kitchen": "thing in a kitchen", "clothes": "piece of clothing",
               "things in a school bag": "thing in a school bag", "body parts": "body part",
               "pieces of furniture": "piece of furniture"}  # fmt: skip
    return special.get(category, category[:-1])
