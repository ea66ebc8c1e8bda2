"""The guard: whether two texts that look alike mean the same. What differs decides, not how much.

Numbers, negations, names, code and any ordinary word in place of another keep two texts apart. Case, punctuation,
look-alike letters, typing errors, politeness, the order of clauses and words that say little do not.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from .normalise import SUPERSCRIPTS


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Cyrillic, Greek and phonetic letters that look like Latin ones, both cases, since Η is an H and η an n.
# Source: the most frequent single-letter rows of Unicode's confusables.txt (UTS #39).
_ALIKE = (
    "АВСЕНІЈКМОРЅТХУԚԜҮаеорсухіјѕԁһԛԝѵӏвкмнтгЁёΑΒΕΖΗΙΚΜΝΟΡΤΧΥαβεικνορτυχγηωμıɑɡɩʏʀʙʜʟɴᴀᴄᴅᴇᴊᴋᴍᴏᴘᴛᴜᴠᴡᴢꜱԍօոսһℓ",
    "ABCEHIJKMOPSTXYQWYaeopcyxijsdhqwvlbkmhtrEeABEZHIKMNOPTXYabeikvoptuxynwuiagiYRBHLNACDEJKMOPTUVWZSGonshl",
)
LOOK_ALIKE = str.maketrans(dict(zip(*_ALIKE, strict=True)))
LOOKS_ALIKE = re.compile(f"[{_ALIKE[0]}]")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\ufe0e\ufe0f"))
_PLAIN = SUPERSCRIPTS | _INVISIBLE | str.maketrans("’‘ʼ´`‐‑‒–—−", "'''''------")
NOT_PLAIN = re.compile(f"[{''.join(map(chr, _PLAIN))}]")
NOT_LATIN = re.compile(r"[\u0370-\u03ff\u0400-\u052f\u0530-\u058f]")
SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # scripts without spaces are compared letter by letter
# Numbers, words, signs that mean something, and - * / only where they belong to a number.
WORD = re.compile(
    rf"\d+(?:[.,]\d+)+|[{SPACELESS}]|[^\W{SPACELESS}]+(?:'[^\W{SPACELESS}]+)*"
    r"|[=<>^%|$€£¥+]|(?<=\w)#|(?<![^\W\d])-(?=\d)|(?<=\d )-(?= \d)|(?<=[\d )])[*/](?=[ (]?\d)"
)
DIGITS = re.compile(r"\d+")
THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")

EMPTY = _set("a an the is are was were am be been being do does did of that")
# May be added or left out; one in place of another is a difference.
FUNCTION = EMPTY | _set(
    "to in on at by for with from into onto about as through during and or but if so because while then there here i "
    "me my mine you your yours he him his she her hers it its we us our they them their this these those myself can "
    "could will would shall should may might must have has had having just really actually also very quite simply "
    "basically currently kindly please exactly perhaps maybe indeed even still already too well ok okay oh um uh "
    "hi hello hey thanks thank some any all both such certainly definitely honestly literally truly surely"
)
ASKING = _set("what who whom whose which when where why how")
# Asks for help around a prompt rather than in it: free in a run of such words at either end.
FRAME = _set(
    "hi hiya hello hey greetings dear sir madam everyone team there good morning afternoon evening day please pls plz "
    "kindly could can would will may might you i me we us am was is be been wondering wonder curious want wanted need "
    "needed like love d to know tell let help helping assist assistance with this that these following question "
    "request if whether for a an the my of moment minute time favor favour do quick quickly just so ok okay well um "
    "sorry bother bothering excuse trouble mind grateful glad appreciate appreciated appreciation it possible get "
    "chance have thank thanks thx ty cheers much many very really lots lot advance in your any kind regards best "
    "great awesome wonderful helpful find out answer able here something and but given wish hoping hope"
)
NOT = _set("not never no none nobody nothing nowhere neither nor without") | _set(
    "nicht kein keine keinen keiner nie ohne pas jamais sans nunca sin non mai senza não nao sem niet geen не нет без "
    "不 没 無 无 未 非"
)
# Turn or bound what is said: never added or left out without a change of meaning.
BOUND = _set(
    "except unless only until since before after above below over under between than more less fewer most least max "
    "min maximum minimum first last second third next previous half double twice"
)
_BELOW_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS = {
    **{word: str(value) for value, word in enumerate(_BELOW_TWENTY.split())},
    **{word: str(10 * value) for value, word in enumerate(_TENS.split(), 2)},
}
del NUMBER_WORDS["one"]  # mostly a pronoun
MAGNITUDES = _set("one hundred thousand million billion trillion")
_VERBS = _set("do does did is are was were have has had could would should must need might")
CONTRACTED = {f"{verb}nt": (verb, "not") for verb in _VERBS} | {
    "cant": ("can", "not"),
    "cannot": ("can", "not"),
    "wont": ("will", "not"),
    "im": ("i", "am"),
    "pls": ("please",),
    "plz": ("please",),
    "thx": ("thanks",),
}
_TAILS = {"n't": "not", "'m": "am", "'re": "are", "'ve": "have", "'ll": "will", "'d": "would"}
_IS_AFTER = ASKING | _set("it that there he she here let")

RARE_COUNT, COMMON_COUNT, COMMON_RATIO = 2, 20, 50
MIN_FRAMED = 3  # around fewer words a frame may be what is asked
MIN_SHARED = 2  # of two texts taken for one, so many content words are in both
MIN_EXTRA = 4  # the same, where one of them has a content word more
WORDS_PER_EXTRA = 10  # one word more or less, and another for each so many that are shared


class Meaning(IntEnum):
    """How far two texts mean the same."""

    OTHER = 0
    ALIKE = 1  # a word more or less: one text if the answers are equal too
    SAME = 2


@dataclass(frozen=True, slots=True)
class Difference:
    """The verdict and the differing words, for the reader of a report."""

    meaning: Meaning
    shown: str


def unify(text: str) -> str:
    """Look-alike and invisible characters as plain ones; text really in another script keeps its letters."""
    if NOT_PLAIN.search(text):
        text = text.translate(_PLAIN)
    if text.isascii():
        return text
    plain = unicodedata.normalize("NFKC", text)
    if not LOOKS_ALIKE.search(plain):
        return plain
    latin = plain.translate(LOOK_ALIKE)
    num_foreign = len(NOT_LATIN.findall(latin))
    return latin if num_foreign * 3 <= sum(c.isascii() and c.isalpha() for c in plain) else plain


@lru_cache(maxsize=20_000)
def fold(raw: str) -> tuple[str, ...]:
    """One raw word as the words it is compared by: case, apostrophes, contractions and spelled numbers folded."""
    word = "usa" if raw == "US" else raw.casefold()
    if word.isdigit():
        return (word.lstrip("0") or "0",)
    if "," in word and THOUSANDS.fullmatch(word):
        return (word.replace(",", ""),)
    if "'" in word:
        for tail, meant in _TAILS.items():
            if word.endswith(tail) and len(word) > len(tail):
                stem = word[: -len(tail)]
                return ({"ca": "can", "wo": "will", "sha": "shall"}.get(stem, stem), meant)
        if word.endswith("'s") and word[:-2] in _IS_AFTER:
            return (word[:-2], "us" if word == "let's" else "is")
        word = word.replace("'", "")
    if word.endswith("s") and word[:-1] in ASKING:
        return (word[:-1], "is")
    return CONTRACTED.get(word) or (NUMBER_WORDS.get(word, word),)


def words(text: str) -> list[str]:
    """The folded words of a text, in order."""
    return [word for raw in WORD.findall(unify(text)) for word in fold(raw)]


def is_light(word: str) -> bool:
    """Whether texts with and without the word may mean the same: candidates are found by all other words."""
    return word in FUNCTION or word in FRAME or word in ASKING


def is_protected(word: str) -> bool:
    """Whether the word must stand in both texts: numbers, negations, bounds, signs and identifiers."""
    if word.isalpha():
        return word in NOT or word in BOUND or word in MAGNITUDES
    return word not in ("$", "€", "£", "¥")  # a currency sign may go; another in its place is a difference


def one_edit(a: str, b: str) -> bool:
    """Whether one letter added, left out, changed, or two neighbours swapped turn a into b (Damerau 1964)."""
    if len(a) > len(b):
        a, b = b, a
    if len(b) - len(a) > 1 or a == b:
        return False
    i = 0
    while i < len(a) and a[i] == b[i]:
        i += 1
    if len(a) < len(b):
        return a[i:] == b[i + 1 :]
    return a[i + 1 :] == b[i + 1 :] or (a[i : i + 2] == b[i : i + 2][::-1] and a[i + 2 :] == b[i + 2 :])


def is_typo(a: str, b: str, count_a: int, count_b: int) -> bool:
    """Whether one of two words is a misspelling of the other, by their counts in the whole set.

    A word that is rare beside a common one is a typing error. Of two rare words only long ones
    that begin alike are taken for one: Kohn and Kahn are two people.
    """
    if abs(len(a) - len(b)) > 1:
        return False
    rare, common = min(count_a, count_b), max(count_a, count_b)
    if rare > RARE_COUNT and rare * COMMON_RATIO > common:
        return False
    if not (a.isalpha() and b.isalpha()) or not one_edit(a, b) or (is_protected(a) and is_protected(b)):
        return False
    shorter = min(len(a), len(b))
    if common >= COMMON_COUNT:
        return shorter >= 3 or sorted(a) == sorted(b)
    return shorter >= 5 and a[0] == b[0] and {a[-2:], b[-2:]} != {"er", "ee"}


def is_plural(a: str, b: str) -> bool:
    """Whether the words differ by a final s alone."""
    return abs(len(a) - len(b)) == 1 and (a + "s" == b or b + "s" == a) and min(len(a), len(b)) > 2 and a.isalpha()


class Guard:
    """Compares texts given as folded words; names are those of the whole set, counts of its words that recur."""

    def __init__(self, counts: Mapping[str, int], names: Collection[str] = ()):
        self.counts, self.names = counts, names

    def compare(self, a: Sequence[str], b: Sequence[str]) -> Difference:
        """How far a and b mean the same, and what differs."""
        if a == b:
            return Difference(Meaning.SAME, "")
        in_a, in_b = set(a), set(b)
        only_a, only_b = [w for w in a if w not in in_b], [w for w in b if w not in in_a]
        if not self._may_be_spelled_alike(only_a, only_b):
            return Difference(Meaning.OTHER, "; ".join(_sides(only_a, only_b)))
        left = list((Counter(a) - Counter(b)).elements())
        right = list((Counter(b) - Counter(a)).elements())
        if left and right and "".join(left) == "".join(right) and _digits(left) == _digits(right):
            # Written apart in one and together in the other.
            meaning = Meaning.SAME if "".join(a) == "".join(b) else Meaning.OTHER
            return Difference(meaning, f"{' '.join(left)} / {' '.join(right)}")
        meaning, notes = Meaning.SAME, []
        renamed: dict[str, str] = {}
        for x in list(left):
            for y in right:
                if self._is_spelled_alike(x, y):
                    meaning = Meaning.ALIKE if is_plural(x, y) else meaning
                    notes.append(f"{x} / {y}")
                    rarer, commoner = sorted((x, y), key=lambda w: (self.counts.get(w, 1), w))
                    renamed[rarer] = commoner
                    left.remove(x)
                    right.remove(y)
                    break
        shown = "; ".join([*notes, *_sides(left, right)])
        # One text is the other with something added; only empty words may stand for each other.
        more_left, more_right = (_unframed(words, text) for words, text in ((left, a), (right, b)))
        said = [w for w in (*more_left, *more_right) if w not in EMPTY]
        extra = [w for w in said if w not in FUNCTION]
        num_shared = sum((Counter(a) & Counter(b)).values())
        num_spare = num_shared // WORDS_PER_EXTRA
        if (
            not (EMPTY.issuperset(left) or EMPTY.issuperset(right))
            or (said and left and right)
            or any(is_protected(w) or w in ASKING for w in extra)
            or len(said) > 1 + num_spare
            or len(more_left) + len(more_right) > 2 + num_spare
        ):
            return Difference(Meaning.OTHER, shown)
        if extra:
            num_content = min(sum(not is_light(w) for w in a), sum(not is_light(w) for w in b))
            if num_content < MIN_EXTRA or len(extra) > 1 + num_content // WORDS_PER_EXTRA:
                return Difference(Meaning.OTHER, shown)
            meaning = Meaning.ALIKE
        a, b = [renamed.get(w, w) for w in a], [renamed.get(w, w) for w in b]
        if not any(_in_order(x, y, may_be_reordered=not said) for x, y in ((a, b), (_core(a), _core(b)))):
            return Difference(Meaning.OTHER, shown or "the order of words")
        return Difference(meaning, shown or "the order of clauses")

    def _is_spelled_alike(self, x: str, y: str) -> bool:
        return is_plural(x, y) or is_typo(x, y, self.counts.get(x, 1), self.counts.get(y, 1))

    def _may_be_spelled_alike(self, only_a: list[str], only_b: list[str]) -> bool:
        """Whether every word of the shorter side may be one of the other's, written otherwise; a quick look."""
        x, y = [w for w in only_a if w not in EMPTY], [w for w in only_b if w not in EMPTY]
        few, others = (x, only_b) if len(x) <= len(y) else (y, only_a)
        return all(any(self._is_spelled_alike(w, other) for other in others) for w in few) or (
            "".join(only_a) == "".join(only_b)
        )

    def rephrased(self, a: Sequence[str], b: Sequence[str]) -> Difference:
        """As compare, for texts an encoder takes for the same: words may be replaced, but no protected one or name."""
        left, right = Counter(a) - Counter(b), Counter(b) - Counter(a)
        shown = "; ".join(_sides(list(left.elements()), list(right.elements())))
        is_kept = any(is_protected(w) or (w in self.names and not is_light(w)) for w in (*left, *right))
        return Difference(Meaning.OTHER if is_kept else Meaning.ALIKE, shown)


