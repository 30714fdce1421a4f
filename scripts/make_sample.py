"""The bundled sample: an invented hobby shop and its customers, in the raw format of the Amazon product data of
2014.

Usage: python scripts/make_sample.py [folder]; prints the folder.
"""

from __future__ import annotations

import bisect
import gzip
import itertools
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tigerrec import TigerrecError
from tigerrec.storage.files import atomic

REVIEWS_FILE = "reviews_Sample_5.json.gz"
META_FILE = "meta_Sample.json.gz"

SEED = 2014
N_USERS = 2000
MIN_HISTORY, MAX_HISTORY = 5, 25
DAY = 86_400
FIRST_DAY = 14_610  # 1 January 2010, in days since 1 January 1970

P_SECOND_TASTE = 0.5
P_OTHER_TASTE = 0.12
P_NEXT, P_SAME, P_DEPARTMENT = 0.68, 0.10, 0.14  # what is left over: any item of the shop
P_OTHER_BRAND = 0.2
P_SAME_DAY = 0.10

ROOT = "Hobby & Home"
PRICE_FACTORS = (0.6, 1.0, 1.7)
PHRASES_PER_BRAND = ((0, 1, 2), (2, 3), (3, 0))

# Department → its three brands, cheapest first.
BRANDS: dict[str, tuple[str, str, str]] = {
    "Camping": ("Fellmark", "Tarnholt", "Skarven"),
    "Coffee": ("Emberlane", "Brewick & Lowe", "Kaldmoor"),
    "Gardening": ("Loamsby", "Thistlewade", "Potter's Reach"),
    "Cycling": ("Ridgespoke", "Velmora", "Cadenzi"),
    "Baking": ("Flourwick", "Crumb & Copper", "Tavernell"),
    "Dogs": ("Waggerby", "Houndsmere", "Barkenfold"),
    "Painting": ("Pigmentry", "Ochrelle", "Lindquill"),
    "Knitting": ("Woolmere", "Purlington", "Skeinfield"),
}

