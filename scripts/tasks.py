"""Generated pretraining tasks that can only be solved by reading and copying from the prompt.

`sample_task(rng, lexicon)` returns one document with its special tokens spelled out. Words,
names, places and meanings come from the Debian packages named in corpus.py. No benchmark text is
used, and no intent of the sets the family is judged on (snips, banking77) is imitated.
"""

import csv
import gzip
import io
import json
import random
import re
from dataclasses import dataclass

WORDNET = "/usr/share/wordnet"
LEXNAMES = {3: "top", 4: "act", 5: "animal", 6: "artifact", 7: "attribute", 8: "body", 9: "cognition", 10: "communication", 11: "event", 12: "feeling", 13: "food", 14: "group", 15: "location", 16: "motive", 17: "natural_object", 18: "person", 19: "phenomenon", 20: "plant", 21: "possession", 22: "process", 23: "quantity", 24: "relation", 25: "shape", 26: "state", 27: "substance", 28: "time"}
GOOD_LEXNAMES = ["animal", "artifact", "body", "communication", "event", "feeling", "food", "location", "natural_object", "person", "plant", "quantity", "substance", "time", "act", "shape"]


@dataclass(frozen=True)
class Synset:
    """One WordNet meaning; lexname is empty for verbs and adjectives."""

    pos: str
    lexname: str
    lemmas: tuple[str, ...]
    gloss: str
    examples: tuple[str, ...]
    hypernym: str
    antonyms: tuple[tuple[str, str], ...]


def _read_wordnet() -> list[Synset]:
    raw = {}
    for pos in ("noun", "verb", "adj", "adv"):
        for line in open(f"{WORDNET}/data.{pos}", encoding="latin-1"):
            if line.startswith("  "):
                continue
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            num_words = int(fields[3], 16)
            lemmas = [re.sub(r"\(.*\)", "", fields[4 + 2 * i]).replace("_", " ") for i in range(num_words)]
            pointers = fields[5 + 2 * num_words :]
            links = [pointers[i : i + 4] for i in range(0, 4 * int(fields[4 + 2 * num_words]), 4)]
            raw[pos[0], fields[0]] = (pos, int(fields[1]), lemmas, gloss.strip(), links)
    synsets = []
    for pos, lexnum, lemmas, gloss, links in raw.values():
        hypernym, antonyms = "", []
        for link in links:
            target = raw.get((link[2].replace("s", "a"), link[1]))
            if target is None:
                continue
            if link[0] in ("@", "@i") and not hypernym:
                hypernym = target[2][0]
            elif link[0] == "!" and link[3] != "0000":
                antonyms.append((lemmas[int(link[3][:2], 16) - 1], target[2][int(link[3][2:], 16) - 1]))
        examples = tuple(re.findall(r'"([^"]{8,160})"', gloss))
        definition = re.sub(r'[;:,]?\s*"[^"]*"?', "", gloss).strip(" ;:")
        if definition.isascii() and all(lemma.isascii() for lemma in lemmas):
            synsets.append(Synset(pos, LEXNAMES.get(lexnum, "") if pos == "noun" else "", tuple(lemmas), definition, examples, hypernym, tuple(antonyms)))
    return synsets


class Lexicon:
    """Word lists the generators draw from; loading takes a few seconds."""

    def __init__(self) -> None:
        self.synsets = _read_wordnet()
        words = open("/usr/share/dict/american-english", encoding="utf-8").read().split()
        self.words = [w for w in words if re.fullmatch(r"[a-z]{3,11}", w)]
        self.surnames = [w for w in words if re.fullmatch(r"[A-Z][a-z]{3,9}", w)]
        self.first_names = [w for w in gzip.open("/usr/share/dict/propernames.gz", "rt", encoding="latin-1").read().split() if w.isascii()]
        cities = gzip.open("/usr/share/misc/cities.dat.gz", "rt", encoding="latin-1").read()
        self.cities = sorted({c.strip() for c in re.findall(r"^Name +: (.+)$", cities, re.M) if c.isascii() and len(c) < 20})
        countries = gzip.open("/usr/share/misc/countries.gz", "rt", encoding="latin-1").read()
        self.countries = [line.split(":")[3] for line in countries.splitlines() if line.count(":") == 4 and not line.startswith("#") and len(line.split(":")[3]) < 24]
        counted = {}
        for line in open(f"{WORDNET}/cntlist.rev"):
            key, _, count = line.split()
            lemma = key.partition("%")[0].replace("_", " ")
            counted[lemma] = counted.get(lemma, 0) + int(count)
        self.common = sorted(w for w, n in counted.items() if n >= 4 and re.fullmatch(r"[a-z]{3,12}", w))
        seen: set[str] = set()
        self.nouns: list[Synset] = []  # common lemma first, one meaning a word
        self.by_lexname: dict[str, list[str]] = {name: [] for name in GOOD_LEXNAMES}
        first_sense = {}
        for line in open(f"{WORDNET}/index.noun"):
            if not line.startswith("  "):
                fields = line.split()
                first_sense[fields[0].replace("_", " ")] = fields[-int(fields[2])]
        by_lemma: dict[str, Synset] = {}
        offsets = {}
        for line in open(f"{WORDNET}/data.noun", encoding="latin-1"):
            if not line.startswith("  "):
                fields = line.split(maxsplit=3)
                offsets[fields[0]] = LEXNAMES[int(fields[1])]
        for lemma, offset in first_sense.items():
            name = offsets.get(offset)
            if name in self.by_lexname and re.fullmatch(r"[a-z ]{3,16}", lemma) and (lemma in counted or random.Random(lemma).random() < 0.25):
                self.by_lexname[name].append(lemma)
        self.objects = [w for w in self.by_lexname["artifact"] if w in counted] + self.by_lexname["food"][:400]
        for synset in self.synsets:
            for lemma in synset.lemmas:
                if lemma in counted and lemma not in seen:
                    seen.add(lemma)
                    by_lemma[lemma] = synset
        self.glossed = [s for s in self.synsets if any(l in counted for l in s.lemmas)]
        self.synonyms = [s for s in self.glossed if len(s.lemmas) >= 2]
        self.antonyms = [pair for s in self.synsets for pair in s.antonyms if pair[0] in counted]
        self.hypernyms = [(s.lemmas[0], s.hypernym) for s in self.glossed if s.pos == "noun" and s.hypernym]
        self.examples = [e for s in self.synsets for e in s.examples if 3 <= len(e.split()) <= 18]
        self.common_set = set(self.common)


# ---------------------------------------------------------------- values

WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
COLOURS = ["red", "blue", "green", "black", "white", "yellow", "purple", "orange", "brown", "grey", "pink", "silver"]
UNITS = ["kg", "g", "litres", "metres", "km", "miles", "pounds", "boxes", "bottles", "pieces", "hours", "minutes", "days", "weeks"]


def _word(r, lx):
    return r.choice(lx.common) if r.random() < 0.6 else r.choice(lx.words)


def _name(r, lx):
    p = r.random()
    if p < 0.35:
        return r.choice(lx.first_names)
    if p < 0.85:
        return f"{r.choice(lx.first_names)} {r.choice(lx.surnames)}"
    return f"{r.choice(['Mr', 'Mrs', 'Dr', 'Ms', 'Professor'])} {r.choice(lx.surnames)}"