def _runs(tokens: Sequence[str]) -> tuple[int, int]:
    """Where the words between the runs of frame words at both ends begin and end."""
    begin, end = 0, len(tokens)
    while begin < end and tokens[begin] in FRAME:
        begin += 1
    while end > begin and tokens[end - 1] in FRAME:
        end -= 1
    return begin, end


def _core(tokens: Sequence[str]) -> Sequence[str]:
    begin, end = _runs(tokens)
    return tokens[begin:end]


def _unframed(differing: list[str], tokens: Sequence[str]) -> list[str]:
    """The differing words that are not part of a frame around enough other words."""
    begin, end = _runs(tokens)
    framed = {*tokens[:begin], *tokens[end:]} if end - begin >= MIN_FRAMED else set()
    return [w for w in differing if w not in framed]


def _in_order(a: Sequence[str], b: Sequence[str], *, may_be_reordered: bool) -> bool:
    """Whether one text, empty words apart, is the other with words left out or with two clauses swapped."""
    x, y = [w for w in a if w not in EMPTY], [w for w in b if w not in EMPTY]
    if len(x) > len(y):
        x, y = y, x
    rest = iter(y)
    if all(word in rest for word in x):
        return True
    if not may_be_reordered:
        return False
    left, shared = Counter(x), []
    for word in y:
        if left[word] > 0:
            left[word] -= 1
            shared.append(word)
    return is_reordered(x, shared)


def is_reordered(a: list[str], b: list[str]) -> bool:
    """Whether two neighbouring blocks of at least two words, swapped, turn a into b: clauses, not arguments."""
    if len(a) != len(b):
        return False
    begin, end = 0, len(a)
    while begin < end and a[begin] == b[begin]:
        begin += 1
    while end > begin and a[end - 1] == b[end - 1]:
        end -= 1
    x, y = a[begin:end], b[begin:end]
    for cut in range(2, len(x) - 1):
        if y == x[cut:] + x[:cut]:
            return True
        if x[cut] in ("and", "or") and cut < len(x) - 2 and y == [*x[cut + 1 :], x[cut], *x[:cut]]:
            return True
    return False


def _digits(tokens: list[str]) -> list[str]:
    return DIGITS.findall(" ".join(tokens))


def _sides(left: list[str], right: list[str]) -> list[str]:
    if left and right:
        return [f"{' '.join(left)} / {' '.join(right)}"]
    return [f"{' '.join(left or right)} added or left out"] if left or right else []
