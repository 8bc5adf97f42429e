"""Archives without a cluster: manifests, names, the line, the journal, corpora, and what is said of the progress."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech import cli
from mlx_speech.archive import Failed, Plan, Progress, read_manifest
from mlx_speech.archive import run as archive_run
from mlx_speech.archive.corpus import CORPUS_FORMATS, row_of, shard_name, write_shard
from mlx_speech.archive.failures import TRANSIENT, kind_of
from mlx_speech.archive.fleet import Lost
from mlx_speech.archive.items import Entry, Heard, Item
from mlx_speech.archive.journal import Journal, read_journal
from mlx_speech.archive.lengths import Lengths
from mlx_speech.archive.line import SHARE, Line
from mlx_speech.archive.manifest import LONGEST_FIELD
from mlx_speech.archive.naming import key_of, names_of
from mlx_speech.archive.progress import Tally
from mlx_speech.archive.results import Folder, Result, heard
from mlx_speech.archive.shards import Shards
from mlx_speech.archive.storage import ASKED_SINGLY, Storage
from mlx_speech.archive.worker import Setup, imported
from mlx_speech.cli.archive import SECONDS_LOGGED, SECONDS_WATCHED, described, lasting
from mlx_speech.cli.archive import Line as Shown
from mlx_speech.errors import (
    AudioError,
    CorruptFile,
    HubError,
    MissingDependency,
    Notice,
    OptionError,
    OutOfMemory,
    OutputError,
    SourceError,
    SourceNotFound,
)
from mlx_speech.transcript import Diarization, Segment, Transcript, Turn, Word
from mlx_speech.writers.stems import folded

STORAGE = Storage()


def entries_of(manifest: Any) -> list[Entry]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_manifest(manifest, STORAGE)


# --- manifests -------------------------------------------------------------------------------------------------------


def test_a_manifest_of_nemo(tmp_path: Path) -> None:
    lines = [
        {"audio_filepath": "a.wav", "duration": 2.5, "text": "so it goes", "lang": "German", "room": [1, {"x": None}]},
        {"audio_filepath": "/far/b.flac", "offset": 1, "duration": 3},
        {"audio_filepath": "s3://bucket/c.mp3"},
        {"audio_filepath": "/far/b.flac", "offset": 1, "duration": 3},
    ]
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("\n\n".join(json.dumps(line) for line in lines))
    assert entries_of(manifest) == [
        Entry(str(tmp_path / "a.wav"), None, 2.5, "de", "so it goes", {"room": [1, {"x": None}]}),
        Entry("/far/b.flac", 1.0, 3.0),
        Entry("s3://bucket/c.mp3"),
    ]
    table = tmp_path / "list.csv"
    table.write_text("path,offset,duration,text,topic\na.wav,,2.5,,news\n/far/b.flac,1,3,,\n")
    assert entries_of(str(table)) == [
        Entry(str(tmp_path / "a.wav"), None, 2.5, fields={"topic": "news"}),
        Entry("/far/b.flac", 1.0, 3.0),
    ]


def test_folders_patterns_files_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.wav", "sub/b.MP3", "sub/deep/c.flac", "notes.txt", "odd[1].wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.warns(Notice, match="1 of 5 files"):
        found = read_manifest(tmp_path, STORAGE)
    assert [entry.source for entry in found] == [
        str(tmp_path / name) for name in ("a.wav", "odd[1].wav", "sub/b.MP3", "sub/deep/c.flac")
    ]
    assert [entry.source for entry in entries_of(f"{tmp_path}/**/*.flac")] == [str(tmp_path / "sub/deep/c.flac")]
    monkeypatch.chdir(tmp_path / "sub")
    given = [tmp_path / "odd[1].wav", "../a.wav", "b.MP3", {"audio": "deep/c.flac", "offset": "2"}, "b.MP3"]
    assert entries_of(given) == [
        *(Entry(str(tmp_path / name)) for name in ("odd[1].wav", "a.wav", "sub/b.MP3")),
        Entry(str(tmp_path / "sub/deep/c.flac"), 2.0),
    ]
    assert entries_of(f"file://{tmp_path}/a.wav") == [Entry(str(tmp_path / "a.wav"))]


@pytest.mark.parametrize(
    "name, content, expected",
    [
        # as spreadsheets save it: a byte order mark, ends of lines of two characters, a text of two lines
        ("a.csv", '\ufeffpath,text\r\na.wav,"two\nlines"\r\n\r\nb.wav,x\r\n', ["two\nlines", "x"]),
        ("a.jsonl", '\ufeff{"path": "a.wav", "text": "x\u2028y\x85z"}\n', ["x\u2028y\x85z"]),
        ("a.tsv", 'path\ttext\na.wav\t"Why not\nb.wav\tNo\n"c.wav"\t"Yes" he said', ["Why not", "No", "Yes he said"]),
        ("long.csv", f"path,text\na.wav,{200_000 * 'x'}\n", [200_000 * "x"]),
    ],
)
def test_manifests_of_other_programs(name: str, content: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode())
    found = entries_of(tmp_path / name)
    assert [entry.reference for entry in found] == expected
    assert [Path(entry.source).name for entry in found] == ["a.wav", "b.wav", "c.wav"][: len(found)]


def test_a_table_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"path,text\na.wav,{(LONGEST_FIELD + 1) * 'x'}\n")
    with pytest.raises(CorruptFile, match=r"a\.csv: line 2 is none of a table"):
        entries_of(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "content, error, said",
    [
        ("{", CorruptFile, "line 1 is no JSON"),
        ("3", CorruptFile, "line 1 is 3: expected an object"),
        ('{"text": "x"}', CorruptFile, "line 1 has no audio_filepath"),
        ('{"audio_filepath": "a"}\n{"audio_filepath": "a", "offset": -1}', CorruptFile, "line 2: offset is -1"),
        ('{"audio_filepath": "a", "duration": "long"}', CorruptFile, "duration is 'long': give seconds"),
        ('{"audio_filepath": "a", "lang": "klingon"}', CorruptFile, "klingon"),
        ("", OptionError, "no recording in"),
    ],
)
def test_a_damaged_manifest(content: str, error: type[Exception], said: str, tmp_path: Path) -> None:
    manifest = tmp_path / "list.jsonl"
    manifest.write_text(content)
    with pytest.raises(error) as caught:
        entries_of(manifest)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="there is no such file"):
        entries_of(tmp_path / "none.jsonl")
    with pytest.raises(SourceError, match="nothing matches"):
        entries_of(f"{tmp_path}/*.wav")
    with pytest.raises(OptionError, match="cannot be opened"):
        STORAGE.states(["nonsense://a/b.wav"])
    with pytest.raises(OptionError, match="cannot be imported"):
        imported("mlx_speech.pipeline:Pipelein")
    with pytest.raises(OptionError, match="give an import path"):
        imported("mlx_speech")


def test_states_of_remote_files() -> None:
    """Few files are asked singly, of many their folder is listed: both say the same."""
    import fsspec

    system = fsspec.filesystem("memory")
    for k in range(ASKED_SINGLY + 2):
        system.pipe_file(f"/states/{k}.wav", b"x" * k)
    sources = [f"memory://states/{k}.wav" for k in range(ASKED_SINGLY + 2)]
    all_states = STORAGE.states([*sources, "memory://states/none.wav"])
    assert STORAGE.states(sources[:3]) == {source: all_states[source] for source in sources[:3]}
    assert [all_states[source].size for source in sources] == list(range(ASKED_SINGLY + 2))
    assert all_states["memory://states/none.wav"].stamp == ""
    with STORAGE.fetched(sources[7]) as path:
        assert Path(path).read_bytes() == b"x" * 7 and Path(path).suffix == ".wav"
    assert not Path(path).exists()
    system.rm("/states", recursive=True)


# --- names -----------------------------------------------------------------------------------------------------------

PARTS = st.sampled_from(["a", "A", "b", "b.x", "é", "e\u0301", ".hidden", ".archive", "..", "x:y", "long" * 80])
SOURCES = st.lists(st.tuples(st.lists(PARTS, max_size=3), PARTS, st.sampled_from(["wav", "mp3", "WAV"])), max_size=12)


@settings(max_examples=150, deadline=None)
@given(SOURCES, st.lists(st.sampled_from([None, 0.0, 2.5]), min_size=12, max_size=12), st.integers(0, 12))
def test_names_are_unique_stable_and_inside(sources: list[Any], offsets: list[float | None], first: int) -> None:
    entries = {}
    for (folders, stem, suffix), offset in zip(sources, offsets, strict=False):
        entry = Entry("/".join(["/top", *folders, f"{stem}.{suffix}"]), offset, 1.0)
        entries[key_of(entry)] = entry
    names = names_of(list(entries.values()), {})
    assert names.keys() == entries.keys()
    assert len({folded(name) for name in names.values()}) == len(entries)
    for name in names.values():
        assert ".." not in name.split("/") and not name.startswith(("/", ".archive"))
        assert all(len(part.encode()) < 240 for part in name.split("/"))
    # those that were named in an earlier run keep their names, whatever has come to them
    earlier = names_of(list(entries.values())[:first], {})
    assert earlier.items() <= names_of(list(entries.values()), earlier).items()
    assert len({folded(name) for name in names_of(list(entries.values()), earlier).values()}) == len(entries)


def test_names_follow_folders() -> None:
    sources = ["/d/x/a.wav", "/d/x/a.mp3", "/d/y/a.wav", "/d/y/.b.wav"]
    names = names_of([*map(Entry, sources), Entry("/d/y/a.wav", 1.0, 2.0)], {})
    assert list(names.values()) == ["x/a-wav", "x/a-mp3", "y/a", "y/_b", "y/a-1.000-3.000"]
    remote = ["s3://bucket/in/a.wav", "https://host/b.wav?token=1", "gs://c/d.wav"]
    assert list(names_of([*map(Entry, remote)], {}).values()) == ["s3_/bucket/in/a", "https_/host/b", "gs_/c/d"]


# --- the line --------------------------------------------------------------------------------------------------------


def item(name: str, language: str | None = None) -> Item:
    return Item(name, Entry(f"/{name}.wav", language=language))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 900.0), st.sampled_from([None, "en", "de"])), max_size=40),
    st.integers(1, 4),
    st.integers(1, 5),
    st.data(),
)
def test_the_line(given_lengths: list[Any], processes: int, task_files: int, data: st.DataObject) -> None:
    """Everything comes, once for each time that it was put in; tasks keep their bounds; the longest come first."""
    items = [item(str(k), language) for k, (_, language) in enumerate(given_lengths)]
    lengths = {one.name: length for one, (length, _) in zip(items, given_lengths, strict=True)}
    line = Line(items, list(lengths.values()), task_seconds=300.0, task_files=task_files)
    expected = {one.name: 1 for one in items}
    came = dict.fromkeys(expected, 0)
    taken_before: list[float] = []
    untouched = True  # nothing was given back yet
    while line:
        assert line.seconds == pytest.approx(sum(lengths[name] * (expected[name] - came[name]) for name in came))
        room = min(300.0, line.seconds / (SHARE * processes))
        task = line.take(10.0, processes, idle=data.draw(st.booleans()))
        if task is None:
            task = line.take(10.0, processes, idle=True)
        assert task is not None and len({one.entry.language for one in task.items}) == 1
        assert 1 <= len(task.items) <= (1 if task.alone else task_files)
        seconds = [lengths[one.name] for one in task.items]
        assert task.alone or len(seconds) == 1 or sum(seconds) <= room + 1e-6
        assert seconds == sorted(seconds, reverse=True)
        if untouched:
            assert not taken_before or seconds[0] <= taken_before[-1]
            taken_before.append(seconds[0])
        for one in task.items:
            came[one.name] += 1
        if data.draw(st.integers(0, 4)) == 0 and max(came[one.name] for one in task.items) < 3:
            untouched = False
            line.give_back(task.items, suspects=data.draw(st.booleans()), when=data.draw(st.sampled_from([0.0, 5.0])))
            for one in task.items:
                expected[one.name] += 1
    assert came == expected and line.seconds == pytest.approx(0.0, abs=1e-6)


def piece(source: str, number: int) -> Item:
    return Item(f"{source}{number}", Entry(f"/{source}.wav", 10.0 * number, 10.0))


def test_pieces_of_a_file_come_together() -> None:
    """However the manifest mixes them, and by their offsets; tasks shrink in the end as those of files do."""
    items = [piece(source, number) for number in reversed(range(30)) for source in "abc"]
    line = Line(items, [10.0] * len(items), task_seconds=100.0)
    tasks: list[tuple[Item, ...]] = []
    while line:
        task = line.take(0.0, 1, idle=True)
        assert task is not None
        tasks.append(task.items)
    assert [len(task) for task in tasks[:5]] == [10] * 5 and len(tasks[-1]) == 1
    for task in tasks[:5]:
        (source,) = {one.entry.source for one in task}
        first = int(task[0].name[1:])
        assert task == tuple(piece(source[1], number) for number in range(first, first + 10))
    assert sorted(one.name for task in tasks for one in task) == sorted(one.name for one in items)


@pytest.mark.parametrize("when", [0.0, 5.0], ids=["their process has ended", "their file could not be read"])
def test_pieces_that_come_back_stand_together(when: float) -> None:
    lengths = {(source, number): 5.0 + (7 * number + 3 * ord(source)) % 5 for source in "abc" for number in range(30)}
    items = [Item(f"{s}{n}", Entry(f"/{s}.wav", 10.0 * n, length)) for (s, n), length in lengths.items()]
    line = Line(items, list(lengths.values()), task_seconds=100.0)
    first = line.take(0.0, 1, idle=True)
    assert first is not None and len(first.items) > 8
    if when:
        for one in reversed(first.items):  # each fails by itself
            line.give_back([one], when=when)
    else:
        line.give_back(reversed(first.items))
    assert len(line) == len(items)
    tasks = []
    while line:
        task = line.take(when, 1, idle=True)
        assert task is not None
        tasks.append(task.items)
    assert first.items in tasks


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60), st.floats(0.1, 90.0)), max_size=40),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_pieces_and_files_all_come_once(given_pieces: list[Any], processes: int, task_files: int) -> None:
    items = [Item(str(k), Entry(source, start, length)) for k, (source, start, length) in enumerate(given_pieces)]
    items += [item(f"file{k}") for k in range(3)]
    lengths = {one.name: one.entry.duration or 50.0 for one in items}
    line = Line(items, list(lengths.values()), task_seconds=200.0, task_files=task_files)
    came = []
    while line:
        room = min(200.0, line.seconds / (SHARE * processes))
        task = line.take(0.0, processes, idle=True)
        assert task is not None and 1 <= len(task.items) <= task_files
        assert len(task.items) == 1 or sum(lengths[one.name] for one in task.items) <= room + 1e-6
        came += [one.name for one in task.items]
    assert sorted(came) == sorted(lengths)


def test_later_is_later() -> None:
    line = Line([item("a")], [1.0])
    assert line.take(0.0, 1, idle=True) is not None
    line.give_back([item("a")], when=7.0)
    assert line.take(6.9, 1, idle=True) is None and len(line) == 1
    assert line.take(7.0, 1, idle=True) is not None and not line


def test_files_in_an_archive_of_zip(tmp_path: Path) -> None:
    container = tmp_path / "a.zip"
    with zipfile.ZipFile(container, "w") as file:
        file.writestr("x/a.wav", b"hello")
        file.writestr("b.wav", b"hi")
    inside = [f"zip://{name}::file://{container}" for name in ("x/a.wav", "b.wav", "none.wav")]
    missing = f"zip://b.wav::file://{tmp_path}/none.zip"
    states = STORAGE.states([*inside, missing])
    assert [states[source].size for source in (*inside, missing)] == [5, 2, None, None]
    with STORAGE.fetched(inside[0]) as path:
        assert Path(path).read_bytes() == b"hello" and path.endswith(".wav")


def test_a_suspect_of_an_earlier_run_comes_alone() -> None:
    items = [item(name) for name in "abc"]
    line = Line(items, [3.0, 2.0, 1.0], suspects=[items[1]])
    assert len(line) == 3 and line.seconds == 6.0
    busy = line.take(0.0, 1, idle=False)
    assert busy is not None and items[1] not in busy.items and not busy.alone
    alone = line.take(0.0, 1, idle=True)
    assert alone is not None and alone.items == (items[1],) and alone.alone


def test_a_run_begins_with_the_suspects_of_the_one_before(tmp_path: Path) -> None:
    """What was under way when a process ended is not heard beside others, which it could end as well."""
    folder = Folder(tmp_path)
    folder.make()
    items = [item(name) for name in "abc"]
    with Journal(folder.journal) as journal:
        journal.begin({}, again=False)
        journal.death(items[0])
    with Journal(folder.journal) as journal:
        started = archive_run._Run(items, folder, journal, Shards(folder, journal, (), 9), Setup(), Plan())
        task = started._line.take(0.0, 1, idle=True)
        assert task is not None and task.items == (items[0],) and task.alone
        started._lost(Lost((items[0], items[1]), guilty=False))
        again = started._line.take(0.0, 1, idle=True)
        assert again is not None and again.items == (items[0],) and again.alone


def test_a_suspect_comes_alone() -> None:
    line = Line([item("a"), item("b")], [1.0, 1.0])
    both = line.take(0.0, 1, idle=True)
    assert both is not None
    line.give_back(both.items, suspects=True)
    assert line.take(0.0, 1, idle=False) is None if len(both.items) == 2 else True
    alone = line.take(0.0, 1, idle=True)
    assert alone is not None and alone.alone and len(alone.items) == 1


def test_lengths_are_learnt() -> None:
    lengths = Lengths()
    known = Item("a", Entry("/a.mp3", duration=5.0), size=10)
    unknown = Item("b", Entry("/b.MP3"), size=16_000)
    assert lengths.of(known) == 5.0
    lengths.learn(Item("c", Entry("/c.mp3"), size=8_000), 4.0)
    assert lengths.of(unknown) == pytest.approx(8.0)
    lengths.learn(Item("d", Entry("/d.mp3", 0.0, 1.0), size=8_000), 1.0)  # a piece says nothing of its file's size
    assert lengths.of(unknown) == pytest.approx(8.0)


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, fetching, kind",
    [
        (AudioError("x"), False, "sound"),
        (FileNotFoundError("x"), True, "sound"),
        (ConnectionResetError("x"), True, "reading"),
        (TimeoutError("x"), False, "reading"),
        (ValueError("of some client"), True, "reading"),
        (HubError("x"), False, "reading"),
        (OutOfMemory("x"), False, "memory"),
        (MemoryError(), False, "memory"),
        (OptionError("x"), False, "options"),
        (ValueError("of ours"), False, "error"),
        (MissingDependency("x"), True, "error"),
    ],
)
def test_what_an_error_means(error: Exception, fetching: bool, kind: str) -> None:
    assert kind_of(error, fetching=fetching) == kind
    assert (kind in TRANSIENT) == (kind in ("reading", "memory"))


# --- the journal -----------------------------------------------------------------------------------------------------


def test_a_journal_that_is_torn_at_any_byte_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.begin({"options": {}}, again=False)
        journal.done(item("ä"), Heard("ä", {}, 3.0), 17)
        journal.death(item("b"))
        journal.failed(item("b"), Failed("b", "died", "why"))
        journal.shard(0, ["ä"])
    whole = path.read_bytes()
    history = read_journal(path)
    assert history.done["/ä.wav"].size == 17 and history.failed["/b.wav"][1].reason == "why"
    assert history.deaths == {"/b.wav": 1} and history.shards == {0: ("ä",)} and history.next_shard == 1
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        lines = whole[:length].count(b"\n")
        with Journal(path) as journal:
            found = journal.history
            assert (found.settings is not None) == (lines > 0) and len(found.done) == (lines > 1)
            assert len(found.deaths) == (lines > 2) and len(found.failed) == (lines > 3)
            journal.death(item("c"))
        assert path.read_bytes().count(b"\n") == lines + 1
        assert read_journal(path).deaths["/c.wav"] == 1


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path), pytest.raises(OutputError, match="another run writes there"):
        Journal(path)
    path.write_text('{"type": "nonsense"}\n')
    with pytest.raises(CorruptFile, match="line 1 is none of a journal"):
        Journal(path)
    path.write_text("")
    with Journal(path) as journal:
        assert not journal.history.done


# --- corpora ---------------------------------------------------------------------------------------------------------


def result(name: str, words: int, *, speakers: bool) -> Result:
    spoken = tuple(Word(0.5 * k, 0.5 * k + 0.4, f"wörd{k}", 0.25, "S1" if speakers else None) for k in range(words))
    segments = (Segment(0.0, 9.0, f"\u2028 text of {name}", spoken, avg_logprob=-0.5),) if words else ()
    diarization = Diarization((Turn(0.0, 9.0, "S1"),)) if speakers else None
    models = {"whisper": "tiny", "align": "w2v"} if words else {}
    transcript = Transcript(segments, "en", 0.75, 9.0, diarization, models=models)
    entry = Entry(f"/in/{name}.wav", 1.5 if speakers else None, None, None, "what was read", {"topic": ["x", None]})
    return Result(name, entry, transcript)


@pytest.mark.parametrize("kind", CORPUS_FORMATS)
def test_half_a_character_stops_no_corpus(kind: Any, tmp_path: Path) -> None:
    """As in a text that was cut off in the middle of an emoji, which is valid JSON."""
    one = result("r1", 1, speakers=False)
    cut_off = replace(one, entry=replace(one.entry, reference="caf\ud83d"))
    write_shard(tmp_path / "corpus", kind, [cut_off])
    assert "caf?" in str(row_of(cut_off)["reference"])


def test_corpora_are_read_by_duckdb_and_datasets(tmp_path: Path) -> None:
    import datasets
    import duckdb

    results = [result(f"r{k}", k % 5, speakers=k % 2 == 1) for k in range(150)]
    expected = [row_of(one) for one in results]
    for kind in CORPUS_FORMATS:
        for number, part in enumerate((results[:70], results[70:])):
            write_shard(tmp_path / shard_name(number, kind), kind, part)
        pattern = str(tmp_path / f"corpus-*.{kind}")
        reader = "read_parquet" if kind == "parquet" else "read_json_auto"
        table = f"{reader}('{pattern}')"
        assert duckdb.sql(f"SELECT count(*), sum(len(words)) FROM {table}").fetchall() == [(150, 300)]
        query = f"SELECT speaker, count(*) FROM (SELECT unnest(words, recursive := true) FROM {table}) GROUP BY ALL"
        assert dict(duckdb.sql(query).fetchall()) == {"S1": 150, "": 150}
        assert duckdb.sql(f"SELECT source, text FROM {table} WHERE name = 'r6'").fetchall() == [
            ("/in/r6.wav", "\u2028 text of r6")
        ]
        loader = "parquet" if kind == "parquet" else "json"
        files = sorted(str(path) for path in tmp_path.glob(f"corpus-*.{kind}"))
        loaded = datasets.load_dataset(loader, data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded.to_list() == expected
    assert json.loads(expected[1]["fields"]) == {"topic": ["x", None]} and expected[1]["offset"] == 1.5
    assert expected[1]["score"] == 0.25 and expected[0]["score"] == 0.0 and expected[0]["models"] == []


def test_shards_hold_each_result_once(tmp_path: Path) -> None:
    """Whatever is done again, and whichever shard is lost: brute force over what is in the files."""
    folder = Folder(tmp_path)
    folder.make()
    names = [f"n{k}" for k in range(11)]

    def write(journal: Journal, name: str, text: str) -> None:
        transcript = Transcript((Segment(0.0, 1.0, text),), "en", duration=1.0)
        done = heard(item(name), transcript, (), {})
        journal.done(item(name), done, folder.write(name, done.texts))

    def rows() -> dict[str, str]:
        found = [json.loads(line) for file in sorted(tmp_path.glob("corpus-*.jsonl")) for line in file.open()]
        assert len(found) == len({row["name"] for row in found})
        return {row["name"]: row["text"] for row in found}

    with Journal(folder.journal) as journal:
        shards = Shards(folder, journal, ("jsonl",), 3)
        for name in names[:7]:
            write(journal, name, "first")
            shards.add(name)
            shards.advance()
        assert len(rows()) == 6
        shards.finish()
        assert rows() == dict.fromkeys(names[:7], "first")
    (tmp_path / shard_name(0, "jsonl")).unlink()
    folder.path("n6", "").unlink()  # its shard holds what is not there any more
    with Journal(folder.journal) as journal:
        shards = Shards(folder, journal, ("jsonl", "parquet"), 3)
        shards.forget({"n4"})
        for name in ("n4", "n6", *names[7:]):
            write(journal, name, "second")
            shards.add(name)
        shards.finish()
    assert rows() == {name: "second" if name in ("n4", "n6", *names[7:]) else "first" for name in names}
    assert len(list(tmp_path.glob("*.parquet"))) == len(list(tmp_path.glob("*.jsonl")))


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.make()
    one = result("sub/r1", 4, speakers=True)
    outcome = heard(Item(one.name, one.entry), one.transcript, ("srt",), {})
    size = folder.write(one.name, outcome.texts)
    assert folder.read(one.name) == one and folder.size(one.name) == size
    assert cli.main(["write", str(folder.path(one.name, "")), "-f", "srt", "-o", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "r1.srt").read_text() == (tmp_path / "sub" / "r1.srt").read_text()
    folder.path(one.name, "").write_text("{")
    with pytest.raises(CorruptFile, match="is no transcript of an archive"):
        folder.read(one.name)


# --- what is said ----------------------------------------------------------------------------------------------------


def test_the_tally() -> None:
    tally = Tally(5, 100.0)
    tally.there(50.0)
    tally.there(0.0, failed=True)
    tally.done(40.0, 36.0)
    tally.failure(20.0)
    progress = tally.progress(2.0, 3)
    assert (progress.files, progress.failed, progress.of_files) == (4, 2, 5)
    assert progress.hours * 3600 == pytest.approx(86.0) and progress.of_hours * 3600 == pytest.approx(126.0)
    assert progress.rate == pytest.approx(18.0) and progress.left == pytest.approx(40.0 / 18.0)
    assert Tally(1, 1.0).progress(0.0, 0).left is None


def test_the_line_of_progress() -> None:
    progress = Progress(12, 40, 1, 1.5, 7.25, 30.0, 690.0, 2)
    assert described(progress) == "12 of 40 files, 1.5 of 7.2 h, 30 h an hour, 11 min left, 1 failed"
    for watched, seconds in ((True, SECONDS_WATCHED), (False, SECONDS_LOGGED)):
        now = [100.0]
        stream = io.StringIO()
        with Shown(stream, watched=watched, clock=lambda now=now: now[0]) as shown:
            for _ in range(40):
                now[0] += seconds / 8
                shown(progress)
        lines = [line for line in stream.getvalue().replace("\r", "\n").split("\n") if line.strip()]
        assert len(lines) == 5 and ("\r" in stream.getvalue()) == watched
    stream = io.StringIO()
    with Shown(stream, watched=True, quiet=True, clock=lambda: 1e9) as shown:
        shown(progress)
    assert stream.getvalue() == ""


def test_times_are_said_shortly() -> None:
    assert [lasting(seconds) for seconds in (3.4, 119.9, 7199.0, 90_000.0)] == ["3 s", "1 min", "1 h 59 min", "1 d 1 h"]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--again"], "--again needs --ray"),
        (["--ray", "auto", "-f", "html"], "html needs the sound"),
        (["-f", "parquet"], "'parquet' is not one of"),
        (["--ray", "auto", "--processes", "0"], "--processes is 0"),
        (["--ray", "auto", "--device", "tpu"], "--device tpu: choose cpu or gpu"),
        (["--ray", "ray://host:10001"], "is of Ray's client"),
    ],
)
def test_mistakes_take_one_line(flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.wav").touch()
    assert cli.main(["transcribe", str(tmp_path / "a.wav"), "-o", str(tmp_path / "out"), *flags]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert cli.main(["transcribe", "-", "--ray", "auto", "-o", str(tmp_path / "out")]) == 2
