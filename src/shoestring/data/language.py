"""Which language a text is in, by script and by function words: enough to see rows that differ from the bulk.

A dozen languages in Latin script and nine scripts; a text too short or too mixed to tell is None, never a guess.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..records import Example, Fault

LANGUAGE_NAMES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "nl": "Dutch", "sv": "Swedish", "da": "Danish or Norwegian", "pl": "Polish", "tr": "Turkish", "id": "Indonesian",
    "Cyrillic": "in Cyrillic script", "Greek": "Greek", "Hebrew": "Hebrew", "Arabic": "in Arabic script",
    "Devanagari": "in Devanagari script", "Thai": "Thai", "Hangul": "Korean", "Japanese": "Japanese", "Han": "Chinese",
}  # fmt: skip
NUMBERED = ("", *LANGUAGE_NAMES)
NUMBER_OF: dict[str | None, int] = {name or None: number for number, name in enumerate(NUMBERED)}
# The commonest function words of each language (articles, pronouns, prepositions, auxiliaries); a word of several
# languages counts for each.
FUNCTION_WORDS = {
    "en": "the of and to a in is that for it as was with be by on not he his but at are this have from or had an they "
          "which you were we her she will my their if would what there can do how i me your who when where has does",
    "de": "der die das und ist in den von zu mit sich des auf für im dem nicht ein eine als auch es an er hat aus sie "
          "nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor zur bis ich mir "
          "mich wann wo mein meine kann wenn dass wir ihr habe",
    "fr": "le la les de des du et en un une est que qui dans pour pas au sur ne se ce il elle par plus avec je vous "
          "nous mon ma mes son sa ses aux sont cette ou mais comme où leur si être ont été quand comment j'ai c'est "
          "chez sera l'on qu'il",
    "es": "el la los las de del y en un una es que por con para se no su al lo como más pero sus le ya este sí "
          "porque esta entre cuando muy sin sobre también me hasta hay donde quien desde mi qué cómo cuándo yo tengo",
    "it": "il lo la i gli le di del della dei e è in un una che per con non si da su al alla come più ma anche mi mio "
          "mia ho ha sono nel nella questo questa se quando dove cosa perché ci o dal sul delle degli",
    "pt": "o a os as de do da dos das e em um uma é que por com para se não no na ao como mais mas foi ele seu sua ou "
          "quando muito nos já eu também pelo pela até isso ela entre meu minha você está são ser tem",
    "nl": "de het een en van in is dat op te zijn met voor niet aan er om ook als die bij naar uit maar dan ik je "
          "mijn we ze nog wel wordt door heb heeft kan hoe wat waar wanneer deze dit over geen of hij",
    "sv": "och i att det som en på är av för med den till inte har de om ett jag var men så från vi kan när hur min "
          "mitt mig ska eller vad där hos under efter vid",
    "da": "og i at det som en på er af for med den til ikke har de om et jeg var men så fra vi kan når hvordan min "
          "mit mig skal eller hvad hvor hos under efter ved blir bliver hvornår",
    "pl": "i w na z do się nie jest to że o jak po co za od ale dla ja mam czy już przez jego był kiedy gdzie tak "
          "tylko być oraz mi mnie mój moja jej tym które która którą który",
    "tr": "ve bir bu için da de ne mi ile çok daha ben var gibi o ama kadar sonra en nasıl benim bana değil olan "
          "olarak ya mı hangi nerede zaman",
    "id": "yang dan di ini dengan untuk dari dalam tidak akan pada itu ke saya adalah anda bisa atau juga apa ada "
          "bagaimana kapan sudah oleh kami mereka karena",
}  # fmt: skip
LANGUAGES_OF: dict[str, list[str]] = {}
for _code, _words in FUNCTION_WORDS.items():
    for _word in _words.split():
        if len(_word) > 1:  # a single letter also stands for an unknown or a place in a list
            LANGUAGES_OF.setdefault(_word, []).append(_code)
KNOWN = frozenset(LANGUAGES_OF)

MIN_WORDS = 5
# (different function words of the language, their share of all different words) that make it sure: a song title in
# another language inside a request has fewer of them than a request in that language.
SURE = ((4, 0.2), (3, 0.5))
MIN_KNOWN = min(num for num, _ in SURE)
CODE_START = ("{", "[", "<", "^", "SELECT ")
SECOND_FRAC = 0.75  # the runner-up has at most so many of the winner's words
MIN_LETTERS = 8  # of a script other than Latin
BULK_FRAC = 0.8  # less than this in one language, and the set is in several on purpose
MIN_BULK_ROWS = 20
OTHER_SCRIPT = re.compile("[\u0370-\u1cff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
SCRIPTS = (
    (0x0370, 0x03FF, "Greek"), (0x0400, 0x052F, "Cyrillic"), (0x0590, 0x05FF, "Hebrew"), (0x0600, 0x077F, "Arabic"),
    (0x0900, 0x097F, "Devanagari"), (0x0E00, 0x0E7F, "Thai"), (0x1100, 0x11FF, "Hangul"), (0x3040, 0x30FF, "Japanese"),
    (0x3400, 0x9FFF, "Han"), (0xAC00, 0xD7AF, "Hangul"),
)  # fmt: skip


def language(text: str) -> str | None:
    """Language code ("en") or script ("Cyrillic") of a text; None when there is too little to tell."""
    if not text.isascii() and OTHER_SCRIPT.search(text):
        return _script(text) or _by_words(text)
    return _by_words(text)


def _script(text: str) -> str | None:
    """The script that most letters are in, unless that is Latin; kana make Han characters Japanese."""
    counts: Counter[str] = Counter()
    num_letters = 0
    for c in text:
        if c.isalpha():
            num_letters += 1
            point = ord(c)
            if point >= SCRIPTS[0][0]:
                counts[next((name for low, high, name in SCRIPTS if low <= point <= high), "")] += 1
    counts.pop("", None)
    if counts["Japanese"] and counts["Japanese"] >= 0.1 * counts["Han"]:
        counts["Japanese"] += counts.pop("Han", 0)
    name, num = max(counts.items(), key=lambda item: item[1], default=("", 0))
    return name if num >= MIN_LETTERS and num > num_letters / 2 else None


def _by_words(text: str) -> str | None:
    if text.count(" ") < MIN_WORDS - 1 or text.lstrip().startswith(CODE_START):
        return None
    folded = text.lower().replace(",", " ").replace(".", " ").replace("?", " ").replace("’", "'")
    words = folded.split()
    known = KNOWN.intersection(words)
    if len(known) < MIN_KNOWN:
        return None
    num_words = len(set(words))
    hits: dict[str, int] = {}
    for word in known:
        for code in LANGUAGES_OF[word]:
            hits[code] = hits.get(code, 0) + 1
    (best, most), *rest = sorted(hits.items(), key=lambda item: (-item[1], item[0]))
    second = rest[0][1] if rest else 0
    is_sure = any(most >= num and most >= frac * num_words for num, frac in SURE)
    return best if is_sure and second <= SECOND_FRAC * most else None


def languages_of(prompt: str, answer: str) -> tuple[int, int]:
    """Numbers in NUMBERED of the languages of a user's text and its answer, 0 for too little to tell."""
    return NUMBER_OF[language(prompt)], NUMBER_OF[language(answer)]


