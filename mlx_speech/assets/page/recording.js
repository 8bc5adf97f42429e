/** What is seen while the microphone is recorded: the time, how loud it is, and the words as they come. */

import { byId, clock, element } from "./dom.js";
import { LiveWords } from "./live.js";
import { hearStream } from "./microphone.js";
import { Recorder } from "./recorder.js";

const QUIETEST = 60; // decibels below full scale that are an empty meter

export class Recording {
  /** @param {import("./server.js").Server} server */
  constructor(server) {
    this.server = server;
    this.recorder = new Recorder();
    this.job = null; // the id of the job whose transcript will replace the words
    this.words = null;
    this.microphone = null;
    this.lines = new Map(); // the paragraph of every turn, by its id
  }

  get isRecording() {
    return this.recorder.isRecording;
  }

  /**
   * Begin. language: a code, or "". Gives `{ended}`, a promise that the microphone is heard no more. Throws where
   * there is none.
   */
  async start(language) {
    await this.recorder.start();
    this.job = null;
    this.clear();
    byId("live").hidden = false;
    byId("live").classList.add("recording");
    this.tell("");
    this.showTime();
    this.showWords(language); // which nobody waits for: what is recorded does not depend on it
    return { ended: this.recorder.ended };
  }

  async showWords(language) {
    const explain = (reason) => this.tell(`No words appear: ${reason}`);
    const words = new LiveWords((id, text) => this.showTurn(id, text), explain);
    this.words = words;
    try {
      const microphone = await hearStream(this.recorder.stream, (block, peak) => {
        showLevel(peak);
        words.send(block);
      });
      if (this.words !== words) {
        microphone.stop(); // the recording is over already
        return;
      }
      this.microphone = microphone;
      await words.open(this.server, microphone.rate, language);
    } catch (error) {
      words.end(error.message);
    }
  }

  /** End, and give the recording as a file. */
  async stop() {
    this.words?.end();
    this.words = null;
    this.microphone?.stop();
    this.microphone = null;
    const file = await this.recorder.stop();
    byId("live").classList.remove("recording");
    showLevel(0);
    this.tell("");
    byId("live").hidden = byId("live-text").textContent === "";
    return file;
  }

  /** The recording has become this job; null where it could not be sent. */
  became(job) {
    this.job = job;
    this.tell(job === null ? "" : "All of it is being written down now; the transcript replaces these words.");
  }

  /** What became of the job, among those that the server has. */
  see(jobs) {
    const job = jobs.find((one) => one.id === this.job);
    if (this.job === null || this.isRecording || job === undefined) {
      return;
    }
    if (job.status === "succeeded") {
      this.job = null;
      byId("live").hidden = true;
      this.clear();
    } else if (job.status === "failed" || job.status === "cancelled") {
      this.job = null;
      this.tell("There is no transcript; these words are all that was heard.");
    }
  }

  clear() {
    this.lines.clear();
    byId("live-text").replaceChildren();
  }

  /** A paragraph a turn. What is there already is left alone, so that only what is new is read out. */
  showTurn(id, text) {
    const list = byId("live-text");
    const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40; // pixels: nobody has scrolled back
    if (!this.lines.has(id)) {
      this.lines.set(id, element("p", { dir: "auto" }));
      list.append(this.lines.get(id));
    }
    const line = this.lines.get(id);
    const shown = line.textContent;
    if (text.startsWith(shown)) {
      line.append(text.slice(shown.length));
    } else {
      line.textContent = text;
    }
    if (isAtEnd) {
      list.scrollTop = list.scrollHeight;
    }
  }

  tell(note) {
    byId("live-note").textContent = note;
  }

  showTime() {
    if (this.isRecording) {
      byId("live-time").textContent = clock(this.recorder.seconds);
      setTimeout(() => this.showTime(), 250);
    }
  }
}

/** peak: of the last sound, from 0 to 1 */
function showLevel(peak) {
  const decibels = 20 * Math.log10(Math.max(peak, 1e-9));
  const share = Math.max(0, Math.min(1, 1 + decibels / QUIETEST));
  byId("level").firstElementChild.style.transform = `scaleX(${share.toFixed(3)})`;
}