# Department → the sub-categories in the order in which a hobby grows: (name, colours or sizes of its variants, middle
# price in dollars, four products).
CATALOGUE: dict[str, list[tuple[str, str, int, tuple[str, str, str, str]]]] = {
    "Camping": [
        (
            "Tents",
            "Forest Green/Slate Blue",
            140,
            ("2-Person Dome Tent", "4-Person Family Tent", "Ultralight Trekking Tent", "Tunnel Tent with Porch"),
        ),
        (
            "Sleeping Bags",
            "Navy/Olive",
            80,
            ("Mummy Sleeping Bag", "Down Sleeping Bag", "Summer Sleeping Bag", "Double Sleeping Bag"),
        ),
        (
            "Sleeping Pads",
            "Grey/Orange",
            45,
            (
                "Self-Inflating Sleeping Pad",
                "Foam Sleeping Mat",
                "Insulated Air Mattress",
                "Inflatable Camp Pillow & Mat",
            ),
        ),
        (
            "Camp Stoves",
            "",
            50,
            ("Canister Gas Stove", "Two-Burner Camp Stove", "Folding Wood Stove", "Alcohol Backpacking Stove"),
        ),
        (
            "Camp Cookware",
            "",
            35,
            ("Titanium Pot & Pan Set", "Nesting Mess Kit", "Camp Kettle with Handle", "Cast Iron Camp Skillet"),
        ),
        (
            "Camp Lanterns",
            "Black/Yellow",
            28,
            ("LED Camping Lantern", "Rechargeable Headlamp", "Solar Tent Light", "Candle Lantern"),
        ),
        (
            "Water Filters",
            "",
            32,
            ("Squeeze Water Filter", "Gravity Water Filter 4 L", "Pump Water Purifier", "Filter Bottle for Hiking"),
        ),
        (
            "First Aid & Repair",
            "Red/Green",
            20,
            ("Hiker's First Aid Kit", "Tent Repair Kit", "Trail Blister Kit", "Emergency Bivvy Blanket"),
        ),
    ],
    "Coffee": [
        (
            "Coffee Beans",
            "",
            16,
            (
                "Dark Roast Espresso Beans",
                "Light Roast Ethiopian Beans",
                "Decaf Whole Bean Coffee",
                "House Blend Coffee Beans 1 kg",
            ),
        ),
        (
            "Coffee Grinders",
            "Black/Silver",
            75,
            ("Conical Burr Grinder", "Hand Coffee Grinder", "Flat Burr Espresso Grinder", "Travel Coffee Mill"),
        ),
        (
            "Coffee Drippers",
            "White/Matte Black",
            24,
            ("Ceramic Pour-Over Dripper", "Glass Pour-Over Brewer", "Steel Cone Dripper", "Cold Drip Tower"),
        ),
        (
            "Paper Filters",
            "100 Count/200 Count",
            8,
            ("Cone Paper Filters", "Flat Bottom Paper Filters", "Unbleached Coffee Filters", "Square Paper Filters"),
        ),
        (
            "Kettles",
            "Copper/Black",
            58,
            ("Gooseneck Kettle", "Electric Kettle with Thermostat", "Stovetop Pouring Kettle", "Pour-Over Kettle 1 L"),
        ),
        (
            "Coffee Scales",
            "Black/White",
            34,
            ("Coffee Scale with Timer", "Pocket Espresso Scale", "Rechargeable Brew Scale", "Waterproof Barista Scale"),
        ),
        (
            "Cups & Servers",
            "Cream/Indigo",
            22,
            (
                "Stoneware Coffee Mug",
                "Double-Wall Espresso Cups",
                "Glass Coffee Server",
                "Barista's Latte Cup & Saucer",
            ),
        ),
        (
            "Coffee Machine Care",
            "",
            12,
            (
                "Espresso Machine Descaler",
                "Grinder Cleaning Tablets",
                "Group Head Brush",
                "Coffee Stain Remover Powder",
            ),
        ),
    ],
    "Gardening": [
        (
            "Seed Trays",
            "Green/Terracotta",
            14,
            ("Seed Starter Tray with Dome", "Peat Pot Strips", "Heated Propagator", "Deep Root Cell Tray"),
        ),
        ("Seeds", "", 6, ("Heirloom Tomato Seeds", "Wildflower Seed Mix", "Salad & Herb Seeds", "Sweet Pepper Seeds")),
        (
            "Potting Soil",
            "",
            18,
            ("Organic Potting Soil 10 L", "Seedling Compost Mix", "Cactus & Succulent Soil", "Coconut Coir Bricks"),
        ),
        (
            "Hand Tools",
            "Ash/Walnut",
            21,
            ("Hand Trowel", "Bypass Pruning Shears", "Weeding Fork", "Gardener's Transplanting Knife"),
        ),
        (
            "Watering",
            "Sage/Brass",
            30,
            ("Watering Can 8 L", "Expandable Garden Hose", "Drip Irrigation Kit", "Brass Spray Nozzle"),
        ),
        (
            "Plant Supports",
            "",
            17,
            ("Bamboo Plant Stakes", "Tomato Cage Set", "Climbing Plant Trellis", "Soft Garden Twine & Clips"),
        ),
        (
            "Fertilisers",
            "",
            15,
            (
                "Liquid Tomato Feed",
                "Organic Bone Meal Fertiliser",
                "Slow Release Plant Food",
                "Seaweed Fertiliser Concentrate",
            ),
        ),
        (
            "Harvest Baskets",
            "Natural/Grey",
            26,
            ("Wicker Harvest Basket", "Garden Trug", "Berry Picking Basket", "Canvas Harvest Apron"),
        ),
    ],
    "Cycling": [
        (
            "Bike Helmets",
            "Matte Black/White",
            70,
            ("Road Bike Helmet", "Mountain Bike Helmet", "Urban Commuter Helmet", "Aero Racing Helmet"),
        ),
        (
            "Bike Lights",
            "Black/Silver",
            36,
            ("USB Front Bike Light", "Rear Bike Light", "Front & Rear Bike Light Set", "Dynamo Bicycle Headlight"),
        ),
        (
            "Bike Locks",
            "Black/Orange",
            48,
            ("Steel U-Lock", "Folding Bike Lock", "Chain Bike Lock", "Coiled Cable Lock"),
        ),
        (
            "Bike Pumps",
            "Black/Red",
            33,
            ("Floor Bike Pump with Gauge", "Mini Frame Pump", "CO2 Tyre Inflator", "Electric Bike Pump"),
        ),
        (
            "Tubes & Tyres",
            "700x25c/700x32c",
            20,
            ("Butyl Inner Tube", "Puncture-Proof Road Tyre", "Gravel Bicycle Tyre", "Tyre Levers & Patch Kit"),
        ),
        ("Chain Care", "", 13, ("Wet Chain Lube", "Dry Chain Lube", "Chain Cleaning Machine", "Bike Degreaser Spray")),
        (
            "Bike Bags",
            "Charcoal/Mustard",
            62,
            ("Rear Pannier Bag Pair", "Handlebar Bag", "Saddle Bag", "Frame Bag for Bikepacking"),
        ),
        (
            "Cycling Gloves",
            "Black/Neon",
            27,
            ("Padded Half-Finger Gloves", "Winter Cycling Gloves", "Gel Road Gloves", "Rider's Windproof Gloves"),
        ),
    ],
    "Baking": [
        (
            "Mixing Bowls",
            "Mint/Cream",
            29,
            ("Stainless Mixing Bowl Set", "Ceramic Batter Bowl", "Glass Mixing Bowls", "Copper Egg White Bowl"),
        ),
        (
            "Whisks & Spatulas",
            "Red/Grey",
            13,
            ("Balloon Whisk", "Silicone Spatula Set", "Danish Dough Whisk", "Baker's Bowl Scraper"),
        ),
        (
            "Rolling Pins",
            "Beech/Marble",
            24,
            ("French Rolling Pin", "Adjustable Rolling Pin", "Embossed Rolling Pin", "Pastry Board & Rolling Pin"),
        ),
        ("Cake Tins", "9 inch/10 inch", 22, ("Springform Cake Tin", "Loaf Tin", "Bundt Cake Pan", "Muffin Baking Tin")),
        (
            "Cooling Racks",
            "",
            16,
            ("Wire Cooling Rack", "Three-Tier Cooling Rack", "Folding Biscuit Rack", "Round Cake Cooling Stand"),
        ),
        (
            "Piping Sets",
            "",
            19,
            (
                "Piping Bag & Nozzle Set",
                "Reusable Silicone Piping Bags",
                "Cookie Icing Pen",
                "Russian Flower Piping Tips",
            ),
        ),
        (
            "Cake Decorations",
            "Pastel/Gold",
            9,
            ("Sugar Pearl Sprinkles", "Fondant Icing Sheets", "Gel Food Colouring", "Edible Sugar Flowers"),
        ),
        (
            "Cake Storage",
            "White/Blush",
            31,
            ("Cake Carrier with Lid", "Biscuit Storage Tin", "Glass Cake Dome", "Cupcake Carry Box"),
        ),
    ],
    "Dogs": [
        (
            "Dog Beds",
            "Grey/Brown",
            60,
            ("Orthopaedic Dog Bed", "Donut Cuddler Dog Bed", "Raised Dog Cot", "Washable Crate Mat"),
        ),
        (
            "Dog Leashes",
            "Teal/Red",
            19,
            ("Reflective Dog Leash", "Retractable Dog Lead", "Leather Dog Leash", "Hands-Free Running Leash"),
        ),
        (
            "Dog Harnesses",
            "Small/Large",
            30,
            ("No-Pull Dog Harness", "Padded Walking Harness", "Car Safety Harness", "Puppy's First Harness & Collar"),
        ),
        (
            "Dog Bowls",
            "Blue/Sand",
            17,
            ("Slow Feeder Dog Bowl", "Stainless Dog Bowl", "Raised Dog Feeding Station", "Travel Dog Water Bowl"),
        ),
        (
            "Dog Treats",
            "",
            11,
            (
                "Grain-Free Training Treats",
                "Dental Chew Sticks",
                "Dried Beef Strips for Dogs",
                "Peanut Butter Dog Biscuits",
            ),
        ),
        (
            "Dog Toys",
            "Orange/Blue",
            14,
            ("Rubber Chew Toy", "Squeaky Plush Toy", "Tug & Fetch Rope", "Treat Puzzle Ball"),
        ),
        (
            "Dog Grooming",
            "",
            21,
            ("Dog Deshedding Brush", "Oatmeal Dog Shampoo", "Dog Nail Grinder", "Microfibre Dog Towel"),
        ),
        (
            "Dog Carriers",
            "Black/Plum",
            55,
            ("Airline Dog Carrier", "Dog Backpack Carrier", "Folding Travel Crate", "Dog Sling Carrier"),
        ),
    ],
    "Painting": [
        (
            "Sketchbooks",
            "A4/A5",
            15,
            ("Hardbound Sketchbook", "Spiral Sketch Pad", "Toned Paper Sketchbook", "Pocket Drawing Journal"),
        ),
        (
            "Drawing Pencils",
            "",
            18,
            ("Graphite Pencil Set", "Charcoal Pencil Set", "Coloured Pencils 36 Pack", "Mechanical Drafting Pencil"),
        ),
        (
            "Erasers & Sharpeners",
            "",
            8,
            (
                "Kneaded Eraser Pack",
                "Brass Pencil Sharpener",
                "Precision Eraser Pen",
                "Artist's Sandpaper Block & Eraser",
            ),
        ),
        (
            "Watercolour Paints",
            "24 Colours/48 Colours",
            38,
            ("Watercolour Pan Set", "Watercolour Tube Set", "Metallic Watercolour Set", "Travel Paint Box"),
        ),
        (
            "Paint Brushes",
            "Round/Flat",
            23,
            ("Sable Watercolour Brush", "Synthetic Brush Set", "Water Brush Pens", "Wide Wash Brush"),
        ),
        (
            "Palettes",
            "",
            16,
            ("Porcelain Mixing Palette", "Folding Paint Palette", "Airtight Paint Box", "Tear-Off Palette Pad"),
        ),
        (
            "Easels",
            "Beech/Black",
            72,
            ("Tabletop Easel", "Tripod Field Easel", "Studio H-Frame Easel", "French Box Easel"),
        ),
        (
            "Art Portfolios",
            "Black/Tan",
            33,
            ("Art Portfolio Case", "Canvas Carrying Bag", "Drawing Tube with Strap", "Print & Drawing Storage Folder"),
        ),
    ],
    "Knitting": [
        (
            "Yarn",
            "Heather/Rust",
            12,
            ("Merino Wool Yarn", "Cotton Baby Yarn", "Chunky Alpaca Yarn", "Self-Striping Sock Yarn"),
        ),
        (
            "Knitting Needles",
            "4 mm/6 mm",
            19,
            ("Bamboo Circular Needles", "Double-Pointed Needle Set", "Interchangeable Needles", "Straight Needles"),
        ),
        (
            "Stitch Markers",
            "Pearl/Copper",
            7,
            ("Locking Stitch Markers", "Ring Stitch Markers", "Beaded Stitch Markers", "Stitch Holder & Marker Set"),
        ),
        (
            "Pattern Books",
            "",
            21,
            (
                "Beginner's Sweater Pattern Book",
                "Sock Knitting Patterns",
                "Lace Shawl Pattern Book",
                "Baby Knits Pattern Book",
            ),
        ),
        (
            "Row Counters",
            "",
            9,
            ("Digital Row Counter", "Click Row Counter", "Finger Row Counter", "Knitting Gauge & Counter"),
        ),
        (
            "Crochet Hooks",
            "Rose/Mint",
            16,
            ("Ergonomic Crochet Hook Set", "Bamboo Crochet Hooks", "Steel Lace Crochet Hooks", "Tunisian Crochet Hook"),
        ),
        (
            "Blocking Tools",
            "",
            24,
            ("Lace Blocking Mats", "Blocking Wires & Pins", "Sock Blockers", "Wool Wash for Hand Knits"),
        ),
        (
            "Project Bags",
            "Linen/Floral",
            28,
            ("Drawstring Project Bag", "Yarn Storage Tote", "Knitting Needle Case", "Wooden Yarn Bowl"),
        ),
    ],
}