def _place(r, lx):
    p = r.random()
    if p < 0.5:
        return r.choice(lx.cities)
    if p < 0.75:
        return r.choice(lx.countries)
    if p < 0.9:
        return f"{r.choice(lx.surnames)} {r.choice(['Street', 'Road', 'Park', 'Station', 'Hall', 'Square', 'Bridge', 'Hospital', 'School', 'Library'])}"
    return f"{r.choice(lx.cities)}, {r.choice(lx.countries)}"


def _date(r, lx):
    day, month, year = r.randint(1, 28), r.randrange(12), r.randint(1950, 2035)
    return r.choice((f"{day} {MONTHS[month]}", f"{MONTHS[month]} {day}", f"{year}-{month + 1:02d}-{day:02d}", f"{MONTHS[month]} {day}, {year}", f"{day}/{month + 1}/{year}", f"next {r.choice(WEEKDAYS)}", r.choice(WEEKDAYS), "tomorrow", "today", f"the {day}th", f"{r.choice(MONTHS)} {year}", f"in {r.randint(2, 12)} {r.choice(['days', 'weeks', 'months', 'years'])}"))


def _time(r, lx):
    hour, minute = r.randint(1, 12), r.choice((0, 15, 30, 45, r.randrange(60)))
    return r.choice((f"{hour}:{minute:02d}", f"{hour} {r.choice(['am', 'pm'])}", f"{hour}:{minute:02d} {r.choice(['am', 'pm', 'AM', 'PM'])}", "noon", "midnight", f"{hour} o'clock", f"half past {r.choice(['one', 'two', 'six', 'nine'])}", f"{r.randrange(24):02d}:{minute:02d}"))


def _number(r, lx):
    return str(r.choice((r.randint(1, 12), r.randint(1, 100), r.randint(1, 9999), r.randint(1, 10**6))))


def _code(r, lx):
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    p = r.random()
    if p < 0.4:
        return "".join(r.choice(letters) for _ in range(r.randint(1, 4))) + r.choice(("", "-", "-", "/")) + str(r.randint(10, 99999))
    if p < 0.7:
        return "".join(r.choice(letters + "0123456789") for _ in range(r.randint(4, 9)))
    return "".join(r.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(r.randint(4, 10)))


def _email(r, lx):
    return f"{r.choice(lx.first_names).lower()}{r.choice(['', '.', '_'])}{r.choice((r.choice(lx.surnames).lower(), str(r.randint(1, 99))))}@{r.choice(lx.words)}.{r.choice(['com', 'org', 'net', 'co.uk', 'de'])}"


def _phone(r, lx):
    return r.choice(("+{} {} {}", "({}) {}-{}", "{}-{}-{}")).format(r.randint(1, 99), r.randint(100, 999), r.randint(1000, 9999))


def _price(r, lx):
    amount = r.choice((f"{r.randint(1, 999)}", f"{r.randint(1, 99)}.{r.randrange(100):02d}"))
    return r.choice((f"${amount}", f"{amount} euros", f"{amount} dollars", f"{amount} EUR", amount))


def _phrase(r, lx):
    return " ".join(_word(r, lx) for _ in range(r.choice((1, 2, 2, 3, 3, 4, 5))))


def _title(r, lx):
    words = [_word(r, lx) for _ in range(r.choice((1, 2, 2, 3, 4)))]
    glue = r.random()
    if len(words) > 1 and glue < 0.4:
        words.insert(len(words) - 1, r.choice(("of", "and", "in the", "for", "to the", "with")))
    if r.random() < 0.35:
        words.insert(0, r.choice(("the", "a", "my", "our")))
    text = " ".join(words)
    return text.title() if r.random() < 0.6 else text


def _thing(r, lx):
    noun = r.choice(lx.objects)
    return r.choice((noun, f"{r.choice(COLOURS)} {noun}", f"{_word(r, lx)} {noun}"))


def _span(r, lx):
    """A run of words out of an example sentence: realistic, arbitrary, multi-word."""
    words = r.choice(lx.examples).split()
    n = min(len(words), r.randint(1, 6))
    start = r.randint(0, len(words) - n)
    return " ".join(words[start : start + n]).strip(",.;:!?'\"") or "it"


def _random_letters(r, lx):
    syllables = ["ba", "ko", "ri", "tu", "ze", "lim", "nor", "pav", "qui", "sha", "dro", "fen", "gul", "hix", "jor", "mak", "wex", "yul", "stra", "blen"]
    word = "".join(r.choice(syllables) for _ in range(r.randint(2, 4)))
    return word.capitalize() if r.random() < 0.5 else word


def _quantity(r, lx):
    return f"{r.randint(1, 60)} {r.choice(UNITS)}"


KINDS = {"name": _name, "place": _place, "date": _date, "time": _time, "number": _number, "code": _code, "email": _email, "phone": _phone, "price": _price, "phrase": _phrase, "title": _title, "thing": _thing, "span": _span, "odd": _random_letters, "quantity": _quantity, "word": _word, "colour": lambda r, lx: r.choice(COLOURS), "city": lambda r, lx: r.choice(lx.cities), "country": lambda r, lx: r.choice(lx.countries), "weekday": lambda r, lx: r.choice(WEEKDAYS)}
FIELDS = {
    "name": "name full_name author owner sender recipient manager teacher patient driver contact_name guest doctor seller buyer first_name speaker host student player captain inventor",
    "place": "place location city address destination origin venue country hometown region site branch departure arrival street birthplace",
    "date": "date due_date start_date end_date birthday deadline delivery_date day check_in check_out published visit_date",
    "time": "time start_time end_time alarm_time pickup_time opening_time closing_time",
    "number": "count age quantity number year room page score seats floor weight height population size total",
    "code": "code id order_id reference serial_number flight_number model_number part_number tracking_id password token_id license_plate sku",
    "email": "email contact_email reply_to", "phone": "phone phone_number mobile fax",
    "price": "price cost amount budget fee salary fare discount",
    "phrase": "subject topic reason description note message comment summary task purpose keyword",
    "title": "title project event_name product company team course department ship file_name brand",
    "thing": "item object product_name tool device material gift equipment", "colour": "color colour paint_color",
    "span": "quote text remark content detail", "odd": "nickname username planet alias character species",
    "quantity": "duration amount_needed distance length portion", "word": "tag keyword_name category_name status type kind label",
    "city": "city from_city to_city", "country": "country nationality", "weekday": "weekday collection_day",
}
FIELD_POOL = [(field, kind) for kind, names in FIELDS.items() for field in names.split()]


def value_of(kind, r, lx):
    return KINDS[kind](r, lx)


def any_value(r, lx):
    return KINDS[r.choice(list(KINDS))](r, lx)


def any_field(r, lx):
    """A field name and the kind of its value; sometimes both arbitrary."""
    if r.random() < 0.65:
        return r.choice(FIELD_POOL)
    return "_".join(_word(r, lx) for _ in range(r.choice((1, 2, 2, 3)))), r.choice(list(KINDS))


def fields_and_values(r, lx, n):
    """n distinct fields with values, as an ordered dict."""
    record = {}
    while len(record) < n:
        field, kind = any_field(r, lx)
        record[field] = value_of(kind, r, lx)
    return record


def to_json(value, r=None):
    """JSON in the usual spacing, now and then indented."""
    if r is not None and r.random() < 0.08:
        return json.dumps(value, indent=1)
    return json.dumps(value)


