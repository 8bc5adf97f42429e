/** The field that searches the text, and the way from one place to the next. */

import { byId } from "./dom.js";
import { findAll } from "./search.js";

export class Finder {
  /** @param {function(object, string)} goTo gets a place of `findAll`, and what to say of it */
  constructor(goTo) {
    this.goTo = goTo;
    this.transcript = null;
    this.found = [];
    this.place = -1; // of the one that is shown, in `found`
    byId("search").addEventListener("input", () => this.search(this.transcript));
    byId("search").addEventListener("keydown", (event) => this.press(event));
    byId("search-next").addEventListener("click", () => this.show(1));
    byId("search-previous").addEventListener("click", () => this.show(-1));
  }

  /** Look for what is in the field, in a transcript that may be another one. */
  search(transcript) {
    this.transcript = transcript;
    this.found = transcript === null ? [] : findAll(transcript, byId("search").value);
    this.place = -1;
    this.count();
  }

  /** Empty the field. */
  clear() {
    byId("search").value = "";
    this.search(null);
  }

  count() {
    const isSearching = byId("search").value.trim() !== "";
    const count = this.found.length;
    const text = this.place < 0 ? `${count}` : `${this.place + 1} of ${count}`;
    byId("search-count").textContent = isSearching ? text : "";
    byId("search-next").disabled = count === 0;
    byId("search-previous").disabled = count === 0;
  }

  press(event) {
    if (event.key === "Enter") {
      this.show(event.shiftKey ? -1 : 1);
    } else if (event.key === "Escape") {
      byId("search").blur();
    }
  }

  show(step) {
    const count = this.found.length;
    if (count === 0) {
      return;
    }
    const start = this.place < 0 && step < 0 ? 0 : this.place;
    this.place = (start + step + count) % count;
    this.count();
    this.goTo(this.found[this.place], `${this.place + 1} of ${count}`);
  }
}
