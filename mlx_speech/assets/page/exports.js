/** The transcript, as it has been corrected, in the formats of `mlx_speech write`. */

import { cuesOf, oneLine } from "./cues.js";
import { documentOf } from "./transcript.js";

/** Ending of a file → what writes it, and its type. `write` takes a transcript and the name of the recording. */
export const EXPORTS = {
  txt: { label: "Text", type: "text/plain", write: toText },
  srt: { label: "SubRip subtitles", type: "application/x-subrip", write: toSubRip },
  vtt: { label: "WebVTT subtitles", type: "text/vtt", write: toWebVtt },
  json: { label: "Everything, for mlx_speech", type: "application/json", write: toJson },
  rttm: { label: "Turns of speakers", type: "text/plain", write: toRttm },
};

function toText(transcript) {
  let text = "";
  for (const segment of transcript.segments) {
    const line = oneLine(segment.text);
    if (line !== "" && segment.speaker) {
      text += `[${oneLine(segment.speaker)}]: ${line}\n`;
    } else if (line !== "") {
      text += `${line}\n`;
    }
  }
  return text;
}

function toSubRip(transcript) {
  let text = "";
  cuesOf(transcript).forEach((cue, place) => {
    const shown = withoutArrows(cue.text);
    text += `${place + 1}\n${cueClock(cue.start, ",")} --> ${cueClock(cue.end, ",")}\n${shown}\n\n`;
  });
  return text;
}

function toWebVtt(transcript) {
  let text = "WEBVTT\n\n";
  for (const cue of cuesOf(transcript)) {
    const shown = withoutArrows(cue.text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");
    text += `${cueClock(cue.start, ".")} --> ${cueClock(cue.end, ".")}\n${shown}\n\n`;
  }
  return text;
}

function toJson(transcript) {
  return `${JSON.stringify(documentOf(transcript))}\n`;
}

function toRttm(transcript, name) {
  let text = "";
  for (const turn of transcript.turns ?? []) {
    const times = `${turn.start.toFixed(3)} ${(turn.end - turn.start).toFixed(3)}`;
    text += `SPEAKER ${field(name)} 1 ${times} <NA> <NA> ${field(turn.speaker)} <NA> <NA>\n`;
  }
  return text;
}

/** Text as one of the fields that white space parts. */
function field(text) {
  return oneLine(text).split(/\s+/u).join("_") || "_";
}

/** What would be taken for the line of a cue's times is written another way. */
function withoutArrows(text) {
  return text.replace(/--+>/g, "->");
}

function cueClock(milliseconds, marker) {
  const hours = Math.floor(milliseconds / 3_600_000);
  const minutes = Math.floor(milliseconds / 60_000) % 60;
  const seconds = Math.floor(milliseconds / 1000) % 60;
  const clockParts = [hours, minutes, seconds].map((part) => String(part).padStart(2, "0"));
  return `${clockParts.join(":")}${marker}${String(milliseconds % 1000).padStart(3, "0")}`;
}