@dataclass(frozen=True)
class Product:
    """One invented item: where it stands in the shop and how well it sells within its brand."""

    asin: str
    title: str
    department: str
    step: int
    brand: int
    price: float
    weight: float


@dataclass
class Taste:
    """What a user keeps buying: one department, mostly of one brand, sub-category after sub-category from `step` on."""

    department: str
    brand: int
    step: int


@dataclass(frozen=True)
class Review:
    """One purchase: `day` counts from 1 January 1970."""

    user_id: str
    asin: str
    stars: int
    day: int


class Chance:
    """Random choices from `random.Random.random` alone: its sequence for a seed is the same in every version of
    Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return int(self._random() * n)

    def happens(self, probability: float) -> bool:
        """Whether an event of this probability happens."""
        return self._random() < probability

    def index(self, weights: Sequence[float]) -> int:
        """An index, each as probable as its weight."""
        sums = list(itertools.accumulate(weights))
        return bisect.bisect_right(sums, self._random() * sums[-1])

    def low(self, n: int) -> int:
        """A whole number from 0 to n - 1, low ones more often: the lower of two draws."""
        return min(self.below(n), self.below(n))


def _asin(chance: Chance, used: set[str]) -> str:
    """A new item id of ten characters; about one in 40 is a number with leading zeros, as the ids of books are."""
    while True:
        if chance.happens(1 / 40):
            asin = f"00{chance.below(10**8):08d}"
        else:
            asin = "B00" + "".join("0123456789ABCDEFGHJKLMNPQRSTUVWXYZ"[chance.below(34)] for _ in range(7))
        if asin not in used:
            used.add(asin)
            return asin


def make_products(chance: Chance) -> list[Product]:
    """The shop: per sub-category and brand two or three products; the first of a sub-category mostly in two colours or
    sizes."""
    products: list[Product] = []
    used: set[str] = set()
    for department, steps in CATALOGUE.items():
        for step, (_, variants, middle_price, phrases) in enumerate(steps):
            for brand, chosen in enumerate(PHRASES_PER_BRAND):
                for place, phrase in enumerate(chosen):
                    title = f"{BRANDS[department][brand]} {phrases[phrase]}"
                    titles = (
                        [f"{title}, {variant}" for variant in variants.split("/")]
                        if variants and brand == step % 3 and place == 0
                        else [title]
                    )
                    price = round(middle_price * PRICE_FACTORS[brand] * (0.85 + 0.1 * phrase)) - 0.01
                    products += [
                        Product(
                            _asin(chance, used), name, department, step, brand, round(price, 2), 1 + chance.below(3)
                        )
                        for name in titles
                    ]
    return products


def _wanted(chance: Chance, taste: Taste, products: Sequence[Product]) -> list[Product]:
    """The products among which the user chooses next; moves the taste's step."""
    n_steps = len(CATALOGUE[taste.department])
    move = chance.index((P_NEXT, P_SAME, P_DEPARTMENT, 1 - P_NEXT - P_SAME - P_DEPARTMENT))
    if move == 3:
        return list(products)
    step = ((taste.step + 1) % n_steps, taste.step, chance.below(n_steps))[move]
    taste.step = step
    brand = chance.below(3) if chance.happens(P_OTHER_BRAND) else taste.brand
    return [
        product
        for product in products
        if (product.department, product.step, product.brand) == (taste.department, step, brand)
    ]


