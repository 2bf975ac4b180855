"""Vocabularies by WordNet: against a slow, plain twin on the real dict files, and what they cover."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsl
from tests.help.thoroughness import examples
from wsl import _core
from wsl.hashtags.vocabulary import Coverage, Share

DICT = Path("/usr/share/wordnet")
WORDS = """crane cr-ane bank bank_building depository dog domestic_dog canis_familiaris car auto machine
    selfie tbt x1 wood woods forest st_louis saint_louis o'clock santa new_york newyork nyc jack jackass"""
needs_wordnet = pytest.mark.skipif(
    not (DICT / "data.noun").exists(), reason="Debian's package wordnet-base is not installed"
)


def compact(text: str) -> str:
    return "".join(c for c in text if c not in " _-'.")


class PlainWordNet:
    """The same rules, a line at a time."""

    def __init__(self, folder: Path, listed: list[str]) -> None:
        counts = {}
        for line in (folder / "cntlist.rev").read_text().splitlines():
            key, number, count = line.split()
            lemma, _, rest = key.partition("%")
            if rest.startswith("1:"):
                counts[lemma, int(number)] = int(count)
        self.first_words = {}
        for line in (folder / "data.noun").read_text().splitlines():
            if not line.startswith("  "):
                fields = line.split()
                self.first_words[fields[0]] = fields[4].lower()
        senses = defaultdict(list)
        for line in (folder / "index.noun").read_text().splitlines():
            if line.startswith("  "):
                continue
            fields = line.split()
            for number, offset in enumerate(fields[-int(fields[2]) :], start=1):
                order = (f"n{offset}" not in listed, number, -counts.get((fields[0], number), 0), int(offset))
                senses[compact(fields[0])].append((order, offset))
        self.senses = {form: sorted(found) for form, found in senses.items()}

    def meaning(self, tag: str) -> tuple[str, bool] | None:
        found = self.senses.get(compact(tag))
        return found and (found[0][1], len({offset for _, offset in found}) > 1)

    def name(self, offset: str) -> str:
        word = self.first_words[offset]
        return word if self.meaning(word)[0] == offset else f"{word}.n{offset}"  # type: ignore[index]

    def vocabulary(
        self, ranked: list[tuple[str, int]], min_count: int, limit: int | None
    ) -> list[tuple[object, ...]]:
        merged: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for tag, count in ranked:
            meaning = self.meaning(tag)
            merged["n" + meaning[0] if meaning else "tag " + tag].append((tag, count))
        rows = []
        for key, tags in merged.items():
            synset = None if key.startswith("tag ") else key
            name = self.name(key[1:]) if synset else tags[0][0]
            rows.append((name, synset, sum(count for _, count in tags), [tag for tag, _ in tags]))
        rows = [row for row in rows if row[2] >= min_count]
        rows.sort(key=lambda row: (-row[2], row[0].encode(), row[1] or ""))
        return rows[:limit]


@pytest.fixture(scope="module")
def plain() -> PlainWordNet:
    return PlainWordNet(DICT, [])


def counted(tags: dict[str, int]) -> wsl.HashtagCounts:
    records = [[tag] for tag, count in tags.items() for _ in range(count)]
    return wsl.count_hashtags(pl.DataFrame({"hashtags": records}, schema={"hashtags": pl.List(pl.String)}))


@needs_wordnet
def test_forms_and_synonyms_of_a_noun_become_one_label() -> None:
    counts = counted({"#brownbear": 3, "#Brown_Bear": 2, "#ursusarctos": 1, "#selfie": 4})
    vocabulary = wsl.Vocabulary.build(counts, wordnet=DICT)
    assert vocabulary.names == ["brown_bear", "selfie"]
    row = vocabulary.table().row(0, named=True)
    assert row["synset"] == "n02132136"
    assert row["tag_count"] == 6
    assert row["tags"] == ["brownbear", "brown_bear", "ursusarctos"]
    assert vocabulary.coverage == Coverage(Share(4, 10), Share(4, 10), Share(3, 6), Share(0, 0))


