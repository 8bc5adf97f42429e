/** Where the text has what is looked for, whatever its case and accents. */

import { piecesOf } from "./transcript.js";

const foldedTexts = new WeakMap(); // segment → its text as `foldedText` gives it

/** A text without case and marks, and for each of its characters the place in the text itself. */
function foldedText(text) {
  let plain = "";
  const places = [];
  let place = 0;
  for (const character of text) {
    const bare = character.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
    for (let count = 0; count < bare.length; count += 1) {
      places.push(place);
    }
    plain += bare;
    place += character.length;
  }
  places.push(place);
  return { plain, places };
}

/** All places of a text, as choices (choice.js) of the words that it touches, or of a segment that has no words. */
export function findAll(transcript, wanted) {
  const needle = foldedText(wanted.trim()).plain;
  const found = [];
  if (needle === "") {
    return found;
  }
  for (const segment of transcript.segments) {
    if (!foldedTexts.has(segment)) {
      foldedTexts.set(segment, foldedText(segment.text));
    }
    const { plain, places } = foldedTexts.get(segment);
    let start = plain.indexOf(needle);
    while (start >= 0) {
      const end = start + needle.length;
      found.push(wordsBetween(segment, places[start], places[end]));
      start = plain.indexOf(needle, end);
    }
  }
  return found;
}

/** The words of a segment that a stretch of its text touches. */
function wordsBetween(segment, start, end) {
  let place = 0;
  let from = -1;
  let to = -1;
  for (const piece of piecesOf(segment)) {
    const pieceEnd = place + piece.text.length;
    if (piece.word >= 0 && pieceEnd > start && place < end) {
      from = from < 0 ? piece.word : from;
      to = piece.word;
    }
    place = pieceEnd;
  }
  return { id: segment.id, from, to };
}
