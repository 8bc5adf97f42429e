/** In the browser's thread of sound: what the microphone hears → blocks of 16 bits, and how loud they are. */

const SECONDS_A_BLOCK = 0.1;

class Blocks extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(Math.round(sampleRate * SECONDS_A_BLOCK)); // what comes from it is little-endian
    this.filled = 0;
    this.peak = 0;
  }

  /** inputs: of the node, each a list of channels; the microphone is the first, and it is one channel */
  process(inputs) {
    for (const sample of inputs[0][0] ?? []) {
      this.peak = Math.max(this.peak, Math.abs(sample));
      this.block[this.filled] = Math.round(32767 * Math.max(-1, Math.min(1, sample)));
      this.filled += 1;
      if (this.filled === this.block.length) {
        this.port.postMessage({ block: this.block, peak: this.peak });
        this.filled = 0;
        this.peak = 0;
      }
    }
    return true; // as long as there is a microphone
  }
}

registerProcessor("blocks", Blocks);
