/**
 * A transcript as this page holds it, read from and written to the JSON of mlx_speech (whisperx's shape).
 *
 * Nothing here is changed once it is made: an edit (edits.js) gives another transcript that shares all that stayed the
 * same. Times are seconds from the start of the recording.
 *
 * @typedef {{text: string, start: number, end: number, score: number, aligned: boolean, speaker: ?string}} Word
 *   score: 0 to 1, how well the word fits the sound; 1 where a person has written it
 *   aligned: false where the time is put between those of the neighbours
 * @typedef {{id: number, text: string, start: number, end: number, speaker: ?string, words: Word[], source: object}}
 *   Segment
 *   id: stays with a segment while it is edited
 *   source: what the document says of it
 * @typedef {{start: number, end: number, speaker: string}} Turn
 * @typedef {{segments: Segment[], turns: ?Turn[], document: object}} Transcript
 *   turns: null where nobody was asked for speakers
 *   document: what was read, for all that the page does not touch
 */

export const UNSURE_BELOW = 0.5; // score of a word that is worth a second look

let lastId = 0;

/** An id that no segment has yet. */
export function newId() {
  lastId += 1;
  return lastId;
}

/** The transcript in a document. Throws an `Error` for what is none. */
export function readDocument(document) {
  if (typeof document !== "object" || document === null || !Array.isArray(document.segments)) {
    throw new Error("This is no transcript of mlx_speech: it has no segments.");
  }
  const segments = document.segments.map(readSegment);
  return { segments, turns: document.turns ?? null, document };
}

function readSegment(entry) {
  const start = Number(entry.start) || 0;
  const end = Math.max(start, Number(entry.end) || 0);
  const words = readWords(entry.words ?? [], start, end);
  const text = String(entry.text ?? "").trim();
  return { id: newId(), text, start, end, speaker: entry.speaker ?? null, words, source: entry };
}

/** Words without a time share the time between those that have one. */
function readWords(entries, start, end) {
  const words = [];
  let untimed = [];
  let lastEnd = start;
  for (const entry of entries) {
    const text = String(entry.word ?? "").trim();
    const speaker = entry.speaker ?? null;
    if (typeof entry.start !== "number" || typeof entry.end !== "number") {
      untimed.push({ text, start: 0, end: 0, score: 0, aligned: false, speaker });
      continue;
    }
    const score = Number(entry.score) || 0;
    const aligned = entry.aligned ?? entry.score !== undefined;
    words.push(...shareTime(untimed, lastEnd, entry.start));
    words.push({ text, start: entry.start, end: entry.end, score, aligned, speaker });
    untimed = [];
    lastEnd = entry.end;
  }
  words.push(...shareTime(untimed, lastEnd, end));
  return words;
}

/** The words over the time from start to end, each as long as it has characters. */
export function shareTime(words, start, end) {
  const total = words.reduce((sum, word) => sum + word.text.length, 0) || 1;
  const duration = Math.max(0, end - start);
  let characters = 0;
  let lastEnd = start;
  return words.map((word) => {
    characters += word.text.length;
    const timed = { ...word, start: lastEnd, end: start + (duration * characters) / total };
    lastEnd = timed.end;
    return timed;
  });
}

/** The document of a transcript, as `mlx_speech write` and the server read it. */
export function documentOf(transcript) {
  const hasWords = transcript.segments.some((segment) => segment.words.length > 0);
  const segments = transcript.segments.map((segment) => segmentEntry(segment, hasWords));
  const words = transcript.segments.flatMap((segment) => segment.words.map(wordEntry));
  const document = { ...transcript.document, segments, word_segments: words };
  if (transcript.turns !== null) {
    document.turns = transcript.turns.map((turn) => ({ ...turn, start: rounded(turn.start), end: rounded(turn.end) }));
  }
  return document;
}