def chat(r, instruction, text, answer):
    """Render one exchange; where the instruction goes varies, and it may be absent."""
    if not instruction:
        turns = [("user", text)]
    else:
        p = r.random()
        if p < 0.35:
            turns = [("system", instruction), ("user", text)]
        elif p < 0.8:
            turns = [("user", f"{instruction}{r.choice([chr(10), ' ', chr(10) * 2])}{text}")]
        else:
            turns = [("user", f"{text}\n{instruction}")]
    turns.append(("assistant", answer))
    return "<|bos|>" + "".join(f"<|{role}|>\n{content}<|end|>\n" for role, content in turns)


def plain(text):
    return f"<|bos|>{text}<|end|>"


# ---------------------------------------------------------------- (1) extraction

STATEMENTS = ["The {f} is {v}.", "{f}: {v}.", "{v} is the {f}.", "Its {f} is {v}.", "The {f} was {v}.", "They gave {v} as the {f}.", "For the {f} we have {v}.", "Please use {v} as {f}.", "We noted that the {f} is {v}.", "{v} was written down under {f}.", "As to the {f}, it is {v}.", "I think the {f} should be {v}.", "the {f} is {v}", "{f} = {v}", "My {f} is {v}.", "The {f} has been changed to {v}.", "{f} {v},", "with {f} {v}", "set {f} to {v}", "Someone put {v} down as the {f}."]
FILLERS = ["Thanks a lot.", "I hope this helps.", "Nothing else is known.", "Please let me know.", "It has been a long day.", "Hello there.", "Sorry for the delay.", "This is all we have.", "Good morning,", "By the way,"]
EXTRACT_INSTRUCTIONS = ["Extract {keys} as JSON.", "Return a JSON object with the keys {keys}.", "Read the text and give {keys} in JSON.", "Fields: {keys}", "JSON with {keys}:", "Write a JSON record ({keys}).", "Fill in these fields from the text: {keys}.", "Find {keys}.", "keys: {keys}", "Give me {keys} as a JSON object. Use null for what is not stated."]


def extract_statements(r, lx):
    """Facts in sentences -> JSON in the order the schema asks for."""
    record = fields_and_values(r, lx, r.choice((1, 2, 2, 3, 3, 4, 5, 6, 7)))
    sentences = [r.choice(STATEMENTS).format(f=f.replace("_", " ") if r.random() < 0.8 else f, v=v) for f, v in record.items()]
    for _ in range(r.choice((0, 0, 0, 1, 2))):
        sentences.append(r.choice(FILLERS) if r.random() < 0.5 else r.choice(lx.examples) + ".")
    r.shuffle(sentences)
    text = " ".join(sentences)
    keys = list(record)
    style = r.random()
    answer = dict(record)
    if style < 0.2 and len(keys) > 1:  # only some are wanted
        keys = r.sample(keys, r.randint(1, len(keys) - 1))
        answer = {k: record[k] for k in keys}
    elif style < 0.35:  # asked for more than there is
        extra = any_field(r, lx)[0]
        if extra not in answer:
            keys.insert(r.randint(0, len(keys)), extra)
            answer = {k: record.get(k) for k in keys}
    instruction = r.choice(EXTRACT_INSTRUCTIONS).format(keys=", ".join(keys))
    if style > 0.97:
        answer = {r.choice(("record", "data", "result", "entry")): answer}
        instruction += f' Nest it under "{next(iter(answer))}".'
    elif style > 0.92:
        return chat(r, f"List the values of {', '.join(keys)} as a JSON list.", text, to_json(list(answer.values()), r))
    elif style > 0.87:
        return chat(r, f"Write {', '.join(keys)} one per line as key: value.", text, "\n".join(f"{k}: {v}" for k, v in answer.items()))
    elif 0.35 < style < 0.5:  # no instruction: every field, in the order of the text
        order = sorted(record, key=lambda k: text.find(record[k]))
        return chat(r, "", text, to_json({k: record[k] for k in order}, r))
    return chat(r, instruction, text, to_json(answer, r))


