"""The language of the toy world: the four tasks, and a small English about coloured shapes.

Everything is drawn from a random.Random that the caller seeds.
"""
import json
import os
import re

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

COLORS = ["red", "green", "blue", "yellow", "purple", "orange", "black", "pink"]
SHAPES = ["circle", "square", "triangle", "cross", "star"]
COUNTS = ["zero", "one", "two", "three"]

NAMES = ["Mary", "John", "Tom", "James", "Dan", "Sarah", "Kate", "Anna", "Paul", "Mark", "Luke",
         "Emma", "Alice", "Jack", "Peter", "Amy"]
FEMALE = {"Mary", "Sarah", "Kate", "Anna", "Emma", "Alice", "Amy"}
WORDS = ["river", "stone", "bread", "glass", "paper", "gold", "wood", "water", "salt", "iron",
         "cotton", "silver"]
YEARS = ["%02d" % y for y in range(3, 98, 4)]


def both_orders(text, first, second):
    """{`first`: text as it is, `second`: with IO and S exchanged in their first mention}."""
    swapped = text.replace("{IO}", "{_}", 1).replace("{S}", "{IO}", 1).replace("{_}", "{S}", 1)
    return {first: text, second: swapped}


def agreement(text, one, many):
    return {"singular": text.replace("NOUN", one), "plural": text.replace("NOUN", many)}


def induction(head, early="{KEY} {Ans}, {ALT} {Other}, {KEY}",
              late="{ALT} {Other}, {KEY} {Ans}, {KEY}"):
    return {"early": head + early, "late": head + late}


def tasks():
    """The shipped tasks, as tasks/NAME.json holds them."""
    ioi = {
        "name": "ioi",
        "attributes": {"IO": NAMES, "S": NAMES, "Pos": ["ABB", "BAB"]},
        "form": "Pos",
        "distinct": [["IO", "S"]],
        "fillers": {
            "PLACE": {"train": ["store", "park", "school", "station", "garden", "office"],
                      "test": ["house", "river", "beach", "library"]},
            "OBJ": {"train": ["ring", "book", "ball", "gift", "letter", "bag"],
                    "test": ["drink", "cup", "coin", "watch"]}},
        "templates": {
            "train": [both_orders(t, "ABB", "BAB") for t in (
                "Then, {IO} and {S} went to the {PLACE}. {S} gave a {OBJ} to",
                "When {IO} and {S} got a {OBJ} at the {PLACE}, {S} decided to give it to",
                "After {IO} and {S} went to the {PLACE}, {S} gave a {OBJ} to",
                "While {IO} and {S} were working at the {PLACE}, {S} gave a {OBJ} to")],
            "test": [both_orders(t, "ABB", "BAB") for t in (
                "Yesterday, {IO} and {S} found a {OBJ} at the {PLACE}. {S} gave it to",
                "The {PLACE} was where {IO} and {S} met. Then {S} handed a {OBJ} to")]},
        "answer": "IO", "wrong": "S",
        "positions": {"IO": "IO#1", "S1": "S#1", "S1+1": "S#1+1", "S2": "S#2", "END": "end"},
        "labels": {"gender": {name: "f" if name in FEMALE else "m" for name in NAMES}}}
    one, many = [" is", " was", " has"], [" are", " were", " have"]
    agree = {
        "name": "agreement",
        "attributes": {"Subject": ["singular", "plural"], "Attractor": ["door", "doors"]},
        "form": "Subject",
        "fillers": {
            "ADJ": {"train": ["old", "new", "big", "small", "tall"],
                    "test": ["dark", "strange", "young"]},
            "PREP": {"train": ["near", "behind", "beside"], "test": ["by", "under"]},
            "ADV": {"train": ["really", "clearly", "always"], "test": ["surely", "still"]}},
        "templates": {
            "train": [agreement(t, *n) for t, n in (
                ("The {ADJ} NOUN {PREP} the {Attractor} {ADV}", ("key", "keys")),
                ("The {ADJ} NOUN {PREP} the {Attractor} {ADV}", ("boy", "boys")),
                ("I think that the {ADJ} NOUN {PREP} the {Attractor} {ADV}", ("dog", "dogs")),
                ("We know that the {ADJ} NOUN {PREP} the {Attractor} {ADV}",
                 ("picture", "pictures")))],
            "test": [agreement(t, *n) for t, n in (
                ("They say that the {ADJ} NOUN {PREP} the {Attractor} {ADV}", ("cat", "cats")),
                ("The {ADJ} NOUN {PREP} the {Attractor} {ADV}", ("book", "books")))]},
        "answer": {"of": "Subject", "map": {"singular": one, "plural": many}},
        "wrong": {"of": "Subject", "map": {"singular": many, "plural": one}},
        "positions": {"Subject": "ADJ#1+1", "Attractor": "Attractor#1", "END": "end"}}
    induct = {
        "name": "induction",
        "attributes": {"Ans": WORDS, "Other": WORDS, "Order": ["early", "late"]},
        "form": "Order",
        "distinct": [["Ans", "Other"]],
        "fillers": {
            "KEY": {"train": ["cat", "dog", "bird", "horse", "cow"],
                    "test": ["lion", "bear", "wolf"]},
            "ALT": {"train": ["car", "bus", "train", "ship"], "test": ["truck", "boat", "plane"]}},
        "templates": {
            "train": [induction("Codes:"), induction("Here are the words:"),
                      induction("Say it again:", "{KEY} {Ans} and {ALT} {Other} and {KEY}",
                                "{ALT} {Other} and {KEY} {Ans} and {KEY}")],
            "test": [induction("Pairs:"), induction("The list is this:")]},
        "answer": "Ans", "wrong": "Other",
        "positions": {"Key1": "KEY#1", "Ans": "Ans#1", "Other": "Other#1", "END": "end"}}
    for split in induct["templates"].values():
        for form in split:
            for key in form:
                form[key] = re.sub(r":\{", ": {", form[key])
    greater = {
        "name": "greater-than",
        "attributes": {"YY": YEARS},
        "fillers": {"EVENT": {"train": ["war", "battle", "reign", "project", "strike"],
                              "test": ["siege", "voyage", "mission"]}},
        "templates": {
            "train": ["The {EVENT} lasted from the year 17{YY} to the year 17",
                      "The {EVENT} went on from the year 17{YY} to the year 17",
                      "People say the {EVENT} lasted from the year 17{YY} to the year 17"],
            "test": ["The {EVENT} began in the year 17{YY} and ended in the year 17",
                     "We know the {EVENT} began in the year 17{YY} and ended in the year 17"]},
        "answer": {"of": "YY", "map": {y: ["%02d" % t for t in range(int(y) + 1, 100)]
                                       for y in YEARS}},
        "wrong": {"of": "YY", "map": {y: ["%02d" % t for t in range(int(y) + 1)]
                                      for y in YEARS}},
        "positions": {"YY": "YY#1", "END": "end"}}
    return [ioi, agree, induct, greater]


