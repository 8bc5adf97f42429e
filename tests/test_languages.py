"""Where text may be parted: the characters decide, in every script; and the text that subtitles, sentences and speakers
make of words that are parts of words."""

from __future__ import annotations

import random
import unicodedata
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech import languages
from mlx_speech.batches import _joined
from mlx_speech.stages.assign import assign_speakers
from mlx_speech.stages.sentences import split_sentences
from mlx_speech.stages.spelling import split_words
from mlx_speech.stages.whisper.decode import DecodingResult
from mlx_speech.stages.whisper.segments import as_segment
from mlx_speech.stages.whisper.tokenizer import Tokenizer
from mlx_speech.stages.whisper.word_times import WordTiming, place_words, tidy
from mlx_speech.transcript import Char, Chunk, Diarization, Segment, Transcript, Turn, Word, space_between
from mlx_speech.writers import FORMATS, as_dict, to_srt, to_vtt
from mlx_speech.writers.cues import MAX_WIDTH, columns

QUICK = settings(max_examples=150, deadline=None, derandomize=True)

# Sentences as Whisper writes them, each long enough for several lines.
SENTENCES = {
    "en": "It cost $43,000.50, or 3.5% of £1,250: well-known e-mail addresses such as john.doe@example.com don't cost "
    "a cent. It's half-past nine (9:30), isn't it?",
    "de": "Die E-Mail-Adresse der Nord-Süd-Bahn kostet 1.250,50 €, d. h. 3,5 % mehr als am 3. Oktober; geht's noch? "
    "Die Donaudampfschifffahrtsgesellschaft sagt „nein“.",
    "fr": "C'est l'homme d'aujourd'hui : qu'est-ce qu'il y a ? « Rien », dit-il, « sauf 12 500 € » ; n'est-ce pas ? "
    "Jusqu'à l'été, l'eau s'écoule…",
    "it": "L'amico dell'università dice: «Un'altra volta». Quest'anno c'è stato un aumento dell'1,5% nell'industria "
    "dell'acqua, cioè 3.400.000 euro.",
    "ja": "今日はNew York Timesを読みました。「ショッピングセンター」で43,000円のジャケットを買って、３．５％の割引を"
    "受けたんですけど、やっぱりちょっと高かったかな…。",
    "zh": "我正在学习 machine learning 和“深度学习”，一共花了￥43,000——真的很贵！（不过）iPhone 15的价格上涨了3.5%，"
    "所以我们下个星期再去买吧……",
    "th": "สวัสดีครับ ประเทศไทยมีประชากรประมาณเจ็ดสิบล้านคนและมีเมืองหลวงคือกรุงเทพมหานคร ราคา 43,000 บาท "
    "เพิ่มขึ้น 3.5% น้ำตกเป็นๆ อยู่ที่เชียงใหม่",
    "ar": "السَّلامُ عليكم، كيف حالكم؟ ارتفع السعر بنسبة ٣٫٥٪ إلى 43,000 دولار، وقال: «لا بأس» ثم ذهب إلى "
    "المدرسة مع أصدقائه في الصباح الباكر.",
    "he": 'שָׁלוֹם לכולם, מה שלומכם? המחיר עלה ב־3.5% ל־43,000 ש״ח, וצה״ל הודיע: "אין בעיה". אחר כך הלכנו לבית '
    "הספר עם החברים שלנו.",
    "hi": "नमस्ते, आप कैसे हैं? क्षमा कीजिए, कीमत 43,000 रुपये है, यानी 3.5% ज़्यादा। प्रधानमंत्री ने कहा कि विद्यार्थियों को छुट्टी मिलेगी।",
    "my": "မင်္ဂလာပါ ကျွန်တော့်နာမည်က အောင်အောင်ဖြစ်ပါတယ်။ မြန်မာနိုင်ငံမှာ နေထိုင်ပြီး ၄၃,၀၀၀ ကျပ် ပေးရပါတယ်။",
    "km": "សួស្តី ខ្ញុំឈ្មោះ សុខា ហើយខ្ញុំរស់នៅក្នុងទីក្រុងភ្នំពេញ ដែលមានប្រជាជនប្រហែលពីរលាននាក់។",
    "bo": "བཀྲ་ཤིས་བདེ་ལེགས། ང་ཁྱེད་རང་ལ་དགའ། བོད་སྐད་སློབ་སྦྱོང་བྱེད་ཀྱི་ཡོད། ཁྱེད་རང་གི་མིང་ལ་ག་རེ་ཟེར་གྱི་ཡོད།",
    "ko": "안녕하세요, 여러분! 오늘은 43,000원짜리 책을 샀는데 3.5% 할인을 받았습니다. 그래서 정말 기분이 좋았어요.",
}
LANGUAGES = sorted(SENTENCES)
TOKENS = regex.compile(r" ?\p{L}+(?:\p{M}+\p{L}*)*| ?\p{N}{1,3}| ?\p{M}+| ?\X")  # about as Whisper's byte pairs cut