function segmentEntry(segment, hasWords) {
  const entry = { ...segment.source };
  entry.start = rounded(segment.start);
  entry.end = rounded(segment.end);
  entry.text = segment.text;
  delete entry.words;
  delete entry.speaker;
  if (hasWords) {
    entry.words = segment.words.map(wordEntry);
  }
  if (segment.speaker !== null) {
    entry.speaker = segment.speaker;
  }
  if (segment.text !== String(segment.source.text ?? "").trim()) {
    delete entry.chars; // the times of its characters were those of another text
  }
  return entry;
}

function wordEntry(word) {
  const entry = { word: word.text, start: rounded(word.start), end: rounded(word.end), score: rounded(word.score) };
  if (word.speaker !== null) {
    entry.speaker = word.speaker;
  }
  if (!word.aligned) {
    entry.aligned = false;
  }
  return entry;
}

function rounded(value) {
  return Math.round(value * 1000) / 1000;
}

/** Everybody who speaks, in the order in which they begin. */
export function speakersOf(transcript) {
  const labels = new Set();
  for (const segment of transcript.segments) {
    if (segment.speaker !== null) {
      labels.add(segment.speaker);
    }
    for (const word of segment.words) {
      if (word.speaker !== null) {
        labels.add(word.speaker);
      }
    }
  }
  for (const turn of transcript.turns ?? []) {
    labels.add(turn.speaker);
  }
  return [...labels];
}

/** How long each speaker speaks, in seconds: of their turns, or where there are none, of their segments. */
export function secondsOf(transcript) {
  const seconds = new Map();
  for (const part of transcript.turns ?? transcript.segments) {
    if (part.speaker !== null) {
      seconds.set(part.speaker, (seconds.get(part.speaker) ?? 0) + part.end - part.start);
    }
  }
  return seconds;
}

/** Seconds of the recording, as far as the transcript knows. */
export function durationOf(transcript) {
  const lastEnd = transcript.segments.reduce((latest, segment) => Math.max(latest, segment.end), 0);
  return Math.max(Number(transcript.document.duration) || 0, lastEnd);
}

/** Whether a word was found in the sound and fits it badly. */
export function isUnsure(word) {
  return word.aligned && word.score < UNSURE_BELOW;
}

/**
 * A segment's text in pieces that follow each other: `{text, word}`, where word is the index of the word that it is,
 * and -1 for what stands between words.
 */
export function piecesOf(segment) {
  const pieces = [];
  let place = 0;
  segment.words.forEach((word, index) => {
    const start = findWord(segment.text, word.text, place);
    if (start < 0) {
      return; // the text does not show it
    }
    if (start > place) {
      pieces.push({ text: segment.text.slice(place, start), word: -1 });
    }
    pieces.push({ text: word.text, word: index });
    place = start + word.text.length;
  });
  if (place < segment.text.length) {
    pieces.push({ text: segment.text.slice(place), word: -1 });
  }
  return pieces;
}

const LETTER = /[\p{L}\p{M}\p{N}]/u;

/** Where the text has a word: next, or else as a word of its own ("other" is not found in "another"), or -1. */
function findWord(text, word, place) {
  if (word === "") {
    return -1;
  }
  const first = text.indexOf(word, place);
  if (first < 0 || text.slice(place, first).trim() === "") {
    return first;
  }
  for (let start = first; start >= 0; start = text.indexOf(word, start + 1)) {
    const before = text.charAt(start - 1);
    const after = text.charAt(start + word.length);
    if (!LETTER.test(before) && !LETTER.test(after)) {
      return start;
    }
  }
  return first;
}

/** All words of all segments by their start: `{start, end, segment, word}`; a segment without words counts as one. */
export function timelineOf(transcript) {
  const spans = [];
  for (const segment of transcript.segments) {
    if (segment.words.length === 0) {
      spans.push({ start: segment.start, end: segment.end, segment, word: -1 });
    }
    segment.words.forEach((word, index) => {
      spans.push({ start: word.start, end: word.end, segment, word: index });
    });
  }
  return spans.sort((one, other) => one.start - other.start);
}

/** The last of a timeline's spans that has begun at a time, by halving; null before the first. */
export function spanAt(timeline, seconds) {
  let low = 0;
  let high = timeline.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (timeline[middle].start <= seconds) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low > 0 ? timeline[low - 1] : null;
}