# intent: ({slot: kind}, patterns); [a|b] is optional, <a|b> picks one.
INTENTS = {
    "create_reminder": ({"task": "phrase", "date": "date", "time": "time"}, ["[please |can you |could you ]remind me to {task}[ on {date}][ at {time}]", "set a reminder for {date}[ at {time}] to {task}", "i <need|have> to {task}[ by {time}][ {date}], don't let me forget", "[{date} ]reminder: {task}[, {time}]"]),
    "add_event": ({"event_name": "title", "date": "date", "time": "time", "place": "place", "guest": "name"}, ["put {event_name} in my calendar for {date}[ at {time}][ in {place}]", "schedule {event_name} with {guest}[ on {date}][ at {time}]", "i have {event_name} at {place}[ on {date}], add it", "meeting with {guest}[ about {event_name}] {date}[ {time}]", "create an event called {event_name}[ at {place}]"]),
    "send_message": ({"recipient": "name", "text": "span", "channel": "word"}, ["<text|tell|message> {recipient} that {text}", "send {recipient} a message[ on {channel}] saying {text}", "let {recipient} know {text}", "write to {recipient}: {text}", "send '{text}' to {recipient}[ via {channel}]"]),
    "send_email": ({"recipient": "email", "subject": "phrase", "body": "span"}, ["email {recipient} about {subject}", "send an email to {recipient}[ with the subject {subject}][ saying {body}]", "write {recipient} a mail, subject {subject}[, text {body}]", "compose a mail on {subject} for {recipient}"]),
    "book_flight": ({"from_city": "city", "to_city": "city", "date": "date", "seats": "number", "travel_class": "word"}, ["i <want|need|would like> a flight from {from_city} to {to_city}[ on {date}]", "<book|find|get> me {seats} seats to {to_city}[ from {from_city}][, leaving {date}]", "fly to {to_city} from {from_city}[ {date}][ in {travel_class} class]", "how do i get to {to_city} by plane[ on {date}]", "flights {from_city} {to_city}[ {date}]"]),
    "book_hotel": ({"city": "city", "check_in": "date", "nights": "number", "guest": "name"}, ["book a room in {city}[ from {check_in}][ for {nights} nights]", "i need a hotel in {city}[ for {guest}][, arriving {check_in}]", "reserve {nights} nights in {city}[ under the name {guest}]"]),
    "train_times": ({"origin": "place", "destination": "place", "time": "time"}, ["when is the next train from {origin} to {destination}", "trains to {destination}[ after {time}]", "what time does the train to {destination} leave {origin}", "is there a train at {time} for {destination}"]),
    "order_item": ({"item": "thing", "quantity": "number", "color": "colour", "price": "price"}, ["<order|buy|get> {quantity} {item}[ in {color}]", "i <want|need> a {color} {item}[ for under {price}]", "add {quantity} of {item} to my basket", "find me {item} cheaper than {price}", "do you have {item} in {color}"]),
    "track_parcel": ({"tracking_id": "code", "company": "title"}, ["where is <parcel|package> {tracking_id}", "track {tracking_id}[ sent with {company}]", "has {company} delivered {tracking_id} yet"]),
    "set_device": ({"device": "thing", "room": "word", "value": "number"}, ["<turn|switch> <on|off> the {device}[ in the {room}]", "set the {device} in the {room} to {value}", "{device} to {value}[ please]", "make the {room} {device} {value} percent"]),
    "set_alarm": ({"time": "time", "weekday": "weekday", "label": "phrase"}, ["wake me[ up] at {time}[ on {weekday}]", "set an alarm for {time}[ every {weekday}][ called {label}]", "alarm {time}[ {label}]"]),
    "start_timer": ({"duration": "quantity", "label": "phrase"}, ["start a timer for {duration}[ called {label}]", "{duration} timer[ for {label}]", "count down {duration}"]),
    "find_recipe": ({"dish": "title", "ingredient": "thing", "servings": "number", "without": "word"}, ["how do i <make|cook> {dish}[ without {without}]", "give me a recipe <with|using> {ingredient}[ for {servings} people]", "recipe for {dish}[ that serves {servings}]", "what can i cook with {ingredient}"]),
    "convert_units": ({"amount": "number", "from_unit": "word", "to_unit": "word"}, ["convert {amount} {from_unit} to {to_unit}", "how many {to_unit} are in {amount} {from_unit}", "what is {amount} {from_unit} in {to_unit}"]),
    "translate_text": ({"text": "span", "language": "country"}, ["how do you say {text} in the language of {language}", "translate {text}[ for someone from {language}]", "what does {text} mean in {language}"]),
    "define_word": ({"word": "word"}, ["what does {word} mean", "define {word}", "look up the word {word}", "meaning of {word}"]),
    "match_result": ({"team": "title", "opponent": "odd", "date": "date"}, ["did {team} win[ against {opponent}][ on {date}]", "what was the score of {team} versus {opponent}", "how did {team} do {date}", "when do {team} play {opponent} next"]),
    "enrol_course": ({"student": "name", "course": "title", "term": "date"}, ["enrol {student} in {course}[ starting {term}]", "sign me up for {course}[, {term}]", "{student} wants to take {course}[ from {term}]"]),
    "log_workout": ({"exercise": "phrase", "duration": "quantity", "distance": "quantity"}, ["i did {exercise} for {duration}", "log {distance} of {exercise}[ in {duration}]", "add {duration} {exercise} to my training"]),
    "open_file": ({"file_name": "title", "folder": "word", "page": "number"}, ["open {file_name}[ in the {folder} folder][ at page {page}]", "show me {file_name}[ from {folder}]", "where did i save {file_name}"]),
    "rename_file": ({"old_name": "title", "new_name": "title"}, ["rename {old_name} to {new_name}", "call {old_name} {new_name} from now on", "change the name of {old_name} into {new_name}"]),
    "add_contact": ({"name": "name", "phone": "phone", "email": "email", "company": "title"}, ["save {name}'s number {phone}", "add {name}[ from {company}] to my contacts[, email {email}]", "new contact {name}[ {phone}][ {email}]"]),
    "report_fault": ({"object": "thing", "place": "place", "problem": "phrase"}, ["the {object} at {place} is broken[: {problem}]", "there is a problem with the {object}[ in {place}]", "{object} not working[ at {place}], {problem}"]),
    "pack_bag": ({"item": "thing", "trip": "city", "quantity": "number"}, ["pack {item}[ for {trip}]", "i should not forget {quantity} {item}[ when i go to {trip}]", "take {item} along to {trip}"]),
    "find_place": ({"kind": "thing", "place": "place", "distance": "quantity"}, ["is there a {kind} <near|in|close to> {place}", "find a {kind} within {distance}[ of {place}]", "nearest {kind}[ to {place}]", "where can i find a {kind} in {place}"]),
    "hire_vehicle": ({"vehicle": "thing", "city": "city", "start_date": "date", "duration": "quantity"}, ["rent a {vehicle} in {city}[ from {start_date}][ for {duration}]", "i need a {vehicle} for {duration}[ in {city}]", "hire {vehicle}[ on {start_date}]"]),
    "lend_item": ({"item": "thing", "borrower": "name", "until": "date"}, ["lend {item} to {borrower}[ until {until}]", "{borrower} borrowed my {item}[, back by {until}]", "who has my {item}, i think {borrower}"]),
    "visit_doctor": ({"doctor": "name", "reason": "phrase", "date": "date", "time": "time"}, ["i need to see {doctor}[ about {reason}][ on {date}]", "appointment with {doctor}[ at {time}][ {date}]", "can {doctor} see me {date}[ about my {reason}]"]),
    "note": ({"content": "span", "topic": "word"}, ["note[ to self]: {content}", "write down that {content}[ under {topic}]", "take a note[ about {topic}]: {content}"]),
    "ask_fact": ({"entity": "title", "attribute": "word"}, ["what is the {attribute} of {entity}", "tell me {entity}'s {attribute}", "who knows the {attribute} of {entity}", "does {entity} have a {attribute}"]),
}
INTENT_INSTRUCTIONS = ["Turn the request into JSON with the intent and its slots.", "Parse the command.", "What does the user want? Answer in JSON.", "Give intent and parameters as JSON.", "Convert to a JSON command.", "NLU:"]
OPENERS = ["", "", "", "", "hi, ", "hello, ", "ok ", "hey ", "please ", "so ", "um, "]


def _expand(pattern, r):
    """Resolve optional and alternative parts; optional parts may hold alternatives."""
    pattern = re.sub(r"\[([^\]]*)\]", lambda m: r.choice(m[1].split("|")) if r.random() < 0.5 else "", pattern)
    return re.sub(r"<([^>]*)>", lambda m: r.choice(m[1].split("|")), pattern)


def _fill(pattern, slots, r, lx):
    """Text and its slot values in the order of the text."""
    values = {}

    def put(m):
        kind = slots[m[1]]
        # Any slot may hold something outlandish, so that only position tells what it is.
        if r.random() < 0.25:
            kind = r.choice(("phrase", "title", "odd", "span", "name", "place"))
        values[m[1]] = value_of(kind, r, lx)
        return values[m[1]]

    return re.sub(r"\{(\w+)\}", put, pattern), values


def _casing(text, values, r):
    """Lower or sentence case over text and values alike."""
    p = r.random()
    if p < 0.35:
        return text.lower(), {k: v.lower() for k, v in values.items()}
    return (text[0].upper() + text[1:] if p < 0.75 and not any(text.startswith(v) for v in values.values()) else text), values


def one_intent(r, lx, intent=None):
    intent = intent or r.choice(list(INTENTS))
    slots, patterns = INTENTS[intent]
    text, values = _fill(_expand(r.choice(patterns), r), slots, r, lx)
    text, values = _casing(r.choice(OPENERS) + text, values, r)
    return intent, text + r.choice(("", "", ".", "!", "?", " please", " thanks")), values


def extract_intent(r, lx):
    """Conversational request -> {"intent": ..., slots}; sometimes nested or in another key order."""
    intent, text, values = one_intent(r, lx)
    answer = {"intent": intent, **values}
    p = r.random()
    if p < 0.55:
        return chat(r, "" if r.random() < 0.6 else r.choice(INTENT_INSTRUCTIONS), text, to_json(answer))
    slots = INTENTS[intent][0]
    if p < 0.75:
        keys = list(slots)
        r.shuffle(keys)
        return chat(r, f"Intent {intent}. Slots: {', '.join(keys)}. JSON, absent slots left out.", text, to_json({"intent": intent, **{k: values[k] for k in keys if k in values}}))
    if p < 0.85:
        return chat(r, "Answer with intent and slots, nested.", text, to_json({"intent": intent, "slots": values}))
    if p < 0.93:
        others = r.sample([i for i in INTENTS if i != intent], r.randint(1, 6)) + [intent]
        r.shuffle(others)
        return chat(r, f"Which intent is it: {', '.join(others)}?", text, intent)
    return chat(r, "Name the slots, one per line.", text, "\n".join(f"{k}: {v}" for k, v in values.items()) or "none")