def language_mix(examples: Sequence[Example], languages_N2: Any) -> tuple[list[Fault], dict[str, dict[str, int]]]:
    """Rows whose prompt or answer is in another language than BULK_FRAC of the others, and the rows by language.

    languages_N2: as languages_of gives them. Prompts are compared with prompts and answers with answers, so a set that
    translates is all right; so is a row whose prompt speaks of translating or names the language.
    """
    faults: list[Fault] = []
    counts: dict[str, dict[str, int]] = {}
    for side, number_N in zip(("prompt", "answer"), languages_N2.T, strict=True):
        numbers, first, sizes = np.unique(number_N[number_N > 0], return_index=True, return_counts=True)
        order = np.lexsort((first, -sizes))
        counts[side] = {NUMBERED[numbers[i]]: int(sizes[i]) for i in order}
        if not len(order):
            continue
        bulk, num, total = numbers[order[0]], int(sizes[order[0]]), int(sizes.sum())
        if num < MIN_BULK_ROWS or num < BULK_FRAC * total:
            continue
        share = f"{100 * num / total:.0f} %"
        for index in np.flatnonzero((number_N > 0) & (number_N != bulk)).tolist():
            code, example = NUMBERED[number_N[index]], examples[index]
            if not _is_asked_for(example, code):
                usual = LANGUAGE_NAMES[NUMBERED[bulk]]
                evidence = f"the {side} is {LANGUAGE_NAMES[code]}; {share} of {side}s are {usual}"
                faults.append(Fault("language_mix", example.source, example.line, evidence))
    return faults, counts


def _is_asked_for(example: Example, code: str) -> bool:
    prompt = " ".join(m.content for m in example.prompt).lower()
    return "translat" in prompt or LANGUAGE_NAMES[code].removeprefix("in ").split()[0].lower() in prompt
