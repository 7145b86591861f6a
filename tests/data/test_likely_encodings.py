"""The encodings that real sentences may be written in."""

from __future__ import annotations

import codecs

import pytest

from aifx.core.plurals import either
from aifx.data.readers.encodings import MOST_NAMED, likely_encodings

SENTENCES = {
    "German": "Ein schöner Tag für die Bäume. Über den Wäldern zieht der Nebel, und die Vögel grüßen den Morgen.\n",
    "French": "Après l'été, les élèves sont rentrés à l'école. Où était la clé ? « Tombée », a répondu sa sœur.\n",
    "Danish": "Alle mennesker er født frie og lige i værdighed og rettigheder. De bør handle i en broderskabets ånd.\n",
    "Polish": "Wszyscy ludzie rodzą się wolni i równi. Są oni obdarzeni rozumem i powinni żyć w duchu braterstwa.\n",
    "Czech": "Všichni lidé rodí se svobodní a sobě rovní. Jsou nadáni rozumem i svědomím, mají žít v bratrství.\n",
    "Turkish": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdana sahiptirler.\n",
    "Lithuanian": "Visi žmonės gimsta laisvi ir lygūs savo orumu ir teisėmis. Jiems suteiktas protas ir sąžinė.\n",
    "Russian": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.\n",
    "Hebrew": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. כולם חוננו בתבונה ובמצפון.\n",
    "Japanese": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n",
    "Chinese": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。\n",
    "Korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 이성과 양심을 부여받았다.\n",
    "English": "It was a bright cold day in April, and the clocks were striking thirteen.\n",
}
OLD = [
    ("German", "cp1252"), ("German", "mac-roman"), ("French", "cp1252"), ("French", "cp850"), ("Danish", "cp1252"),
    ("Polish", "cp1250"), ("Polish", "iso8859-2"), ("Czech", "cp1250"), ("Turkish", "cp1254"), ("Lithuanian", "cp1257"),
    ("Russian", "cp1251"), ("Russian", "koi8-r"), ("Greek", "cp1253"), ("Japanese", "cp932"),
    ("Japanese", "euc_jp"), ("Chinese", "gb18030"), ("Korean", "cp949"),
]  # fmt: skip
HEADING = "Chapter 1. A heading in plain English, without a letter beyond ASCII.\n" * 20


@pytest.mark.parametrize(("language", "encoding"), OLD)
@pytest.mark.parametrize("before", ["", HEADING], ids=["alone", "after a heading"])
def test_a_sentence_has_its_encoding(language: str, encoding: str, before: str) -> None:
    data = (before + SENTENCES[language].replace("œ", "oe") * 3).encode(encoding, "replace")
    assert likely_encodings(data)[0] == encoding
    assert likely_encodings(data) == likely_encodings(data)


def test_names_that_are_less_exact_lead_to_the_same_text() -> None:
    for language, encoding in (("German", "latin-1"), ("Japanese", "shift_jis")):
        data = SENTENCES[language].encode(encoding)
        assert data.decode(likely_encodings(data)[0]) == SENTENCES[language]


@pytest.mark.parametrize("language", SENTENCES)
def test_utf_needs_no_mark(language: str) -> None:
    text = SENTENCES[language]
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        for sample in (text * 3, text.rstrip()):
            assert likely_encodings(sample.encode(encoding)) == [encoding]
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert likely_encodings(text.encode(encoding)) == [encoding.removesuffix("-sig")]


def test_short_texts() -> None:
    assert likely_encodings("hi\n".encode("utf-16-be")) == ["utf-16-be"]
    assert likely_encodings("hi".encode("utf-16-le")) == ["utf-16-le"]
    assert likely_encodings(b"caf\xe9")[0] == "cp1252"
    assert likely_encodings(b"") == ["utf-8"]


def test_damaged_utf8_stays_utf8_and_binary_data_is_no_text() -> None:
    text = SENTENCES["German"].encode()
    assert likely_encodings(text + b"\xe9") == likely_encodings(text + "…".encode()[:2]) == ["utf-8"]
    assert likely_encodings(b"PK\x03\x04\x14\x00\x00\x00\x08\x00\x9b\x9c" * 99) == []
    assert likely_encodings(bytes(range(256)) * 9) == []
    assert likely_encodings(SENTENCES["English"].encode() * 9 + b"a stray \0 byte") == []
    assert likely_encodings(b"a stray \0 byte.") == []  # which is UTF-8, and Chinese in UTF-16


def test_each_likely_encoding_is_a_codec_and_three_are_named() -> None:
    found = likely_encodings(SENTENCES["French"].encode("cp1252"))
    assert all(codecs.lookup(name).name == name for name in found)
    assert [either(found[:count]) for count in (1, 2, MOST_NAMED)] == [
        found[0], f"{found[0]} or {found[1]}", f"{found[0]}, {found[1]} or {found[2]}",
    ]  # fmt: skip
