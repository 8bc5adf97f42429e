/** The speakers: how each is marked, the list of them, and the dialog that renames them or makes two one. */

import { ask, byId, clock, element } from "./dom.js";
import { secondsOf, speakersOf } from "./transcript.js";

// a shape for each colour, so that nobody needs to tell colours apart
const SHAPES = ["●", "■", "▲", "◆", "★", "✚", "▼", "◗"];

/** The mark of the speaker at a place of the list: the number of the colour in page.css, and the shape. */
export function speakerStyle(place) {
  const number = place % SHAPES.length;
  return { number, shape: SHAPES[number] };
}

/** The mark of a speaker, with the name where it is wanted. place: in the list of speakers */
export function speakerMark(label, place) {
  const { number, shape } = speakerStyle(place);
  const mark = element("span", { className: `shape speaker-${number}`, textContent: shape, "aria-hidden": "true" });
  return element("span", { className: "speaker-mark" }, mark, element("bdi", { textContent: label }));
}

/** The list of speakers as buttons, each with the time that they speak. onChoose: gets a label */
export function showSpeakers(list, transcript, onChoose) {
  const seconds = secondsOf(transcript);
  const entries = speakersOf(transcript).map((label, place) => {
    const time = clock(seconds.get(label) ?? 0);
    const name = `${label}, speaks for ${time}. Rename or merge`;
    const chip = element("button", { type: "button", className: "chip", "aria-label": name, title: "Rename or merge" });
    chip.append(speakerMark(label, place), element("span", { className: "faint", textContent: time }));
    chip.addEventListener("click", () => onChoose(label));
    return element("li", {}, chip);
  });
  list.replaceChildren(...entries);
}

/** Ask for another name, or for whom a speaker is one with. Resolves to the name, or null where nothing was chosen. */
export async function askForName(label, transcript) {
  const dialog = byId("speaker-dialog");
  const field = byId("speaker-name");
  const others = speakersOf(transcript).filter((other) => other !== label);
  byId("speaker-title").textContent = `Who is ${label}?`;
  field.value = label;
  const options = others.map((other) => element("option", { value: other, textContent: other }));
  byId("speaker-other").replaceChildren(element("option", { value: "", textContent: "nobody else" }), ...options);
  byId("speaker-merge").hidden = others.length === 0;
  field.select();
  const answer = await ask(dialog);
  if (answer !== "ok") {
    return null;
  }
  const other = byId("speaker-other").value;
  const name = other || field.value.replace(/\s+/gu, " ").trim();
  return name === "" ? null : name;
}

/** A name for somebody who is not in the list yet, such as "Speaker 3". */
export function newSpeakerName(transcript) {
  const known = new Set(speakersOf(transcript));
  let number = known.size + 1;
  while (known.has(`Speaker ${number}`)) {
    number += 1;
  }
  return `Speaker ${number}`;
}
