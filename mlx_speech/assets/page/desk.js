/** One transcript on the desk: read, heard and corrected. What is chosen is as choice.js has it. */

import { nextWord, showChoice, stillThere, wholeOf, wordFacts } from "./choice.js";
import { announce, byId, clock, download, element } from "./dom.js";
import { editText } from "./editing.js";
import { giveSegment, giveWords, renameSpeaker, setText, setWord } from "./edits.js";
import { EXPORTS } from "./exports.js";
import { Finder } from "./finding.js";
import { History } from "./history.js";
import { Lanes } from "./lanes.js";
import { Player } from "./player.js";
import { askForName, newSpeakerName, showSpeakers } from "./speakers.js";
import { TextView } from "./text.js";
import { durationOf, isUnsure, spanAt, speakersOf, timelineOf } from "./transcript.js";

const JUMP = 3; // seconds back or on
const HANDS_OFF = 4000; // milliseconds after a person has scrolled in which the page does not

export class Desk {
  /** @param {{onChange: function(object), onSave: function()}} handlers onChange: gets each new transcript */
  constructor({ onChange, onSave }) {
    this.onChange = onChange;
    this.onSave = onSave;
    this.history = null;
    this.selection = null;
    this.scrolledAt = -Infinity;
    this.player = new Player(byId("audio"), {
      onTime: (seconds) => this.showTime(seconds),
      onState: () => this.showPlaying(),
      onError: () => this.showNoSound(),
    });
    this.lanes = new Lanes(byId("lanes"), (seconds) => this.player.seek(seconds));
    this.text = new TextView(byId("text"), {
      onWord: (id, index, event) => this.clickWord(id, index, event),
      onTime: (id) => this.playFrom(wholeOf(id)),
      onEdit: (id) => this.edit(wholeOf(id)),
      onSpeaker: (label) => this.rename(label),
    });
    this.finder = new Finder((place, said) => this.goTo(place, said));
    this.listen();
  }

  listen() {
    const presses = {
      play: () => this.act("toggle"),
      back: () => this.act("back"),
      forward: () => this.act("forward"),
      undo: () => this.act("undo"),
      redo: () => this.act("redo"),
      save: () => this.act("save"),
      "next-unsure": () => this.act("nextUnsure"),
      "chosen-play": () => this.act("playSelection"),
      "chosen-edit": () => this.act("edit"),
      "chosen-sentence": () => this.act("wholeSentence"),
      "chosen-leave": () => this.act("leave"),
    };
    for (const [id, press] of Object.entries(presses)) {
      byId(id).addEventListener("click", press);
    }
    byId("speed").addEventListener("change", (event) => {
      this.player.speed = Number(event.target.value);
      event.target.blur(); // keys are for the transcript again
    });
    byId("owner").addEventListener("change", (event) => {
      this.giveTo(event.target.value);
      event.target.blur();
    });
    byId("sound-file").addEventListener("change", (event) => this.openSound(event.target.files[0]));
    document.addEventListener("click", (event) => {
      if (!byId("export").contains(event.target)) {
        byId("export").open = false;
      }
    });
    for (const kind of ["wheel", "touchmove"]) {
      addEventListener(kind, () => (this.scrolledAt = performance.now()), { passive: true });
    }
    for (const [ending, format] of Object.entries(EXPORTS)) {
      const label = `${format.label} (.${ending})`;
      const choice = element("button", { type: "button", className: "quiet", textContent: label });
      choice.addEventListener("click", () => this.export(ending));
      byId("exports").append(element("li", {}, choice));
    }
  }

  /** Put a transcript on the desk. name: of the recording */
  open(transcript, name) {
    this.close();
    this.name = name;
    this.history = new History(transcript);
    byId("name").textContent = name;
    this.finder.clear();
    this.speakers = [];
    this.refresh();
    this.player.speed = Number(byId("speed").value);
    this.player.seek(0);
  }

  /** What to play (an address, a `Blob` or null), and the peaks of its waveform. */
  setSound(source, peaks) {
    this.player.open(source);
    this.lanes.setPeaks(peaks);
    byId("no-sound").hidden = source !== null;
    byId("play").disabled = source === null;
  }

  close() {
    this.player.close();
    this.text.clear();
    this.lanes.setPeaks([]);
    this.history = null;
    this.select(null);
  }

  get transcript() {
    return this.history.current;
  }