def random_pattern(r, lx):
    """A made-up request pattern with made-up slots: nothing but the examples explains it."""
    fields = dict(any_field(r, lx) for _ in range(r.randint(1, 4)))
    parts = []
    for field in fields:
        parts += [" ".join(_word(r, lx) for _ in range(r.randint(1, 3))), "{" + field + "}"]
    if r.random() < 0.4:
        parts.append(_word(r, lx))
    return "_".join(_word(r, lx) for _ in range(2)), fields, " ".join(parts)


def kshot_extract(r, lx):
    """The same made-up pattern several times, then a query; examples are turns or plain text."""
    intent, fields, pattern = random_pattern(r, lx)
    known = r.random() < 0.3
    pairs = []
    for _ in range(r.randint(2, 5)):
        if known:
            name, text, values = one_intent(r, lx)
            pairs.append((text, to_json({"intent": name, **values})))
        else:
            text, values = _fill(pattern, fields, r, lx)
            pairs.append((text, to_json({"intent": intent, **values})))
    return render_pairs(r, pairs, "")


def render_pairs(r, pairs, instruction):
    """k examples and a query, as chat turns, as one user turn, or as plain text."""
    p = r.random()
    if p < 0.4:
        head = f"<|system|>\n{instruction}<|end|>\n" if instruction else ""
        return "<|bos|>" + head + "".join(f"<|user|>\n{a}<|end|>\n<|assistant|>\n{b}<|end|>\n" for a, b in pairs)
    sep, arrow, gap = r.choice((("", " -> ", "\n"), ("Input: ", "\nOutput: ", "\n\n"), ("Q: ", "\nA: ", "\n"), ("", " => ", "\n"), ("", ": ", "\n"), ("Text: ", "\nLabel: ", "\n\n")))
    shots = gap.join(f"{sep}{a}{arrow}{b}" for a, b in pairs[:-1])
    query, answer = pairs[-1]
    if p < 0.75:
        lead = f"{instruction}\n" if instruction else ""
        return chat(r, "", f"{lead}{shots}{gap}{sep}{query}{arrow}".rstrip(), answer)
    return plain(f"{shots}{gap}{sep}{query}{arrow}{answer}")


# ---------------------------------------------------------------- (2) lookup

def lookup(r, lx):
    """One value out of a list, a JSON object or a table."""
    p = r.random()
    if p < 0.6:
        record = fields_and_values(r, lx, r.randint(2, 10))
        key = r.choice(list(record))
        text = to_json(record) if p < 0.2 else r.choice(("\n", ", ", "; ", "\n")).join(f"{k}{': ' if p < 0.4 else ' = '}{v}" for k, v in record.items())
        if r.random() < 0.25:
            return chat(r, f"Which key has the value {record[key]}?", text, next(k for k, v in record.items() if v == record[key]))
        if r.random() < 0.15:
            missing = any_field(r, lx)[0]
            if missing not in record:
                return chat(r, f"What is {missing}? Say unknown if it is not there.", text, "unknown")
        return chat(r, r.choice(("What is {k}?", "{k}?", "Give the value of {k}.", "Look up {k}.", "value for {k}:")).format(k=key), text, record[key])
    columns = [any_field(r, lx) for _ in range(r.randint(2, 4))]
    rows = [[value_of(kind, r, lx) for _, kind in columns] for _ in range(r.randint(2, 6))]
    bar = r.choice((" | ", ",", "\t", " ; "))
    table = "\n".join(bar.join(row) for row in [[c for c, _ in columns], *rows])
    row, c = r.choice(rows), r.randrange(1, len(columns))
    return chat(r, f"What is the {columns[c][0]} where {columns[0][0]} is {row[0]}?", table, next(x[c] for x in rows if x[0] == row[0]))


# ---------------------------------------------------------------- (3) choose a label

def choose_label(r, lx):
    """Pick the listed class a word belongs to, or apply a rule spelled out in the prompt."""
    p = r.random()
    if p < 0.5:
        labels = r.sample(GOOD_LEXNAMES, r.randint(2, 7))
        label = r.choice(labels)
        word = r.choice(lx.by_lexname[label])
        return chat(r, r.choice(("Choose one: {l}.", "Which of these is it: {l}?", "Labels: {l}", "Classify as {l}.", "Category ({l})?")).format(l=", ".join(labels)), word, label)
    if p < 0.7:
        word, hypernym = r.choice(lx.hypernyms)
        labels = [h.replace(" ", "_") for _, h in r.sample(lx.hypernyms, r.randint(1, 5))] + [hypernym.replace(" ", "_")]
        labels = list(dict.fromkeys(labels))
        r.shuffle(labels)
        return chat(r, f"Which label fits best: {', '.join(labels)}?", word, hypernym.replace(" ", "_"))
    # A rule: label names are arbitrary, each stands for a class or a word to be seen in the text.
    names = ["_".join(_word(r, lx) for _ in range(r.choice((1, 2, 2, 3)))) for _ in range(r.randint(2, 5))]
    if p < 0.85:
        classes = r.sample(GOOD_LEXNAMES, len(names))
        rule = "; ".join(f"{n} if it is {'an' if c[0] in 'aeiou' else 'a'} {c}" for n, c in zip(names, classes))
        at = r.randrange(len(names))
        return chat(r, f"Answer {rule}.", r.choice(lx.by_lexname[classes[at]]), names[at])
    cues = r.sample(lx.common, len(names))
    rule = "; ".join(f"{n} if the text mentions {c}" for n, c in zip(names, cues))
    at = r.randrange(len(names))
    words = r.choice(lx.examples).split()
    words.insert(r.randint(0, len(words)), cues[at])
    return chat(r, f"Answer {rule}.", " ".join(words), names[at])


# ---------------------------------------------------------------- (4) copying

def copying(r, lx):
    """Repeat, pick out, reverse or recase words that only the prompt knows."""
    p = r.random()
    if p < 0.2:
        text = " ".join(any_value(r, lx) for _ in range(r.randint(1, 6))) if p < 0.12 else r.choice(lx.examples)
        return chat(r, r.choice(("Repeat:", "Say this again:", "Copy the text.", "Echo:", "Write exactly the same:")), text, text)
    if p < 0.32:
        unit = " ".join(_word(r, lx) if r.random() < 0.7 else _random_letters(r, lx) for _ in range(r.randint(2, 20)))
        return plain(r.choice(("\n", " ", " | ", ". ")).join([unit] * r.randint(2, 4)))
    words = [_word(r, lx) if r.random() < 0.8 else any_value(r, lx).split()[0] for _ in range(r.randint(4, 14))]
    text = " ".join(words)
    if p < 0.45:
        value = any_value(r, lx)
        quote = r.choice(('"', "'", "<", "*", "("))
        close = {"<": ">", "(": ")"}.get(quote, quote)
        at = r.randint(0, len(words))
        return chat(r, r.choice(("What is between the marks?", f"Copy what stands inside {quote} {close}.", "Give the quoted part.")), " ".join([*words[:at], f"{quote}{value}{close}", *words[at:]]), value)
    if p < 0.6:
        at = r.randrange(len(words) - 1)
        if r.random() < 0.5:
            return chat(r, f"Which word comes after {words[at]}?", text, words[words.index(words[at]) + 1])
        return chat(r, f"What follows {words[at]}?", text, " ".join(words[words.index(words[at]) + 1 :]))
    if p < 0.7:
        n = r.randrange(min(6, len(words)))
        return chat(r, f"What is the {['first', 'second', 'third', 'fourth', 'fifth', 'sixth'][n]} word?", text, words[n])
    if p < 0.76:
        return chat(r, "What is the last word?", text, words[-1])
    if p < 0.82:
        short = words[: r.randint(2, 6)]
        return chat(r, r.choice(("Reverse the order of the words.", "Write the words backwards.")), " ".join(short), " ".join(short[::-1]))
    if p < 0.9:
        how = r.choice(("upper", "lower", "title"))
        return chat(r, f"Write in {how} case.", text, getattr(text, how)())
    if p < 0.95:
        old, new = r.choice(words), _word(r, lx)
        return chat(r, f"Replace {old} with {new}.", text, " ".join(new if w == old else w for w in words))
    joiner = r.choice(("_", "-", ", "))
    return chat(r, f"Join the words with '{joiner}'.", text, joiner.join(words))


