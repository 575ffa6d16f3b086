"""Where people keep things, why they do things, what happens when, and what words mean."""

from tools.tiny_sft.facts import table

KEEPING = table("""
milk|in the fridge|cold and fresh
bread|in a box|soft and fresh
books|on a shelf|neat and easy to find
shoes|by the door|out of the way
clothes|in a closet|clean and neat
money|in a bank|safe
keys|on a hook|easy to find
flowers|in a vase|fresh
letters|in a drawer|together
toys|in a box|together
plates|in a cupboard|clean
cars|in a garage|dry
tools|in a shed|dry
coats|on a hook|dry
butter|in the fridge|cold
jam|in a jar|sweet
apples|in a basket|dry
sugar|in a jar|dry
wine|in a cellar|cool
cows|in a barn|warm
horses|in a stable|warm
bikes|in a shed|dry
pens|in a cup|ready
coins|in a purse|safe
medicine|in a cabinet|safe from children
photos|in an album|safe
towels|in the bathroom|dry
spoons|in a drawer|clean
ice cream|in the freezer|frozen
eggs|in a carton|safe
salt|in a small jar|dry
wood|in a shed|dry
blankets|in a closet|clean
boats|in a harbor|safe
umbrellas|near the door|ready
fish|in a tank|in clean water
meat|in the freezer|fresh
hats|on a shelf|clean
socks|in a drawer|in pairs
rings|in a small box|safe
honey|in a jar|sweet
cheese|in the fridge|fresh
tickets|in a wallet|safe
potatoes|in the cellar|cool and dark
""")
WHYS = table("""
wear coats|stay warm
wear hats|keep the sun away
wear gloves|keep their hands warm
wear boots|keep their feet dry
wear glasses|see better
wear shoes|protect their feet
wear helmets|protect their heads
eat food|get strength
eat fruit|stay healthy
eat breakfast|have strength in the morning
drink water|stay healthy
drink tea|get warm
sleep|rest and get strong
wash their hands|stay clean
brush their teeth|keep their teeth healthy
read books|learn new things
go to school|learn
go to work|earn money
save money|buy things later
keep dogs|have a friend at home
keep cats|catch mice
keep hens|get eggs
keep bees|get honey
plant trees|have shade and fruit
plant seeds|grow food
build houses|have a warm home
build bridges|cross rivers
use umbrellas|stay dry
use maps|find the way
use lamps|see in the dark
use clocks|know the time
use soap|get clean
write letters|tell news to friends
send cards|make friends happy
ride bikes|get to places fast
take the bus|travel without a car
take the train|travel far
light candles|have a soft light
light fires|get warm
cook food|make it soft and tasty
sing songs|feel happy
play games|have fun together
laugh|show that they are happy
cry|show that they are sad
visit friends|talk and feel less alone
go to the beach|swim and rest
go to bed early|wake up fresh
lock the door|keep the house safe
open windows|get fresh air
close the windows|keep the cold out
paint walls|make rooms bright
sweep floors|keep rooms clean
take pictures|remember good days
make lists|remember what to buy
set alarms|wake up on time
learn languages|talk to more people
run|stay fit
say thank you|show that they are grateful
cut the grass|keep the garden neat
water plants|help them grow
wash clothes|make them clean
boil water|make tea or soup
have gardens|grow flowers and food
bake cakes|celebrate a birthday
need sleep|rest the body
like music|feel calm or happy
keep food in the fridge|keep it fresh
wear scarves|warm the neck
stand in line|wait for their turn
whisper|stay quiet
take a bath|get clean and warm
give gifts|make someone happy
""")
HAPPENINGS = table("""
in winter|snow falls and the days are short
in summer|the sun is hot and people swim
in spring|flowers open and birds build nests
in autumn|leaves turn red and fall
in the morning|the sun comes up and people wake
in the evening|the sun goes down and lamps are lit
at night|the sky is dark and people sleep
at noon|the sun is high and people eat
when it rains|the streets get wet
when it snows|the ground turns white
when the sun shines|the air gets warm
when the wind blows|the leaves move
when ice gets warm|it turns to water
when water boils|it turns to steam
when water freezes|it turns to ice
when a seed gets water|a small plant grows
when a bell rings|people look up
when a baby is hungry|it cries
when a dog is happy|it moves its tail
when wood burns|it gives heat and smoke
when a glass falls|it breaks
when people are tired|they go to bed
when the light is red|the cars stop
when the light is green|the cars go
when butter gets hot|it melts
when bread gets old|it turns hard
when the moon is full|the night is bright
when a plant gets no water|it dries out
when a tire has a hole|the air goes out
when a cat sees a mouse|it runs after the mouse
when leaves fall|the trees stand bare
when a school day ends|the children go home
on a birthday|people eat cake and sing
at a wedding|two people marry
at a market|people buy and sell food
at school|children learn to read
at a party|people dance and talk
in a storm|the wind is strong and trees bend
in a library|people read in silence
in a bakery|bread is baked
in a kitchen|people cook meals
in a garden|flowers and vegetables grow
at a station|trains come and go
at a farm|animals and plants grow
after a storm|the air is fresh and clear
before a storm|the sky gets dark
in a hospital|doctors help sick people
at the beach|people swim and build castles of sand
in a forest|trees grow and animals hide
when iron gets wet|it slowly rusts
when clouds grow dark|rain begins to fall
in fall|leaves turn yellow and drop
at a bus stop|people wait for the bus
in a theater|actors play on a stage
at a concert|people listen to music
""")
MEANINGS = table("""
rain|water that falls from clouds
snow|frozen water that falls in winter
a friend|a person who likes and helps another
a forest|a place with many trees
an island|land with water all around
a river|water that flows to the sea
a desert|a dry place with much sand
a family|people who belong together
a garden|a place where plants grow
a farm|a place with fields and animals
a library|a place with many books
a holiday|a day without work
the moon|a ball of rock that goes around the earth
a cloud|a mass of tiny drops in the sky
fog|a cloud close to the ground
bread|food made from flour and water
honey|sweet food made by bees
wool|the soft hair of sheep
cheese|food made from milk
butter|fat made from cream
a village|a small place with few houses
a city|a big place with many streets
a song|words with a tune
a story|a report of things that happen
a team|a group that plays together
a mountain|a very high hill
a lake|still water with land around
the sea|a huge area of salt water
a nest|a home that a bird builds
wind|air that moves
ice|water that is frozen
a shadow|a dark shape behind a thing in light
a market|a place where people buy food
a storm|strong wind with heavy rain
a recipe|a plan for cooking a meal
a secret|something that few people know
a dream|pictures in the mind during sleep
a neighbor|a person who lives next door
thunder|the loud sound of a storm
a rainbow|a bow of colors in the sky
""")