  /** Do what a key or a button says. Says false where there is nothing to do. */
  act(action, key = "") {
    if (this.history === null) {
      return false;
    }
    const actions = {
      toggle: () => this.player.toggle(),
      back: () => this.player.seek(this.player.time - JUMP),
      forward: () => this.player.seek(this.player.time + JUMP),
      previousSentence: () => this.stepSentence(-1),
      nextSentence: () => this.stepSentence(1),
      previousWord: () => this.stepWord(-1),
      nextWord: () => this.stepWord(1),
      nextUnsure: () => this.stepUnsure(1),
      previousUnsure: () => this.stepUnsure(-1),
      playSelection: () => this.selection !== null && this.playFrom(this.selection),
      edit: () => this.selection !== null && this.edit(this.selection),
      wholeSentence: () => this.selection !== null && this.select(wholeOf(this.selection.id)),
      give: () => this.giveTo(this.speakers[Number(key) - 1]),
      search: () => byId("search").focus(),
      undo: () => this.travel("undo"),
      redo: () => this.travel("redo"),
      save: () => this.onSave(),
      leave: () => this.select(null),
    };
    return actions[action]?.() ?? action in actions;
  }

  // --- changes -------------------------------------------------------------------------------------------------------

  /** Make a change, and say it. */
  change(transcript, said) {
    if (this.history.change(transcript)) {
      this.refresh();
      this.onChange(transcript);
      announce(said);
    }
  }

  travel(direction) {
    const possible = direction === "undo" ? this.history.canUndo : this.history.canRedo;
    if (possible) {
      this.history[direction]();
      this.refresh();
      this.onChange(this.transcript);
      announce(direction === "undo" ? "Undone" : "Done again");
    }
  }

  /** Show the current state. */
  refresh() {
    const { transcript } = this;
    const duration = durationOf(transcript) || this.player.duration;
    this.timeline = timelineOf(transcript);
    this.speakers = speakersOf(transcript);
    this.text.show(transcript);
    showSpeakers(byId("speakers"), transcript, (label) => this.rename(label));
    const turns = transcript.turns ?? transcript.segments.filter((segment) => segment.speaker !== null);
    this.lanes.update(turns, this.speakers, duration);
    byId("facts").textContent = this.facts(duration);
    byId("nothing").hidden = transcript.segments.length > 0;
    this.showState();
    this.select(stillThere(this.selection, this.segmentOf(this.selection)));
    this.showTime(this.player.time);
    this.finder.search(transcript);
  }

  facts(duration) {
    const facts = [clock(duration)];
    const { language } = this.transcript.document;
    if (language) {
      facts.push(languageName(language));
    }
    const unsure = this.timeline.filter((span) => span.word >= 0 && isUnsure(span.segment.words[span.word])).length;
    if (unsure > 0) {
      facts.push(unsure === 1 ? "1 word to look at" : `${unsure} words to look at`);
    }
    return facts.join(" · ");
  }

  /** What can be undone, and whether all is saved. */
  showState() {
    byId("undo").disabled = !this.history.canUndo;
    byId("redo").disabled = !this.history.canRedo;
    byId("save").disabled = !this.history.isUnsaved;
  }

  segmentOf(selection) {
    return this.transcript?.segments.find((segment) => segment.id === selection?.id) ?? null;
  }

  async rename(label) {
    const name = await askForName(label, this.transcript);
    if (name !== null && name !== label) {
      const isMerged = this.speakers.includes(name);
      const said = isMerged ? `${label} is ${name} now` : `${label} is called ${name} now`;
      this.change(renameSpeaker(this.transcript, label, name), said);
    }
  }

  /** Give what is chosen to a speaker; "" is somebody new. */
  giveTo(label) {
    if (this.selection === null || label === undefined) {
      return;
    }
    const { id, from, to } = this.selection;
    const speaker = label || newSpeakerName(this.transcript);
    if (from < 0) {
      this.change(giveSegment(this.transcript, id, speaker), `The sentence is ${speaker}'s now`);
      return;
    }
    const changed = giveWords(this.transcript, id, from, to, speaker);
    // what moved is a segment of its own, and stays chosen
    const place = changed.segments.findIndex((segment) => segment.id === id) + (from > 0 ? 1 : 0);
    this.selection = { id: changed.segments[place].id, from: 0, to: to - from };
    this.change(changed, `The words are ${speaker}'s now`);
  }

  async edit(selection) {
    const segment = this.segmentOf(selection);
    const isWord = selection.from >= 0 && selection.from === selection.to;
    const place = this.select(isWord ? selection : wholeOf(selection.id));
    if (segment === null || place === null || place.querySelector("input, textarea") !== null) {
      return;
    }
    this.player.pause();
    const text = isWord ? segment.words[selection.from].text : segment.text;
    const written = await editText(place, text, isWord ? "The word" : "The sentence", !isWord);
    if (written === null || written.trim() === text || this.segmentOf(selection) === null) {
      return;
    }
    if (isWord) {
      this.change(setWord(this.transcript, segment.id, selection.from, written), "The word is corrected");
    } else {
      this.change(setText(this.transcript, segment.id, written), "The sentence is corrected");
    }
  }