def repetition(r, lx):
    """The same unit again, or the same pairs in another order: the shortest way to induction."""
    p = r.random()
    if p < 0.5:
        unit = " ".join(any_value(r, lx) if r.random() < 0.5 else _word(r, lx) for _ in range(r.randint(2, 14)))
        return plain(r.choice(("\n", " ", " | ", ". ")).join([unit] * r.randint(2, 4)))
    if p < 0.65:
        text = " ".join(any_value(r, lx) for _ in range(r.randint(1, 8)))
        return chat(r, r.choice(("Repeat:", "Copy the text.", "Echo:", "")), text, text)
    pairs = [f"{_word(r, lx)}{r.choice((' ', ': ', ' is '))}{any_value(r, lx)}" for _ in range(r.randint(2, 7))]
    blocks = []
    for _ in range(r.randint(2, 3)):
        blocks.append(r.choice(("\n", ", ", "; ")).join(pairs))
        r.shuffle(pairs)
    return plain("\n".join(blocks))


# ---------------------------------------------------------------- (5) formats

def convert(r, lx):
    """One record from one notation into another."""
    record = fields_and_values(r, lx, r.randint(1, 6))

    def write(form):
        if form == "JSON":
            return to_json(record)
        if form == "lines":
            return "\n".join(f"{k}: {v}" for k, v in record.items())
        if form == "CSV":
            out = io.StringIO()
            csv.writer(out, lineterminator="\n").writerows([record.keys(), record.values()])
            return out.getvalue().strip()
        return "; ".join(f"{k}={v}" for k, v in record.items())

    source, target = r.sample(("JSON", "JSON", "lines", "CSV", "pairs"), 2)
    if source == target:
        source = "lines"
    return chat(r, r.choice(("Convert to {t}.", "Write as {t}.", "{s} to {t}:", "Rewrite this as {t}.")).format(s=source, t=target), write(source), write(target))


# ---------------------------------------------------------------- (6) in-context examples

def kshot_label(r, lx):
    """Examples of a mapping from word or question to label, then a query."""
    p = r.random()
    k = r.randint(3, 8)
    if p < 0.35:
        classes = r.sample(GOOD_LEXNAMES, r.randint(2, 3))
        names = classes if r.random() < 0.5 else ["_".join(_word(r, lx) for _ in range(r.choice((1, 2)))) for _ in classes]
        picks = [r.randrange(len(classes)) for _ in range(k)]
        picks[-1] = r.choice(picks[:-1])
        pairs = [(r.choice(lx.by_lexname[classes[i]]), names[i]) for i in picks]
    elif p < 0.6:
        pool = [(any_value(r, lx), any_value(r, lx)) for _ in range(k)]
        pairs = [*pool, r.choice(pool)]
    elif p < 0.8:
        topics = [one_topic(r, lx)[1] for _ in range(r.randint(2, 4))]
        picks = [r.choice(topics) for _ in range(k)]
        picks[-1] = r.choice(picks[:-1])
        pairs = [(one_topic(r, lx, label)[0], "_".join(label)) for label in picks]
    else:
        change = r.choice((str.upper, str.title, lambda w: w[::-1][:0] + w + "s", lambda w: f"<{w}>", lambda w: f"{w} {w}", lambda w: w.split()[-1], lambda w: w.split()[0]))
        values = [_phrase(r, lx) for _ in range(k)]
        pairs = [(v, change(v)) for v in values]
    return render_pairs(r, pairs, "" if r.random() < 0.7 else "Go on in the same way.")


# ---------------------------------------------------------------- (7) meanings

def meaning(r, lx):
    """WordNet relations as questions."""
    p = r.random()
    synset = r.choice(lx.glossed)
    word = next((lemma for lemma in synset.lemmas if lemma in lx.common_set), synset.lemmas[0])
    if p < 0.22:
        return chat(r, "", r.choice(("What does {w} mean?", "Define {w}.", "{w}?", "What is the meaning of {w}?")).format(w=word), synset.gloss)
    if p < 0.42:
        return chat(r, r.choice(("Which word is meant?", "Name the word.", "One word for this:")), synset.gloss, word)
    if p < 0.57:
        synset = r.choice(lx.synonyms)
        a, b = r.sample(synset.lemmas, 2)
        return chat(r, "", r.choice(("Another word for {w}?", "Give a synonym of {w}.", "synonym: {w}")).format(w=a), b)
    if p < 0.67:
        a, b = r.choice(lx.antonyms)
        return chat(r, "", r.choice(("What is the opposite of {w}?", "opposite: {w}", "antonym of {w}")).format(w=a), b)
    if p < 0.82:
        a, b = r.choice(lx.hypernyms)
        return chat(r, "", r.choice(("What kind of thing is {w}?", "{w} is a kind of what?", "Category of {w}?")).format(w=a), b)
    if p < 0.9:
        label = r.choice(GOOD_LEXNAMES)
        return chat(r, "", f"category: {r.choice(lx.by_lexname[label])}", label)
    synset = r.choice(lx.synonyms)
    for example in synset.examples:
        for lemma in synset.lemmas:
            if re.search(rf"\b{re.escape(lemma)}\b", example):
                other = r.choice([x for x in synset.lemmas if x != lemma])
                return chat(r, r.choice(("Say it in other words.", f"Replace {lemma} by a synonym.")), example, re.sub(rf"\b{re.escape(lemma)}\b", other, example))
    return chat(r, "Use the word in a sentence.", word, r.choice(synset.examples) if synset.examples and word in synset.lemmas else synset.gloss)


# ---------------------------------------------------------------- (8) topics of short questions

