/**
 * What a person has chosen, `{id, from, to}`: the words of the segment `id` from one index to another, or all of it
 * where from is -1. How it is shown, and what is next to it.
 */

import { byId, clock, element } from "./dom.js";
import { spanAt } from "./transcript.js";

/** The choice of a whole segment. */
export function wholeOf(id) {
  return { id, from: -1, to: -1 };
}

/** A choice as far as its segment, or null, still has it. */
export function stillThere(choice, segment) {
  if (segment === null) {
    return null;
  }
  const last = segment.words.length - 1;
  return choice.from > last ? wholeOf(choice.id) : { ...choice, to: Math.min(choice.to, last) };
}

/** Show what is chosen above the player. speakers: all labels */
export function showChoice(choice, segment, speakers) {
  const words = segment.words.slice(Math.max(0, choice.from), choice.to + 1);
  const isWhole = choice.from < 0;
  const isWord = !isWhole && words.length === 1;
  byId("chosen-text").textContent = isWhole ? segment.text : words.map((word) => word.text).join(" ");
  byId("chosen-facts").textContent = isWord ? wordFacts(words[0]) : clock((words[0] ?? segment).start);
  byId("chosen-edit").textContent = isWord ? "Edit word" : "Edit sentence";
  byId("chosen-sentence").hidden = isWhole;
  const owner = words[0]?.speaker ?? segment.speaker;
  const options = speakers.map((label) => element("option", { value: label, textContent: label }));
  options.push(element("option", { value: "", textContent: "Somebody new" }));
  if (owner === null) {
    options.unshift(element("option", { value: "?", textContent: "Nobody yet", disabled: true }));
  }
  byId("owner").replaceChildren(...options);
  byId("owner").value = owner ?? "?";
}

/** When a word is spoken, and how sure its recognition is. */
export function wordFacts(word) {
  const sure = word.aligned ? `${Math.round(100 * word.score)} % sure` : "time not heard";
  return `${clock(word.start)} · ${sure}`;
}

/**
 * The next word, or the one before, that fits; null where there is none.
 *
 * @param {object[]} timeline of `timelineOf`
 * @param {?object} choice from where; null: from the time `seconds`
 * @param {number} step 1 or -1
 * @param {function(object): boolean} fits gets a span of the timeline
 */
export function nextWord(timeline, choice, seconds, step, fits) {
  const spans = timeline.filter((span) => span.word >= 0);
  let place = placeOf(spans, choice, seconds, step) + step;
  while (place >= 0 && place < spans.length && !fits(spans[place])) {
    place += step;
  }
  return spans[place] ?? null;
}

/** The place of what is chosen; of a whole segment the place before its first word, where the way goes on. */
function placeOf(spans, choice, seconds, step) {
  if (choice !== null) {
    const first = Math.max(0, choice.from);
    const place = spans.findIndex((span) => span.segment.id === choice.id && span.word === first);
    return choice.from < 0 && step > 0 ? place - 1 : place;
  }
  if (step > 0 && seconds === 0) {
    return -1;
  }
  return spans.indexOf(spanAt(spans, seconds));
}