def make_history(chance: Chance, products: Sequence[Product]) -> list[Product]:
    """What one user buys, in order, nothing twice."""
    departments = list(CATALOGUE)
    tastes: list[Taste] = []
    for _ in range(1 + chance.happens(P_SECOND_TASTE)):
        department = departments.pop(chance.below(len(departments)))
        tastes.append(Taste(department, chance.below(3), chance.low(len(CATALOGUE[department])) - 1))
    length = MIN_HISTORY + min(chance.low(MAX_HISTORY - MIN_HISTORY + 1), chance.below(MAX_HISTORY - MIN_HISTORY + 1))
    history: list[Product] = []
    taste = tastes[0]
    while len(history) < length:
        if chance.happens(P_OTHER_TASTE):
            taste = tastes[chance.below(len(tastes))]
        wanted = [product for product in _wanted(chance, taste, products) if product not in history]
        if wanted:
            history.append(wanted[chance.index([product.weight for product in wanted])])
    return history


def make_reviews(chance: Chance, products: Sequence[Product]) -> list[Review]:
    """All purchases by item, then user, the order of lines in the real files; some fall on one day."""
    reviews: list[Review] = []
    for user in range(N_USERS):
        day = FIRST_DAY + chance.below(900)
        for product in make_history(chance, products):
            day += 0 if chance.happens(P_SAME_DAY) else 1 + chance.low(60)
            reviews.append(Review(f"ASAMPLEUSR{user:04d}", product.asin, 5 - chance.low(5), day))
    return sorted(reviews, key=lambda review: (review.asin, review.user_id))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("'", "&#39;")


