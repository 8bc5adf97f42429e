/** The whole recording at a glance: its waveform, and below it a lane for each speaker. A click goes there. */

import { clock } from "./dom.js";
import { speakerStyle } from "./speakers.js";

const WAVE_HEIGHT = 40; // pixels
const LANE_HEIGHT = 9;
const BAR_HEIGHT = 5; // of a turn, within its lane
const GUTTER = 16; // to the left, for the shapes of the speakers
const MOST_LANES = 10; // more speakers share the last one

export class Lanes {
  /**
   * @param {HTMLElement} root a slider that has a canvas and a line for the time in it
   * @param {function(number)} onSeek gets seconds
   */
  constructor(root, onSeek) {
    this.root = root;
    this.canvas = root.querySelector("canvas");
    this.line = root.querySelector(".now");
    this.peaks = [];
    this.turns = [];
    this.speakers = [];
    this.duration = 0;
    this.time = 0;
    root.addEventListener("pointerdown", (event) => {
      root.setPointerCapture(event.pointerId);
      onSeek(this.secondsAt(event));
    });
    root.addEventListener("pointermove", (event) => {
      if (root.hasPointerCapture(event.pointerId)) {
        onSeek(this.secondsAt(event));
      }
    });
    new ResizeObserver(() => this.draw()).observe(root);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  secondsAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const share = (event.clientX - box.left - GUTTER) / Math.max(1, box.width - GUTTER);
    return Math.min(1, Math.max(0, share)) * this.duration;
  }

  setPeaks(peaks) {
    this.peaks = peaks;
    this.draw();
  }

  /** turns: of all speakers; speakers: their labels, in the order of lanes; duration: seconds */
  update(turns, speakers, duration) {
    this.turns = turns;
    this.speakers = speakers;
    this.duration = duration;
    this.root.setAttribute("aria-valuemax", String(Math.round(duration)));
    this.draw();
    this.setTime(this.time);
  }

  /** Move the line; nothing is drawn anew. */
  setTime(seconds) {
    this.time = seconds;
    const share = this.duration > 0 ? Math.min(1, seconds / this.duration) : 0;
    const width = Math.max(0, this.root.clientWidth - GUTTER);
    this.line.style.transform = `translateX(${GUTTER + share * width}px)`;
    const whole = String(Math.floor(seconds));
    if (this.root.getAttribute("aria-valuenow") !== whole) {
      this.root.setAttribute("aria-valuenow", whole);
      this.root.setAttribute("aria-valuetext", `${clock(seconds)} of ${clock(this.duration)}`);
    }
  }

  draw() {
    const lanes = Math.min(this.speakers.length, MOST_LANES);
    const width = this.root.clientWidth;
    const height = WAVE_HEIGHT + (lanes > 0 ? lanes * LANE_HEIGHT + 4 : 0);
    const density = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * density);
    this.canvas.height = Math.round(height * density);
    this.canvas.style.height = `${height}px`;
    const pen = this.canvas.getContext("2d");
    if (pen === null || width === 0) {
      return;
    }
    pen.scale(density, density);
    this.drawWave(pen, width - GUTTER);
    this.drawTurns(pen, width - GUTTER);
    this.setTime(this.time);
  }

  /** A colour of the page as the pen takes it: which of two it is, light or dark, tells only an element that has it. */
  colour(name) {
    this.canvas.style.color = `var(${name})`;
    return getComputedStyle(this.canvas).color;
  }

  drawWave(pen, width) {
    pen.fillStyle = this.colour("--wave");
    const middle = WAVE_HEIGHT / 2;
    if (this.peaks.length === 0) {
      pen.fillRect(GUTTER, middle, width, 1);
      return;
    }
    for (let column = 0; column < width; column += 2) {
      const from = Math.floor((column / width) * this.peaks.length);
      const to = Math.max(from + 1, Math.floor(((column + 2) / width) * this.peaks.length));
      const peak = Math.max(...this.peaks.slice(from, to));
      const half = Math.max(0.5, peak * (middle - 2));
      pen.fillRect(GUTTER + column, middle - half, 1.4, 2 * half);
    }
  }

  drawTurns(pen, width) {
    if (this.duration <= 0) {
      return;
    }
    const lanes = new Map(this.speakers.map((label, place) => [label, Math.min(place, MOST_LANES - 1)]));
    const colours = this.speakers.slice(0, MOST_LANES).map((label, place) => {
      return this.colour(`--speaker-${speakerStyle(place).number}`);
    });
    pen.font = "9px system-ui, sans-serif";
    pen.textBaseline = "middle";
    this.speakers.slice(0, MOST_LANES).forEach((label, place) => {
      pen.fillStyle = colours[place];
      pen.fillText(speakerStyle(place).shape, 2, WAVE_HEIGHT + 4 + place * LANE_HEIGHT + BAR_HEIGHT / 2);
    });
    for (const turn of this.turns) {
      const lane = lanes.get(turn.speaker);
      if (lane === undefined) {
        continue;
      }
      pen.fillStyle = colours[lane];
      const left = GUTTER + (turn.start / this.duration) * width;
      const length = Math.max(1, ((turn.end - turn.start) / this.duration) * width);
      pen.fillRect(left, WAVE_HEIGHT + 4 + lane * LANE_HEIGHT, length, BAR_HEIGHT);
    }
  }
}
