/**
 * A transcript as cues of subtitles: at most two lines of 42 columns and 7 seconds, of one segment and one speaker,
 * that end with a sentence where they can. The cues of `mlx_speech write` follow the same bounds and choose their ends
 * with more care.
 */

import { charactersOf } from "./matching.js";
import { piecesOf, shareTime } from "./transcript.js";

const LINE_WIDTH = 42; // columns
const LONGEST_CUE = 7; // seconds
const LONG_PAUSE = 1.5; // seconds; always ends a cue
const SENTENCE_END = /[.!?…。！？؟।]["'”’»)\]」』]*$/u;
const WIDE_RANGES = [
  "\\u1100-\\u115f\\u2e80-\\ua4cf\\uac00-\\ud7a3", // Korean, Chinese, Japanese
  "\\uf900-\\ufaff\\ufe30-\\ufe6f\\uff00-\\uff60\\uffe0-\\uffe6", // their compatibility and full-width forms
  "\\p{Extended_Pictographic}",
];
const WIDE = new RegExp(`[${WIDE_RANGES.join("")}]`, "u");
const LINE_BREAKS = /[ \t-\r\x1c-\x1f\x85\u2028\u2029]+/g;

/** Text in one line: without line breaks, tabs and the space around it. */
export function oneLine(text) {
  return text.replace(LINE_BREAKS, " ").replaceAll("\0", "\ufffd").trim();
}

/** The cues in order, none of which overlap: `{start, end, text}`, times in whole milliseconds. */
export function cuesOf(transcript) {
  const groups = transcript.segments.flatMap(groupsOf);
  groups.sort((one, other) => one[0].start - other[0].start);
  const cues = [];
  let lastEnd = 0;
  groups.forEach((units, place) => {
    const next = groups[place + 1];
    const start = Math.max(Math.round(1000 * units[0].start), lastEnd);
    const nextStart = next ? Math.round(1000 * next[0].start) : Infinity;
    const ownEnd = Math.max(...units.map((unit) => Math.round(1000 * unit.end)));
    const end = Math.max(Math.min(ownEnd, nextStart, start + 1000 * LONGEST_CUE), start + 1);
    cues.push({ start, end, text: linesOf(units).join("\n") });
    lastEnd = end;
  });
  return cues;
}

/** The units of a segment, those together that make a cue. */
function groupsOf(segment) {
  const groups = [];
  for (const unit of unitsOf(segment)) {
    const group = groups.at(-1);
    if (group === undefined || !belongs(group, unit)) {
      groups.push([unit]);
    } else {
      group.push(unit);
    }
  }
  return groups;
}

function belongs(group, unit) {
  const last = group.at(-1);
  const paused = unit.start - last.end > LONG_PAUSE;
  const long = unit.end - group[0].start > LONGEST_CUE;
  if (last.speaker !== unit.speaker || paused || long) {
    return false;
  }
  const full = widthOf(joined(group)) >= LINE_WIDTH;
  if (full && SENTENCE_END.test(last.text)) {
    return false;
  }
  return linesOf([...group, unit]) !== null;
}

/**
 * The units in a line, or in two of about the same width; null where they do not fit. The first line begins with the
 * speaker's name. A single unit always fits.
 */
function linesOf(units) {
  const head = headOf(units[0].speaker);
  const whole = joined(units);
  if (widthOf(head + whole) <= LINE_WIDTH) {
    return [head + whole];
  }
  let best = null;
  let least = Infinity;
  for (let middle = 1; middle < units.length; middle += 1) {
    const first = head + joined(units.slice(0, middle));
    const second = joined(units.slice(middle));
    const difference = Math.abs(widthOf(first) - widthOf(second));
    if (widthOf(first) <= LINE_WIDTH && widthOf(second) <= LINE_WIDTH && difference < least) {
      best = [first, second];
      least = difference;
    }
  }
  if (best !== null) {
    return best;
  }
  if (widthOf(whole) <= LINE_WIDTH) {
    return [head.trim(), whole]; // the name leaves no room for a word
  }
  return null;
}

function headOf(speaker) {
  let name = oneLine(speaker ?? "");
  while (widthOf(name) > LINE_WIDTH - "[]:".length) {
    name = `${[...name].slice(0, -2).join("")}…`;
  }
  return name === "" ? "" : `[${name}]: `;
}

function joined(units) {
  return units.map((unit, place) => (place === 0 ? "" : unit.space) + unit.text).join("");
}

function widthOf(text) {
  let width = 0;
  for (const character of text) {
    width += WIDE.test(character) ? 2 : 1;
  }
  return width;
}

/** What a line takes whole: a word as the text writes it, or a part of one that no line holds, with times. */
function unitsOf(segment) {
  const units = [];
  let space = "";
  for (const piece of timedPieces(segment)) {
    for (const written of oneLineParts(piece.text)) {
      if (written === " ") {
        space = " ";
        continue;
      }
      const last = units.at(-1);
      if (last !== undefined && space === "" && !piece.apart && !last.apart) {
        last.text += written;
        last.end = Math.max(last.end, piece.end);
      } else {
        units.push({ ...piece, text: written, space });
      }
      space = "";
    }
  }
  return units.flatMap(fitting);
}

/** Words and blanks of a text, by turns. */
function oneLineParts(text) {
  return text.replace(LINE_BREAKS, " ").replaceAll("\0", "\ufffd").split(/( )/).filter((part) => part !== "");
}

/** The pieces of a segment with time and speaker; what stands between words has the time of the word before. */
function timedPieces(segment) {
  if (segment.words.length === 0) {
    const parts = segment.text.split(/(\s+)/u).filter((part) => part !== "");
    const shared = shareTime(parts.map((text) => ({ text })), segment.start, segment.end);
    return shared.map((part) => ({ ...part, speaker: segment.speaker, apart: false }));
  }
  let last = { ...segment.words[0], end: segment.words[0].start };
  return piecesOf(segment).map((piece) => {
    if (piece.word >= 0) {
      last = segment.words[piece.word];
    }
    const speaker = last.speaker ?? segment.speaker;
    const apart = piece.word >= 0 && WIDE.test(piece.text); // wide scripts may be parted between words
    return { text: piece.text, start: last.start, end: last.end, speaker, apart };
  });
}

/** A unit cut into parts that a line holds. */
function fitting(unit) {
  if (widthOf(unit.text) <= LINE_WIDTH) {
    return [unit];
  }
  const parts = [];
  let part = "";
  for (const character of charactersOf(unit.text)) {
    if (part !== "" && widthOf(part + character) > LINE_WIDTH) {
      parts.push({ ...unit, text: part, space: "" });
      part = "";
    }
    part += character;
  }
  parts.push({ ...unit, text: part, space: "" });
  parts[0].space = unit.space;
  return shareTime(parts, unit.start, unit.end);
}
