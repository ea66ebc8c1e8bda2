"""Support tickets in, JSON records out: generated, with planted repeats, contradictions and broken rows.

Names, products and sentences are our own. The truth about every planted row is kept in truth.json,
so that what curation finds can be checked line by line.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_json, write_whole

NUM_TICKETS = 450
TWO_ORDERS_FRAC = 0.6  # tickets that name a second order, which is not the one meant
PLANTED = {
    "exact_duplicate": 40,
    "contradiction": 16,  # pairs without majority: both rows go
    "outvoted": 6,  # two rows against one: the one goes, and one of the two as a duplicate
    "empty_answer": 8,
    "placeholder_answer": 4,
    "truncated_answer": 8,
    "answer_not_json": 6,
    "invalid_json": 5,
    "missing_field": 5,
    "not_utf8": 4,  # read as Latin-1 and kept
}


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.replace("\n", " ").split(",")]


FIRST_NAMES = _listed(
    """Maya, Tom, Priya, Carlos, Hanna, Omar, Lucy, Pavel, Ingrid, Kofi, Sara, Diego, Mei, Jonas, Amina, Victor, Nora,
    Felix, Grace, Hugo, Leila, Marco, Anna, Ravi, Elsa, Simon, Tara, Boris, Clara, Yusuf, Emma, Peter, Wanda, Oscar,
    Julia, Samir, Alice, Bruno, Daisy, Ivan, Karen, Louis, Nina, Paul, Rosa, Stefan, Vera, Walter, Zara, Arthur"""
)
SURNAMES = _listed(
    """Lind, Baker, Shah, Romero, Berg, Hassan, Price, Novak, Larsen, Mensah, Cohen, Torres, Chen, Weber, Diallo, Stone,
    Quinn, Moore, Hall, Keller, Aziz, Ricci, Wolf, Patel, Dahl, Grant, Walsh, Popov, Meyer, Demir, Clark, Young, Kowal,
    Lopez, Hart, Nasser, Ford, Greco, Bell, Petrov, Wood, Martin, Silva, King, Ortiz, Braun, Frank, Murphy, Khan,
    Reid"""
)
ACCENTED = ("José Núñez", "Zoë Müller", "André Béart", "Søren Bjørk", "Renée Girón", "Jürgen Groß", "Chloé Lefèvre")
PRODUCTS = _listed(
    """kettle, toaster, desk lamp, office chair, phone case, backpack, headphones, keyboard, water bottle, rain jacket,
    running shoes, blender, coffee grinder, yoga mat, bike helmet, floor lamp, wall clock, travel pillow, camping
    stove, tent, sleeping bag, picture frame, garden hose, tool box, drill, bread maker, rice cooker, hand mixer,
    steam iron, vacuum cleaner, night light, baby monitor, car charger, tripod, monitor stand, mouse pad, webcam,
    speaker, alarm clock, umbrella, suitcase, wool blanket, cutting board, frying pan, tea set, knife block, shower
    head, bath mat, curtain rod, bookshelf"""
)

# Each issue is told only through paraphrases; {p} is the product.
ISSUES: dict[str, tuple[str, ...]] = {
    "late": (
        "The {p} was due last week and is still not here.",
        "I have been waiting for my {p} for three weeks.",
        "My {p} should have arrived on {d}, but nothing came.",
        "The courier keeps moving the date for my {p}.",
        "When will the {p} finally get here?",
        "The {p} has been stuck in transit since {d}.",
    ),
    "damaged": (
        "The {p} came with a big crack in it.",
        "When I opened the box, the {p} was in pieces.",
        "The {p} got crushed on the way.",
        "There are deep scratches all over the {p}.",
        "My {p} arrived dented and bent.",
        "The box was torn and the {p} inside is smashed.",
    ),
    "wrong_item": (
        "I asked for a {p} and got something else.",
        "The box had a {o} in it instead of my {p}.",
        "You sent me a {o}, but I bought a {p}.",
        "The {p} I got is not the colour I chose.",
        "I got somebody else's {o} and not my {p}.",
        "This is not the {p} from the picture, it is another model.",
    ),
    "missing": (
        "The box was there, but the {p} was not in it.",
        "Half of my order is gone: no {p}.",
        "The {p} was on the packing list only, not in the box.",
        "I got the {o}, but the {p} was left out.",
        "The parcel came without the {p}.",
        "Everything is here except the {p}.",
    ),
    "defective": (
        "The {p} stopped working after two days.",
        "The {p} does not switch on at all.",
        "My {p} makes a strange noise and then dies.",
        "I followed the manual, but the {p} will not work.",
        "The {p} worked once and never again.",
        "Since {d} the {p} does nothing when I use it.",
    ),
    "billing": (
        "I was charged twice for the {p}.",
        "My card statement shows two payments for one {p}.",
        "The price I paid for the {p} is higher than on your page.",
        "The discount was not taken off the {p}.",
        "You took the money for the {p} again on {d}.",
        "The invoice for the {p} has the wrong total.",
    ),
    "cancel": (
        "Please do not ship the {p}, I changed my mind.",
        "I no longer need the {p}, stop the order.",
        "I bought the {p} by mistake, please call it off.",
        "Can you stop the {p} before it goes out?",
        "I found the {p} in a shop, so please drop my order.",
        "Do not send the {p} any more.",
    ),
    "return": (
        "The {p} does not suit me and I want to send it back.",
        "How do I send the {p} back to you?",
        "The {p} is too small, where do I post it?",
        "I need a label to give the {p} back.",
        "The {p} is fine, but not for me, so it goes back.",
        "I would like to hand back the {p} I got on {d}.",
    ),
}
INTRODUCTIONS = (
    "This is {c}.",
    "{c} here.",
    "My name is {c}.",
    "Hello, I am {c}.",
    "Hi, {c} speaking.",
    "Good morning, this is {c}.",
)
SIGNATURES = ("Regards, {c}", "Thanks, {c}", "{c}", "Best wishes, {c}", "Yours, {c}")
ORDERS = (
    "Order {n}.",
    "My order number is {n}.",
    "It is about order {n}.",
    "The order was {n}.",
    "Reference {n}.",
    "See order {n}.",
)
# Two orders in one ticket: only the product that the problem is about says which of them is meant.
TWO_ORDERS = (
    "I have two orders with you, {n1} for the {p1} and {n2} for the {p2}.",
    "Order {n1} was the {p1}, order {n2} the {p2}.",
    "I bought the {p1} under {n1} and the {p2} under {n2}.",
    "The {p1} is order {n1} and the {p2} is order {n2}.",
    "My orders are {n1} ({p1}) and {n2} ({p2}).",
)
TWO_AMOUNTS = (
    "The {p1} cost ${a1}, the {p2} ${a2}.",
    "I paid ${a1} for the {p1} and ${a2} for the {p2}.",
    "It was ${a1} for the {p1} and ${a2} for the {p2}.",
)
AMOUNTS = ("I paid ${a}.", "It cost ${a}.", "That was ${a}.", "The bill was ${a}.", "${a} left my account.")
URGENT = (
    "I need this solved today!",
    "This is urgent.",
    "Please hurry, it is a gift for tomorrow.",
    "I cannot wait any longer.",
    "Answer me right away.",
)
CALM = ("No rush.", "Whenever you have time.", "Take your time.", "There is no hurry.")
REFUND = (
    "I want my money back.",
    "Please refund me.",
    "Kindly return the payment to my card.",
    "Please give me back what I paid.",
)
NO_REFUND = (
    "I do not want a refund.",
    "Just tell me what to do.",
    "Please look into it.",
    "Keep the money, just fix it.",
    "Please advise.",
)
DATES = ("3 May", "12 June", "Monday", "the 21st", "Friday", "2 March", "last Tuesday", "30 April", "9 July")


@dataclass(frozen=True, slots=True)
class Ticket:
    """One ticket and the record it stands for."""

    prompt: str
    record: dict[str, Any]

    @property
    def completion(self) -> str:
        return json.dumps(self.record, ensure_ascii=False)


def sample_ticket(rng: random.Random, customer: str | None = None) -> Ticket:
    """Three to five short sentences, and the record with every value as the text has it."""
    customer = customer or f"{rng.choice(FIRST_NAMES)} {rng.choice(SURNAMES)}"
    product, other = rng.sample(PRODUCTS, 2)
    issue = rng.choice(list(ISSUES))
    order, other_order = (f"{rng.choice('ABCDEFGHKLMNPRSTVWXZ')}{rng.randint(1000, 9999)}" for _ in range(2))
    amount, other_amount = rng.sample(range(6, 240), 2)
    has_two, has_amount = rng.random() < TWO_ORDERS_FRAC, rng.random() < 0.6
    is_urgent, wants_refund = rng.random() < 0.4, rng.random() < 0.45

    def told(one: tuple[str, ...], two: tuple[str, ...]) -> str:
        """The order or its price, beside those of another order if there is one, in either order."""
        if not has_two:
            return rng.choice(one).format(n=order, a=amount)
        pairs = [(product, order, amount), (other, other_order, other_amount)]
        (p1, n1, a1), (p2, n2, a2) = rng.sample(pairs, 2)
        return rng.choice(two).format(p1=p1, n1=n1, a1=a1, p2=p2, n2=n2, a2=a2)

    # A product got by mistake is never the one of the other order.
    mistaken = rng.choice([p for p in PRODUCTS if p not in (product, other)])
    problem = rng.choice(ISSUES[issue]).format(p=product, o=mistaken, d=rng.choice(DATES))
    middle = [problem, told(ORDERS, TWO_ORDERS)]
    rng.shuffle(middle)
    if has_amount:
        middle.insert(rng.randint(1, 2), told(AMOUNTS, TWO_AMOUNTS))
    wishes: list[str] = []
    if wants_refund:
        wishes.append(rng.choice(REFUND))
    elif rng.random() < 0.5:
        wishes.append(rng.choice(NO_REFUND))
    if is_urgent:
        wishes.append(rng.choice(URGENT))
    elif rng.random() < 0.25:
        wishes.append(rng.choice(CALM))
    rng.shuffle(wishes)
    if rng.random() < 0.6:
        sentences = [rng.choice(INTRODUCTIONS).format(c=customer), *middle, *wishes]
    else:
        sentences = [*middle, *wishes, rng.choice(SIGNATURES).format(c=customer)]
    record = {
        "name": customer,
        "order": order,
        "product": product,
        "issue": issue,
        "amount": amount if has_amount else None,
        "urgent": is_urgent,
        "refund": wants_refund,
    }
    return Ticket(" ".join(sentences), record)


def _line(prompt: str, completion: str) -> str:
    return json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False)


def _disguised(ticket: Ticket, rng: random.Random) -> str:
    """The same row, written differently: case, white space, punctuation, spacing or order of the JSON."""
    prompt = rng.choice(
        (
            ticket.prompt.upper(),
            ticket.prompt.lower(),
            ticket.prompt.replace(" ", "  "),
            f"  {ticket.prompt}\n",
            ticket.prompt.replace(". ", " ").rstrip("."),
            ticket.prompt,
        )
    )
    compact = json.dumps(ticket.record, ensure_ascii=False, separators=(",", ":"))
    reordered = json.dumps(dict(reversed(ticket.record.items())), ensure_ascii=False)
    return _line(prompt, rng.choice((ticket.completion, ticket.completion, compact, reordered)))


def _contradicting(ticket: Ticket, rng: random.Random) -> str:
    """The same prompt with a record that says something else."""
    record = dict(ticket.record)
    if rng.random() < 0.5:
        record["issue"] = rng.choice([i for i in ISSUES if i != record["issue"]])
    else:
        record["refund"] = not record["refund"]
    return _line(ticket.prompt, json.dumps(record, ensure_ascii=False))


def _broken(kind: str, ticket: Ticket, rng: random.Random) -> str:
    prompt, answer = ticket.prompt, ticket.completion
    if kind == "empty_answer":
        return _line(prompt, rng.choice(("", "   ", "\n")))
    if kind == "placeholder_answer":
        return _line(prompt, rng.choice(("N/A", "<nooutput>", "TBD", "No output")))
    if kind == "truncated_answer":
        return _line(prompt, answer[: rng.randint(len(answer) // 3, len(answer) - 2)])
    if kind == "answer_not_json":
        return _line(prompt, rng.choice((answer.replace('"', "'"), f"The customer is {ticket.record['name']}.")))
    if kind == "missing_field":
        return json.dumps({"prompt": prompt}) if rng.random() < 0.5 else json.dumps({"completion": answer})
    line = _line(prompt, answer)  # invalid_json
    return rng.choice((line.replace('", "completion"', '" "completion"'), line.replace('{"prompt"', "{prompt", 1)))


def write_tickets(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Write train.jsonl and truth.json; returns the truth.

    truth: rows, distinct rows, and by code the lines (from 1) that curation must drop, with partner lines
    of duplicates and contradictions; `repaired` lists the lines to be read as Latin-1 and kept.
    """
    rng = random.Random(seed)
    tickets: list[Ticket] = []
    seen: set[str] = set()
    num_needed = NUM_TICKETS + sum(n for k, n in PLANTED.items() if k not in ("exact_duplicate", "outvoted"))
    while len(tickets) < num_needed:
        ticket = sample_ticket(rng)
        if ticket.prompt.lower() not in seen:
            seen.add(ticket.prompt.lower())
            tickets.append(ticket)
    entries: list[tuple[float, bytes, str, int]] = []  # place in the file, line, kind, group

    def put(place: float, line: str, kind: str, group: int, encoding: str = "utf-8") -> None:
        entries.append((place, line.encode(encoding), kind, group))

    kept, extra = tickets[:NUM_TICKETS], iter(tickets[NUM_TICKETS:])
    # A few accented names in UTF-8, so that the Latin-1 lines are the exception.
    kept[:6] = [sample_ticket(rng, name) for name in ACCENTED[:6]]
    doubled = set(rng.sample(range(6, NUM_TICKETS), PLANTED["exact_duplicate"] + PLANTED["outvoted"]))
    outvoted = set(sorted(doubled)[:: len(doubled) // PLANTED["outvoted"]][: PLANTED["outvoted"]])
    for group, ticket in enumerate(kept):
        place = rng.random()
        put(place, _line(ticket.prompt, ticket.completion), "kept", group)
        if group in doubled:
            put(rng.uniform(place, 1.0), _disguised(ticket, rng), "exact_duplicate", group)
        if group in outvoted:
            put(rng.random(), _contradicting(ticket, rng), "contradiction", group)
    group = NUM_TICKETS
    for kind, number in PLANTED.items():
        if kind in ("exact_duplicate", "outvoted"):
            continue
        for _ in range(number):
            group += 1
            ticket = next(extra)
            if kind == "contradiction":
                put(rng.random(), _line(ticket.prompt, ticket.completion), kind, group)
                put(rng.random(), _contradicting(ticket, rng), kind, group)
            elif kind == "not_utf8":
                ticket = sample_ticket(rng, rng.choice(ACCENTED))
                put(rng.random(), _line(ticket.prompt, ticket.completion), kind, group, "latin-1")
            else:
                put(rng.random(), _broken(kind, ticket, rng), kind, group)
    entries.sort(key=lambda entry: entry[0])
    write_whole(folder / "train.jsonl", b"".join(line + b"\n" for _, line, _, _ in entries))
    truth = _truth([(kind, group) for _, _, kind, group in entries])
    write_json(folder / "truth.json", truth)
    return truth


def _truth(kinds: list[tuple[str, int]]) -> dict[str, Any]:
    """Lines by kind; a duplicate's partner is the kept row, a contradiction's a row that answers otherwise."""
    by_group: dict[int, list[tuple[int, str]]] = {}
    for line, (kind, group) in enumerate(kinds, 1):
        by_group.setdefault(group, []).append((line, kind))
    dropped: dict[str, list[dict[str, Any]]] = {kind: [] for kind in PLANTED if kind not in ("outvoted", "not_utf8")}
    repaired: list[int] = []
    for members in by_group.values():
        for line, kind in members:
            partners = [other for other, other_kind in members if other != line and other_kind != "exact_duplicate"]
            if kind == "not_utf8":
                repaired.append(line)
            elif kind == "exact_duplicate":
                kept = [other for other, other_kind in members if other_kind == "kept"]
                dropped[kind].append({"line": line, "partner_line": kept[0]})
            elif kind == "contradiction":
                dropped[kind].append({"line": line, "partner_line": partners[0]})
            elif kind != "kept":
                dropped[kind].append({"line": line})
    num_dropped = sum(len(lines) for lines in dropped.values())
    return {
        "rows": len(kinds),
        "rows_kept": len(kinds) - num_dropped,
        "dropped": {kind: sorted(lines, key=lambda row: row["line"]) for kind, lines in dropped.items()},
        "repaired": sorted(repaired),
    }
