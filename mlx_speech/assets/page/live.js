/** Words of the server while they are spoken, over its socket of OpenAI's Realtime API. */

const SOCKET = "/v1/realtime?intent=transcription";
const SUBPROTOCOLS = ["realtime", "openai-insecure-api-key."]; // the second goes before the key
const ABOUT_TEXT = "conversation.item.input_audio_transcription.";
const MOST_UNSENT = 1_000_000; // bytes that wait for a connection: behind them words would be too late to be of use

export class LiveWords {
  /**
   * @param {function(string, string)} onTurn gets the id of a turn and its text, which is empty where it begins
   * @param {function(string)} onEnd is told, once, why no words come any more
   */
  constructor(onTurn, onEnd) {
    this.onTurn = onTurn;
    this.onEnd = onEnd;
    this.texts = new Map(); // of the turns that are not over, by their ids
    this.waiting = []; // messages from before the socket was open
    this.socket = null;
    this.reason = "";
    this.isOver = false;
  }

  /** Open the socket. rate: Hz of the blocks; language: a code, or "". Throws `ServerError`. */
  async open(server, rate, language) {
    const input = { format: { type: "audio/pcm", rate }, turn_detection: { type: "server_vad" } };
    if (language) {
      input.transcription = { language };
    }
    const key = await server.liveKey({ type: "transcription", audio: { input } });
    if (this.isOver) {
      return; // it was stopped meanwhile
    }
    const address = new URL(SOCKET, location.href);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    this.socket = new WebSocket(address, [SUBPROTOCOLS[0], SUBPROTOCOLS[1] + key]);
    this.socket.onopen = () => {
      for (const message of this.waiting) {
        this.socket.send(message);
      }
      this.waiting = [];
    };
    this.socket.onmessage = (event) => this.hear(JSON.parse(event.data));
    this.socket.onclose = () => this.end(this.reason || "the server takes no live session now, or hung up.");
  }

  /** The next samples, of 16 bits. */
  send(block) {
    if (this.isOver) {
      return;
    }
    const audio = btoa(String.fromCharCode(...new Uint8Array(block.buffer)));
    const message = JSON.stringify({ type: "input_audio_buffer.append", audio });
    if (this.socket?.readyState === WebSocket.OPEN) {
      this.socket.send(message);
    } else {
      this.waiting.push(message);
    }
    if ((this.socket?.bufferedAmount ?? 0) + message.length * this.waiting.length > MOST_UNSENT) {
      this.end("the connection is too slow.");
    }
  }

  hear(message) {
    if (message.type === "error") {
      this.reason = message.error.message;
      return;
    }
    const id = message.item_id;
    if (message.type === "input_audio_buffer.speech_started") {
      this.texts.set(id, "");
      this.onTurn(id, "");
    } else if (message.type === `${ABOUT_TEXT}delta`) {
      this.texts.set(id, (this.texts.get(id) ?? "") + message.delta);
      this.onTurn(id, this.texts.get(id));
    } else if (message.type === `${ABOUT_TEXT}completed`) {
      this.texts.delete(id);
      this.onTurn(id, message.transcript);
    }
  }

  /** No more words. reason: for people, or nothing where they want it so */
  end(reason = "") {
    if (this.isOver) {
      return;
    }
    this.isOver = true;
    this.waiting = [];
    this.socket?.close();
    if (reason) {
      this.onEnd(reason);
    }
  }
}
