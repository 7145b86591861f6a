"""`aifx data pii`: what is found in texts, and what is not."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pii_sentences import sentences

from aifx.core.errors import EnvironmentFault, UsageError
from aifx.curation.pii import finders
from aifx.curation.pii.finders import KINDS, Detector, known_ids, make_detector, shape_of

DETECTOR = Detector()
WALLET = "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"


def found(text: str, detector: Detector = DETECTOR) -> list[tuple[str, str, str]]:
    return [(one.kind, text[one.start : one.end], one.check) for one in detector.find(text)]


@pytest.mark.parametrize("seed", [0, 1])
def test_600_sentences(seed: int) -> None:
    """Recall of 0.95 for each kind, of phones 0.7, and precision of 0.97."""
    total: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    num_found = 0
    for sentence in sentences(seed):
        spans = {(one.kind, one.start, one.end) for one in DETECTOR.find(sentence.text)}
        num_found += len(spans)
        total[sentence.kind] += 1
        hits[sentence.kind] += (sentence.kind, sentence.start, sentence.end) in spans
    assert (total.total(), total.pop("")) == (600, 60)
    assert total.keys() == set(KINDS)
    recall = {kind: hits[kind] / count for kind, count in total.items()}
    assert all(share >= (0.7 if kind == "phone" else 0.95) for kind, share in recall.items()), recall
    assert hits.total() / num_found >= 0.97, (hits, num_found)


@pytest.mark.parametrize(
    ("text", "kind", "value", "check"),
    [
        ("an@b.org.", "email", "an@b.org", "format"),
        ("see https://x.org/?q=me@b.org&y", "email", "me@b.org", "format"),
        ("4111 1111 1111 1111 12/27", "credit_card", "4111 1111 1111 1111", "checksum: Luhn"),
        ("3782-822463-10005", "credit_card", "3782-822463-10005", "checksum: Luhn"),
        ("GB82 WEST 1234 5698 7654 32, London", "iban", "GB82 WEST 1234 5698 7654 32", "checksum: ISO 7064 mod 97"),
        ("536-90-4399", "national_id", "536-90-4399", "format: us.ssn"),
        ("my ssn: 536904399", "national_id", "536904399", "format: us.ssn, context"),
        ("NHS no. 943 476 5919", "national_id", "943 476 5919", "checksum: gb.nhs, context"),
        ("36 574 261 809", "national_id", "36 574 261 809", "checksum: de.idnr"),
        ("2 95 10 99 126 111 93", "national_id", "2 95 10 99 126 111 93", "checksum: fr.nir"),
        ("RCCMNL83S18D969H", "national_id", "RCCMNL83S18D969H", "checksum: it.codicefiscale"),
        ("AB 12 34 56 C", "national_id", "AB 12 34 56 C", "format: gb.nino"),
        ("http://192.168.178.20:8080/", "ip_address", "192.168.178.20", "format: IPv4"),
        ("the host 10.0.0.5", "ip_address", "10.0.0.5", "format: IPv4"),
        ("2001:4860:4860::8888", "ip_address", "2001:4860:4860::8888", "format: IPv6"),
        ("00-1A-2B-3C-4D-5E", "mac_address", "00-1A-2B-3C-4D-5E", "format"),
        ("AKIAIOSFODNN7EXAMPLE", "api_key", "AKIAIOSFODNN7EXAMPLE", "format: aws"),
        ("password = 'k3Jx9-q8Zt!w2L'", "api_key", "k3Jx9-q8Zt!w2L", "context"),
        (WALLET, "crypto_wallet", WALLET, "checksum: Bitcoin"),
        ("(212) 555-0199", "phone", "(212) 555-0199", "numbering plan"),
        ("call 2125550199!", "phone", "2125550199", "numbering plan"),
        ("+49 30 901820, Berlin", "phone", "+49 30 901820", "numbering plan"),
        ("6759649826438453", "credit_card", "6759649826438453", "checksum: Luhn"),
        ("6304 9000 1774 0292 441", "credit_card", "6304 9000 1774 0292 441", "checksum: Luhn"),
        ("5018 0000 0009, exp. 11/28", "credit_card", "5018 0000 0009", "checksum: Luhn"),
        ("my Maestro: 501800000009", "credit_card", "501800000009", "checksum: Luhn"),
        ("call 9704577214", "phone", "9704577214", "numbering plan"),
        ("ISBN 0752531654, call 8353374064", "phone", "8353374064", "numbering plan"),
        ("call 8353374064 (not the ISBN)", "phone", "8353374064", "numbering plan"),
        ("8353374064, tel. not ISBN", "phone", "8353374064", "numbering plan"),
        ("(212) 555-0199 ext. 123.", "phone", "(212) 555-0199 ext. 123", "numbering plan"),
        ("212-555-0199x123", "phone", "212-555-0199x123", "numbering plan"),
        ("212.555.0199, extension 45", "phone", "212.555.0199, extension 45", "numbering plan"),
        ("212-555-0199 #5-B", "phone", "212-555-0199", "numbering plan"),
        ("bel 0031 6 12345678", "phone", "0031 6 12345678", "numbering plan"),
        ("0031612345678", "phone", "0031612345678", "numbering plan"),
        ("0031 (0)20 123 45 67", "phone", "0031 (0)20 123 45 67", "numbering plan"),
        ("(+31) 6 12345678", "phone", "(+31) 6 12345678", "numbering plan"),
        ("(+31 6 12345678)", "phone", "+31 6 12345678", "numbering plan"),
        ("tel:+31201234567", "phone", "+31201234567", "numbering plan"),
    ],
)  # fmt: skip
def test_found(text: str, kind: str, value: str, check: str) -> None:
    assert found(text) == [(kind, value, check)]


@pytest.mark.parametrize(
    "text",
    [
        "me@localhost, @user, logo@2x.png, lodash@4.17.21, git@github.com:a/b.git, a@b..org",
        "4111 1111 1111 1112, 4111-1111 1111-1111, 1234567890123452",
        "GB82 WEST 1234 5698 7654 33",
        "000-12-3456, 666-12-3456, 900-12-3456, 536 90 4399, 536904399",
        "485 777 3457 without the word\nNHS 485 777 3456",
        "version 5.200.100.99, 1.2.3.4, 127.0.0.1, 255.255.255.0, 0.0.0.0, 10.0.0.0/8, 300.1.1.1, 01.2.3.4",
        "Chrome/55.12.77.200",
        "12:30:45, 12:30:45:10, std::vector, a::b, fe80::1, ff:ff:ff:ff:ff:ff, 10:20:30:40:50:60",
        "eyJhbGciOiJIUzI1NiJ9.x, api_key=YOUR_API_KEY_HERE, password: correcthorsebattery",
        "2125550199, order 212-555-0199, 2024-01-15 10:30, 1.234.567.890",
        "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN3",
        "501800000009, EAN 5018000000095, 5018 0000 0008, ref 0 6304 9506 0000",
        "call us: 40.712776 -74.005974; tel POINT(141.8441234 -84.9841234), fax 77.98863819, -28.18859239",
        "tel 57.470378° N, 131.034419° E\nphone: lat 57.470370 lon 131.034410\ncall N 52 22.1234 E 004 53.4567",
        "phone 24-33-17.89N 068-41-51.80W",
        "tel 978-3-16-148410-0\nfax ISBN-13: 0390444936\ncall ISBN (pbk.) 0752531654\ncall 3 86010 512 4",
        "call for ISBNs 8353374064, 8124158681\ntel. orders of ISBN-10=7812865703\nno 8303883682 (ISBN). Call me",
        "call 9787561902080, fax 978\u20113\u201116\u2011148410\u20110, tel 0-8044-2957-X",
    ],
)
def test_not_found(text: str) -> None:
    assert found(text) == []


def test_phones_of_regions() -> None:
    text = "Tel. 030 901820"
    assert found(text) == []
    assert found(text, make_detector(KINDS, ["US", "DE"])) == [("phone", "030 901820", "numbering plan")]


def test_private_keys() -> None:
    body = "\n".join(["MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQDC7b2u1x0"] * 3)
    whole = f"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n{body}\n-----END RSA PRIVATE KEY-----"
    assert found(f"a\n{whole}\nb") == [("private_key", whole, "format: PEM")]
    cut = f"-----BEGIN PRIVATE KEY-----\n{body}"
    assert found(f"{cut}\nand then words follow") == [("private_key", cut, "format: PEM")]
    assert [value for _, value, _ in found(f"{whole}\n{cut}")] == [whole, cut]


def test_one_kind_is_found_as_if_all_were_looked_for() -> None:
    text = "IBAN DE89 3704 0044 0532 0130 00, tel. (212) 555-0199, 4111 1111 1111 1111"
    everything = DETECTOR.find(text)
    for kind in KINDS:
        assert Detector((kind,)).find(text) == [one for one in everything if one.kind == kind]


def test_ids_are_those_of_python_stdnum() -> None:
    """Each module is there, and refuses something."""
    for known in known_ids():
        assert known.pattern or (known.near and known.words), known.id
        assert not (known.module and known.is_valid("?")), known.id


words = st.sampled_from(
    [sentence.text for sentence in sentences(5, 100)]
    + ["a", "1", " ", "-", "212", "tel ", "@", "4111", ".", "SSN ", "536-90-4399", "\n", "é", "٣٤٥٦٧٨٩"]
)
texts = st.lists(words, max_size=6).map("".join) | st.text()


@given(texts)
@pytest.mark.slow
def test_nothing_is_found_in_a_masked_text(text: str) -> None:
    first = DETECTOR.find(text)
    masked = DETECTOR.mask([(0, text, first)])[0]
    assert DETECTOR.find(masked) == []
    for one in first:
        assert 0 <= one.start < one.end <= len(text)
    for left, right in itertools.pairwise(first):
        assert left.end <= right.start
    if not first:
        assert masked == text


@given(st.lists(texts | st.none(), max_size=6))
@pytest.mark.slow
def test_the_fast_way_misses_nothing(values: list[str | None]) -> None:
    """Texts are skipped by patterns of another engine."""
    expected = [(n, text, DETECTOR.find(text)) for n, text in enumerate(values) if text and DETECTOR.find(text)]
    assert list(DETECTOR.find_in(pa.array(values, pa.string()))) == expected


PLAIN_PHONE = re.compile(
    r"(?:(?<![\w+.,:#-])(?<![\w]/)|(?<=[^\W\d]:))(?:\(?\+ ?|\()?[0-9][0-9 ().\-/\u00a0\u2010-\u2015]{5,22}[0-9]"
    r"(?!(?![xX]\d|(?i:ext))[\w@]|\.\d)"
)


@given(st.lists(st.sampled_from("0123456789(+ -/:.,#aé_x@\u00a0\n"), max_size=40).map("".join) | texts)
def test_numbers_that_may_be_phones_are_those_of_the_plain_expression(text: str) -> None:
    assert [m.span() for m in finders._PHONE.finditer(text)] == [m.span() for m in PLAIN_PHONE.finditer(text)]


secrets = st.builds(
    "".join,
    st.lists(
        st.sampled_from(["paſſword", "API_KEY", "client-secret", "toKen", "bearer", "access key", "x"])
        | st.sampled_from(["\u00a0", "\x0b", "\x1c", " ", '"', "'", "=", ":", "\u2003"])
        | st.sampled_from(["hJ7-kL9_pQ2~", "sk-ant-0123456789abcdefghij", "AKIAABCDEFGHIJKLMNOP", "٣a٤b٥c٦d٧e٨f"]),
        max_size=8,
    ),
)
numbers = st.text("0123456789abcdefA:.-+/ ()\u00a0\u2010", max_size=40) | st.builds(
    str.join,
    st.sampled_from(["", " ", "-", "::", ":", ". ", "\u2011"]),
    st.lists(st.from_regex("[0-9a-f]{1,4}", fullmatch=True), max_size=9),
)


@given(secrets | numbers | texts)
def test_each_pattern_is_in_all_texts_of_its_kind(text: str) -> None:
    values = pa.array([text])
    for search in DETECTOR._searches:
        if any(search.find(text)):
            assert pc.match_substring_regex(values, search.may_have)[0].as_py(), search.kind


def test_shapes_hold_no_value() -> None:
    assert shape_of("Jane.Doe+1@example.org") == "Aaaa.Aaa+0@aaaaaaa.aaa"
    assert shape_of("x" * 40) == "a" * 32 + "…"


def test_kinds_and_regions() -> None:
    assert make_detector(["phone", "email"], ["DE"]).kinds == ("email", "phone")
    with pytest.raises(UsageError, match="no kind 'mail'"):
        make_detector(["mail"], ["US"])
    with pytest.raises(UsageError, match="no region 'Germany'"):
        make_detector(["phone"], ["Germany"])


def test_names_need_presidio_and_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = set()
    monkeypatch.setattr(finders.importlib.util, "find_spec", lambda name: name if name in there else None)
    with pytest.raises(EnvironmentFault) as raised:
        make_detector(["name"], ["US"])
    assert "presidio-analyzer" in raised.value.hint
    there.add("presidio_analyzer")
    with pytest.raises(EnvironmentFault) as raised:
        make_detector(["name"], ["US"])
    assert "spacy download en_core_web_lg" in raised.value.hint
    there.add("en_core_web_lg")
    assert make_detector(["name"], ["US"]).kinds == ("name",)


def test_the_page_has_all_kinds_and_ids() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data-pii.md").read_text()
    for kind in (*KINDS, "name"):
        assert f"| `{kind}` |" in page
    assert f"{len(known_ids())} numbers of countries" in page
    for known in known_ids():
        assert f"`{known.id}`" in page
