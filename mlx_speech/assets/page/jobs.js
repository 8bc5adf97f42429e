/** The recordings on the server: sending new ones, and the list of jobs with how far they are. */

import { announce, arrange, ask, byId, button, clock, download, element } from "./dom.js";
import { fillLanguages } from "./languages.js";
import { Recording } from "./recording.js";

const LOOK_AGAIN = 2000; // milliseconds between looks at the list while something is under way
const STAGES = {
  audio: "Reading the sound",
  vad: "Finding speech",
  transcribe: "Writing down",
  align: "Timing words",
  diarize: "Telling speakers apart",
};
const STATES = { queued: "Waiting", running: "At work", failed: "Failed", cancelled: "Cancelled" };
const UNDER_WAY = ["queued", "running"];

export class Jobs {
  /** @param {import("./server.js").Server} server */
  constructor(server) {
    this.server = server;
    this.recording = new Recording(server);
    this.jobs = [];
    this.rows = new Map(); // id → {item, …} of a job, or a number for what is being sent
    this.heard = new Map(); // id → the last text of a job under way
    this.followed = null; // the job whose events are heard: {id, stop}
    this.timer = null;
    this.isShown = false;
    this.listen();
  }

  listen() {
    fillLanguages(byId("language"));
    byId("files").addEventListener("change", (event) => {
      this.send([...event.target.files]);
      event.target.value = "";
    });
    byId("record").addEventListener("click", () => this.record());
    addEventListener("beforeunload", (event) => {
      if (this.recording.isRecording || [...this.rows.values()].some((row) => row.wouldBeLost)) {
        event.preventDefault();
      }
    });
    byId("more-jobs").addEventListener("click", () => this.showMore());
    const zone = byId("drop");
    for (const kind of ["dragenter", "dragover"]) {
      zone.addEventListener(kind, (event) => {
        event.preventDefault();
        zone.classList.add("over");
      });
    }
    for (const kind of ["dragleave", "drop"]) {
      zone.addEventListener(kind, () => zone.classList.remove("over"));
    }
    zone.addEventListener("drop", (event) => {
      event.preventDefault();
      this.send([...event.dataTransfer.files]);
    });
  }

  show() {
    this.isShown = true;
    return this.look();
  }

  hide() {
    this.isShown = false;
    clearTimeout(this.timer);
    this.followed?.stop();
    this.followed = null;
  }

  /** Look at the list, and again as long as something is under way. */
  async look() {
    clearTimeout(this.timer);
    try {
      const { data, has_more: hasMore } = await this.server.jobs();
      const known = new Set(data.map((job) => job.id));
      const older = this.jobs.filter((job) => !known.has(job.id) && job.created_at <= (data.at(-1)?.created_at ?? 0));
      this.take([...data, ...(hasMore ? older : [])]);
      byId("more-jobs").hidden = !hasMore || older.length > 0;
      this.fail("");
    } catch (error) {
      this.fail(error.message);
    }
    const isBusy = this.jobs.some((job) => UNDER_WAY.includes(job.status));
    if (this.isShown) {
      this.timer = setTimeout(() => this.look(), isBusy ? LOOK_AGAIN : 5 * LOOK_AGAIN);
    }
  }

  async showMore() {
    try {
      const { data, has_more: hasMore } = await this.server.jobs(this.jobs.at(-1)?.id);
      this.take([...this.jobs, ...data]);
      byId("more-jobs").hidden = !hasMore;
    } catch (error) {
      this.fail(error.message);
    }
  }

  fail(message) {
    byId("jobs-error").textContent = message;
    byId("jobs-error").hidden = message === "";
  }

  /** Take a new list, show it, and say what has ended. */
  take(jobs) {
    for (const job of jobs) {
      const before = this.jobs.find((known) => known.id === job.id);
      if (before !== undefined && before.status !== job.status) {
        announce(`${job.filename}: ${stateOf(job)}`);
      } else if (before !== undefined && job.status === "running" && before.stage !== job.stage) {
        announce(`${job.filename}: ${STAGES[job.stage] ?? job.stage}`);
      }
    }
    this.jobs = jobs;
    this.recording.see(jobs);
    this.draw();
    this.followFirst();
  }