def spoken(text: str, cuts: list[int], *, language: str | None = None, speaker: str | None = None) -> Segment:
    """A segment with a word between each two places, 0.2 s long each, without the spaces around."""
    words, now = [], 0.0
    for start, end in pairwise([0, *cuts, len(text)]):
        if text[start:end].strip():
            words.append(Word(round(now, 3), round(now + 0.2, 3), text[start:end].strip(), speaker=speaker))
            now += 0.2
    return Segment(0.0, round(now, 3), text, tuple(words), speaker, language)


def token_cuts(text: str) -> list[int]:
    return [found.start() for found in TOKENS.finditer(text)][1:]


def lines_of(subtitles: str) -> list[str]:
    """The lines of text of all cues."""
    blocks = [block.split("\n") for block in subtitles.removeprefix("WEBVTT\n\n").split("\n\n") if block]
    return [line for block in blocks for line in block[1 if "-->" in block[0] else 2 :]]


def check_lines(lines: list[str], text: str) -> None:
    """Each is the next piece of the text, less the white space between; none begins inside a character or number."""
    place = 0
    for line in lines:
        assert line == line.strip()
        found = text.find(line, place)
        assert found >= 0, f"{line!r} is not in {text[place:]!r}"
        assert not text[place:found].strip(), f"{text[place:found]!r} is left out"
        assert not unicodedata.category(line[0]).startswith("M"), f"{line!r} begins with a mark"
        assert len(regex.findall(r"\X", text[:found])) + len(regex.findall(r"\X", text[found:])) == len(
            regex.findall(r"\X", text)
        ), f"{line!r} begins inside a character"
        edge = text[max(0, found - 1) : found + 1]
        assert not (found and regex.fullmatch(r"[\p{N}$€£￥.,][\p{N}%]", edge)), f"{line!r} begins inside a number"
        assert line[0] not in "、。，！？」』）っゃゅょッャュョー", f"{line!r} begins with what ends lines"
        place = found + len(line)
    assert not text[place:].strip()


# --- characters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("It costs $43,000, i.e. 3.5%.", "It |costs |$43,000, |i.e. |3.5%."),
        ("C'est l'homme : qu'est-ce ?", "C'est |l'homme |: |qu'est-ce |?"),
        ("12\u00a0500\u202f€ ici", "12\u00a0500\u202f€ |ici"),
        ("今日はNew Yorkへ。", "今|日|は|New |York|へ。"),
        ("「ショッピング」３．５％", "「ショッ|ピ|ン|グ」|３．５％"),
        ("我用iPhone，￥43,000", "我|用|iPhone，|￥43,000"),
        ("中\u3000文", "中\u3000|文"),
        ("ประเทศไทยเก่าๆ", "ประ|เทศ|ไทย|เก่าๆ"),
        ("ສະບາຍດີ ຂ້ອຍ", "ສະ|ບາຍ|ດີ |ຂ້ອຍ"),
        ("မင်္ဂလာပါ ကျွန်တော့်", "မင်္ဂ|လာ|ပါ |ကျွန်|တော့်"),
        ("សួស្តី ខ្ញុំ", "សួ|ស្តី |ខ្ញុំ"),
        ("ཁྱེད་རང་ ལ་དགའ།", "ཁྱེད་|རང་ |ལ་|དགའ།"),
        ("क्षमा कीजिए।", "क्षमा |कीजिए।"),
        ("안녕하세요 여러분", "안녕하세요 |여러분"),
        ("שָׁלוֹם לכולם", "שָׁלוֹם |לכולם"),
        ("a  b\u200bc", "a  |b\u200b|c"),
        ("", ""),
        ("👩‍👩‍👧🇩🇪", "👩‍👩‍👧🇩🇪"),
    ],
)
def test_where_lines_may_begin(text: str, lines: str) -> None:
    edges = [0, *languages.breaks(text), len(text)]
    assert "|".join(text[start:end] for start, end in pairwise(edges)) == lines


