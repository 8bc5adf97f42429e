/**
 * The text, a list of segments. Every segment is in the page, so that its length is what it will be; its words become
 * elements of their own only near what is seen, which keeps hours of speech fluid.
 */

import { clock, element } from "./dom.js";
import { speakerMark } from "./speakers.js";
import { isUnsure, piecesOf, speakersOf } from "./transcript.js";

const FIRST = 60; // segments that are there at once; more than a screen holds
const AT_ONCE = 60; // those that follow, between two pictures
const NEAR = "800px 0px"; // above and below what is seen

export class TextView {
  /**
   * @param {HTMLElement} list
   * @param {{onWord: function, onTime: function, onEdit: function, onSpeaker: function}} handlers
   *   onWord(id, index, event): a word was clicked; onTime(id), onEdit(id): a segment's buttons; onSpeaker(label)
   */
  constructor(list, handlers) {
    this.list = list;
    this.handlers = handlers;
    this.rows = new Map(); // id → row
    this.transcript = null;
    this.pending = 0; // the next segment to be put into the page
    this.selection = null;
    this.span = null; // what is being spoken, of `timelineOf`
    this.spoken = null; // the element that is marked for it
    this.observer = new IntersectionObserver((entries) => this.seen(entries), { rootMargin: NEAR });
    list.addEventListener("click", (event) => this.clicked(event));
    list.addEventListener("dblclick", (event) => this.doubleClicked(event));
  }

  /** Show a transcript; what is the same as before stays untouched. */
  show(transcript) {
    this.transcript = transcript;
    this.speakers = new Map(speakersOf(transcript).map((label, place) => [label, place]));
    const known = new Set(transcript.segments.map((segment) => segment.id));
    for (const [id, row] of this.rows) {
      if (!known.has(id)) {
        this.observer.unobserve(row.item);
        row.item.remove();
        this.rows.delete(id);
      }
    }
    const isNew = this.rows.size === 0;
    this.pending = 0;
    this.place(isNew ? FIRST : transcript.segments.length);
    this.continue();
  }

  /** Put the next segments into the page, `count` of them. */
  place(count) {
    const { segments } = this.transcript;
    const end = Math.min(segments.length, this.pending + count);
    let before = this.pending > 0 ? this.rows.get(segments[this.pending - 1].id).item : null;
    for (; this.pending < end; this.pending += 1) {
      const segment = segments[this.pending];
      const row = this.rows.get(segment.id) ?? this.newRow(segment);
      const following = before === null ? this.list.firstChild : before.nextSibling;
      if (row.item !== following) {
        this.list.insertBefore(row.item, following);
      }
      this.refresh(row, segment, segments[this.pending - 1] ?? null);
      before = row.item;
    }
  }

  /** Put the rest into the page, a few segments at a time. */
  continue() {
    const { transcript } = this;
    const step = () => {
      if (this.transcript === transcript && this.pending < transcript.segments.length) {
        this.place(AT_ONCE);
        setTimeout(step);
      }
    };
    setTimeout(step);
  }

  clear() {
    this.observer.disconnect();
    this.rows.clear();
    this.list.replaceChildren();
    this.transcript = null;
    this.selection = null;
    this.span = null;
    this.spoken = null;
  }

  newRow(segment) {
    const time = element("button", { type: "button", className: "time" });
    const text = element("p", { className: "text", dir: "auto" });
    const edit = element("button", { type: "button", className: "edit quiet", textContent: "Edit" });
    const who = element("div", { className: "who" });
    const item = element("li", { className: "segment" }, who, time, text, edit);
    item.dataset.id = String(segment.id);
    const row = { item, who, time, text, edit, segment: null, speaker: undefined, filled: false, words: [] };
    this.rows.set(segment.id, row);
    this.observer.observe(item);
    return row;
  }

  /** Make a row show what its segment says. before: the segment above */
  refresh(row, segment, before) {
    const changed = row.segment !== segment;
    row.segment = segment;
    // the name stands where another speaker begins, with the mark that goes with their place in the list
    const speaker = before !== null && before.speaker === segment.speaker ? null : segment.speaker;
    const mark = speaker === null ? null : `${this.speakers.get(speaker)} ${speaker}`;
    if (row.mark !== mark) {
      row.mark = mark;
      this.showSpeaker(row, speaker);
    }
    if (!changed) {
      return;
    }
    const at = clock(segment.start);
    row.time.textContent = at;
    row.time.setAttribute("aria-label", `Play from ${at}`);
    row.edit.setAttribute("aria-label", `Edit the sentence at ${at}`);
    if (row.filled) {
      this.fill(row);
    } else {
      row.text.textContent = segment.text;
    }
  }

