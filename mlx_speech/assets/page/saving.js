/**
 * What becomes of changes: each is kept by the browser as a draft until it is saved, and a draft that was left is
 * offered when its transcript is opened again.
 */

import { announce, ask, byId } from "./dom.js";
import { dropDraft, keepDraft, loadDraft } from "./drafts.js";
import { readDocument, documentOf } from "./transcript.js";

const DRAFT_DELAY = 800; // milliseconds after the last change

export class Saving {
  /** @param {function(): import("./desk.js").Desk} desk */
  constructor(desk) {
    this.desk = desk;
    this.place = null;
    this.timer = null;
    byId("draft-restore").addEventListener("click", () => this.restore());
    byId("draft-drop").addEventListener("click", () => this.drop());
    addEventListener("beforeunload", (event) => {
      if (this.isUnsaved) {
        event.preventDefault();
      }
    });
  }

  /**
   * @param {{draftName: string, revision: ?string, keepsDraft: boolean, save: function, reload: function}} place
   *   where the transcript is saved: `save(document, revision)` gives the new revision, `reload()` gives
   *   `{document, revision}` as they are saved now; keepsDraft: saving does not change what is opened the next time
   */
  async open(place) {
    this.close();
    this.place = place;
    const draft = await loadDraft(place.draftName);
    if (draft !== null && this.place === place) {
      this.draft = draft;
      byId("draft-time").textContent = new Date(draft.time).toLocaleString();
      byId("draft").hidden = false;
    }
  }

  close() {
    clearTimeout(this.timer);
    this.place = null;
    this.draft = null;
    byId("draft").hidden = true;
  }

  get isUnsaved() {
    return this.place !== null && this.desk().history?.isUnsaved === true;
  }

  /** A change was made. */
  changed() {
    byId("save-error").hidden = true;
    byId("draft").hidden = true; // it is what they did before; from now on this is kept
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.keep(), DRAFT_DELAY);
  }

  async keep() {
    const { place } = this;
    if (place === null) {
      return;
    }
    if (this.isUnsaved) {
      await this.keepAsDraft(place, documentOf(this.desk().transcript));
    } else if (place.hasDraft && !place.keepsDraft) {
      await dropDraft(place.draftName); // all that was changed here has been undone; a draft of before stays
    }
  }

  keepAsDraft(place, document) {
    place.hasDraft = true;
    return keepDraft(place.draftName, { document, revision: place.revision, time: Date.now() });
  }

  /** Keep what is not saved at once, before another transcript is opened. */
  async flush() {
    clearTimeout(this.timer);
    await this.keep();
  }

  restore() {
    byId("draft").hidden = true;
    this.place.revision = this.draft.revision ?? this.place.revision;
    this.desk().change(readDocument(this.draft.document), "The changes are back");
  }

  async drop() {
    byId("draft").hidden = true;
    await dropDraft(this.place.draftName);
    announce("The changes are dropped");
  }

  /** Save the current state. */
  async save() {
    const { place } = this;
    const desk = this.desk();
    const state = desk.transcript;
    if (!desk.history.isUnsaved) {
      return;
    }
    const document = documentOf(state);
    const saved = await this.saveTo(place, document);
    if (!saved || this.place !== place) {
      return;
    }
    desk.history.markSaved(state);
    desk.showState();
    clearTimeout(this.timer);
    if (desk.transcript !== state) {
      await this.keep(); // it was changed meanwhile
    } else if (place.keepsDraft) {
      await this.keepAsDraft(place, document);
    } else {
      await dropDraft(place.draftName);
    }
    announce("Saved");
  }

  /** Says whether it is saved. */
  async saveTo(place, document) {
    try {
      place.revision = await place.save(document, place.revision);
      return true;
    } catch (error) {
      if (error.status === 412) {
        return this.settle(place, document);
      }
      byId("save-error").textContent = `Not saved: ${error.message}`;
      byId("save-error").hidden = false;
      announce(`Not saved: ${error.message}`);
      return false;
    }
  }

  /** Somebody else has saved this transcript since it was opened: the person says whose is kept. */
  async settle(place, document) {
    byId("question-text").textContent = "This transcript was saved in another window since you opened it.";
    byId("question-yes").textContent = "Replace it with mine";
    byId("question-no").textContent = "Do not save";
    if ((await ask(byId("question"))) !== "ok") {
      return false;
    }
    place.revision = (await place.reload()).revision;
    return this.saveTo(place, document);
  }
}
