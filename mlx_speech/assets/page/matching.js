/** New words of a text matched with the old ones, so that those that stayed keep their times. */

import { shareTime } from "./transcript.js";

const MOST_CELLS = 1_000_000; // of the table of all pairs of words; a longer text is matched at its ends only
const PUNCTUATION = /[\p{P}\p{S}]/gu;
// scripts that put no spaces between words; there each character is a word, as mlx_speech times them
const UNSPACED_SCRIPTS = ["Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"];
const UNSPACED = new RegExp(`[${UNSPACED_SCRIPTS.map((script) => `\\p{Script=${script}}`).join("")}]`, "u");

/** The words of a text. */
export function wordsIn(text) {
  const words = [];
  for (const written of text.split(/\s+/u)) {
    if (written === "") {
      continue;
    }
    if (UNSPACED.test(written)) {
      words.push(...charactersOf(written));
    } else {
      words.push(written);
    }
  }
  return words;
}

/** Characters as people count them: a letter with its marks is one. */
export function charactersOf(text) {
  if (!("Segmenter" in Intl)) {
    return [...text];
  }
  const segmenter = new Intl.Segmenter(undefined, { granularity: "grapheme" });
  return [...segmenter.segment(text)].map((part) => part.segment);
}

/**
 * The words of `text` with times. What is the same word but for case and punctuation keeps time and score. Where as
 * many words are new as old ones are gone, each takes the time of one of those. Others share the time between the words
 * around them.
 */
export function matchWords(segment, text) {
  const old = segment.words;
  const written = wordsIn(text);
  if (old.length === 0) {
    return [];
  }
  const pairs = longestCommon(old.map((word) => folded(word.text)), written.map(folded));
  pairs.push([old.length, written.length]); // the ends, which no word is at
  const words = [];
  let oldFrom = 0;
  let newFrom = 0;
  for (const [oldPlace, newPlace] of pairs) {
    const gone = old.slice(oldFrom, oldPlace);
    const come = written.slice(newFrom, newPlace);
    const before = words.at(-1) ?? null;
    const after = old[oldPlace] ?? null;
    words.push(...replaced(gone, come, before, after, segment));
    if (oldPlace < old.length) {
      words.push({ ...old[oldPlace], text: written[newPlace] });
    }
    oldFrom = oldPlace + 1;
    newFrom = newPlace + 1;
  }
  return words;
}

/** Words that were written in the place of others. before, after: the words around them, or null */
function replaced(gone, come, before, after, segment) {
  if (gone.length === come.length) {
    return gone.map((word, index) => ({ ...word, text: come[index], score: 1 }));
  }
  const start = gone[0]?.start ?? before?.end ?? segment.start;
  const end = gone.at(-1)?.end ?? after?.start ?? segment.end;
  const speaker = (gone[0] ?? before ?? after)?.speaker ?? segment.speaker;
  const words = come.map((text) => ({ text, start: 0, end: 0, score: 0, aligned: false, speaker }));
  return shareTime(words, start, Math.max(start, end));
}

function folded(text) {
  const plain = text.normalize("NFC").toLowerCase();
  return plain.replace(PUNCTUATION, "") || plain;
}

/** Places of the longest common subsequence of two lists: `[[place in one, place in other], …]`. */
export function longestCommon(one, other) {
  let first = 0;
  while (first < one.length && first < other.length && one[first] === other[first]) {
    first += 1;
  }
  let last = 0;
  const shorter = Math.min(one.length, other.length) - first;
  while (last < shorter && one[one.length - 1 - last] === other[other.length - 1 - last]) {
    last += 1;
  }
  const pairs = [];
  for (let place = 0; place < first; place += 1) {
    pairs.push([place, place]);
  }
  pairs.push(...commonBetween(one, other, first, one.length - last, other.length - last));
  for (let back = last; back > 0; back -= 1) {
    pairs.push([one.length - back, other.length - back]);
  }
  return pairs;
}

/** The same of the stretches from `first` on, by the table of the lengths of common endings. */
function commonBetween(one, other, first, oneEnd, otherEnd) {
  const rows = oneEnd - first;
  const columns = otherEnd - first;
  if (rows * columns === 0 || rows * columns > MOST_CELLS) {
    return [];
  }
  const width = columns + 1;
  const lengths = new Uint32Array((rows + 1) * width);
  for (let row = rows - 1; row >= 0; row -= 1) {
    for (let column = columns - 1; column >= 0; column -= 1) {
      const here = row * width + column;
      if (one[first + row] === other[first + column]) {
        lengths[here] = lengths[here + width + 1] + 1;
      } else {
        lengths[here] = Math.max(lengths[here + width], lengths[here + 1]);
      }
    }
  }
  const pairs = [];
  let row = 0;
  let column = 0;
  while (row < rows && column < columns) {
    const here = row * width + column;
    if (one[first + row] === other[first + column]) {
      pairs.push([first + row, first + column]);
      row += 1;
      column += 1;
    } else if (lengths[here + width] >= lengths[here + 1]) {
      row += 1;
    } else {
      column += 1;
    }
  }
  return pairs;
}
