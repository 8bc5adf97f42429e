/** The keyboard: what each key does, in one table that the dialog of keys shows, too. */

import { element } from "./dom.js";

/** Keys as `KeyboardEvent.key` has them; `shown` is how people read them. */
export const KEYS = [
  { action: "toggle", keys: [" "], shown: "Space", meaning: "play or pause" },
  { action: "back", keys: ["ArrowLeft"], shown: "←", meaning: "3 seconds back" },
  { action: "forward", keys: ["ArrowRight"], shown: "→", meaning: "3 seconds on" },
  { action: "previousSentence", keys: ["ArrowUp"], shown: "↑", meaning: "the sentence before" },
  { action: "nextSentence", keys: ["ArrowDown"], shown: "↓", meaning: "the next sentence" },
  { action: "previousWord", keys: ["ArrowLeft"], shift: true, shown: "Shift ←", meaning: "the word before" },
  { action: "nextWord", keys: ["ArrowRight"], shift: true, shown: "Shift →", meaning: "the next word" },
  { action: "nextUnsure", keys: ["n"], shown: "N", meaning: "the next word that may be wrong" },
  { action: "previousUnsure", keys: ["n"], shift: true, shown: "Shift N", meaning: "the one before" },
  { action: "playSelection", keys: ["Enter"], shown: "Enter", meaning: "play from what is chosen" },
  { action: "edit", keys: ["e"], shown: "E", meaning: "correct the word or sentence that is chosen" },
  { action: "wholeSentence", keys: ["s"], shown: "S", meaning: "choose the whole sentence" },
  { action: "give", keys: [..."123456789"], shown: "1 – 9", meaning: "give it to a speaker" },
  { action: "search", keys: ["/"], shown: "/", meaning: "search" },
  { action: "undo", keys: ["z"], control: true, shown: "Ctrl Z", meaning: "undo" },
  { action: "redo", keys: ["z"], control: true, shift: true, shown: "Ctrl Shift Z", meaning: "do again" },
  { action: "redo", keys: ["y"], control: true, shown: "Ctrl Y", meaning: "do again" },
  { action: "save", keys: ["s"], control: true, shown: "Ctrl S", meaning: "save" },
  { action: "leave", keys: ["Escape"], shown: "Esc", meaning: "choose nothing" },
  { action: "help", keys: ["?"], shown: "?", meaning: "this list" },
];

const TYPED = "input, textarea, select, [contenteditable]"; // where keys write
const PRESSED = "button, a, summary"; // what space and enter press
const SIGNS = ["/", "?"]; // on some keyboards they need shift

/** The entry of the table that a key means, or null. */
function entryFor(event) {
  const target = event.target instanceof Element ? event.target : document.body;
  const control = event.ctrlKey || event.metaKey;
  const typing = target.closest(TYPED) !== null;
  const pressing = [" ", "Enter"].includes(event.key) && target.closest(PRESSED) !== null;
  if (event.altKey || pressing || document.querySelector("dialog[open]") !== null) {
    return null;
  }
  for (const entry of KEYS) {
    const shiftFits = SIGNS.includes(event.key) || Boolean(entry.shift) === event.shiftKey;
    const matches = entry.keys.includes(event.key) || entry.keys.includes(event.key.toLowerCase());
    if (matches && shiftFits && Boolean(entry.control) === control) {
      return typing && entry.action !== "save" ? null : entry;
    }
  }
  return null;
}

/** Call `act(action, key)` for keys; where it says false, the key stays the browser's. */
export function listenToKeys(act) {
  document.addEventListener("keydown", (event) => {
    const entry = entryFor(event);
    if (entry !== null && act(entry.action, event.key) !== false) {
      event.preventDefault();
    }
  });
}

/** The table, for the dialog. */
export function showKeys(list) {
  const rows = KEYS.flatMap((entry) => [
    element("dt", {}, element("kbd", { textContent: entry.shown })),
    element("dd", { textContent: entry.meaning }),
  ]);
  list.replaceChildren(...rows);
}