  export(ending) {
    const { type, write } = EXPORTS[ending];
    const stem = this.name.replace(/\.[^.]{1,5}$/u, "") || "transcript";
    download(`${stem}.${ending}`, write(this.transcript, stem), type);
    byId("export").open = false;
  }

  // --- choosing ------------------------------------------------------------------------------------------------------

  /** Choose something, and show what can be done with it. Says which element it is. */
  select(selection) {
    this.selection = selection;
    const place = this.history === null ? null : this.text.select(selection);
    byId("chosen").hidden = selection === null;
    if (selection !== null) {
      showChoice(selection, this.segmentOf(selection), this.speakers);
    }
    return place;
  }

  clickWord(id, index, event) {
    const { selection } = this;
    if (event.shiftKey && index >= 0 && selection?.id === id && selection.from >= 0) {
      const from = Math.min(selection.from, index);
      this.select({ id, from, to: Math.max(selection.to, index) });
      getSelection().removeAllRanges(); // shift would choose text as the browser does
      return;
    }
    if (!getSelection().isCollapsed) {
      return; // the person marks text in order to copy it
    }
    this.playFrom({ id, from: index, to: index });
  }

  playFrom(selection) {
    this.select(selection);
    const segment = this.segmentOf(selection);
    this.player.seek((segment.words[selection.from] ?? segment).start);
    this.player.play();
  }

  /** Choose something, bring it into view and say it. */
  goTo(selection, said) {
    const place = this.select(selection);
    if (place !== null) {
      this.reveal(place);
    }
    const segment = this.segmentOf(selection);
    if (!this.player.isPlaying) {
      this.player.seek((segment.words[selection.from] ?? segment).start);
    }
    announce(said, false);
  }

  stepSentence(step) {
    const { segments } = this.transcript;
    const current = this.selection?.id ?? spanAt(this.timeline, this.player.time)?.segment.id;
    const place = segments.findIndex((segment) => segment.id === current);
    const next = segments[Math.max(0, place + step)];
    if (next !== undefined) {
      this.goTo(wholeOf(next.id), next.text);
    }
  }

  stepWord(step) {
    this.stepTo(step, () => true);
  }

  stepUnsure(step) {
    if (!this.stepTo(step, (span) => isUnsure(span.segment.words[span.word]))) {
      announce("No word that may be wrong from here on");
    }
  }

  /** Choose the next word that fits. Says whether there is one. */
  stepTo(step, fits) {
    const span = nextWord(this.timeline, this.selection, this.player.time, step, fits);
    if (span === null) {
      return false;
    }
    const word = span.segment.words[span.word];
    this.goTo({ id: span.segment.id, from: span.word, to: span.word }, `${word.text}, ${wordFacts(word)}`);
    return true;
  }

  // --- sound ---------------------------------------------------------------------------------------------------------

  showTime(seconds) {
    if (this.history === null) {
      return;
    }
    const duration = durationOf(this.transcript) || this.player.duration;
    byId("time").textContent = `${clock(seconds)} / ${clock(duration)}`;
    this.lanes.setTime(seconds);
    const span = spanAt(this.timeline, seconds);
    if (span === this.spokenSpan && this.text.spoken?.isConnected) {
      return;
    }
    this.spokenSpan = span;
    const place = this.text.speak(span);
    const isFree = performance.now() - this.scrolledAt > HANDS_OFF;
    if (place !== null && this.player.isPlaying && isFree) {
      this.reveal(place);
    }
  }

  showPlaying() {
    const label = this.player.isPlaying ? "Pause" : "Play";
    byId("play").setAttribute("aria-label", label);
    byId("play").classList.toggle("playing", this.player.isPlaying);
  }

  showNoSound() {
    byId("no-sound").hidden = false;
    byId("play").disabled = true;
    this.showPlaying();
  }

  openSound(file) {
    if (file !== undefined) {
      this.setSound(file, this.lanes.peaks);
    }
  }

  /** Bring an element into view, above the player, if it is not there. */
  reveal(place) {
    const box = place.getBoundingClientRect();
    const bottom = byId("player").getBoundingClientRect().top;
    if (box.top < 80 || box.bottom > bottom - 40) {
      const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
      place.scrollIntoView({ block: "center", behavior: still ? "auto" : "smooth" });
    }
  }
}

function languageName(code) {
  try {
    return new Intl.DisplayNames(["en"], { type: "language" }).of(code) ?? code;
  } catch {
    return code; // no code that is known
  }
}
