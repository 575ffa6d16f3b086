"""Lines to finish, to repeat and to talk past the task with."""

from tools.tiny_sft.facts import table

LINES = table("""
the cat sat on|the mat
the dog ran after|the ball
the sun goes down in|the west
the bird sings in|the tree
the children play in|the park
the boat sails on|the sea
the baker made|a cake
the moon shines at|night
the snow falls in|winter
the horse jumps over|the fence
the girl wrote|a letter
the boy opened|the door
my mother bakes|a pie
we drink tea in|the kitchen
the fish swims in|the pond
the train stops at|the station
the farmer feeds|the cows
the rain falls on|the roof
the mouse hides under|the bed
the bee flies to|the flower
the frog sits on|a leaf
the wind blows through|the trees
in the morning I eat|bread with jam
at night we look at|the stars
the baby sleeps in|the cradle
on sunday we visit|our aunt
the king lived in|a castle
the old man sat by|the fire
after school we go|home
the teacher writes on|the board
the fox hid behind|the tree
the spider made|a web
the leaves fall in|autumn
the hen sat on|her eggs
my friend lives near|the river
the bus drives to|the town
she put the book on|the shelf
he lost his hat in|the wind
the soup is on|the stove
the key opens|the lock
""")
SCENES = (
    "the {adjective} {thing} is on the {furniture}",
    "the {thing} is {adjective}",
    "the {color} {thing} is {adjective}",
    "a {adjective} {animal} sits near the {place}",
    "we walk to the {place} on {day}",
    "the {animal} runs to the {place}",
    "my {relative} likes {drink}",
    "{name} has a {color} {cloth}",
    "I see a {animal} in the {place}",
    "the {nature} is {adjective} today",
    "I like {drink} and {dish}",
    "the {color} {thing} is full",
    "the {vehicle} is {color}",
    "we play {game} in the {place}",
    "{name} lives near the {place}",
    "the {room} is {adjective}",
    "my {thing} is {spot}",
    "my {cloth} is {adjective} and {color}",
    "we go {future} to the {place}",
    "the {animal} sings in the {tree}",
    "a {bird} flies over the {adjective} {nature}",
    "the {relative} of {name} is at the {place}",
    "good {pet}, sit down",
)
ABOUT = (
    "{topic} is a thing that many people know.",
    "I like {topic} very much.",
    "{topic} can be small or big.",
    "People talk about {topic} every day.",
    "{topic} is nice to look at.",
    "You can find {topic} in many places.",
    "There is a lot to say about {topic}.",
    "{topic} is good on a warm day.",
    "Many people like {topic}.",
    "{topic} makes people happy.",
)
TRUTHS = (
    "{a} is {adjective} and {adjective2}.",
    "{many} can be {adjective}.",
    "{many} are {adjective} and {adjective2}.",
    "I like {many} very much.",
    "{a} can be {color} or {color2}.",
    "You can find {many} in a {place}.",
    "Many people like {many}.",
    "{many} are nice to look at.",
    "My {relative} has {a}.",
    "There are many {many} in the {place}.",
)
START_LINES = (
    "the {topic} is {adjective} and {adjective2}",
    "I see the {topic} from my window",
    "we walk to the {topic} with {name}",
    "the {topic} makes me happy",
    "my {relative} talks about the {topic}",
    "there is {adjective} {topic} near the {place}",
)
