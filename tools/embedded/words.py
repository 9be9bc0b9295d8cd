"""The words of the project's own grammar, by what they can do in a sentence.

A list is one string of words; ``_`` stands for a space inside an entry. Verbs are
``base/past/ing``. ``grammar.py`` turns the lists into sentences.
"""

NAMES = """
Anna Arthur Beatrice Ben Carla Charles Clara Colin Daniel Daphne Edith Edwin Elena Emma Felix Fiona
Frank George Grace Harold Hazel Helen Henry Iris Isaac Jack Jane Jasper Joan Julia Kate Kevin Laura
Leo Lily Louis Lucy Mabel Marcus Margaret Martha Martin Molly Nadia Nathan Nina Nora Oliver Olive
Oscar Owen Patrick Peter Philip Rachel Ralph Robert Rosa Ruth Samuel Sara Simon Stella Susan Thomas
Tony Vera Victor Walter Wendy William
"""
SURNAMES = """
Abbott Barker Bennett Carter Chapman Collins Cooper Dalton Dixon Ellis Fletcher Foster Gibson Grant
Hale Harper Hunter Jensen Keller Lambert Lawson Marsh Mason Morton Norris Palmer Parker Porter Reed
Russell Sanders Shaw Sutton Turner Walker Watson Webb Winter
"""
TOWNS = """
Amsterdam Athens Berlin Boston Bristol Cairo Chicago Denver Dublin Geneva Glasgow Helsinki Lisbon
London Madrid Milan Montreal Oslo Oxford Paris Prague Rome Sydney Tokyo Toronto Venice Vienna Warsaw
"""
PEOPLE = """
actor aunt author baker banker barber brother builder butcher captain carpenter chemist clerk coach
cook cousin daughter dentist doctor driver editor engineer farmer father fisherman gardener
grandfather grandmother guard guest guide hunter husband janitor journalist judge keeper lawyer
librarian mayor mechanic merchant minister mother musician nephew neighbor niece nurse officer
painter passenger pilot plumber poet postman printer professor sailor scientist secretary shepherd
singer sister soldier son stranger student surgeon tailor teacher tenant uncle waiter widow wife
writer
"""
GROUPS = """
boys children girls neighbors players pupils soldiers students
tourists travelers villagers visitors volunteers workers
"""
ANIMALS = """
bear beaver bird bull butterfly calf camel cat chicken cow crow deer dog donkey dragon duck eagle
elephant fox frog goat goose hare hawk hedgehog hen horse kitten lamb lion lizard monkey mouse mule
otter owl parrot pig pigeon pony puppy rabbit raven robin rooster seal sheep snail snake sparrow
spider squirrel swan tiger turtle whale wolf
"""
FOODS = """
almonds apples bacon bananas beans berries biscuits bread butter cabbage cake candy carrots cheese
cherries chocolate coffee cookies corn cream eggs fish flour garlic ginger grapes honey jam juice
lemons lettuce milk mushrooms mustard noodles nuts olives onions oranges pancakes pasta peaches
pears peas pepper pie plums porridge potatoes pudding pumpkin rice salad salt sandwiches sausages
soup spinach steak strawberries sugar tea toast tomatoes vinegar walnuts water
"""
THINGS = """
anchor apron bag ball banner barrel basket bell belt bench bicycle blanket boat book boots bottle
bowl box bracelet brick broom brush bucket button cabinet cage calendar camera candle canoe canvas
card carpet cart chain chair chest clock coat coin compass cradle crown cup curtain cushion desk
diamond diary door drawer dress drum engine envelope fan feather fence flag flute fork frame
furnace gate glass globe glove guitar hammer harp hat helmet hook jacket jar jewel kettle key kite
knife ladder lamp lantern laptop letter lid lock machine magazine map mask mattress medal mirror
motor mug nail necklace needle net newspaper notebook oven package paddle painting pan parcel pen
pencil phone photograph piano picture pillow pipe plate plow pocket poster pot printer puppet purse
puzzle radio rake razor ribbon ring rocket roof rope rug ruler saddle sail sandal saw scarf scissors
screen screw shawl shelf shirt shovel sink skirt sled sock sofa spade spoon stamp statue stool stove
suitcase sweater sword table teapot telephone telescope tent ticket tool towel toy tractor tray
treasure trumpet trunk umbrella vase vest violin wagon wallet watch wheel whistle window wire
"""
PLACES = """
airport attic bakery balcony bank barn basement bathroom beach bedroom bookshop bridge cabin cafe
castle cathedral cave cellar cemetery chapel church cinema circus clinic college corner cottage
courtyard desert dock factory farm field forest fountain garage garden gallery greenhouse hall
harbor hill hospital hotel house island jungle kitchen laboratory lake library lighthouse market
meadow mill monastery mountain museum office orchard palace park pharmacy playground pond prison
quarry railway_station restaurant river road roof school shed shop square stable stadium studio
temple theater tower tunnel valley village warehouse waterfall workshop yard zoo
"""
THING_ADJECTIVES = """
ancient beautiful big black blue brass broken brown cheap clean clever copper costly cracked
crooked curious dark delicate dirty dusty elegant empty enormous expensive faded famous fancy flat
fragile fresh golden gray green handsome heavy hidden hollow huge iron large leather light little
lovely magic missing modern narrow new odd old orange ordinary paper perfect pink plain plastic
polished precious pretty purple red round rusty shiny silver simple small smooth soft solid square
steel stolen strange striped sturdy thick thin tiny torn ugly useful valuable violet warm white
wide wooden yellow
"""
PERSON_ADJECTIVES = """
angry anxious bold brave busy calm careful careless cheerful clumsy eager famous foolish friendly
generous gentle greedy grumpy happy helpful honest hungry impatient jealous kind lazy lonely loyal
modest nervous noisy patient polite poor proud quiet retired rich rude serious shy silent sleepy
stubborn tall thirsty tired weary wise worried young
"""
MOODS = """
afraid alone ashamed awake bored certain confused delighted disappointed excited grateful guilty
homeless hopeful ill innocent late lucky married pleased ready relaxed satisfied sick sorry
surprised upset wealthy wrong
"""
ANIMAL_ADJECTIVES = """
black brown enormous fierce frightened gray hungry lazy little lonely old playful sleepy spotted
swift tame thirsty white wild wounded young
"""
ADVERBS = """
again almost anxiously badly barely boldly bravely briefly calmly carefully cheerfully clearly
closely completely eagerly easily finally gently gladly happily hastily honestly kindly loudly
nervously never often openly patiently politely proudly quickly quietly rarely really sadly safely
secretly seldom seriously silently simply slowly softly suddenly usually
"""
WHEN = """
after_breakfast after_dark after_dinner after_lunch after_the_war all_afternoon all_day at_dawn
at_midnight at_noon at_sunset before_breakfast before_supper during_the_concert during_the_storm
early_this_morning every_evening every_summer every_weekend in_the_afternoon in_the_evening
last_autumn last_night last_spring last_week last_winter last_year late_at_night once_more
the_other_day the_day_before_yesterday this_morning today yesterday yesterday_evening
"""
SOON = """
after_school as_soon_as_possible before_long in_a_few_minutes in_the_future in_the_spring later
next_autumn next_month next_summer next_week next_winter soon this_afternoon this_weekend
tomorrow tomorrow_morning tonight
"""
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
MONTHS = """
January February March April May June July August September October November December
"""
SUBJECTS = """
algebra astronomy biology chemistry French geography German grammar history law literature
mathematics medicine music philosophy physics poetry science Spanish
"""
TOPICS = """
accident adventure answer argument battle birthday business ceremony concert contest crime danger
decision discovery disaster dream election exam experiment flood future holiday illness invention
journey lecture marriage meeting message mistake mystery parade party performance plan problem
promise question race reason report rumor secret speech story strike trial truth victory voyage war
weather wedding
"""
VEHICLES = "airplane bus canoe carriage ferry helicopter ship steamboat taxi train tram truck van"
WEATHER = (
    "cloudy cold damp dreadful dry foggy hot humid mild pleasant rainy snowy stormy sunny windy"
)
NATURE = """
breeze cloud earthquake fire fog frost hail hurricane ice lightning mist moon rain rainbow sand
smoke snow star storm sun thunder tide wind
"""
MATERIALS = (
    "brick clay cotton glass gold ice iron marble paper rubber silk silver steel stone wood wool"
)
SPORTS = "baseball basketball cards chess football golf hockey rugby soccer tennis volleyball"
HANDLE = """
admire/admired/admiring borrow/borrowed/borrowing break/broke/breaking bring/brought/bringing
build/built/building burn/burned/burning bury/buried/burying buy/bought/buying
carry/carried/carrying choose/chose/choosing clean/cleaned/cleaning collect/collected/collecting
copy/copied/copying cover/covered/covering deliver/delivered/delivering draw/drew/drawing
drop/dropped/dropping examine/examined/examining exchange/exchanged/exchanging find/found/finding
fix/fixed/fixing grab/grabbed/grabbing hide/hid/hiding hold/held/holding keep/kept/keeping
kick/kicked/kicking lift/lifted/lifting lose/lost/losing mend/mended/mending move/moved/moving
notice/noticed/noticing open/opened/opening pack/packed/packing paint/painted/painting
polish/polished/polishing protect/protected/protecting pull/pulled/pulling push/pushed/pushing
remove/removed/removing repair/repaired/repairing replace/replaced/replacing sell/sold/selling
send/sent/sending shake/shook/shaking share/shared/sharing show/showed/showing steal/stole/stealing
store/stored/storing study/studied/studying throw/threw/throwing touch/touched/touching
trade/traded/trading use/used/using want/wanted/wanting wash/washed/washing wrap/wrapped/wrapping
"""
COOK = """
bake/baked/baking boil/boiled/boiling buy/bought/buying cook/cooked/cooking cut/cut/cutting
eat/ate/eating enjoy/enjoyed/enjoying fry/fried/frying order/ordered/ordering
prepare/prepared/preparing serve/served/serving smell/smelled/smelling swallow/swallowed/swallowing
taste/tasted/tasting waste/wasted/wasting
"""
MEET = """
advise/advised/advising answer/answered/answering blame/blamed/blaming call/called/calling
congratulate/congratulated/congratulating encourage/encouraged/encouraging follow/followed/following
forgive/forgave/forgiving greet/greeted/greeting help/helped/helping hire/hired/hiring
hug/hugged/hugging interrupt/interrupted/interrupting invite/invited/inviting
marry/married/marrying meet/met/meeting obey/obeyed/obeying praise/praised/praising
recognize/recognized/recognizing remember/remembered/remembering respect/respected/respecting
save/saved/saving surprise/surprised/surprising teach/taught/teaching thank/thanked/thanking
trust/trusted/trusting visit/visited/visiting warn/warned/warning watch/watched/watching
"""
GO = """
climb/climbed/climbing crawl/crawled/crawling drive/drove/driving gallop/galloped/galloping
go/went/going hurry/hurried/hurrying march/marched/marching ride/rode/riding run/ran/running
rush/rushed/rushing sail/sailed/sailing travel/traveled/traveling walk/walked/walking
wander/wandered/wandering
"""
STAY = """
argue/argued/arguing cough/coughed/coughing cry/cried/crying dance/danced/dancing fall/fell/falling
fight/fought/fighting gather/gathered/gathering hide/hid/hiding laugh/laughed/laughing
listen/listened/listening live/lived/living play/played/playing pray/prayed/praying
rest/rested/resting sing/sang/singing sit/sat/sitting sleep/slept/sleeping smile/smiled/smiling
stand/stood/standing wait/waited/waiting whisper/whispered/whispering work/worked/working
"""
PROWL = """
appear/appeared/appearing bark/barked/barking breathe/breathed/breathing chase/chased/chasing
disappear/disappeared/disappearing drink/drank/drinking escape/escaped/escaping
hunt/hunted/hunting jump/jumped/jumping scratch/scratched/scratching swim/swam/swimming
tremble/trembled/trembling
"""
SPEAK = """
argue/argued/arguing complain/complained/complaining dream/dreamed/dreaming hear/heard/hearing
joke/joked/joking know/knew/knowing learn/learned/learning read/read/reading speak/spoke/speaking
talk/talked/talking think/thought/thinking worry/worried/worrying write/wrote/writing
"""
