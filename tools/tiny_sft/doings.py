"""What people do at work and what things are for."""

from tools.tiny_sft.facts import table

JOBS = table("""
baker|makes bread and cakes|bakes fresh rolls before the sun is up
farmer|grows food in the fields|feeds the animals and plows the land
teacher|helps children learn|explains lessons in a classroom
doctor|helps sick people get better|looks after people who are ill
nurse|cares for people in a hospital|gives medicine and checks the heart
driver|takes people where they want to go|drives a bus along the streets
pilot|flies a plane|brings people across the sky
sailor|works on a ship|ties ropes and cleans the deck
cook|makes warm meals|prepares food in a kitchen
tailor|sews coats and dresses|cuts cloth and makes clothes
gardener|plants flowers and cuts the grass|takes care of trees and plants
butcher|cuts and sells meat|sells sausages in a shop
painter|paints walls and pictures|covers walls with fresh color
carpenter|builds tables from wood|cuts wood and makes doors
builder|builds houses with stones|puts up walls and roofs
plumber|repairs water pipes|fixes leaks in kitchens
firefighter|puts out fires|saves people from burning houses
policeman|keeps the streets safe|helps people and guards the town
mailman|brings letters to every house|carries mail from door to door
fisherman|catches fish with a net|goes out to sea in a boat
dentist|takes care of teeth|cleans and fixes teeth
barber|cuts hair|shaves beards and cuts hair
singer|sings songs for people|sings on a stage
writer|writes books and stories|puts ideas into words
miner|digs coal from the ground|works deep under the ground
shepherd|looks after sheep|leads sheep across the hills
waiter|brings food to the tables|serves meals in a restaurant
judge|decides what is right in court|listens to both sides and decides
lawyer|explains the law|helps people in court
artist|paints pictures|makes beautiful things
dancer|dances on a stage|moves to the music
musician|plays music|plays an instrument for others
clown|makes children laugh|tells jokes in the circus
vet|helps sick animals|cares for cats and dogs
guard|watches the gate|keeps a building safe
cleaner|sweeps and washes floors|keeps rooms tidy
librarian|lends books|keeps books in order in the library
shoemaker|repairs shoes|makes boots from leather
blacksmith|makes tools from iron|shapes hot iron with a hammer
mechanic|repairs cars|fixes engines in a garage
clockmaker|repairs clocks|makes watches that keep time
hunter|hunts deer in the forest|follows animals through the woods
potter|makes cups from clay|shapes bowls on a wheel
weaver|makes cloth from thread|weaves rugs on a loom
captain|leads a ship|gives orders on a boat
soldier|defends the country|marches and guards the land
scientist|studies nature|asks questions and tests ideas
florist|sells flowers|ties flowers into bunches
beekeeper|keeps bees for honey|takes honey from the hives
coach|trains a team|teaches players the game
lifeguard|watches swimmers at the beach|saves people from the water
miller|grinds grain into flour|turns wheat into flour
seller|sells things at the market|offers fruit on a stall
secretary|writes letters in an office|answers the phone
cashier|takes money in a shop|counts coins at the desk
jeweler|makes gold rings|sells rings and watches
guide|shows visitors the way|tells people about the town
actor|plays a part on stage|acts in films
magician|does tricks with cards|pulls a rabbit out of a hat
optician|makes glasses|tests eyes and sells glasses
photographer|takes pictures|takes photos of people
electrician|repairs lights and wires|puts lamps into houses
chef|cooks fine meals|leads the kitchen of a restaurant
astronaut|flies into space|works far above the earth
engineer|plans bridges and machines|builds strong machines
architect|draws plans for houses|plans new buildings
reporter|writes the news|asks people what happened
postman|brings letters and parcels|carries mail to the houses
police officer|keeps people safe|helps when there is trouble
king|rules a land|leads the people of a country
referee|watches the rules of a game|blows a whistle when a rule is broken
babysitter|looks after small children|plays with children in the evening
janitor|cleans the school|keeps the building clean
grocer|sells fruit and bread|fills the shelves with food
""")
USES = table("""
lamp|give light|gives light in a dark room
knife|cut bread|cuts bread and fruit
spoon|eat soup|lifts soup to the mouth
fork|eat food|picks up food from a plate
cup|drink tea|holds tea or coffee
plate|hold food|holds the food at dinner
bed|sleep|gives people a place to sleep
chair|sit|gives people a place to sit
table|eat and work|holds plates and books
clock|tell the time|shows the time of day
key|open a lock|opens and closes a door
hammer|hit nails|drives nails into wood
saw|cut wood|cuts wood into pieces
broom|sweep the floor|sweeps dust from the floor
umbrella|stay dry in the rain|keeps the rain away
coat|stay warm|keeps people warm in winter
hat|keep the head warm|keeps the sun off the head
glove|warm the hands|keeps hands warm
towel|dry the skin|dries wet hands
soap|wash hands|takes dirt from the skin
brush|clean teeth|cleans teeth or shoes
comb|tidy the hair|makes hair neat
mirror|look at yourself|shows people their face
pen|write|puts words on paper
pencil|draw|makes lines on paper
ruler|measure things|measures how long a line is
book|read|tells stories and facts
map|find the way|shows roads and towns
bridge|cross a river|lets people cross the river
ladder|reach high places|helps people reach high places
rope|tie things|ties things together
bucket|carry water|carries water or sand
basket|carry fruit|carries fruit from the market
bag|carry things|carries books and food
box|store things|keeps small things together
shelf|hold books|holds books on the wall
fridge|keep food cold|keeps food cold and fresh
oven|bake bread|bakes bread with heat
pan|fry eggs|fries eggs on the stove
pot|cook soup|cooks soup on the stove
kettle|boil water|boils water for tea
phone|talk to people far away|lets people talk from far away
bell|call people|rings to call people
candle|give light|burns with a small light
match|light a fire|lights a candle or a fire
window|let light in|lets light into a room
door|enter a room|closes a room
roof|keep rain out|keeps rain out of a house
wall|hold up a house|holds up the roof
fence|keep animals in|keeps animals in the field
net|catch fish|catches fish in the sea
needle|sew cloth|pulls thread through cloth
button|close a shirt|closes a shirt or coat
belt|hold up pants|holds up the pants
pillow|rest the head|makes the head rest softly
blanket|keep warm at night|keeps people warm at night
spade|dig holes|digs holes in the ground
rake|gather leaves|gathers leaves in the garden
wheel|make things roll|helps a car to move
boat|travel on water|carries people over water
bike|ride to places|takes people along the road
car|drive to places|takes people to work
train|travel far|carries people between towns
watch|tell the time|shows the time on the arm
scissors|cut paper|cut paper and cloth
glue|stick paper together|holds paper together
stamp|send a letter|pays for sending a letter
coin|pay|buys small things
ticket|ride a train|lets people ride the train
scarf|warm the neck|keeps the neck warm
boot|walk in mud|keeps feet dry in mud
sponge|wash dishes|takes up water
mop|wipe the floor|wipes the floor clean
drawer|store small things|holds small things in a desk
pocket|carry keys|holds keys and coins
camera|take pictures|takes pictures of people
whistle|call a dog|makes a loud sound
flag|show a country|shows the colors of a country
tent|sleep outside|keeps campers dry outside
jar|keep jam|keeps jam and honey
calendar|plan the days|shows the days of the year
calculator|add numbers|adds numbers fast
thermometer|measure heat|shows how warm it is
compass|find north|shows the way north
stove|cook meals|heats pots and pans
bowl|hold soup|holds soup or fruit
drum|make music|makes a loud beat
nail|hold wood together|holds two boards together
sink|wash dishes|holds water for washing
bench|rest outside|gives people a seat in the park
hose|water plants|brings water to the garden
flashlight|see in the dark|gives light on a dark path
bathtub|take a bath|holds warm water for a bath
helmet|protect the head|keeps the head safe
raincoat|stay dry|keeps rain off the clothes
suitcase|pack clothes|carries clothes on a trip
mailbox|get letters|holds letters until they are read
curtain|cover a window|keeps the light out of a room
fan|cool a room|moves cool air around
stool|sit or climb|lets a child reach the sink
zipper|close a jacket|closes a jacket
""")