  showSpeaker(row, speaker) {
    row.item.classList.toggle("begins", speaker !== null);
    if (speaker === null) {
      row.who.replaceChildren();
      return;
    }
    const label = `${speaker}: rename or merge`;
    const name = element("button", { type: "button", className: "name quiet", "aria-label": label });
    name.append(speakerMark(speaker, this.speakers.get(speaker)));
    name.addEventListener("click", () => this.handlers.onSpeaker(speaker));
    row.who.replaceChildren(name);
  }

  /** Rows came near what is seen, or left. */
  seen(entries) {
    for (const entry of entries) {
      const row = this.rows.get(Number(entry.target.dataset.id));
      if (row === undefined) {
        continue;
      }
      if (entry.isIntersecting && !row.filled) {
        this.fill(row);
      } else if (!entry.isIntersecting && row.filled && !this.isHeld(row)) {
        row.filled = false;
        row.words = [];
        row.text.textContent = row.segment.text;
      }
    }
  }

  /** Whether a row has to stay as it is: it is chosen, or being edited. */
  isHeld(row) {
    return this.selection?.id === row.segment.id || row.text.contains(document.activeElement);
  }

  /** Make an element of every word. */
  fill(row) {
    row.filled = true;
    row.words = [];
    const parts = piecesOf(row.segment).map((piece) => {
      if (piece.word < 0) {
        return piece.text;
      }
      const word = element("span", { className: "word", textContent: piece.text });
      word.dataset.word = String(piece.word);
      word.classList.toggle("unsure", isUnsure(row.segment.words[piece.word]));
      row.words[piece.word] = word;
      return word;
    });
    row.text.replaceChildren(...parts);
    this.markSelection(row);
    if (this.span?.segment === row.segment) {
      this.speak(this.span); // now a word can be marked, and not all of the segment
    }
  }

  /** The row of a segment, in the page and with its words; null where there is none. */
  reach(id) {
    if (!this.rows.has(id)) {
      this.place(this.transcript.segments.length);
    }
    const row = this.rows.get(id) ?? null;
    if (row !== null && !row.filled) {
      this.fill(row);
    }
    return row;
  }

  /** Mark what is chosen: `{id, from, to}`, from is -1 for a whole segment; or null. Says which element to look at. */
  select(selection) {
    const before = this.selection;
    this.selection = selection;
    if (before !== null && this.rows.has(before.id)) {
      this.markSelection(this.rows.get(before.id));
    }
    if (selection === null) {
      return null;
    }
    const row = this.reach(selection.id);
    if (row === null) {
      return null;
    }
    this.markSelection(row);
    return row.words[selection.from] ?? row.text;
  }

  markSelection(row) {
    const own = this.selection?.id === row.segment.id ? this.selection : null;
    row.item.classList.toggle("chosen", own !== null && own.from < 0);
    row.words.forEach((word, index) => {
      word.classList.toggle("chosen", own !== null && index >= own.from && index <= own.to);
    });
  }

  /** Mark what is spoken; span: of `timelineOf`, or null. Says which element it is. */
  speak(span) {
    this.span = span;
    this.spoken?.classList.remove("spoken");
    this.spoken = null;
    const row = span === null ? undefined : this.rows.get(span.segment.id);
    if (row !== undefined) {
      this.spoken = row.words[span.word] ?? row.text;
      this.spoken.classList.add("spoken");
    }
    return this.spoken;
  }

  clicked(event) {
    const item = event.target.closest(".segment");
    if (item === null) {
      return;
    }
    const id = Number(item.dataset.id);
    if (event.target.closest(".time") !== null) {
      this.handlers.onTime(id);
    } else if (event.target.closest(".edit") !== null) {
      this.handlers.onEdit(id);
    } else if (event.target.closest(".text") !== null && event.target.closest("textarea, input") === null) {
      const word = event.target.closest(".word");
      this.handlers.onWord(id, word === null ? -1 : Number(word.dataset.word), event);
    }
  }

  doubleClicked(event) {
    const item = event.target.closest(".segment");
    if (item !== null && event.target.closest(".text") !== null && event.target.closest("textarea, input") === null) {
      this.handlers.onEdit(Number(item.dataset.id));
    }
  }
}