@needs_wordnet
@given(
    st.dictionaries(
        st.sampled_from(WORDS.split()),
        st.integers(1, 5),
        min_size=1,
    ),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(1, 8)),
)
@examples(40)
def test_vocabularies_agree_with_the_plain_twin(
    plain: PlainWordNet, tags: dict[str, int], min_count: int, limit: int | None
) -> None:
    counts = counted(tags)
    built = wsl.Vocabulary.build(counts, min_count=min_count, max_labels=limit, wordnet=DICT)
    found = [row[1:] for row in built.table().iter_rows()]
    assert found == plain.vocabulary(list(counts.table().iter_rows()), min_count, limit)


@needs_wordnet
def test_every_noun_means_what_the_plain_twin_says(plain: PlainWordNet) -> None:
    nouns = [line.split()[0] for line in (DICT / "index.noun").read_text().splitlines() if line[0] != " "]
    records = pl.DataFrame({"hashtags": [[noun] for noun in nouns[::7]]})
    table = wsl.Vocabulary.build(wsl.count_hashtags(records), wordnet=DICT).table()
    meanings = {tag: synset for tags, synset in table.select("tags", "synset").iter_rows() for tag in tags}
    normal = {noun: _core.normalize_hashtag(noun) for noun in nouns[::7]}
    expected = {normal[noun]: "n" + plain.meaning(noun)[0] for noun in normal}  # type: ignore[index]
    assert meanings == expected


@needs_wordnet
def test_listed_synsets_are_chosen_first(tmp_path: Path) -> None:
    bird = PlainWordNet(DICT, []).senses["crane"]
    other = bird[-1][1]
    (tmp_path / "synsets.txt").write_text(f"# the bird\n\nn{other}  # crane\n")
    counts = counted({"crane": 2})
    first = wsl.Vocabulary.build(counts, wordnet=DICT).table()["synset"][0]
    chosen = wsl.Vocabulary.build(counts, wordnet=DICT, synsets=tmp_path / "synsets.txt")
    assert first != f"n{other}"
    assert chosen.table()["synset"][0] == f"n{other}"
    for text, kind, message in [("x\n", wsl.DataError, "line 1"), ("n00000001", wsl.UsageError, "n00000001")]:
        (tmp_path / "synsets.txt").write_text(text)
        with pytest.raises(kind, match=message):
            wsl.Vocabulary.build(counts, wordnet=DICT, synsets=tmp_path / "synsets.txt")


def test_wrong_wordnets_are_told(tmp_path: Path) -> None:
    counts = counted({"crane": 2})
    with pytest.raises(wsl.UsageError, match="wordnet-base"):
        wsl.Vocabulary.build(counts, wordnet=tmp_path)
    with pytest.raises(wsl.UsageError, match="wordnet too"):
        wsl.Vocabulary.build(counts, synsets=tmp_path / "synsets.txt")
    (tmp_path / "data.noun").write_text("nonsense\n")
    with pytest.raises(wsl.DataError, match=r"data\.noun: line 1"):
        wsl.Vocabulary.build(counts, wordnet=tmp_path)


def test_coverage_counts_records_with_a_label() -> None:
    records = pl.DataFrame({"hashtags": [["a", "b"], ["b"], ["c"], [], ["#A"]]})
    vocabulary = wsl.Vocabulary.build(wsl.count_hashtags(records), min_count=2)
    assert vocabulary.names == ["a", "b"]
    assert vocabulary.cover(records) == (5, 3)
    assert vocabulary.coverage == Coverage(Share(3, 5), Share(2, 4), Share(0, 0), Share(0, 0))


def test_others_take_the_places_of_tags_left_out() -> None:
    counts = counted({"a": 9, "b": 7, "c": 5, "d": 3})
    vocabulary = wsl.Vocabulary.build(counts, max_labels=2, exclude=["#A", "nowhere"])
    assert vocabulary.names == ["b", "c"]
    assert vocabulary.table()["label"].to_list() == [0, 1]
    assert vocabulary.coverage is not None
    assert vocabulary.coverage.covered == Share(2, 12)
    assert wsl.Vocabulary.build(counts, max_labels=2).names == ["a", "b"]
    with pytest.raises(wsl.UsageError, match="max_labels"):
        wsl.Vocabulary.build(counts, max_labels=0)