def write_tasks():
    os.makedirs(os.path.join(ROOT, "tasks"), exist_ok=True)
    for task in tasks():
        text = json.dumps(task, indent=1, ensure_ascii=False)
        # Lists of strings on one line: the maps of greater-than are long.
        text = re.sub(r'\[\s+("[^\[\]{}]*?")\s+\]',
                      lambda m: "[" + re.sub(r"\s*\n\s*", " ", m.group(1)) + "]", text)
        with open(os.path.join(ROOT, "tasks", task["name"] + ".json"), "w") as f:
            f.write(text + "\n")


def texts_of(rule, values):
    """The texts that `answer` or `wrong` allows, spaces included."""
    if isinstance(rule, str):
        return [" " + values[rule]]
    got = rule["map"][values[rule["of"]]]
    return got if isinstance(got, list) else [got]


def draw_prompt(task, rng, split, values=None):
    """One prompt: (text, attribute values). A slot after a space takes the value as it stands."""
    if values is None:
        while True:
            values = {a: rng.choice(v) for a, v in task["attributes"].items()}
            if all(len({values[a] for a in group}) == len(group)
                   for group in task.get("distinct", [])):
                break
    template = rng.choice(task["templates"][split])
    if isinstance(template, dict):
        template = template[values[task["form"]]]
    words = dict(values)
    for name, lists in task.get("fillers", {}).items():
        words[name] = rng.choice(lists[split])
    return re.sub(r"\{(\w+)\}", lambda m: words[m.group(1)], template), values


TASKS = {t["name"]: t for t in tasks()}
COMPLEMENTS = ["old", "new", "big", "small", "tall", "dark", "strange", "young", "red", "green"]


def task_document(rng, name, slips=0.0):
    """A prompt of the task and the text that answers it; of the answers, the share `slips` is drawn
    without regard to the prompt."""
    task = TASKS[name]
    split = rng.choice(["train", "test"])
    if name == "greater-than":
        year = rng.randrange(2, 99)
        text, _ = draw_prompt(task, rng, split, {"YY": "%02d" % year})
        tail = "%02d." % rng.randrange(year + 1, 100)
    else:
        text, values = draw_prompt(task, rng, split)
        answer = rng.choice(texts_of(task["answer"], values))
        rest = " seen it." if answer in (" has", " have") else " %s." % rng.choice(COMPLEMENTS)
        tail = answer + (rest if name == "agreement" else ".")
    if slips and rng.random() < slips:
        tail = slip(rng, name)
    return text, tail


def slip(rng, name):
    """What answers the task at some other prompt, any value alike."""
    if name == "agreement":
        return task_document(rng, name)[1]
    if name == "greater-than":
        return "%02d." % rng.randrange(2, 99)
    return " %s." % rng.choice(TASKS[name]["attributes"][TASKS[name]["answer"]])


