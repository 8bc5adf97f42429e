/** Sound → the peaks that a waveform is drawn of, computed once. */

const RATE = 8000; // Hz; the lowest that every browser decodes to, and enough to see who is loud
const PEAKS = 2000; // wider than the screens that they are shown on
const LONGEST = 2 * 3600; // seconds; a longer recording would take too much memory as samples
const SAMPLES_AT_ONCE = 2_000_000; // between which the page may answer

/**
 * Peaks of a recording, 0 to 1 with the loudest as 1; none where the browser cannot decode it.
 *
 * @param {Blob} sound
 * @param {number} duration seconds, as far as it is known
 */
export async function peaksOf(sound, duration) {
  if (duration > LONGEST) {
    return [];
  }
  let buffer;
  try {
    const context = new OfflineAudioContext(1, 1, RATE);
    buffer = await context.decodeAudioData(await sound.arrayBuffer());
  } catch {
    return [];
  }
  const samples = buffer.getChannelData(0);
  const step = Math.max(1, Math.ceil(samples.length / PEAKS));
  const peaks = [];
  let untilPause = SAMPLES_AT_ONCE;
  for (let start = 0; start < samples.length; start += step) {
    peaks.push(peakBetween(samples, start, Math.min(start + step, samples.length)));
    untilPause -= step;
    if (untilPause < 0) {
      untilPause = SAMPLES_AT_ONCE;
      await new Promise((resolve) => setTimeout(resolve));
    }
  }
  const loudest = Math.max(...peaks, 0) || 1;
  return peaks.map((peak) => peak / loudest);
}

function peakBetween(samples, start, end) {
  let peak = 0;
  for (let place = start; place < end; place += 1) {
    const value = Math.abs(samples[place]);
    if (value > peak) {
      peak = value;
    }
  }
  return peak;
}
