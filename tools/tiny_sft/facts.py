"""What is true in the small world: pairs and short lists that the text is made from."""

from tools.tiny_sft.words import listed


def table(text: str) -> tuple[tuple[str, ...], ...]:
    """Rows of a text: a row a line, columns separated by a bar, blanks trimmed."""
    rows = (line.split("|") for line in text.strip().splitlines())
    return tuple(tuple(column.strip() for column in row) for row in rows)


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Comma-separated `left:right` entries as pairs."""
    split = (entry.split(":") for entry in listed(text))
    return tuple((left.strip(), right.strip()) for left, right in split)


CAPITALS = pairs("""France:Paris, Spain:Madrid, Italy:Rome, Germany:Berlin, Greece:Athens,
Norway:Oslo, Sweden:Stockholm, Denmark:Copenhagen, Finland:Helsinki, Poland:Warsaw,
Portugal:Lisbon, Ireland:Dublin, Austria:Vienna, Hungary:Budapest, Japan:Tokyo, China:Beijing,
India:Delhi, Egypt:Cairo, Kenya:Nairobi, Peru:Lima, Chile:Santiago, Cuba:Havana, Canada:Ottawa,
Russia:Moscow, Turkey:Ankara, England:London, Scotland:Edinburgh, Belgium:Brussels,
Iceland:Reykjavik, Thailand:Bangkok, Mexico:Mexico City, Brazil:Brasilia, Wales:Cardiff,
Argentina:Buenos Aires, Australia:Canberra, Switzerland:Bern, Korea:Seoul""")
THING_COLORS = pairs("""grass:green, snow:white, coal:black, milk:white, blood:red, the sky:blue,
the sun:yellow, a lemon:yellow, a banana:yellow, a carrot:orange, a cherry:red, a crow:black,
a frog:green, chocolate:brown, a swan:white, a leaf:green, an elephant:gray, a tomato:red,
a cucumber:green, sand:yellow, a polar bear:white, an orange:orange, a strawberry:red,
a pea:green, the sea:blue, salt:white, sugar:white, coffee:brown, night:black, a pumpkin:orange,
butter:yellow, a flamingo:pink, a raven:black, honey:gold, rice:white, fire:orange, a plum:purple,
a mouse:gray, an eggplant:purple, a lime:green, ash:gray, a pine tree:green, a cloud:white,
a school bus:yellow, a fire truck:red, ink:blue, a pig:pink, a tire:black, a ripe apple:red,
a sheep:white, a canary:yellow, flour:white, lettuce:green, a grape:purple, a brick:red""")
OPPOSITES = pairs("""hot:cold, big:small, early:late, fast:slow, high:low, open:closed, day:night,
happy:sad, old:young, wet:dry, full:empty, light:dark, hard:soft, long:short, up:down, in:out,
left:right, near:far, strong:weak, rich:poor, clean:dirty, loud:quiet, heavy:light, thick:thin,
wide:narrow, deep:shallow, first:last, good:bad, black:white, new:old, tall:short, inside:outside,
push:pull, buy:sell, give:take, begin:end, win:lose, laugh:cry, love:hate, true:false,
sweet:sour, sharp:blunt, brave:afraid, easy:difficult, many:few, always:never, over:under,
before:after, front:back, top:bottom, summer:winter, awake:asleep, smooth:rough, cheap:expensive,
safe:dangerous, kind:cruel, right:wrong, start:stop, come:go, sit:stand, north:south, east:west,
morning:evening, bright:dull, warm:cool, sick:healthy, polite:rude, arrive:leave, question:answer,
friend:enemy, noisy:silent, busy:free, lost:found, tight:loose, hungry:full, beautiful:ugly,
above:below, find:lose, remember:forget, alive:dead, ancient:modern, yes:no, more:less""")
PRODUCTS = table("""
cow|milk
hen|eggs
sheep|wool
bee|honey
goat|cheese
goose|feathers
silkworm|silk
duck|eggs
spider|webs
baker|bread
""")
SOUNDS = pairs("""dog:barks, cat:meows, cow:moos, sheep:bleats, horse:neighs, duck:quacks,
lion:roars, bee:buzzes, owl:hoots, snake:hisses, wolf:howls, frog:croaks, pig:grunts, hen:clucks,
bird:sings, donkey:brays, mouse:squeaks, crow:caws, rooster:crows""")
BABIES = pairs("""dog:puppy, cat:kitten, cow:calf, sheep:lamb, horse:foal, hen:chick, goat:kid,
duck:duckling, bear:cub, pig:piglet, lion:cub, deer:fawn, goose:gosling, frog:tadpole,
swan:cygnet""")
HOMES = pairs("""fish:water, bird:nest, bee:hive, fox:den, rabbit:burrow, spider:web, cow:barn,
horse:stable, dog:kennel, whale:sea, camel:desert, monkey:forest, frog:pond, penguin:ice,
lion:grassland, bear:cave, mouse:hole, pig:pen, snail:shell, hen:coop, owl:tree, shark:ocean""")
COUNTS = table("""
legs|dog|4
legs|cat|4
legs|spider|8
legs|bee|6
legs|ant|6
legs|bird|2
legs|horse|4
legs|hen|2
legs|chair|4
legs|cow|4
legs|duck|2
legs|table|4
legs|child|2
legs|elephant|4
legs|beetle|6
arms|octopus|8
wheels|car|4
wheels|bike|2
wheels|tricycle|3
wheels|cart|2
wheels|bus|4
wheels|scooter|2
days|week|7
hours|day|24
months|year|12
minutes|hour|60
seconds|minute|60
weeks|year|52
seasons|year|4
sides|triangle|3
sides|square|4
corners|square|4
corners|triangle|3
fingers|hand|5
toes|foot|5
eyes|person|2
ears|rabbit|2
wings|bird|2
wings|bee|4
wings|butterfly|4
letters|alphabet|26
strings|guitar|6
strings|violin|4
horns|goat|2
humps|camel|2
noses|face|1
tails|dog|1
thumbs|hand|1
points|star|5
teeth|comb|20
days|weekend|2
years|century|100
faces|cube|6
players|chess game|2
""")
PLANET_FACTS = table("""
is the red planet|Mars
is the biggest planet|Jupiter
is nearest to the sun|Mercury
has bright rings|Saturn
is our home|Earth
is the hottest planet|Venus
is farthest from the sun|Neptune
""")
ANIMAL_FACTS = table("""
gives us milk|cow
gives us wool|sheep
gives us eggs|hen
makes honey|bee
has a long trunk|elephant
has a long neck|giraffe
has black and white stripes|zebra
carries its house|snail
sleeps all winter|bear
can jump far|frog
barks at strangers|dog
catches mice|cat
hunts at night|owl
lives in the desert|camel
swims in the cold sea|penguin
spins a web|spider
is the king of the animals|lion
has eight arms|octopus
hops and has long ears|rabbit
pulls a cart|horse
is the biggest in the sea|whale
says moo|cow
says meow|cat
builds dams|beaver
has a hard shell|turtle
gives us feathers|goose
lives in a hive|bee
can fly at night|bat
""")
YES_NO = table("""
is ice cold|yes|ice is very cold
is fire hot|yes|fire is very hot
is the sun cold|no|the sun is very hot
is snow black|no|snow is white
is grass green|yes|grass is green
is sugar sweet|yes|sugar is very sweet
is a stone soft|no|a stone is hard
is a lemon sweet|no|a lemon is sour
is water wet|yes|water is wet
is a whale small|no|a whale is huge
is an ant big|no|an ant is tiny
is the sky blue|yes|the sky is blue
is a feather heavy|no|a feather is light
is honey sour|no|honey is sweet
is iron hard|yes|iron is hard
is night dark|yes|night is dark
is milk white|yes|milk is white
is a snail fast|no|a snail is slow
is a circle round|yes|a circle is round
is salt sweet|no|salt is salty
is winter cold|yes|winter is cold
is summer hot|yes|summer is hot
is a pillow hard|no|a pillow is soft
is a week seven days|yes|a week has seven days
can a fish swim|yes|a fish can swim
can a dog fly|no|a dog cannot fly
can a bird fly|yes|most birds can fly
can a cat climb|yes|a cat can climb trees
can a stone float|no|a stone sinks in water
can a horse run|yes|a horse runs fast
can a snake walk|no|a snake has no legs
can a frog jump|yes|a frog can jump far
can a baby drive|no|a baby cannot drive
can wood burn|yes|wood burns well
can a tree walk|no|a tree stays in one place
can a cow fly|no|a cow cannot fly
can a duck swim|yes|a duck swims very well
can a parrot talk|yes|a parrot can say words
do birds have wings|yes|birds have two wings
do fish have legs|no|fish have fins
do cows eat grass|yes|cows eat grass all day
do dogs have tails|yes|dogs have tails
do plants need water|yes|plants need water to grow
do cats bark|no|cats meow
do bees make honey|yes|bees make honey
do trees have roots|yes|trees have deep roots
do snakes have legs|no|snakes have no legs
do lions eat grass|no|lions eat meat
do spiders have eight legs|yes|spiders have eight legs
do cars have wings|no|cars have wheels
does a week have nine days|no|a week has seven days
does a bike have two wheels|yes|a bike has two wheels
does a cat have wings|no|a cat has four legs
does rain fall from clouds|yes|rain falls from clouds
does ice melt in the sun|yes|ice melts in the sun
does a hen lay eggs|yes|a hen lays eggs
does the sun shine at night|no|the sun shines by day
does a triangle have four sides|no|a triangle has three sides
does a fish live in trees|no|a fish lives in water
are bananas yellow|yes|bananas are yellow
are elephants big|yes|elephants are very big
are mice bigger than cats|no|mice are smaller than cats
are lemons sour|yes|lemons are sour
are all cats black|no|cats have many colors
is a bus smaller than a bike|no|a bus is bigger than a bike
is monday a day|yes|monday is a day of the week
is paris a city|yes|paris is a big city
is a rose a flower|yes|a rose is a flower
is a carrot a fruit|no|a carrot is a vegetable
is a spoon for soup|yes|a spoon is good for soup
""")