def metadata(products: Sequence[Product]) -> list[dict[str, Any]]:
    """The records of the metadata file by item id, with gaps: one item has no record, one no title, some no brand or no
    price."""
    records: list[dict[str, Any]] = []
    for row, product in enumerate(sorted(products, key=lambda product: product.asin)):
        record = {
            "asin": product.asin,
            "title": _escaped(product.title),
            "brand": _escaped(BRANDS[product.department][product.brand]),
            "categories": [[ROOT, product.department, CATALOGUE[product.department][product.step][0]]],
            "price": product.price,
        }
        missing = {"title": row == 123, "brand": row % 60 == 7, "price": row % 25 == 11}
        if row != 321:
            records.append({key: value for key, value in record.items() if not missing.get(key, False)})
    return records


def _write(path: Path, lines: Sequence[str]) -> None:
    """Write gzipped lines without name and time in the header, so that the same lines are the same bytes."""
    with atomic(path) as temporary, open(temporary, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as zipped:
        zipped.write("".join(f"{line}\n" for line in lines).encode())


def write_sample(out: Path) -> Path:
    """Write the two files of the sample into `out`, the same bytes at every call; returns `out`."""
    chance = Chance(SEED)
    products = make_products(chance)
    reviews = make_reviews(chance, products)
    _write(out / META_FILE, [repr(record) for record in metadata(products)])
    _write(
        out / REVIEWS_FILE,
        [
            json.dumps(
                {"reviewerID": r.user_id, "asin": r.asin, "overall": float(r.stars), "unixReviewTime": r.day * DAY}
            )
            for r in reviews
        ],
    )
    return out


if __name__ == "__main__":
    if len(sys.argv) > 2 or sys.argv[1:2] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    try:
        print(write_sample(Path(sys.argv[1] if len(sys.argv) > 1 else "data/sample")))
    except TigerrecError as error:
        sys.exit(f"Error: {error}")
