/**
 * The page has two homes. A server gives it out, and it shows the server's recordings; or `mlx_speech transcribe -f
 * html` has put it into a file together with a transcript, and it shows that one.
 */

import { ask, byId, download } from "./dom.js";
import { Desk } from "./desk.js";
import { Jobs } from "./jobs.js";
import { listenToKeys, showKeys } from "./keys.js";
import { Saving } from "./saving.js";
import { Server } from "./server.js";
import { readDocument } from "./transcript.js";
import { peaksOf } from "./waveform.js";

const THEMES = ["auto", "light", "dark"];
const THEME = "mlx_speech_theme"; // its name in the browser's storage
const LARGEST_WAVE = 300_000_000; // bytes of a sound that is fetched as a whole to draw its waveform

const desk = new Desk({ onChange: () => saving.changed(), onSave: () => saving.save() });
const saving = new Saving(() => desk);

startTheme();
showKeys(byId("keys-list"));
byId("help").addEventListener("click", () => byId("keys").showModal());
listenToKeys((action, key) => {
  if (action === "help") {
    byId("keys").showModal();
    return true;
  }
  return desk.act(action, key);
});

if (byId("data") === null) {
  startServed();
} else {
  openFile(JSON.parse(byId("data").textContent));
}

// --- in a file -------------------------------------------------------------------------------------------------------

/** content: `{name, transcript, audio, peaks}`, as writers/html.py has put it there */
async function openFile({ name, transcript, audio, peaks }) {
  document.querySelector(".brand").removeAttribute("href"); // there is nowhere to go
  document.title = name;
  showDesk();
  desk.open(readDocument(transcript), name);
  const sound = audio?.startsWith("data:") ? blobOf(audio) : audio;
  desk.setSound(sound ?? null, peaks ?? []);
  await saving.open({
    draftName: `file:${fingerprint(JSON.stringify(transcript))}`,
    revision: null,
    keepsDraft: true, // the file itself stays as it was written
    save: async (document) => download(`${name}.json`, `${JSON.stringify(document)}\n`, "application/json") ?? null,
    reload: async () => ({ document: transcript, revision: null }),
  });
}

/** The bytes of a data URL, which players jump about in more easily than in the URL. */
function blobOf(address) {
  const comma = address.indexOf(",");
  const type = address.slice("data:".length, comma).split(";")[0];
  const binary = atob(address.slice(comma + 1));
  const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
  return new Blob([bytes], { type });
}

/** A short name of a text: FNV-1a in 32 bits. */
function fingerprint(text) {
  let hash = 0x811c9dc5;
  for (let place = 0; place < text.length; place += 1) {
    hash = Math.imul(hash ^ text.charCodeAt(place), 0x01000193);
  }
  return (hash >>> 0).toString(16).padStart(8, "0");
}

// --- on a server -----------------------------------------------------------------------------------------------------

function startServed() {
  const server = new Server(askForKey);
  const jobs = new Jobs(server);
  const go = () => route(server, jobs);
  addEventListener("hashchange", go);
  go();
}

/** Show what the address names: `#/job_…`, or all recordings. */
async function route(server, jobs) {
  await saving.flush();
  saving.close();
  desk.close();
  const id = /^#\/(job_[a-z2-7]{26})$/.exec(location.hash)?.[1];
  if (id === undefined) {
    document.title = "Recordings · mlx_speech";
    byId("desk").hidden = true;
    byId("player").hidden = true;
    byId("home").hidden = false;
    await jobs.show();
    return;
  }
  jobs.hide();
  await openJob(server, id);
}

async function openJob(server, id) {
  showDesk();
  byId("opening").hidden = false;
  byId("opening").textContent = "Opening …";
  const isCurrent = () => location.hash === `#/${id}`;
  try {
    const job = await server.job(id);
    const { document: content, revision } = await server.result(id);
    if (!isCurrent()) {
      return;
    }
    byId("opening").hidden = true;
    document.title = `${job.filename} · mlx_speech`;
    desk.open(readDocument(content), job.filename);
    await saving.open({
      draftName: id,
      revision,
      keepsDraft: false,
      save: (changed, known) => server.saveResult(id, changed, known),
      reload: () => server.result(id),
    });
    await openSound(server, id, isCurrent);
  } catch (error) {
    if (isCurrent()) {
      byId("opening").textContent = error.message;
    }
  }
}

/** Play the sound as soon as it comes, and draw its waveform when all of it is there. */
async function openSound(server, id, isCurrent) {
  const sound = await server.sound(id);
  if (!isCurrent()) {
    return;
  }
  desk.setSound(sound, []);
  const blob = sound instanceof Blob ? sound : await server.soundAsBlob(id, LARGEST_WAVE);
  const peaks = blob === null ? [] : await peaksOf(blob, desk.player.duration);
  if (isCurrent()) {
    desk.lanes.setPeaks(peaks);
  }
}

async function askForKey(wasRefused) {
  byId("key-wrong").hidden = !wasRefused;
  byId("key").value = "";
  return (await ask(byId("key-dialog"))) === "ok" ? byId("key").value.trim() : null;
}

// --- both ------------------------------------------------------------------------------------------------------------

function showDesk() {
  byId("home").hidden = true;
  byId("desk").hidden = false;
  byId("player").hidden = false;
  byId("save-error").hidden = true;
  byId("opening").hidden = true;
}

/** Light, dark, or as the system has it. */
function startTheme() {
  let theme = "auto";
  try {
    theme = localStorage.getItem(THEME) ?? "auto";
  } catch {
    // a browser that keeps nothing
  }
  const apply = (chosen) => {
    document.documentElement.dataset.theme = chosen;
    byId("theme").value = chosen;
    desk.lanes.draw();
  };
  apply(THEMES.includes(theme) ? theme : "auto");
  byId("theme").addEventListener("change", (event) => {
    apply(event.target.value);
    try {
      localStorage.setItem(THEME, event.target.value);
    } catch {
      // it holds until the page is closed
    }
  });
}
