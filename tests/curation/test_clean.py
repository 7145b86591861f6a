"""`aifx data clean`: what becomes of texts, and the command."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ftfy
import inprocess
import pyarrow as pa
import pytest
from documented import blocks
from ftfy.badness import MOJIBAKE_CATEGORIES
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from toy_steps import Rows

from aifx.core.errors import UsageError
from aifx.curation import languages
from aifx.curation.cleaning import _REPAIRS, SUSPECT, Clean, _may_change, _repaired_text, check_text, repaired
from aifx.curation.execution import execute
from aifx.curation.languages import SAMPLE, identify
from aifx.curation.rules import Rule, load_rules, parse_rules
from aifx.curation.step import Limits
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.manifest import Version

ENGLISH = (
    "The quick brown fox jumps over the lazy dog, and that is all there is to know about it. We have seen many foxes "
    "with many dogs; some of them were quick to leave, others stayed to be friends with every animal in town. "
    "Nobody knows why, but the mayor promised an answer before winter comes."
)
GERMAN = "Der Hund und die Katze sind heute im Garten, weil die Sonne scheint und es dort endlich wieder warm ist."


def clean(texts: Sequence[str | None], **options: Any) -> tuple[dict[str, str], dict[str, str], dict[str, int]]:
    """Kept texts, the rules of dropped rows, and the facts."""
    rows = pa.table({"_row": [f"r{i}" for i in range(len(texts))], "text": pa.array(texts, pa.string())})
    outcome = Clean((), **{"rules": (), "languages": None, **options}).apply(rows, Path())
    assert outcome.dropped is not None
    kept = dict(zip(outcome.kept["_row"].to_pylist(), outcome.kept["text"].to_pylist(), strict=True))
    dropped = dict(zip(outcome.dropped["_row"].to_pylist(), outcome.dropped["rule"].to_pylist(), strict=True))
    assert kept.keys() | dropped.keys() == {f"r{i}" for i in range(len(texts))}
    return kept, dropped, dict(outcome.facts)


def own_rules(text: str) -> tuple[Rule, ...]:
    return tuple(parse_rules(text, "ours"))


def test_the_documented_rules(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(blocks("own-rule", "toml")[1])
    footer = f"{ENGLISH}\nAll rights reserved."
    kept, dropped, _ = clean(["short", ENGLISH, footer], rules=load_rules(["mine.toml"], tmp_path))
    assert kept == {"r1": ENGLISH, "r2": ENGLISH}
    assert dropped == {"r0": "mine.length"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("plain", "plain"),
        ("cafe\u0301", "caf\u00e9"),
        ("Itâ€™s â€œgoodâ€\u009d", "It’s “good”"),
        ("Ã¼ber schÃ¶n", "über schön"),
        ("voilÃ  le menu", "voilà le menu"),
        ("It’s “good” — naïve café", "It’s “good” — naïve café"),
        ("A\u0303¼ber schA\u0303¶n", "über schön"),  # mojibake only in its Unicode form
        ("a\r\nb\rc", "a\nb\nc"),
        ("a\x00b\x07c\ufeff", "abc"),
        ("&lt;b&gt; ﬁne ＡＢ", "&lt;b&gt; ﬁne ＡＢ"),
        ("Привет, мир", "Привет, мир"),
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚", "Привет"),
    ],
)
def test_repair(before: str, after: str) -> None:
    assert clean([before])[0] == {"r0": after}


def test_forms() -> None:
    values = pa.array(["ﬁ e\u0301", "Ã¼ber"])
    assert repaired(values, "NFKC", False).to_pylist() == ["fi \u00e9", "Ã1\u20444ber"]
    assert repaired(values, "NFC", False).to_pylist() == ["ﬁ \u00e9", "Ã¼ber"]
    assert repaired(values, "none", False) is values
    assert repaired(values, "none", True).to_pylist() == ["ﬁ e\u0301", "über"]


texts = st.lists(
    st.text()
    | st.text(alphabet="Ã¼â€™œ \u0301e\r\n\x85\u2028a.?")
    | st.text().map(lambda text: text.encode("utf-8", "ignore").decode("latin-1")),
    min_size=1,
    max_size=8,
)


@given(texts)
def test_cleaning_again_changes_nothing(found: list[str]) -> None:
    rules = own_rules(
        '[[rule]]\nid = "l"\nunit = "line"\nmeasure = "words"\nat_least = 2\nsource = "us"\n'
        '[[rule]]\nid = "t"\nmeasure = "duplicate_lines"\nat_most = 0.3\nsource = "us"\n'
    )
    kept, _, _ = clean(found, rules=rules)
    again, dropped, facts = clean(list(kept.values()), rules=rules)
    assert (list(again.values()), dropped, facts["rows_changed"]) == (list(kept.values()), {}, 0)
    for text in kept.values():
        assert unicodedata.is_normalized("NFC", text)


samples = st.lists(
    st.lists(st.sampled_from(["the dog and the cat", "the", "a\nb\n", "#", ENGLISH, "- x\n", "…\n"]), max_size=8).map(
        " ".join
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(samples, st.randoms(use_true_random=False), st.integers(1, 12))
def test_each_row_is_judged_alone(found: list[str], random: Any, at_a_time: int) -> None:
    """In another order, and in parts of any size."""
    rules = load_rules(["gopher", "c4", "fineweb"], Path())
    expected = [clean([text], rules=rules, languages=())[:2] for text in found]
    order = random.sample(range(len(found)), len(found))
    for begin in range(0, len(order), at_a_time):
        places = order[begin : begin + at_a_time]
        kept, dropped, _ = clean([found[place] for place in places], rules=rules, languages=())
        for number, place in enumerate(places):
            assert ({"r0": kept[f"r{number}"]} if f"r{number}" in kept else {}) == expected[place][0]
            assert ({"r0": dropped[f"r{number}"]} if f"r{number}" in dropped else {}) == expected[place][1]


def test_lines_are_left_out() -> None:
    page = (
        "A menu\nThis line has more than five words.\n\nPlease enable Javascript to see this page.\n"
        "This one stays as well, yes!"
    )
    kept, _, facts = clean([page, "- a menu"], rules=load_rules(["c4"], Path())[:3])
    assert kept == {"r0": "This line has more than five words.\n\nThis one stays as well, yes!"}
    assert facts == {
        "lines_dropped.c4.javascript": 1,
        "lines_dropped.c4.line-words": 0,
        "lines_dropped.c4.terminal-punctuation": 2,
        "rows_changed": 1,
    }


def test_rows_without_text_are_dropped() -> None:
    assert clean(["", None, " \n\u00a0", "x"])[:2] == ({"r3": "x"}, {"r0": "empty", "r1": "empty", "r2": "empty"})


def test_the_first_rule_that_fails_is_named() -> None:
    rules = load_rules(["gopher"], Path())
    words = ENGLISH.split()
    foreign = " ".join(f"lorem{i} ipsum{i} dolor{i}" for i in range(30))
    _, dropped, _ = clean(["too short", ENGLISH + " " + ENGLISH, " ".join(words[:3] * 30), foreign], rules=rules)
    assert dropped == {"r0": "gopher.words", "r1": "gopher.duplicate-5-grams", "r2": "gopher.top-2-gram"}


def test_languages() -> None:
    rows = pa.table({"_row": ["a", "b"], "text": [ENGLISH, GERMAN], "language": ["old", "old"]})
    outcome = Clean((), (), ("de",)).apply(rows, Path())
    assert outcome.kept.to_pylist() == [{"_row": "b", "text": GERMAN, "language": "de", "language_probability": 1.0}]
    assert outcome.dropped is not None
    assert outcome.dropped.to_pylist() == [{"_row": "a", "rule": "language", "twin": None}]
    both = Clean((), ()).apply(rows, Path())
    assert both.facts == {"language.de": 1, "language.en": 1, "rows_changed": 0}


@pytest.mark.parametrize(("name", "code"), [("English", "en"), ("german", "de"), ("Klingon", None), ("en_GB", None)])
def test_the_code_of_a_language(name: str, code: str | None) -> None:
    assert languages.language_code(name) == code
    assert code is None or code in languages.known_languages()


def test_a_rule_for_a_language_judges_no_other() -> None:
    rules = own_rules(
        '[[rule]]\nid = "s"\nmeasure = "distinct_words"\nphrases = ["zebra"]\nat_least = 1\n'
        'languages = ["en"]\nsource = "us"\n'
    )
    assert clean([ENGLISH, GERMAN], rules=rules, languages=())[1] == {"r0": "s"}
    assert clean([ENGLISH, GERMAN], rules=rules)[1] == {}


def test_the_language_is_that_of_the_middle() -> None:
    assert identify([ENGLISH + GERMAN * 40 + ENGLISH])[0] == ["de"]
    assert identify(["2026-11-28 12:30", ""]) == (["zxx", "zxx"], [1.0, 1.0])


@pytest.fixture
def corpus(tmp_path: Path) -> Version:
    texts = ((ENGLISH, "short", f"Itâ€™s {ENGLISH}"), (GERMAN, ENGLISH + " Twice."))
    return execute(Rows((), texts), "corpus", open_catalog(str(tmp_path / "datasets")), Limits(1 << 30, 1)).version


def aifx(folder: Path, *args: str) -> Any:
    environ = {**os.environ, "AIFX_CACHE_DIR": str(folder / "cache")}
    command = ["data", "clean", *args, "--root", "datasets", "--workers", "1"]
    return inprocess.run(command, folder, environ)


def test_command(tmp_path: Path, corpus: Version) -> None:
    done = aifx(tmp_path, "corpus", "--languages", "en", "--rules", "gopher", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["rows"], document["dropped_by"]) == (3, {"gopher.words": 2})
    assert document["facts"] == {"language.en": 3, "rows_changed": 1}
    latest = open_catalog(str(tmp_path / "datasets")).open("corpus")
    assert latest.reference == document["reference"]
    again = json.loads(aifx(tmp_path, "corpus", "--languages", "en", "--json").stdout)
    assert (again["reference"], again["is_new"]) == (document["reference"], False)


def test_too_many_dropped_rows_are_a_verdict(tmp_path: Path, corpus: Version) -> None:
    done = aifx(tmp_path, "corpus", "--languages", "de", "--rules", "none", "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert (document["rows"], document["dropped"], document["is_accepted"]) == (1, 4, False)
    assert "80.0% of the rows" in done.stderr
    assert "--max-dropped 0.5" in done.stderr
    catalog = open_catalog(str(tmp_path / "datasets"))
    assert catalog.find("corpus")[1] == corpus.manifest.version
    rejected = catalog.open(document["reference"])
    assert [row["text"] for shard in rejected.shards for row in parquet.read_table(shard).to_pylist()] == [GERMAN]
    done = aifx(tmp_path, "corpus", "--languages", "de", "--rules", "none", "--max-dropped", "0.8")
    assert done.returncode == 0
    assert catalog.find("corpus")[1] == rejected.manifest.version


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["corpus", "--languages", "xx"], "no language 'xx'"),
        (["corpus", "--rules", "gofer"], "no set of rules 'gofer'"),
        (["corpus", "--rules", ","], "names nothing"),
        (["corpus@0000"], "names no version"),
        (["corpse"], "no data set 'corpse'"),
    ],
)
def test_usage(tmp_path: Path, corpus: Version, options: list[str], words: str) -> None:
    done = aifx(tmp_path, *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert [line[:6] for line in done.stderr.splitlines()][::2] == ["error:", "hint: "]


def test_rows_without_a_text_column(corpus: Version) -> None:
    manifest = corpus.manifest
    with pytest.raises(UsageError, match="has no texts"):
        check_text(replace(manifest, columns={"_row": "string", "label": "int64"}))


SENTENCES = (
    "Le chat est sur la table et le chien dort.",
    "Привет, мир, как дела у вас сегодня?",
    "北京是中华人民共和国的首都。",
    "HELLO WORLD, THIS IS AN ANNOUNCEMENT",
    "Srbija je zemlja u Evropi.",
    "Србија је земља у Европи.",
    "cafe\u0301 ole\u0301",
    "x",
    ENGLISH * 20,
    GERMAN * 9,
)


def test_languages_are_those_of_py3langid() -> None:
    """One by one, each text has the language and the probability that py3langid gives it."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    alone = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    for text, language, probability in zip(SENTENCES, *identify(SENTENCES, languages.SINITIC), strict=True):
        middle = max(0, (len(text) - SAMPLE) // 2)
        expected, share = alone.classify(text[middle : middle + SAMPLE])
        assert (language, probability) == (expected, pytest.approx(share, abs=0.006)), text


TRADITIONAL = "#### 將狀態和行為編碼為類型"  # of the Rust book's translation; the model takes it for Cantonese
CANTONESE = "你係邊個？我哋聽日去佢屋企食飯，你嚟唔嚟呀？"


def test_traditional_chinese_is_chinese_unless_cantonese_is_asked_for() -> None:
    assert identify([TRADITIONAL, CANTONESE])[0] == ["zh", "zh"]
    assert identify([TRADITIONAL, CANTONESE], languages.SINITIC)[0] == ["yue", "yue"]
    assert identify([CANTONESE], ["yue"])[0] == ["yue"]
    kept, dropped, _ = clean([TRADITIONAL, CANTONESE, ENGLISH], languages=("zh",))
    assert (list(kept), dropped) == (["r0", "r1"], {"r2": "language"})
    assert clean([CANTONESE, ENGLISH], languages=("yue",))[0] == {"r0": CANTONESE}


@given(st.lists(st.sampled_from([*SENTENCES, "", "12"]), min_size=1, max_size=9), st.integers(1, 3))
def test_a_language_depends_on_its_text_alone(texts: list[str], batch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(languages, "BATCH", batch)
        found = list(zip(*identify(texts), strict=True))
    assert found == [(language[0], share[0]) for language, share in map(identify, ([text] for text in texts))]


PLAIN_SUSPECT = re.compile(r"[^\x00-\x7f]{2}|[\xc0-\xff][ ?]|[\x00-\x08\x0b-\x1f\x7f-\xa0\u2028\u2029\ufeff\ufffd]")
EDGES = "\0\x08\t\n\x0b\r\x1f ?a~\x7f\x80\xa0\xa1\xbf\xc0é\xff\u0100\u2027\u2028\u2029\u202a\ufeff\ufffd\U0010ffff"


@given(st.text(alphabet=EDGES, max_size=4))
def test_suspect_texts_are_those_of_the_plain_expression(text: str) -> None:
    assert bool(SUSPECT.search(text)) == bool(PLAIN_SUSPECT.search(text))


ODD = "".join(MOJIBAKE_CATEGORIES.values()).replace("\\", "") + "ÃÂâŒœГўВЂβ€ā√≈‚вØÙ×²à\x1b\u206a\ufff9\ufeff"
lines = st.lists(st.text(alphabet=ODD, max_size=4) | st.text(alphabet="aZ .?0[", max_size=12), max_size=8).map("".join)


@given(lines | st.text(alphabet=st.characters(exclude_characters="\n")))
def test_lines_that_are_skipped_are_those_that_ftfy_leaves(line: str) -> None:
    assert _may_change(line) or ftfy.fix_text(line, _REPAIRS) == line


def test_quotes_beside_dashes_are_skipped() -> None:
    assert not _may_change("It’s “good”—“very,” she said… — naïve café")


def test_characters_that_the_form_leaves() -> None:
    """Each alone and after a letter: it is in no other form, has no place in an order of marks, and joins no letter."""
    kept = [chr(code) for code in range(0x300) if chr(code).isprintable()] + [
        chr(code) for code in range(0x2002, 0x20D0)
    ]
    for character in kept:
        assert unicodedata.combining(character) == 0
        assert all(
            unicodedata.is_normalized("NFC", f"{letter}{character}{letter}") for letter in ("", "a", "é", character)
        )


@given(texts)
def test_texts_that_are_skipped_are_those_that_repair_leaves(found: list[str]) -> None:
    assert repaired(pa.array(found), "NFC", True).to_pylist() == [_repaired_text(text, "NFC", True) for text in found]