@QUICK
@given(st.text(max_size=40) | st.text("ab1,.$% 今、ッー「」ก็าเ\u0e49\u17d2ស\u1039က်नि\u094d\u0301\u200d", max_size=40))
def test_breaks_are_between_characters_and_never_before_spaces(text: str) -> None:
    found = languages.breaks(text)
    assert found == sorted(set(found)) and all(0 < place < len(text) for place in found)
    starts = {0}
    for cluster in regex.findall(r"\X", text):
        starts.add(max(starts) + len(cluster))
    assert set(found) <= starts
    assert not any(languages.is_space(text[place]) for place in found)
    assert "".join(languages.clusters(text)) == text


@pytest.mark.parametrize(
    ("before", "after", "between"),
    [
        ("one", "two", " "),
        ("machine", "learning 做", " "),
        ("一", "二", ""),
        ("我用", "machine", ""),
        ("今日は。", "New", ""),
        ("สวัสดี", "ครับ", ""),
        ("नमस्ते।", "आप", " "),
        ("안녕", "하세요", " "),
        ("مرحبا", "بكم", " "),
        ("wer", ", ich", ""),
        ("(", "a)", ""),
        ("d", "'avoir", ""),
        ("a ", "b", ""),
        ("", "b", ""),
        ("a", "", ""),
        ("caf", "\u0301e", ""),
        ("\ufffd", "\ufffd", ""),
    ],
)
def test_what_stands_between_two_texts_that_say_nothing_of_it(before: str, after: str, between: str) -> None:
    assert languages.joint(before, after) == between
    assert space_between(before, Segment(0, 1, after)) == between
    if before and after:
        assert space_between(before, Segment(0, 1, after, spaced=True)) == " "


@pytest.mark.parametrize(
    ("before", "after", "torn"),
    [
        ("$43", ",000", True),
        ("l", "'homme", True),
        ("ส", "ิบ", True),
        ("តី ស្", "តី", True),
        ("က", "ာ့်", True),
        ("👩\u200d", "👧", True),
        ("か", "き", False),
        ("は", "New", False),
        ("one ", "two", False),
        ("one", " two", False),
        ("one", "", False),
    ],
)
def test_what_is_torn(before: str, after: str, torn: bool) -> None:
    assert languages.is_torn(before, after) is torn


# --- words in their text ---------------------------------------------------------------------------------------------


def words(*texts: str) -> tuple[Word, ...]:
    return tuple(Word(0.2 * k, 0.2 * k + 0.2, text) for k, text in enumerate(texts))


