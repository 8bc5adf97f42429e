/** A field in the place of a word or a sentence, in which its text is corrected. */

import { element } from "./dom.js";

/**
 * Let a person write another text in the place of an element's content. Resolves to what was written, or to null where
 * they left it. Enter and leaving the field keep the text, Escape does not.
 *
 * @param {HTMLElement} place a word, or the text of a segment
 * @param {string} text
 * @param {string} name what a screen reader calls the field
 * @param {boolean} isLong whether it takes several lines
 */
export function editText(place, text, name, isLong) {
  const field = element(isLong ? "textarea" : "input", { value: text, dir: "auto", "aria-label": name });
  field.className = "field";
  if (!isLong) {
    field.size = Math.min(40, Math.max(3, text.length + 2));
  }
  field.spellcheck = true;
  const kept = [...place.childNodes];
  place.replaceChildren(field);
  const fit = () => {
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight}px`;
  };
  if (isLong) {
    field.rows = 1;
    fit();
    field.addEventListener("input", fit);
  }
  field.focus();
  field.select();
  return new Promise((resolve) => {
    let isOpen = true;
    const close = (written) => {
      if (!isOpen) {
        return;
      }
      isOpen = false; // taking the field away makes it lose the focus, which would close it again
      place.replaceChildren(...kept);
      resolve(written);
    };
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" && !event.isComposing) {
        event.preventDefault();
        close(field.value);
      } else if (event.key === "Escape") {
        close(null);
      }
    });
    field.addEventListener("blur", () => close(field.value));
  });
}
