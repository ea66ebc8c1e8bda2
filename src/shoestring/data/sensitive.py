"""Whether text of the right shape is a secret or personal datum: checksums, number ranges, placeholders.

Each check gets (value, whole text, start of the value) and returns how many characters of value are meant, 0 for none.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import re
import zlib

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
MIN_KEY_SYMBOLS = 10  # different characters; xxxxxxxx, 123456... and the like are fillers
FILLER = re.compile(r"(?i)x{4}|\*{3}|\.{3}|1234567|abcdefg|example|your|placeholder|dummy|redacted|changeme|insert")
# A value that is code, a reference or a description, not a password.
NOT_A_VALUE = re.compile(
    r"^[<{\[($%&*]|[({\[<>]|^(?:process\.env|os\.environ|getenv|env\.|self\.|this\.|request\.|req\.|config\.|none|null"
    r"|true|false|string|https?:)",
    re.IGNORECASE,
)
COMMON_PASSWORD = {"password", "passwd", "secret", "pass", "pwd", "user", "username", "token", "apikey", "postgres",
                   "root", "admin", "mysql", "guest"}  # fmt: skip
# Reserved for documentation (RFC 2606, RFC 6761), and names everybody writes instead.
RESERVED_DOMAIN = re.compile(
    r"(?i)(?:^|\.)(?:example|test|invalid|localhost|local)$|(?:^|\.)(?:example|domain|yourdomain|company|yourcompany|"
    r"mail|email|website|mysite|abc|xyz|xxx)\.(?:com|org|net|edu|co)$|\.(?:png|jpe?g|gif|svg|py|js|css)$"
)
RESERVED_USER = {"git", "user", "username", "yourname", "your.name", "name", "email", "someone", "noreply", "no-reply"}
# Country calling codes in use (ITU-T E.164, list of assigned codes).
CALLING_CODE = re.compile(
    r"1|7|2(?:0|7|1[1-8]|[2-6]\d|9[0-9])|3(?:[0-469]|[578]\d)|4(?:[013-9]|2[013])|5(?:[1-8]|[09]\d)|6(?:[0-6]|[789]\d)"
    r"|8(?:[1246]|[05789]\d)|9(?:[0-58]|[679]\d)"
)
TOLL_FREE = {"800", "833", "844", "855", "866", "877", "888", "900"}
# Characters of an IBAN by country (SWIFT IBAN registry).
IBAN_LENGTH = {
    k: int(n)
    for k, n in re.findall(
        r"([A-Z]{2})(\d\d)",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 "
        "FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 "
        "LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SD18 "
        "SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20",
    )
}
DATE_OR_YEARS = re.compile(r"(?:19|20)\d\d[-./ ]+\d{1,2}[-./ ]+\d{1,2}$|\d{1,2}[-./]\d{1,2}[-./](?:19|20)\d\d$"
                           r"|(?:19|20)\d\d ?- ?(?:19|20)\d\d$")  # fmt: skip
PUBLIC_RESOLVERS = {"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "208.67.222.222"}
VERSION_BEFORE = re.compile(r"(?i)(?:version|v|ver|release|section|chapter|build|firmware|§) ?\.?$")
VERSION_AFTER = re.compile(r"(?i) ?(?:version|release|firmware)")
ADDRESS_BEFORE = re.compile(r"(?i)\b(?:ip|ipv4|address|host|server|from|ping|gateway)\b")
VERSION_OCTET = 20  # four numbers up to this look like a version unless the text speaks of an address


def digits(value: str) -> str:
    """The ASCII digits of a value."""
    return "".join(c for c in value if "0" <= c <= "9")


def luhn(number: str) -> bool:
    """Whether a string of digits passes the Luhn check (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, c in enumerate(reversed(number)):
        n = int(c) * (2 if place % 2 else 1)
        total += n - 9 if n > 9 else n
    return total % 10 == 0


def mod97(iban: str) -> bool:
    """Whether an IBAN without spaces passes ISO 7064 MOD 97-10 (ISO 13616)."""
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1


def crc_base62(text: str) -> str:
    """CRC-32 in six base-62 digits: the end of GitHub and npm tokens (github.blog, 2021-04-05)."""
    number, out = zlib.crc32(text.encode()), ""
    while number:
        number, rest = divmod(number, 62)
        out = BASE62[rest] + out
    return out.rjust(6, "0")


def is_api_key(value: str, text: str, start: int) -> int:
    """A key whose checksum holds, or that has none and is not filler."""
    if re.match(r"(?:gh[pousr]|npm)_", value):
        body = value.partition("_")[2]
        return len(value) if crc_base62(body[:-6]) == body[-6:] else 0
    if value.startswith("glsa_"):  # Grafana: CRC-32 of what stands before it, hexadecimal
        body, _, check = value.rpartition("_")
        return len(value) if f"{zlib.crc32(body.encode()):08x}" == check else 0
    return 0 if FILLER.search(value) or len(set(value)) < MIN_KEY_SYMBOLS else len(value)


def is_jwt(value: str, text: str, start: int) -> int:
    """A token whose header is JSON that names an algorithm (RFC 7519, RFC 7515)."""
    head = value.partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (binascii.Error, ValueError):
        return 0
    return len(value) if isinstance(header, dict) and "alg" in header else 0


def is_private_key(value: str, text: str, start: int) -> int:
    """A key block with a body, not one that is only spoken of."""
    return len(value) if re.search(r"[A-Za-z0-9+/=]{40}", value.replace("\\n", "\n")) else 0


def connection_password(value: str, text: str, start: int) -> int:
    """user:password@host with a real password."""
    is_filler = FILLER.search(value) or NOT_A_VALUE.search(value) or value.lower() in COMMON_PASSWORD
    return 0 if is_filler or value.isdigit() else len(value)


def is_password(value: str, text: str, start: int) -> int:
    """A value with letters and digits or signs, at least eight characters (six after "password"), not code."""
    value = value.rstrip(".!?)")
    if NOT_A_VALUE.search(value) or FILLER.search(value) or value.lower() in COMMON_PASSWORD:
        return 0
    has_letter, has_digit = any(c.isalpha() for c in value), any(c.isdigit() for c in value)
    is_path_or_name = re.fullmatch(r"[A-Za-z_]+(?:[.\-/_][A-Za-z_]+)*", value) is not None
    return len(value) if has_letter and has_digit and len(value) >= 6 and not is_path_or_name else 0


def is_email(value: str, text: str, start: int) -> int:
    """An address that can belong to someone: neither a reserved domain nor a stand-in."""
    user, _, domain = value.partition("@")
    reserved = RESERVED_DOMAIN.search(domain) or user.lower() in RESERVED_USER or FILLER.search(value)
    return 0 if reserved or ".." in value else len(value)


def is_phone(value: str, text: str, start: int) -> int:
    """A number that is dialled: an assigned calling code, or ten digits of North America; no fictional 555, no 800."""
    number = digits(value)
    if value.startswith("+"):
        first = re.match(r"\d+", value[1:])
        code = CALLING_CODE.match(number)
        if not (8 <= len(number) <= 15 and code and first and len(first[0]) >= len(code[0])):
            return 0
        if number[0] != "1":
            return len(value)
    national = number[1:] if len(number) == 11 and number[0] == "1" else number
    has_area = re.match(r"(?:\+?1[ .-]?)?\(?\d{3}\)?[ .-]", value) is not None
    if len(national) == 10 and (value.startswith("+1") or has_area):
        is_real = national[0] > "1" and national[3] > "1" and national[3:6] != "555" and national[:3] != "555"
        return len(value) if is_real and national[:3] not in TOLL_FREE else 0
    if value.startswith("+") or DATE_OR_YEARS.search(value) or not 9 <= len(number) <= 12:
        return 0
    return len(value) if len(set(number)) > 3 and "1234567" not in number else 0


def is_iban(value: str, text: str, start: int) -> int:
    """An IBAN of its country's length whose check digits hold; what follows it is not counted."""
    length = IBAN_LENGTH.get(value[:2])
    taken, end = 0, 0
    for end, c in enumerate(value, 1):  # noqa: B007
        taken += c != " "
        if taken == length:
            break
    compact = value[:end].replace(" ", "")
    if len(compact) != length or (end < len(value) and value[end] != " "):
        return 0
    return end if mod97(compact) else 0


def is_card(value: str, text: str, start: int) -> int:
    """13 to 19 digits with an issuer's prefix and length (ISO/IEC 7812) that pass Luhn, grouped as on a card."""
    number = digits(value)
    if not (luhn(number) and len(set(number)) > 2):
        return 0
    if not re.fullmatch(r"\d+|\d{4}([ -])\d{4}\1\d{4}\1\d{1,4}(?:\1\d{1,3})?|\d{4}([ -])\d{6}\2\d{4,5}", value):
        return 0
    first4, size = int(number[:4]), len(number)
    is_issued = (
        (number[0] == "4" and size in (13, 16, 19))  # Visa
        or (size == 16 and (5100 <= first4 <= 5599 or 2221 <= first4 <= 2720))  # Mastercard
        or (size == 15 and number[:2] in ("34", "37"))  # American Express
        or (size in (16, 19) and (first4 == 6011 or 6440 <= first4 <= 6599 or 3528 <= first4 <= 3589))  # Discover, JCB
        or (size == 14 and number[:2] in ("36", "38", "39"))  # Diners Club
    )
    return len(value) if is_issued else 0


def is_ssn(value: str, text: str, start: int) -> int:
    """A number the Social Security Administration can have given out; not the two printed in advertisements."""
    area, group, serial = value.split("-")
    is_given = area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"
    return len(value) if is_given and value not in ("078-05-1120", "219-09-9999", "123-45-6789") else 0


def is_public_ip(value: str, text: str, start: int) -> int:
    """A globally routed address that may be someone's; not a version number, not a public resolver."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return 0
    if not address.is_global or address.is_multicast or value in PUBLIC_RESOLVERS:
        return 0
    before = text[max(0, start - 40) : start]
    if address.version == 4:
        if VERSION_BEFORE.search(before) or VERSION_AFTER.match(text, start + len(value)):
            return 0
        if all(int(n) <= VERSION_OCTET for n in value.split(".")) and not ADDRESS_BEFORE.search(before):
            return 0
    return len(value)