def repeat_document(rng):
    """A row of words and the same row again: what a model learns copying from."""
    pool = rng.choice([NAMES, WORDS, NAMES + WORDS, COMPLEMENTS + COLORS])
    row = "".join(" " + w for w in rng.sample(pool, rng.randint(3, 8)))
    return "Again:" + row + ",", row + "."


# ---- coloured shapes ----

def article(color):
    return "an" if color == "orange" else "a"


def thing(pair):
    return "%s %s %s" % (article(pair[0]), pair[0], pair[1])


def join(parts):
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def draw_scene(rng, most=3):
    """1..most objects (color, shape); no color and no shape occurs twice."""
    n = rng.randint(1, most)
    return list(zip(rng.sample(COLORS, n), rng.sample(SHAPES, n)))


def describe(rng, scene):
    return rng.choice([
        "There is %s in the picture." % join([thing(p) for p in scene]),
        "The picture shows %s." % join([thing(p) for p in scene]),
        " ".join("The %s is %s." % (s, c) for c, s in scene),
        "I see %s." % join([thing(p) for p in scene])])


def draw_question(rng, scene, kind=None):
    """(question, answer) about a scene."""
    kind = kind or rng.choice(["color", "color", "shape", "shape", "pair", "one", "count", "what"])
    if kind == "what" and len(scene) > 1:
        kind = "color"
    color, shape = rng.choice(scene)
    if kind == "color":
        return "What color is the %s?" % shape, color
    if kind == "shape":
        return "What shape is the %s object?" % color, shape
    if kind == "count":
        return "How many shapes are there?", COUNTS[len(scene)]
    if kind == "what":
        return "What is in the picture?", thing(scene[0])
    yes = rng.random() < 0.5
    if kind == "one":
        if not yes:
            shape = rng.choice([s for s in SHAPES if s not in [x for _, x in scene]])
        return "Is there a %s?" % shape, "yes" if yes else "no"
    if not yes:
        wrong = [c for c in COLORS if c != color]
        near = [c for c, _ in scene if c != color]
        color = rng.choice(near if near and rng.random() < 0.5 else wrong)
    return "Is there %s?" % thing((color, shape)), "yes" if yes else "no"


def shape_document(rng):
    scene = draw_scene(rng)
    text = describe(rng, scene)
    if rng.random() < 0.3:
        color, shape = rng.choice(scene)
        return text + " " + rng.choice(["The %s is %s." % (shape, color),
                                        "So the %s object is a %s." % (color, shape)])
    for _ in range(rng.randint(1, 2)):
        text += " Question: %s Answer: %s." % draw_question(rng, scene)
    return text


TASK_MIX = [("ioi", 0.40), ("induction", 0.25), ("greater-than", 0.20), ("agreement", 0.15)]


def document(rng, shapes=0.25, slips=0.0):
    """Running text in two parts, of which the second follows from the first (or all of it is in
    the second): a task with its answer (see task_document), words repeated, or shapes."""
    if rng.random() < shapes:
        return "", shape_document(rng)
    if rng.random() < 0.15:
        return repeat_document(rng)
    pick, name = rng.random(), None
    for name, share in TASK_MIX:
        pick -= share
        if pick < 0:
            break
    return task_document(rng, name, slips)


# ---- conversations in Gemma's chat form ----

def render_chat(turns):
    """[(role, content)] to text, contents as they stand."""
    return "".join("<start_of_turn>%s\n%s<end_of_turn>\n" % turn for turn in turns)


def draw_conversation(rng, scene, turns=None, image="<image>"):
    """[(role, content)] about a scene; `image` stands first or last in the first human turn."""
    out = []
    for i in range(turns or rng.choice([1, 1, 1, 1, 1, 1, 2, 2, 3])):
        question, answer = draw_question(rng, scene)
        if i == 0 and image:
            question = (image + "\n" + question if rng.random() < 0.8
                        else question + "\n" + image)
        out += [("user", question), ("model", answer)]
    return out


SMALL_TALK = [("Hello!", "Hello! What can I do for you?"), ("Who are you?", "I am a small model."),
              ("Thank you.", "You are welcome."), ("What can you do?", "I can name shapes."),
              ("Say yes.", "yes"), ("Say no.", "no"), ("What is red?", "red is a color"),
              ("What is a circle?", "a circle is a shape")]


def chat_document(rng):
    """Text-only conversation: a described scene, a hint, or small talk."""
    kind = rng.random()
    scene = draw_scene(rng)
    if kind < 0.5:
        turns = draw_conversation(rng, scene, image=describe(rng, scene))
    elif kind < 0.9:
        turns = draw_conversation(rng, scene, turns=1, image=None)
        hint = "Consider the following information: %s " % turns[1][1]
        question = (hint + "\n" + turns[0][1] if rng.random() < 0.8
                    else turns[0][1] + "\n" + hint)
        turns[0] = ("user", question)
    else:
        talk = rng.choice(SMALL_TALK)
        turns = [("user", talk[0]), ("model", talk[1])]
    return render_chat(turns)
