/** The microphone → a file. */

export class Recorder {
  constructor() {
    this.recorder = null;
    this.parts = [];
    this.began = 0;
    this.ended = null; // a promise: that the browser records no more, by itself where the microphone has gone
  }

  get isRecording() {
    return this.recorder !== null;
  }

  /** What is recorded. */
  get stream() {
    return this.recorder.stream;
  }

  /** Seconds since it began. */
  get seconds() {
    return (performance.now() - this.began) / 1000;
  }

  /** Begin. Throws where there is no microphone, or the person does not want it heard. */
  async start() {
    if (!navigator.mediaDevices || !("MediaRecorder" in window)) {
      throw new Error("This browser lets a page record only on this computer itself, or over https.");
    }
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    this.parts = [];
    this.recorder = new MediaRecorder(stream);
    this.recorder.ondataavailable = (event) => this.parts.push(event.data);
    this.ended = new Promise((resolve) => (this.recorder.onstop = resolve));
    this.recorder.start(1000); // milliseconds a part, so that little is lost where something breaks
    this.began = performance.now();
  }

  /** End, and give the recording as a file that is named by the time of day. */
  async stop() {
    const { recorder } = this;
    this.recorder = null;
    if (recorder.state !== "inactive") {
      recorder.stop();
    }
    await this.ended;
    for (const track of recorder.stream.getTracks()) {
      track.stop();
    }
    const type = recorder.mimeType.split(";")[0] || "audio/webm";
    const ending = type === "audio/mp4" ? "m4a" : "webm";
    const now = new Date(Date.now() - new Date().getTimezoneOffset() * 60_000); // local time as ISO writes it
    const name = `Recording ${now.toISOString().slice(0, 16).replace("T", " ").replace(":", ".")}.${ending}`;
    return new File(this.parts, name, { type });
  }
}