OBJECTS = {
    "washing_machine": "washing machine|washer|laundry machine", "parking_permit": "parking permit|permit to park|resident parking", "gym_membership": "gym membership|fitness club|gym", "laptop": "laptop|notebook|computer", "router": "router|wifi box|internet box", "train_pass": "train pass|rail pass|season pass", "garden_hose": "garden hose|hose", "visa_application": "visa application|visa|entry permit", "school_uniform": "school uniform|uniform", "library_book": "library book|book from the library|borrowed book", "bicycle": "bicycle|bike|cycle", "printer": "printer|printing machine", "headphones": "headphones|earphones|headset", "dentist_appointment": "dentist appointment|dental check|dentist visit", "water_bill": "water bill|water invoice", "electric_meter": "electric meter|power meter|electricity reading", "passport": "passport|travel document", "hotel_room": "hotel room|room|suite", "flight": "flight|plane|air ticket", "luggage": "luggage|suitcase|bags", "sofa": "sofa|couch|settee", "mattress": "mattress|bed", "online_course": "online course|class|lessons", "exam": "exam|test|final paper", "homework": "homework|assignment|exercise sheet", "software_update": "software update|update|new version", "email_account": "email account|mailbox|email", "website": "website|web page|site", "newsletter": "newsletter|mailing list|weekly mail", "insurance_claim": "insurance claim|claim|damage report", "rental_car": "rental car|hire car|car", "tent": "tent|camping tent", "kitchen_oven": "oven|stove|cooker", "fridge": "fridge|refrigerator|cooler", "heating": "heating|radiator|boiler", "elevator": "elevator|lift", "garbage_collection": "garbage collection|trash pickup|bin collection", "dog_licence": "dog licence|licence for my dog", "vaccine": "vaccine|shot|vaccination", "prescription": "prescription|medicine|pills", "job_application": "job application|application|my CV", "payslip": "payslip|salary statement|pay sheet", "holiday_request": "holiday request|days off|leave", "meeting_room": "meeting room|conference room", "badge": "badge|entry badge|office pass", "phone_contract": "phone contract|mobile plan|phone plan", "camera": "camera|digital camera", "watch": "watch|smart watch", "shoes": "shoes|boots|sneakers", "jacket": "jacket|coat", "birthday_cake": "birthday cake|cake", "theatre_seat": "theatre seat|seat|seat in the theatre", "museum_tour": "museum tour|guided tour|tour", "swimming_lesson": "swimming lesson|swim class", "piano": "piano|keyboard", "solar_panel": "solar panel|solar cells|panel", "lawn_mower": "lawn mower|mower", "drill": "drill|power drill", "parcel": "parcel|package|box", "voucher": "voucher|gift code|coupon", "mobile_app": "app|mobile app|application on my phone", "game_console": "game console|console", "baby_seat": "baby seat|child seat", "key": "key|house key|door key", "smoke_alarm": "smoke alarm|smoke detector|alarm",
}
ISSUES = {
    "not_working": ["the {o} <is not working|does not work|stopped working|won't start|is dead>", "my {o} <broke down|is broken|has a fault>", "why <doesn't|won't> my {o} work", "i can't get the {o} to <work|start|run>", "there is something wrong with the {o}"],
    "lost": ["i <lost|can't find|misplaced> my {o}", "my {o} is <gone|missing>", "i left my {o} somewhere, what should i do", "what happens if i lose the {o}", "has anyone found a {o}"],
    "late": ["the {o} <is late|has not come|hasn't arrived|is delayed>", "i am still waiting for <my|the> {o}", "how much longer <until|before> the {o} <comes|gets here>", "it has been {n} days and no {o} yet"],
    "cancel": ["i want to <cancel|stop|end> my {o}", "how do i <cancel|get out of|call off> the {o}", "please cancel the {o}", "i no longer <need|want> the {o}", "can the {o} be cancelled"],
    "renew": ["how do i <renew|extend|prolong> my {o}", "my {o} <runs out|expires|ends> soon", "can i extend the {o}", "what is needed to renew a {o}"],
    "how_to_use": ["how <do i use|does one use|do you operate> the {o}", "is there a manual for the {o}", "can you explain how the {o} works", "i don't understand the {o}", "what do i do with the {o}"],
    "too_expensive": ["the {o} <costs too much|is too expensive|is overpriced>", "why is the {o} so expensive", "can i get the {o} for less", "is there a cheaper {o}", "{n} dollars for a {o} is a lot"],
    "price_question": ["how much <is|does it cost for|would i pay for> a {o}", "what does the {o} cost", "what is the price of the {o}", "what will i be charged for the {o}"],
    "change_date": ["can i <move|change|shift> the {o} to another day", "i need a different <date|day> for the {o}", "please put the {o} off until next week", "the date for the {o} doesn't suit me"],
    "damaged": ["the {o} <arrived damaged|has a crack|is scratched|is torn|came in pieces>", "my {o} got damaged", "there is a <dent|hole|stain> in the {o}", "someone broke my {o}"],
    "noisy": ["the {o} is <too loud|very noisy|making a strange noise>", "why does my {o} make that sound", "i can't sleep because of the {o}", "strange sounds come from the {o}"],
    "dirty": ["the {o} is <dirty|filthy|not clean>", "how do i clean the {o}", "there is mud on the {o}", "could someone clean the {o}"],
    "availability": ["do you <have|sell|stock> a {o}", "is the {o} <available|in stock|still there>", "when will the {o} be back", "where can i get a {o}", "can i still get a {o}"],
    "opening_hours": ["when <can i come for|is the office open for> the {o}", "what are the hours for the {o}", "are you open on sunday for the {o}", "until what time can i ask about the {o}"],
    "wrong_item": ["i got the wrong {o}", "this is not the {o} i <asked for|ordered|wanted>", "the {o} does not match the description", "you sent a different {o}"],
    "wrong_size": ["the {o} is too <big|small|tight|long|short>", "the {o} doesn't fit", "can i swap the {o} for another size", "what size of {o} do i need"],
    "who_is_eligible": ["who <can|may> have a {o}", "am i <allowed|entitled> to get a {o}", "can my <son|daughter|wife|father> use the {o}", "how old must i be for a {o}"],
    "delivery": ["can the {o} be <delivered|brought|sent> to my house", "do you ship the {o} abroad", "where will the {o} be delivered", "what does it cost to have the {o} sent"],
    "repair": ["can <someone|you> <repair|fix|mend> my {o}", "where do i take the {o} for repair", "i need a technician for the {o}", "how long does it take to fix a {o}"],
    "complaint": ["i am <very unhappy|angry|disappointed> with the {o}", "the {o} is <terrible|awful|a joke>", "i want to complain about the {o}", "never again this {o}"],
    "praise": ["i <love|really like|am happy with> the {o}", "the {o} is <great|wonderful|perfect>", "thank you for the {o}", "best {o} i ever had"],
    "install": ["how do i <install|set up|mount> the {o}", "who can put in the {o}", "help me setting up my {o}", "the {o} is still in the box, how do i begin"],
    "safety": ["is the {o} <safe|dangerous> for children", "could the {o} catch fire", "i got hurt by the {o}", "are there risks with the {o}"],
    "second_one": ["can i have <another|a second|one more> {o}", "i need two of the {o}", "how many {o} can one person have", "is it possible to get an extra {o}"],
    "status": ["what is the <state|status> of my {o}", "is there news about the {o}", "did you receive my {o}", "has my {o} been <approved|processed|looked at>", "how far is my {o}"],
    "register": ["how do i <register|sign up|apply> for a {o}", "where is the form for the {o}", "i would like to <get|have|apply for> a {o}", "what do i need to get a {o}"],
    "refused": ["why was my {o} <rejected|refused|turned down>", "they said no to my {o}", "my {o} was not accepted", "you refused the {o}, why"],
}
LEADS = ["", "", "", "", "", "hi, ", "hello, ", "excuse me, ", "quick question: ", "i have a problem. ", "good morning. ", "can you help me? ", "please help, ", "sorry but "]
TAILS = ["", "", "", "", "?", ".", "!", ". what now?", ". please help", ", please", ". thanks", ". can you look into it?", " and i don't know what to do"]