  draw() {
    const known = new Set(this.jobs.map((job) => job.id));
    for (const [id, row] of this.rows) {
      if (!known.has(id) && !row.isSending) {
        row.item.remove();
        this.rows.delete(id);
      }
    }
    for (const job of this.jobs) {
      this.refreshRow(this.rows.get(job.id) ?? this.newRow(job), job);
    }
    const sending = [...this.rows.values()].filter((row) => row.isSending);
    const listed = this.jobs.map((job) => this.rows.get(job.id));
    arrange(byId("jobs"), [...sending, ...listed].map((row) => row.item));
    byId("no-jobs").hidden = this.rows.size > 0;
    byId("jobs-title").hidden = this.rows.size === 0;
  }

  newRow(job) {
    const row = emptyRow(job.filename);
    row.link.href = `#/${job.id}`;
    row.remove = button("Delete", () => this.remove(job.id), { className: "quiet" });
    row.item.append(row.remove);
    this.rows.set(job.id, row);
    return row;
  }

  refreshRow(row, job) {
    const isUnderWay = UNDER_WAY.includes(job.status);
    const isDone = job.status === "succeeded";
    row.link.toggleAttribute("href", isDone);
    if (isDone) {
      row.link.href = `#/${job.id}`;
    }
    row.progress.hidden = job.status !== "running";
    row.progress.value = job.progress ?? 0;
    row.state.textContent = job.error?.message ? `${stateOf(job)}: ${job.error.message}` : stateOf(job);
    row.state.classList.toggle("wrong", job.status === "failed");
    row.heard.textContent = isUnderWay ? (this.heard.get(job.id) ?? "") : "";
    row.remove.textContent = isUnderWay ? "Cancel" : "Delete";
    row.remove.setAttribute("aria-label", `${row.remove.textContent} ${job.filename}`);
  }

  /** Hear what is said in the first job that runs; the others are looked at now and then. */
  followFirst() {
    const running = this.jobs.find((job) => job.status === "running");
    if (running?.id === this.followed?.id || !this.isShown) {
      return;
    }
    this.followed?.stop();
    this.followed = null;
    if (running === undefined) {
      return;
    }
    const control = new AbortController();
    this.followed = { id: running.id, stop: () => control.abort() };
    this.server.follow(running.id, (name, data) => this.hear(running.id, name, data), control.signal);
  }

  hear(id, name, data) {
    const job = this.jobs.find((known) => known.id === id);
    if (job === undefined) {
      return;
    }
    if (name === "progress") {
      this.take(this.jobs.map((known) => (known.id === id ? { ...known, ...progressIn(data) } : known)));
    } else if (name === "segment") {
      this.heard.set(id, data.text);
      this.refreshRow(this.rows.get(id), job);
    } else {
      this.look();
    }
  }

  /** Send recordings, one behind the other, with what the form asks for. isRecorded: the microphone's, kept nowhere */
  async send(files, isRecorded = false) {
    const fields = { model: "whisper-1", response_format: "whisperx_json" };
    fields.diarize = String(byId("speakers-wanted").checked);
    if (byId("language").value) {
      fields.language = byId("language").value;
    }
    for (const file of files) {
      await this.sendOne(file, fields, isRecorded);
    }
  }

  async sendOne(file, fields, isRecorded) {
    const row = emptyRow(file.name);
    row.isSending = true;
    row.wouldBeLost = true;
    this.rows.set(file, row);
    row.state.textContent = "Sending";
    row.progress.hidden = false;
    byId("jobs").prepend(row.item);
    byId("no-jobs").hidden = true;
    byId("jobs-title").hidden = false;
    try {
      const job = await this.server.upload(file, fields, (share) => (row.progress.value = share));
      announce(`${file.name}: sent`);
      this.forget(file);
      if (isRecorded) {
        this.recording.became(job.id);
      }
      await this.look();
    } catch (error) {
      announce(`${file.name}: not sent. ${error.message}`);
      row.wouldBeLost = isRecorded;
      row.progress.hidden = true;
      row.state.textContent = `Not sent: ${error.message}`;
      row.state.classList.add("wrong");
      row.item.append(element("div", { className: "choices" }, ...this.choicesForUnsent(file, fields, isRecorded)));
      if (isRecorded) {
        this.recording.became(null);
      }
    }
  }