@pytest.mark.parametrize(
    ("text", "texts", "expected"),
    [
        ("It's $43,000 – isn't it ?", ["It", "'s", "$43", ",000", "isn", "'t", "it", "?"], None),
        ("another other", ["other"], None),  # a word that was left out is not taken for the next one
        ("a b a", ["a", "a"], None),
        ("", ["one", "two"], "one two"),
        ("something else", ["今", "日は"], "今日は"),
        (
            "one  two three\ufffd four",
            ["one", "two", "three", "\ufffd", "\ufffd", "four"],
            "one  two three\ufffd\ufffdfour",
        ),
        ("one — two.", ["one", "zwei", "two."], "one zwei two."),
    ],
)
def test_words_are_placed_in_the_text_or_the_text_made_of_them(
    text: str, texts: list[str], expected: str | None
) -> None:
    segment = Segment(0.0, 2.0, text, words(*texts))
    found, spans = segment.placed()
    assert found == (text if expected is None else expected)
    assert [found[start:end] for start, end in spans] == texts
    edges = [edge for span in spans for edge in span]
    assert edges == sorted(edges)
    if text == "another other":
        assert spans == [(8, 13)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_pieces_of_words_are_put_together_again(language: str) -> None:
    text = SENTENCES[language]
    segment = spoken(text, token_cuts(text), language=language)
    assert segment.placed()[0] == text
    groups = segment.whole_words()
    assert [word for group in groups for word in group] == list(segment.words)
    rows = [line.split(" ") for line in FORMATS["ctm"](Transcript((segment,), language), uri="x").splitlines()]
    assert [row[4] for row in rows] == ["".join(word.text for word in group) for group in groups]
    if language in ("en", "de", "fr", "it", "ar", "he", "hi", "ko"):
        assert [row[4] for row in rows] == text.split()
    assert all(float(row[3]) > 0 for row in rows)


def test_a_row_of_ctm_has_the_mean_score_of_its_parts() -> None:
    parts = (Word(0, 1, "$43", 0.9), Word(1, 2, ",0", 0.3), Word(2, 3, "x", 0.5))
    assert FORMATS["ctm"](Transcript((Segment(0, 3, "$43,0 x", parts),)), uri="r") == (
        "r 1 0.000 2.000 $43,0 0.660\nr 1 2.000 1.000 x 0.500\n"
    )


def test_words_for_alignment_are_those_of_the_script() -> None:
    """English in a Japanese recording, and the other way round."""
    assert split_words("and so my fellow Americans, 3.5%") == ["and", "so", "my", "fellow", "Americans,", "3.5%"]
    assert split_words("Tokyo heißt 東京。") == ["Tokyo", "heißt", "東", "京。"]
    assert split_words("Привет，мир") == ["Привет，", "мир"]
    assert split_words("안녕하세요 여러분") == ["안녕하세요", "여러분"]


# --- subtitles -------------------------------------------------------------------------------------------------------

LAYOUTS: list[dict[str, Any]] = [{}, {"max_line_width": 20}, {"max_line_width": 30, "max_line_count": 2}]
LAYOUTS += [{"max_cue_duration": 2.0}]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("language", LANGUAGES)
def test_lines_are_pieces_of_the_text(language: str, layout: dict[str, Any]) -> None:
    """Of words as Whisper's tokens cut them, of words as they are aligned, and of a segment without any."""
    text = SENTENCES[language]
    aligned = split_words(text)
    segments = [
        spoken(text, token_cuts(text), language=language),
        replace(Segment(0.0, 9.0, text), words=words(*aligned)),
        Segment(0.0, 9.0, text, language=language),
        Segment(0.0, 9.0, text, language="ja"),  # a wrong language changes nothing
    ]
    for segment in segments:
        transcript = Transcript((segment,), language)
        check_lines(lines_of(to_srt(transcript, **layout)), text)
        check_lines([line.replace("&amp;", "&") for line in lines_of(to_vtt(transcript, **layout))], text)


@st.composite
def cut_sentences(draw: st.DrawFn) -> Segment:
    """A realistic sentence, or words of many, parted anywhere."""
    parts = st.sampled_from([word for sentence in SENTENCES.values() for word in sentence.split()])
    mixed = st.lists(parts, min_size=1, max_size=30).map(" ".join)
    text = draw(st.one_of(st.sampled_from(sorted(SENTENCES.values())), mixed))
    cuts = draw(st.lists(st.integers(1, len(text)), max_size=40, unique=True).map(sorted))
    return spoken(text, cuts, language=draw(st.sampled_from([None, "en", "ja", "th"])))


def test_wide_spaces_count_as_wide() -> None:
    phrases = ["とても", "少し", "今日は", "行って", "公園", "それから"]
    dice = random.Random(0)
    for _ in range(100):
        text = "\u3000".join(dice.choices(phrases, k=12))
        lines = lines_of(to_srt(Transcript((Segment(0.0, 9.0, text, words=words(*split_words(text))),), "ja")))
        check_lines(lines, text)
        assert all(columns(line) <= MAX_WIDTH for line in lines)


@QUICK
@given(cut_sentences(), st.sampled_from(LAYOUTS))
def test_lines_are_pieces_of_the_text_wherever_words_are_parted(segment: Segment, layout: dict[str, Any]) -> None:
    lines = lines_of(to_srt(Transcript((segment,)), **layout))
    long = {word for word in segment.text.split() if columns(word) > MAX_WIDTH}
    if not long:
        check_lines(lines, segment.text)
    if not layout:
        assert all(columns(line) <= MAX_WIDTH for line in lines)
    assert "".join("".join(lines).split()) == "".join(segment.text.split())


@pytest.mark.parametrize("language", LANGUAGES)
def test_highlighted_words_are_whole(language: str) -> None:
    text = SENTENCES[language]
    transcript = Transcript((spoken(text, token_cuts(text), language=language),), language)
    subtitles = to_srt(transcript, highlight_words=True)
    marked = regex.findall("<u>(.*?)</u>", subtitles)
    assert "".join(marked) == "".join(text.split())
    if language in ("en", "de", "it", "ar", "he", "hi", "ko"):
        assert marked == text.split()
    for before, after in pairwise(marked):
        assert not unicodedata.category(after[0]).startswith("M") and before
    for line in lines_of(subtitles):
        assert line.replace("<u>", "").replace("</u>", "") in text


def test_a_name_or_number_is_cut_only_where_no_line_can_hold_it() -> None:
    long = "https://example.com/" + "a" * 60
    lines = lines_of(to_srt(Transcript((Segment(0, 5, f"see {long} there"),))))
    assert "".join(lines).replace("see", "").replace("there", "") == long
    assert max(map(len, lines)) <= 42
    marks = "क्षि" * 30  # a word of 30 characters with four code points each
    assert all(regex.match(r"क्षि", line) for line in lines_of(to_srt(Transcript((Segment(0, 5, marks),)))))


@pytest.mark.parametrize(
    ("text", "parted"),
    [
        ("Mais qu'est-ce qu'il y a donc à l'extérieur ?", "extérieur ?"),
        ("Le directeur général a dit hier soir : « Non »", "soir :"),
        ("Il nous reste cette année pas moins de 12 500 €", "12 500 €"),
        ("Wir haben in diesem Jahr mehr als immerhin 50 %", "50 %"),
        ("Sie kamen erst nach der dritten Stunde, d. h. nie", "d. h."),
        ("Die Konferenz beginnt in diesem Jahr wohl am 3. Mai", "3. Mai"),
    ],
)
def test_marks_and_numbers_with_spaces_stay_together(text: str, parted: str) -> None:
    for language in ("fr", "de"):
        assert any(parted in line for line in lines_of(to_srt(Transcript((Segment(0, 5, text),), language))))


def test_text_that_no_word_stands_for_is_shown_in_its_place_and_time() -> None:
    known = (Word(1.0, 1.4, "One"), Word(3.0, 3.4, "four"))
    segment = Segment(1.0, 5.0, "One 2 – 3 four — ¿five?", known)
    assert lines_of(to_srt(Transcript((segment,)))) == ["One 2 – 3 four — ¿five?"]
    shown = to_srt(Transcript((replace(segment, text="One " + "2 " * 30 + "four"),)), max_cue_duration=1.0)
    assert " ".join(lines_of(shown)) == "One " + "2 " * 30 + "four"


def test_text_that_no_word_stands_for_is_said_by_who_speaks_before_it() -> None:
    known = (Word(1.0, 1.4, "One", speaker="A"), Word(3.0, 3.4, "four", speaker="A"), Word(4, 5, "Yes.", speaker="B"))
    segment = Segment(1.0, 5.0, "— One 2 – 3 four Yes.", known)
    assert lines_of(to_srt(Transcript((segment,)))) == ["[A]: — One 2 – 3 four", "[B]: Yes."]


def test_right_to_left_text_stays_in_the_order_of_speech() -> None:
    text = SENTENCES["he"]
    first = lines_of(to_srt(Transcript((spoken(text, token_cuts(text), speaker="A"),), "he")))[0]
    assert first.startswith("[A]: " + text[:20])


# --- sentences, speakers, chunks, characters -------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_and_speakers_are_cut_from_the_text(language: str) -> None:
    text = SENTENCES[language]
    segment = spoken(text, token_cuts(text), language=language)
    sentences = split_sentences([segment], language)
    rest = text
    for sentence in sentences:
        assert rest.startswith(sentence.text)
        rest = rest[len(sentence.text) :].lstrip()
    assert not rest
    turns = tuple(Turn(0.7 * k, 0.7 * k + 0.7, "AB"[k % 2]) for k in range(100))
    rest = text
    for part in assign_speakers(sentences, Diarization(turns, turns)):
        assert rest.startswith(part.text)
        spaced = rest[len(part.text) :].lstrip()
        assert not rest[len(part.text) :] or not languages.is_torn(part.text, rest[len(part.text) :])
        rest = spaced
    assert not rest


def test_a_point_within_a_word_ends_no_sentence() -> None:
    text = "Ask john. Doe or example.Com for 3.5. Thanks."
    segment = spoken(text, [text.index(". D") + 1, text.index(".C") + 1, text.index(".5") + 1, text.index("Th")])
    assert [s.text for s in split_sentences([segment], "en")] == ["Ask john.", "Doe or example.Com for 3.5.", "Thanks."]


def test_english_in_another_language_keeps_its_abbreviations() -> None:
    """A Japanese recording that is translated, or in which English is spoken."""
    text = "I met Mr. Smith at 5 p.m. today."
    segment = replace(Segment(0, 3, text, language="ja"), words=words(*text.split()))
    assert [s.text for s in split_sentences([segment], "ja")] == [text]


@pytest.mark.parametrize(
    ("parts", "spaced", "text"),
    [
        (("We use machine", "learning here."), True, "We use machine learning here."),
        (("我們用 machine", "learning 做研究。"), False, "我們用 machine learning 做研究。"),
        (("我們用", "深度學習。"), False, "我們用深度學習。"),
        (("我們用", "深度學習。"), True, "我們用 深度學習。"),  # as Whisper said it
        (("สวัสดีครับ", "ผมชื่อสมชาย."), True, "สวัสดีครับ ผมชื่อสมชาย."),
        (("Oui", ", bien sûr."), False, "Oui, bien sûr."),
    ],
)
def test_segments_are_joined_by_what_was_said_between_them(parts: tuple[str, str], spaced: bool, text: str) -> None:
    first, second = (
        Segment(float(k), k + 1.0, part, tuple(Word(k + 0.1, k + 0.9, word) for word in part.split()), language="zh")
        for k, part in enumerate(parts)
    )
    segments = (first, replace(second, spaced=spaced))
    (joined,) = _joined(Chunk(0.0, 2.0), segments)
    assert joined.text == text
    assert [sentence.text for sentence in split_sentences(segments, "zh")] == [text]
    flowing = lines_of(to_srt(Transcript(segments), max_line_width=80, max_line_count=2))
    assert flowing == [text]


@pytest.mark.parametrize("language", LANGUAGES)
def test_from_whisper_s_tokens_to_subtitles(language: str) -> None:
    """Words are cut as its tokenizer does, which in some languages is within characters; half of the text in each of
    two segments, and the language right or wrong."""
    tokenizer = Tokenizer.find(None, 51865)
    text = SENTENCES[language]
    middle = languages.breaks(text)[len(languages.breaks(text)) // 2]
    for code in (language, "ja", "en"):
        segments = []
        for k, part in enumerate((" " + text[:middle].rstrip(), " " * (text[middle - 1] == " ") + text[middle:])):
            tokens = tokenizer.encode(part)
            result = DecodingResult(tuple(tokens), part, code, -0.1, 0.0, 0.0, 1.0)
            segment = as_segment(5.0 * k, 5.0 * k + 5.0, result.tokens, result, tokenizer)
            words, ids = (row[:-1] for row in tokenizer.split_to_word_tokens([*tokens, tokenizer.eot], code))
            times = np.linspace(0.1, 4.9, len(words) + 1).tolist()
            rows = zip(words, map(tuple, ids), times, times[1:], strict=False)
            timings = [WordTiming(*row, 0.9) for row in rows]
            where: dict[str, Any] = {"offset": 5.0 * k, "last_speech": 5.0 * k, "tokenizer": tokenizer}
            (placed,) = place_words([segment], timings, **where)
            segments.append(replace(placed, words=tidy(placed.words, placed.start, placed.end)))
        (joined,) = _joined(Chunk(0.0, 10.0), tuple(segments))
        assert joined.text == text and segments[0].spaced
        for parts in (segments, [joined]):
            sentences = split_sentences(parts, code)
            if len(parts) == 1:
                check_lines([sentence.text for sentence in sentences], text)
            for found in (parts, sentences):
                check_lines(lines_of(to_srt(Transcript(tuple(found), code))), text)


def test_characters_are_those_of_the_text() -> None:
    def word(start: float, text: str) -> Word:
        chars = (Char(start + 0.1 * k, start + 0.1 * k + 0.1, char, 1.0) for k, char in enumerate(text))
        return Word(start, start + 0.3, text, chars=tuple(chars))

    segment = Segment(0, 1, "« l'e e »", (word(0.0, "l"), word(0.3, "'e"), word(0.6, "e")))
    (found,) = as_dict(Transcript((segment,)))["segments"]
    assert "".join(char["char"] for char in found["chars"]) == segment.text
    assert [char["char"] for char in found["chars"] if "start" not in char] == ["«", " ", " ", " ", "»"]
