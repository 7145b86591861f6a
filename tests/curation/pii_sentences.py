"""Sentences with personal data that is made up here: checksums and forms are written out again, nothing is aifx's.

The sources are the published definitions: ISO/IEC 7812 and 7064, and those of the countries' authorities.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import random
import string
import uuid
from collections.abc import Callable
from typing import NamedTuple


class Sentence(NamedTuple):
    """A text, the kind of what it holds ("" for a hard negative), and where that is."""

    text: str
    kind: str
    start: int
    end: int


UPPER, LOWER, DIGITS = string.ascii_uppercase, string.ascii_lowercase, string.digits
FIRST = [
    "anna", "bruno", "carla", "dmitri", "elif", "farid", "grace", "hiro", "ines",
    "jonas", "kofi", "lena", "mateo", "nadia", "otto", "priya", "quentin", "rosa",
]  # fmt: skip
LAST = [
    "almeida", "bauer", "costa", "dupont", "eriksen", "fischer", "garcia", "haddad",
    "ito", "jansen", "kowalski", "lopez", "moreau", "novak", "okafor",
]  # fmt: skip


def digits(r: random.Random, count: int, first: str = DIGITS) -> str:
    return r.choice(first) + "".join(r.choice(DIGITS) for _ in range(count - 1))


def text_of(r: random.Random, alphabet: str, count: int) -> str:
    return "".join(r.choice(alphabet) for _ in range(count))


def luhn_digit(body: str) -> str:
    total = 0
    for place, character in enumerate(reversed(body)):
        value = int(character)
        if place % 2 == 0:
            value = value * 2 - 9 if value > 4 else value * 2
        total += value
    return str(-total % 10)


def email(r: random.Random) -> str:
    host = r.choice(
        ["example.org", "mail.example.co.uk", "posteo.example.de", "uni-wien.example.at", "corp.example.io"]
    )
    joint = r.choice([".", "_", "-", "+"])
    name = r.choice(
        [f"{r.choice(FIRST)}{joint}{r.choice(LAST)}", f"{r.choice(FIRST)[0]}{r.choice(LAST)}{r.randint(1, 99)}"]
    )
    written = f"{name}@{host}"
    return r.choice([written, written, written, written.upper(), f"jürgen.{r.choice(LAST)}@büro.example.de"])


def card(r: random.Random) -> str:
    kind = r.choice(["visa", "master", "new master", "amex", "discover", "maestro"])
    begin = {"visa": "4", "master": f"5{r.randint(1, 5)}", "new master": str(r.randint(2221, 2720)),
             "amex": r.choice(["34", "37"]), "discover": "6011",
             "maestro": r.choice(["5018", "5020", "5893", "6304", "6759", "6761", "6799"])}[kind]  # fmt: skip
    length = {"amex": 15, "maestro": r.choice([16, 18, 19])}.get(kind, 16)
    body = begin + "".join(r.choice(DIGITS) for _ in range(length - 1 - len(begin)))
    number = body + luhn_digit(body)
    joint = r.choice(["", " ", "-"])
    cuts = [0, 4, 10, 15] if kind == "amex" else [0, 4, 8, 12, 16, length] if length > 16 else [0, 4, 8, 12, 16]
    return joint.join(number[a:b] for a, b in itertools.pairwise(cuts))


def iban(r: random.Random) -> str:
    country, account = r.choice(
        [("DE", digits(r, 18)), ("GB", text_of(r, UPPER, 4) + digits(r, 14)), ("FR", digits(r, 23)),
         ("NL", text_of(r, UPPER, 4) + digits(r, 10)), ("CH", digits(r, 17)), ("NO", digits(r, 11))]
    )  # fmt: skip
    spelled = "".join(str(int(character, 36)) for character in account + country + "00")
    number = f"{country}{98 - int(spelled) % 97:02d}{account}"
    return number if r.random() < 0.4 else " ".join(number[at : at + 4] for at in range(0, len(number), 4))


def social_security(r: random.Random) -> str:
    area = r.choice([n for n in range(1, 900) if n not in (219, 457, 666, 78)])
    return f"{area:03d}-{r.randint(1, 99):02d}-{r.randint(1, 9999):04d}"


def nhs(r: random.Random) -> str:
    while True:
        body = digits(r, 9, "456789")
        check = 11 - sum(int(digit) * (10 - place) for place, digit in enumerate(body)) % 11
        if check != 10:
            number = body + str(check % 11)
            return r.choice([number, f"{number[:3]} {number[3:6]} {number[6:]}"])


def steuer_id(r: random.Random) -> str:
    """Ten digits of which one occurs twice, and a check digit of ISO 7064 mod 11,10."""
    while True:
        chosen = r.sample(DIGITS, 9)
        body = [*chosen, r.choice(chosen)]
        r.shuffle(body)
        if body[0] != "0":
            break
    product = 10
    for digit in body:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    number = "".join(body) + str((11 - product) % 10)
    return r.choice([number, f"{number[:2]} {number[2:5]} {number[5:8]} {number[8:]}"])


def nir(r: random.Random) -> str:
    parts = [r.choice("12"), f"{r.randint(0, 99):02d}", f"{r.randint(1, 12):02d}", f"{r.randint(1, 95):02d}"]
    if parts[3] == "20":
        parts[3] = "21"
    parts += [f"{r.randint(1, 900):03d}", f"{r.randint(1, 999):03d}"]
    parts.append(f"{97 - int(''.join(parts)) % 97:02d}")
    return r.choice(["", " "]).join(parts)


def dni(r: random.Random) -> str:
    body = digits(r, 8)
    return body + "TRWAGMYFPDXBNJZSQVHLCKE"[int(body) % 23]


def codice_fiscale(r: random.Random) -> str:
    body = text_of(r, "BCDFGLMNPRSTV", 6) + f"{r.randint(30, 99)}" + r.choice("ABCDEHLMPRST")
    body += f"{r.randint(1, 28):02d}" + r.choice("ABCDEFGHIL") + digits(r, 3)
    odd = dict(zip(DIGITS, (1, 0, 5, 7, 9, 13, 15, 17, 19, 21), strict=True))
    values = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
    odd |= dict(zip(UPPER, values, strict=True))
    even = {character: int(character) if character.isdigit() else ord(character) - 65 for character in DIGITS + UPPER}
    total = sum(odd[c] if place % 2 == 0 else even[c] for place, c in enumerate(body))
    return body + UPPER[total % 26]


def pesel(r: random.Random) -> str:
    body = f"{r.randint(40, 99)}{r.randint(1, 12):02d}{r.randint(1, 28):02d}" + digits(r, 4)
    weights = (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)
    return body + str(-sum(int(d) * w for d, w in zip(body, weights, strict=True)) % 10)


def cpf(r: random.Random) -> str:
    number = digits(r, 9)
    for _ in range(2):
        total = sum(int(digit) * weight for digit, weight in zip(number, range(len(number) + 1, 1, -1), strict=True))
        number += str(0 if total % 11 < 2 else 11 - total % 11)
    return f"{number[:3]}.{number[3:6]}.{number[6:9]}-{number[9:]}"


NATIONAL: list[tuple[str, Callable[[random.Random], str]]] = [
    ("Her social security number is {}.", social_security),
    ("SSN on file: {}", social_security),
    ("{} (SSN) was typed twice", lambda r: social_security(r).replace("-", r.choice(["", " "]))),
    ("NHS number {} was entered at reception.", nhs),
    ("Die Steuer-ID lautet {}, bitte eintragen.", steuer_id),
    ("Numéro de sécurité sociale : {}.", nir),
    ("El DNI del titular es {}.", dni),
    ("Codice fiscale: {}", codice_fiscale),
    ("Numer PESEL: {}.", pesel),
    ("O CPF informado foi {}.", cpf),
]


def phone(r: random.Random) -> str:
    area = r.choice(["212", "415", "312", "617", "206", "303", "404", "512"])
    line = f"{r.randint(2, 9)}{r.randint(0, 9)}{r.randint(2, 9)}", f"{r.randint(0, 9999):04d}"
    return r.choice([
        f"({area}) {line[0]}-{line[1]}", f"{area}-{line[0]}-{line[1]}", f"{area}.{line[0]}.{line[1]}",
        f"+1 {area} {line[0]} {line[1]}", f"{area} {line[0]} {line[1]}", f"1-{area}-{line[0]}-{line[1]}",
        f"{area}{''.join(line)}", f"+1{area}{''.join(line)}", f"+44 (0)20 7{digits(r, 3)} {digits(r, 4)}",
        f"+44 20 7{digits(r, 3)} {digits(r, 4)}", f"+49 30 {digits(r, 7, '23456789')}",
        f"+33 1 4{digits(r, 1)} {digits(r, 2)} {digits(r, 2)} {digits(r, 2)}",
        f"{area}-{line[0]}-{line[1]} ext. {digits(r, 3)}", f"({area}) {line[0]}-{line[1]} x{digits(r, 2)}",
        f"0031 6 {digits(r, 8, '2345')}", f"+31 (0)20 {digits(r, 3, '234567')} {digits(r, 4)}",
    ])  # fmt: skip


def ip(r: random.Random) -> str:
    if r.random() < 0.3:
        return ":".join(["2001", "db8", *(f"{r.randint(4096, 65535):x}" for _ in range(6))])
    return f"{r.choice([31, 46, 81, 93, 109, 151, 178, 203])}." + ".".join(str(r.randint(1, 254)) for _ in range(3))


def mac(r: random.Random) -> str:
    pairs = [f"{r.randint(0, 255):02x}" for _ in range(5)] + [f"{r.randint(160, 255):02x}"]
    return r.choice([":".join(pairs), "-".join(pairs).upper()])


def api_key(r: random.Random) -> str:
    alphabet = UPPER + LOWER + DIGITS
    return r.choice([
        "AKIA" + text_of(r, UPPER + "234567", 16), "ghp_" + text_of(r, alphabet, 36), "AIza" + text_of(r, alphabet, 35),
        "sk_live_" + text_of(r, alphabet, 24), "glpat-" + text_of(r, alphabet, 20), "hf_" + text_of(r, alphabet, 34),
        f"xoxb-{digits(r, 12)}-{text_of(r, alphabet, 24)}", "npm_" + text_of(r, alphabet, 36),
    ])  # fmt: skip


def private_key(r: random.Random) -> str:
    label = r.choice(["RSA PRIVATE KEY", "PRIVATE KEY", "OPENSSH PRIVATE KEY", "EC PRIVATE KEY"])
    lines = [text_of(r, UPPER + LOWER + DIGITS + "+/", 64) for _ in range(r.randint(3, 8))]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----"])


def jwt(r: random.Random) -> str:
    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    header = json.dumps({"alg": r.choice(["HS256", "RS256"]), "typ": "JWT"}).encode()
    claims = json.dumps({"sub": digits(r, 8), "name": r.choice(FIRST)}).encode()
    return f"{part(header)}.{part(claims)}.{part(r.randbytes(32))}"


def wallet(r: random.Random) -> str:
    if r.random() < 0.4:
        return "0x" + r.randbytes(20).hex()
    payload = b"\0" + r.randbytes(20)
    payload += hashlib.sha256(hashlib.sha256(payload).digest()).digest()[:4]
    number, found = int.from_bytes(payload, "big"), ""
    alphabet = "".join(c for c in DIGITS + UPPER + LOWER if c not in "0OIl")
    while number:
        number, rest = divmod(number, 58)
        found = alphabet[rest] + found
    return "1" * (len(payload) - len(payload.lstrip(b"\0"))) + found


PLAIN: dict[str, tuple[Callable[[random.Random], str], list[str]]] = {
    "email": (email, ["Please write to {} before Friday.", "mailto:{}?subject=x", "cc <{}>; thanks", "Kontakt: {}."]),
    "credit_card": (card, ["My card is {} 11/28 123.", "paid 12 to {}.", "Kartennummer:{};", "pay with {}, please"]),
    "iban": (iban, ["Transfer it to {} today.", "IBAN: {}", "Konto {} bei der BANK X1.", "from {} EUR 12"]),
    "phone": (phone, ["Call me at {} tonight.", "Tel.: {}", "You can reach us on {}.", "{} is my number"]),
    "ip_address": (
        ip,
        ["The request came from {}.", "blocked [{}] after 5 tries", '{} - - "GET /', "ssh root@{} fails"],
    ),
    "mac_address": (mac, ["The device {} joined.", "lease for {} ended", "MAC {}", "from {} to the gateway"]),
    "api_key": (
        api_key,
        ["export TOKEN={}", "https://api.example.org/v1?key={}&page=2", "I pasted {} by mistake", "use {} for now"],
    ),
    "private_key": (private_key, ["Here it is:\n{}\nDo not share it.", "{}", "id_rsa\n\n{}\n", "cat key\n{}\n$ "]),
    "jwt": (jwt, ["Authorization: Bearer {}", "token={}", "the cookie was {} yesterday", '{{"jwt": "{}"}}']),
    "crypto_wallet": (wallet, ["Send it to {}.", "wallet {}", "donations: {}", "from {} in March"]),
}


def hard_negative(r: random.Random) -> str:
    """Looks like personal data and is none."""
    good = luhn_digit(body := "4" + digits(r, 14))
    bad_card = body + r.choice([digit for digit in DIGITS if digit != good])
    clock = f"{r.randint(0, 23):02d}:{r.randint(0, 59):02d}:{r.randint(0, 59):02d}"
    day = f"{r.randint(1990, 2026)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}"
    isbn = "978" + digits(r, 9)
    isbn += str(-sum(int(d) * (1 + 2 * (place % 2)) for place, d in enumerate(isbn)) % 10)
    return r.choice([
        f"The number {bad_card} was rejected.",
        f"Version {r.randint(0, 9)}.{r.randint(0, 9)}.{r.randint(0, 30)}.{r.randint(0, 30)} is out.",
        f"v{r.randint(1, 9)}.{r.randint(10, 99)}.{r.randint(100, 200)}.{r.randint(0, 9)} fixes the bug",
        f"Order number {digits(r, 10, '2345')} has shipped.",
        f"Order {digits(r, 3)}-{digits(r, 7)}-{digits(r, 7)} has shipped.",
        f"It happened on {day} at {clock}.",
        f"From {day} {clock} until {day} {clock}, nobody was there.",
        f"ISBN {isbn[:3]}-{isbn[3]}-{isbn[4:6]}-{isbn[6:12]}-{isbn[12]}",
        f"ISBN {isbn}, second edition",
        f"They sold {digits(r, 1)},{digits(r, 3)},{digits(r, 3)} units for {digits(r, 5)}.{digits(r, 2)} euros.",
        f"The image logo@{r.randint(2, 4)}x.png is missing, says @{r.choice(FIRST)}.",
        f"git clone git@github.com:{r.choice(LAST)}/{r.choice(FIRST)}.git",
        f"commit {r.randbytes(20).hex()} broke it",
        f"The id is {uuid.UUID(bytes=r.randbytes(16))}.",
        f"pi is 3.14159265358979, e is 2.71828182845904{digits(r, 2)}",
        f"Figure {r.randint(1, 9)}.{r.randint(1, 9)}.{r.randint(1, 9)}.{r.randint(1, 9)} shows std::vector<a::b>.",
        f"Account GB{digits(r, 2)} WEST {digits(r, 4)} {digits(r, 3)} is not an IBAN.",
        f"the years {r.randint(1900, 1950)}-{r.randint(1951, 1999)}, pages {digits(r, 3)}-{digits(r, 3)}",
        f"api_key = YOUR_API_KEY_HERE, password: {r.choice(['changeme', '********', '<secret>'])}",
        f"at {r.randint(15 * 10**8, 18 * 10**8)} s, or {r.randint(15 * 10**11, 18 * 10**11)} ms",
        f"{r.randint(-89, 89)}.{digits(r, 6)}, {r.randint(-179, 179)}.{digits(r, 6)}",
        f"Our fax stands at POINT({r.randint(100, 179)}.{digits(r, 7)} {r.randint(10, 89)}.{digits(r, 7)})",
        f"won {'-'.join(digits(r, 2))} {'-'.join(digits(r, 2))} {'-'.join(digits(r, 2))} in {digits(r, 3)}:00",
        f"San Francisco, CA {digits(r, 5)}-{digits(r, 4)}, {digits(r, 4)} people, {digits(r, 3)} {digits(r, 3)} cars",
        f"doi:10.{digits(r, 4)}/{digits(r, 3)}.{digits(r, 4)}.{digits(r, 8)}",
        f"part {text_of(r, UPPER, 2)}{digits(r, 6)}, EAN {digits(r, 13)}, {text_of(r, UPPER, 3)}-{digits(r, 4)}",
        f"log_{day.replace('-', '')}T{clock.replace(':', '')}.txt has {digits(r, 6)} lines",
        f"{digits(r, 4)} {digits(r, 4)} {digits(r, 4)} are the first digits, {digits(r, 2)}%, row {digits(r, 9)}",
        f"patent US{digits(r, 8)}B2 of {digits(r, 4)}, invoice 2024-{digits(r, 6)}",
        f"the colour #{r.randbytes(3).hex()}, at {clock}:{digits(r, 2)}, ratio {':'.join(digits(r, 9))}",
        f"SHA-256 {r.randbytes(32).hex()}",
        f"call f(x)@{digits(r, 2)} with {digits(r, 3)} and {digits(r, 4)}, {digits(r, 5)} times",
        f"The tracking number is 1Z{text_of(r, UPPER + DIGITS, 6)}{digits(r, 10)}.",
    ])  # fmt: skip


def sentences(seed: int, count: int = 600) -> list[Sentence]:
    """`count` sentences, a tenth of them hard negatives, the others of each kind in turn."""
    r = random.Random(seed)
    kinds = [*PLAIN, "national_id"]
    found = []
    for number in range(count):
        if number % 10 == 9:
            found.append(Sentence(hard_negative(r), "", 0, 0))
            continue
        kind = kinds[(number - number // 10) % len(kinds)]
        if kind == "national_id":
            frame, make = r.choice(NATIONAL)
        else:
            make, frames = PLAIN[kind]
            frame = r.choice(frames)
        value = make(r)
        start = len(frame.split("{}")[0].replace("{{", "{"))
        found.append(Sentence(frame.format(value), kind, start, start + len(value)))
        assert found[-1].text[found[-1].start : found[-1].end] == value
    return found