def one_topic(r, lx, label=None):
    """A short question and its (object, issue) label."""
    if label is None:
        name = r.choice(list(OBJECTS)) if r.random() < 0.8 else r.choice(lx.objects).replace(" ", "_")
        label = (name, r.choice(list(ISSUES)))
    name, issue = label
    noun = r.choice(OBJECTS[name].split("|")) if name in OBJECTS else name.replace("_", " ")
    text = r.choice(LEADS) + _expand(r.choice(ISSUES[issue]), r).replace("{o}", noun).replace("{n}", str(r.randint(2, 30)))
    if r.random() < 0.2:
        text = f"{_expand(r.choice(('i bought it <last week|yesterday|in may>. ', 'this is the <second|third> time. ', 'i live in ' + r.choice(lx.cities) + '. ', 'my <wife|son|boss|friend> told me to ask. ')), r)}{text}"
    text += r.choice(TAILS)
    if r.random() < 0.6:
        text = re.sub(r"(^|[.!?] )([a-z])", lambda m: m[1] + m[2].upper(), text)
        text = re.sub(r"\bi\b", "I", text)
    if r.random() < 0.1 and len(text) > 8:  # a typing slip
        at = r.randrange(1, len(text) - 2)
        text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text, label


def topic(r, lx):
    """Short question -> snake_case topic, with the choice open, listed, or by part."""
    text, (name, issue) = one_topic(r, lx)
    label = f"{name}_{issue}"
    p = r.random()
    if p < 0.5:
        return chat(r, "" if r.random() < 0.75 else r.choice(("Topic?", "Label the question.", "What is it about?")), text, label)
    if p < 0.7:
        others = [f"{name if r.random() < 0.5 else r.choice(list(OBJECTS))}_{r.choice(list(ISSUES))}" for _ in range(r.randint(1, 6))] + [label]
        others = list(dict.fromkeys(others))
        r.shuffle(others)
        return chat(r, f"Choose the label: {', '.join(others)}", text, label)
    if p < 0.85:
        other = one_topic(r, lx, (name, issue))[0]
        return chat(r, r.choice(("Say it differently.", "Put it in other words.")), text, other)
    if p < 0.93:
        return chat(r, "What is wrong? One label.", text, issue)
    return chat(r, "Which object is it about?", text, name)


# ---------------------------------------------------------------- (9) which value belongs to which thing

# One sentence a thing, or one for all: {e} the thing, {v} its value, {a} what the value is.
ONE_EACH = ["The {a} of {e} is {v}.", "{v} is the {a} of {e}.", "{e}: {v}.", "{e} has {v} as its {a}.", "{a} {v} goes with {e}.", "For {e} it is {v}.", "{v} stands for {e}.", "{e} ({v}) is listed.", "Under {v} you find {e}."]
PAIRS = ["{e} {v}", "{v} {e}", "{v} for {e}", "{e} at {v}", "{e} ({v})", "{v} ({e})", "{e} is {v}", "{v} is {e}", "{e} with {v}", "{e} under {v}", "{v}, {e}", "{e} = {v}"]
PAIR_LEADS = ["", "", "We have ", "There are ", "{a}: ", "By {a}: ", "I noted ", "The list says ", "It was ", "They are "]
POINTERS = ["{w} wants {e}.", "It is about {e}.", "The one in question is {e}.", "{w} asked for {e} only.", "{e} came back.", "Nobody has seen {e} since.", "Please look at {e}.", "{w} has lost {e}.", "We need {e} now.", "{e} is the one to change.", "Only {e} counts here."]


def bind(r, lx):
    """Several things, each with values of its own; one is singled out, and its values are asked for."""
    num_things = r.choice((2, 2, 2, 3, 3, 4))
    entity = r.choice((_thing, _thing, _name, _place, _word))
    things = []
    while len(things) < num_things:
        thing = entity(r, lx)
        if thing not in things:
            things.append(thing)
    shown = {t: f"the {t}" if entity in (_thing, _word) and r.random() < 0.7 else t for t in things}
    attributes = r.sample([("code", _code), ("number", _number), ("price", _price), ("date", _date), ("place", _place), ("owner", _name), ("colour", lambda r, lx: r.choice(COLOURS)), ("time", _time), ("word", _word)], r.choice((1, 2, 2, 3)))
    values = {name: [value(r, lx) for _ in things] for name, value in attributes}
    sentences = []
    for name, _ in attributes:
        order = r.sample(range(num_things), num_things)
        if r.random() < 0.6:
            pair = r.choice(PAIRS)
            told = [pair.format(e=shown[things[i]], v=values[name][i]) for i in order]
            sentences.append(r.choice(PAIR_LEADS).format(a=name) + r.choice((", ", ", ", "; ")).join(told[:-1]) + r.choice((" and ", " and ", ", ")) + told[-1] + ".")
        else:
            form = r.choice(ONE_EACH)
            sentences += [form.format(e=shown[things[i]], v=values[name][i], a=name) for i in order]
    at = r.randrange(num_things)
    asked = things[at]
    record = {name: values[name][at] for name, _ in attributes}
    p = r.random()
    if p < 0.6:
        sentences.insert(r.choice((0, len(sentences))), r.choice(POINTERS).format(e=shown[asked], w=_name(r, lx)))
        full = {r.choice(("item", "name", "what", "thing", "subject")): asked, **record}
        keys = r.sample(list(full), len(full))
        instruction = "" if r.random() < 0.5 else r.choice(("Give the record as JSON: ", "Fields: ", "JSON with ")) + ", ".join(keys)
        return chat(r, instruction, " ".join(s[0].upper() + s[1:] for s in sentences), to_json({k: full[k] for k in keys}, r))
    text = " ".join(s[0].upper() + s[1:] for s in sentences)
    name = r.choice(list(record))
    if p < 0.8 or len(set(values[name])) < num_things:
        return chat(r, r.choice(("{a} of {e}?", "What is the {a} of {e}?", "{e}: {a}?", "Which {a} belongs to {e}?")).format(a=name, e=shown[asked]), text, record[name])
    return chat(r, r.choice(("Which one has {v}?", "What goes with {v}?", "{a} {v} is whose?")).format(a=name, v=record[name]), text, asked)


GENERATORS = [(extract_statements, 20), (extract_intent, 19), (kshot_extract, 6), (lookup, 8), (choose_label, 9), (copying, 11), (convert, 6), (kshot_label, 6), (meaning, 11), (topic, 14), (bind, 40)]
LONG_GENERATORS = [(extract_statements, 20), (extract_intent, 10), (kshot_extract, 25), (lookup, 15), (choose_label, 5), (copying, 10), (convert, 5), (kshot_label, 25), (meaning, 5), (topic, 10), (bind, 20)]


def sample_task(r, lx, long=False, copy_first=False):
    """One task document; long draws more of those that fill hundreds of tokens.

    copy_first makes half of them repetitions: from random weights copying comes late, and
    everything else waits for it.
    """
    if copy_first and r.random() < 0.55:
        return repetition(r, lx)
    generators, weights = zip(*(LONG_GENERATORS if long else GENERATORS))
    return r.choices(generators, weights)[0](r, lx)
