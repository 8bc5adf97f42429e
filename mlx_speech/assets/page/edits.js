/** What a person may change: each function takes a transcript and gives another one. */

import { matchWords } from "./matching.js";
import { newId, piecesOf } from "./transcript.js";

/** Another name for a speaker, wherever they stand. A name that is another speaker's makes the two one. */
export function renameSpeaker(transcript, label, name) {
  if (label === name) {
    return transcript;
  }
  const renamed = (speaker) => (speaker === label ? name : speaker);
  const segments = transcript.segments.map((segment) => {
    const speaks = segment.speaker === label || segment.words.some((word) => word.speaker === label);
    if (!speaks) {
      return segment;
    }
    const words = segment.words.map((word) => ({ ...word, speaker: renamed(word.speaker) }));
    return { ...segment, words, speaker: renamed(segment.speaker) };
  });
  const turns = transcript.turns?.map((turn) => ({ ...turn, speaker: renamed(turn.speaker) })) ?? null;
  const document = renamedInDocument(transcript.document, label, name);
  return { ...transcript, segments, turns: turns && joinedTurns(turns), document };
}

/** The vectors and the known voices of a document; of speakers who become one, the other's are kept. */
function renamedInDocument(document, label, name) {
  const changed = { ...document };
  for (const key of ["speaker_embeddings", "speaker_matches"]) {
    const values = document[key];
    if (typeof values === "object" && values !== null && label in values) {
      const { [label]: own, ...others } = values;
      changed[key] = { [name]: own, ...others };
    }
  }
  return changed;
}

/** A whole segment becomes another speaker's. */
export function giveSegment(transcript, id, speaker) {
  return changeSegment(transcript, id, (segment) => [ownedBy(segment, speaker)], speaker);
}

/** Words `from` to `to`, the last included, become another speaker's; the segment is parted around them. */
export function giveWords(transcript, id, from, to, speaker) {
  const part = (segment) => {
    const before = cut(segment, 0, from);
    const moved = cut(segment, from, to + 1);
    const after = cut(segment, to + 1, segment.words.length);
    return [before, moved && ownedBy(moved, speaker), after].filter((piece) => piece !== null);
  };
  return changeSegment(transcript, id, part, speaker);
}

/** Another text for a segment, whose words keep their times; no text takes the segment away. */
export function setText(transcript, id, text) {
  const written = text.replace(/\s+/gu, " ").trim();
  return changeSegment(transcript, id, (segment) => {
    if (written === "") {
      return [];
    }
    if (written === segment.text) {
      return [segment];
    }
    return [{ ...segment, text: written, words: matchWords(segment, written) }];
  });
}

/** Another text for one word; no text takes it away. */
export function setWord(transcript, id, index, text) {
  const segment = transcript.segments.find((candidate) => candidate.id === id);
  const pieces = piecesOf(segment).map((piece) => (piece.word === index ? text.trim() : piece.text));
  return setText(transcript, id, pieces.join(""));
}

/** Put the segments that `change` makes of one in its place; `speaker`, if given, gets the time that they moved to. */
function changeSegment(transcript, id, change, speaker = null) {
  const segments = [];
  let turns = transcript.turns;
  for (const segment of transcript.segments) {
    if (segment.id !== id) {
      segments.push(segment);
      continue;
    }
    const changed = change(segment);
    if (changed.length === 1 && changed[0] === segment) {
      return transcript;
    }
    segments.push(...changed);
    for (const part of changed) {
      if (speaker !== null && part.speaker === speaker && segment.speaker !== speaker) {
        turns = movedTurns(turns ?? [], part, segment.speaker, speaker);
      }
    }
  }
  return { ...transcript, segments, turns };
}

function ownedBy(segment, speaker) {
  return { ...segment, speaker, words: segment.words.map((word) => ({ ...word, speaker })) };
}

/** The part of a segment from word `from` until before word `to`, or null where it has none. */
function cut(segment, from, to) {
  if (from >= to) {
    return null;
  }
  if (from === 0 && to === segment.words.length) {
    return segment;
  }
  const words = segment.words.slice(from, to);
  const text = segment.text.slice(placeBefore(segment, from), placeBefore(segment, to)).trim();
  const start = from === 0 ? segment.start : words[0].start;
  const end = to === segment.words.length ? segment.end : Math.max(start, words.at(-1).end);
  const id = from === 0 ? segment.id : newId();
  return { ...segment, id, text, start, end, words };
}

/** Where a segment's text is cut before a word: behind the space before it, so that quotes stay with their words. */
function placeBefore(segment, index) {
  let place = 0;
  let lastPiece = "";
  for (const piece of piecesOf(segment)) {
    if (piece.word >= index) {
      const space = lastPiece.search(/\s/u);
      return space < 0 ? place : place - lastPiece.length + space;
    }
    place += piece.text.length;
    lastPiece = piece.word < 0 ? piece.text : "";
  }
  return segment.text.length;
}

/** Turns after the time of `part` went from one speaker to another. from: null where it was nobody's */
function movedTurns(turns, part, from, to) {
  const moved = [];
  for (const turn of turns) {
    const touches = turn.speaker === from && turn.start < part.end && turn.end > part.start;
    if (!touches) {
      moved.push(turn);
      continue;
    }
    if (turn.start < part.start) {
      moved.push({ ...turn, end: part.start });
    }
    if (turn.end > part.end) {
      moved.push({ ...turn, start: part.end });
    }
  }
  moved.push({ start: part.start, end: part.end, speaker: to });
  return joinedTurns(moved);
}

/** Turns in order, those of one speaker that touch as one. */
function joinedTurns(turns) {
  const joined = [];
  const last = new Map(); // speaker → their last turn
  const ordered = [...turns].sort((one, other) => one.start - other.start || one.end - other.end);
  for (const turn of ordered) {
    const before = last.get(turn.speaker);
    if (before !== undefined && turn.start <= before.end) {
      before.end = Math.max(before.end, turn.end);
      continue;
    }
    const copy = { ...turn };
    last.set(turn.speaker, copy);
    joined.push(copy);
  }
  return joined;
}