  /** The buttons of what could not be sent. */
  choicesForUnsent(file, fields, isRecorded) {
    const again = () => {
      this.forget(file);
      this.sendOne(file, fields, isRecorded);
    };
    const choices = [button("Send again", again, { name: `Send ${file.name} again` })];
    if (isRecorded) {
      const save = () => download(file.name, file, file.type);
      choices.push(button("Save the sound", save, { name: `Save the sound of ${file.name}`, className: "quiet" }));
    }
    choices.push(button("Dismiss", () => this.forget(file), { name: `Dismiss ${file.name}`, className: "quiet" }));
    return choices;
  }

  forget(file) {
    this.rows.get(file)?.item.remove();
    this.rows.delete(file);
    byId("no-jobs").hidden = this.rows.size > 0;
    byId("jobs-title").hidden = this.rows.size === 0;
  }

  async record() {
    byId("record").disabled = true; // until it is known what comes of it
    if (this.recording.isRecording) {
      const file = await this.recording.stop();
      this.showRecording();
      await this.send([file], true);
    } else {
      await this.startRecording();
    }
    this.showRecording();
  }

  async startRecording() {
    try {
      const { ended } = await this.recording.start(byId("language").value);
      this.fail("");
      announce("Recording");
      ended.then(() => this.endedByItself());
    } catch (error) {
      this.fail(`There is no microphone to hear: ${error.message}`);
    }
  }

  /** The microphone has gone: what it heard is sent. */
  async endedByItself() {
    if (this.recording.isRecording) {
      announce("The microphone has gone: what it heard is sent");
      await this.record();
    }
  }

  showRecording() {
    const { isRecording } = this.recording;
    byId("record").disabled = false;
    byId("record").textContent = isRecording ? "Stop and send" : "Record";
    byId("record").classList.toggle("recording", isRecording);
  }

  async remove(id) {
    const job = this.jobs.find((known) => known.id === id);
    byId("question-text").textContent = UNDER_WAY.includes(job.status)
      ? `Cancel the work on ${job.filename}? Its sound is deleted from the server.`
      : `Delete ${job.filename} from the server, with its transcript and its sound?`;
    byId("question-yes").textContent = UNDER_WAY.includes(job.status) ? "Cancel the work" : "Delete";
    byId("question-no").textContent = "Keep it";
    if ((await ask(byId("question"))) !== "ok") {
      return;
    }
    try {
      await this.server.remove(id);
      this.take(this.jobs.filter((known) => known.id !== id));
    } catch (error) {
      this.fail(error.message);
    }
  }
}

function emptyRow(name) {
  const link = element("a", {}, element("bdi", { textContent: name }));
  const progress = element("progress", { max: 1, value: 0, hidden: true, "aria-label": `Progress of ${name}` });
  const state = element("p", { className: "state" });
  const heard = element("p", { className: "heard", dir: "auto" });
  const item = element("li", { className: "job" }, element("h3", {}, link), state, progress, heard);
  return { item, link, progress, state, heard, remove: null, isSending: false, wouldBeLost: false };
}

function progressIn(data) {
  return { stage: data.stage, progress: data.progress };
}

/** How far a job is, in words. */
function stateOf(job) {
  if (job.status === "running") {
    const stage = STAGES[job.stage] ?? STATES.running;
    return `${stage} · ${Math.round(100 * (job.progress ?? 0))} %`;
  }
  if (job.status === "queued" && job.queue_position > 0) {
    return `${STATES.queued} · ${job.queue_position} before it`;
  }
  if (job.status !== "succeeded") {
    return STATES[job.status] ?? job.status;
  }
  const facts = [];
  if (job.audio_seconds) {
    facts.push(clock(job.audio_seconds));
  }
  facts.push(new Date(1000 * job.created_at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }));
  if (job.corrected) {
    facts.push("corrected");
  }
  return facts.join(" · ");
}
