/** The sound of a stream, block after block, as it is heard. */

const WORKLET = "/page/worklet.js";
const SPEECH_RATE = 16_000; // Hz, what models hear: more would only be sent

/**
 * Hear a stream: `onBlock(block, peak)` every 0.1 s, with samples of 16 bits, and the largest of them from 0 to 1.
 * Gives `{rate, stop}`. Throws where the browser has no means for it.
 */
export async function hearStream(stream, onBlock) {
  const { context, source } = openedStream(stream);
  try {
    await context.audioWorklet.addModule(WORKLET);
    const options = { numberOfInputs: 1, numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" };
    const node = new AudioWorkletNode(context, "blocks", options);
    node.port.onmessage = (event) => onBlock(event.data.block, event.data.peak);
    source.connect(node);
    await context.resume();
  } catch (error) {
    context.close();
    throw error;
  }
  return { rate: context.sampleRate, stop: () => context.close() };
}

/** At the rate of speech where the browser resamples, else at that of the device. */
function openedStream(stream) {
  let context = new AudioContext({ sampleRate: SPEECH_RATE });
  try {
    return { context, source: context.createMediaStreamSource(stream) };
  } catch {
    context.close();
  }
  context = new AudioContext();
  return { context, source: context.createMediaStreamSource(stream) };
}
