/** The server's interface of jobs, as functions. A key is asked for once, where the server wants one. */

const JOBS = "/v1/audio/jobs";
const LIVE_KEYS = "/v1/realtime/client_secrets";
const KEY = "mlx_speech_key"; // its name in the session's storage, which ends with the tab
const RETRY = 2000; // milliseconds until events that broke off are asked for again

/** What the server answers when it can not. */
export class ServerError extends Error {
  /** status: of HTTP, 0 where the server did not answer; code: for programs; message: for people */
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export class Server {
  /** @param {function(boolean): Promise<?string>} askKey asks for a key; gets whether one was refused already */
  constructor(askKey) {
    this.askKey = askKey;
    this.key = sessionStorage.getItem(KEY);
    this.asking = null;
  }

  /** The jobs, newest first, behind the one with the id `after`: `{data, has_more}`. */
  async jobs(after = "") {
    const query = new URLSearchParams({ limit: "50" });
    if (after) {
      query.set("after", after);
    }
    return (await this.ask(`${JOBS}?${query}`)).json();
  }

  async job(id) {
    return (await this.ask(`${JOBS}/${id}`)).json();
  }

  /** The transcript of a job, and its revision, which goes with what is saved. */
  async result(id) {
    const answer = await this.ask(`${JOBS}/${id}/result?response_format=whisperx_json`);
    return { document: await answer.json(), revision: answer.headers.get("ETag") };
  }

  /** Save a corrected transcript; gives the new revision. Error 412: somebody else has saved one since. */
  async saveResult(id, document, revision) {
    const headers = { "Content-Type": "application/json" };
    if (revision) {
      headers["If-Match"] = revision;
    }
    const body = JSON.stringify(document);
    const answer = await this.ask(`${JOBS}/${id}/result`, { method: "PUT", headers, body });
    return answer.headers.get("ETag");
  }

  /** Cancel a job and delete all that belongs to it. */
  async remove(id) {
    await this.ask(`${JOBS}/${id}`, { method: "DELETE" });
  }

  /** The sound of a job: an address that a player may read piece by piece, or with a key all of it. */
  async sound(id) {
    const address = `${JOBS}/${id}/audio`;
    return this.key === null ? address : this.soundAsBlob(id);
  }

  /** All of the sound, or null where it has more than `most` bytes. */
  async soundAsBlob(id, most = Infinity) {
    const answer = await this.ask(`${JOBS}/${id}/audio`);
    if (Number(answer.headers.get("Content-Length")) > most) {
      await answer.body.cancel();
      return null;
    }
    return answer.blob();
  }

  /** Send a recording. fields: of the form, before the file; onProgress: gets 0 to 1 while it is sent */
  async upload(file, fields, onProgress) {
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) {
      form.append(name, value);
    }
    form.append("file", file, file.name);
    for (;;) {
      const { key } = this;
      const request = await sent(form, key, onProgress);
      if (request.status >= 200 && request.status < 300) {
        return JSON.parse(request.responseText);
      }
      if (request.status !== 401 || !(await this.renewKey(key))) {
        throw errorOf(request.status, request.responseText);
      }
    }
  }

  /** A key that opens one live session, within a minute. session: as the Realtime API has it */
  async liveKey(session) {
    const headers = { "Content-Type": "application/json" };
    const answer = await this.ask(LIVE_KEYS, { method: "POST", headers, body: JSON.stringify({ session }) });
    return (await answer.json()).value;
  }

  /** Hear of a job until it ends, or `signal` says so: `onEvent(name, data)`. What breaks off is taken up again. */
  async follow(id, onEvent, signal) {
    let last = "";
    let isOver = false;
    while (!isOver && !signal.aborted) {
      try {
        const headers = last ? { "Last-Event-ID": last } : {};
        const answer = await this.ask(`${JOBS}/${id}/events`, { headers, signal });
        for await (const event of eventsOf(answer.body)) {
          last = event.id || last;
          isOver = ["done", "failed", "cancelled"].includes(event.name);
          onEvent(event.name, event.data);
        }
      } catch (error) {
        if (signal.aborted || error.status >= 400) {
          return;
        }
      }
      if (!isOver) {
        await new Promise((resolve) => setTimeout(resolve, RETRY));
      }
    }
  }

  /** An answer that is no error. Throws `ServerError`. */
  async ask(path, options = {}) {
    for (;;) {
      const { key } = this;
      const answer = await this.answer(path, options);
      if (answer.ok) {
        return answer;
      }
      if (answer.status !== 401 || !(await this.renewKey(key))) {
        throw errorOf(answer.status, await answer.text());
      }
    }
  }

  async answer(path, options) {
    const headers = { ...options.headers };
    if (this.key !== null) {
      headers.Authorization = `Bearer ${this.key}`;
    }
    try {
      return await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") {
        throw error;
      }
      throw new ServerError(0, "unreachable", "The server does not answer. Is it still running?");
    }
  }

  /** Ask the person for a key, once for all requests that lack it. Says whether there is another than `refused`. */
  async renewKey(refused) {
    if (this.key !== refused) {
      return true; // another request has asked meanwhile
    }
    this.asking ??= this.askKey(this.key !== null);
    const key = await this.asking;
    this.asking = null;
    if (!key) {
      return false;
    }
    this.key = key;
    sessionStorage.setItem(KEY, key);
    return true;
  }
}

/** Send a form; XMLHttpRequest, since fetch does not tell how much of it has gone. */
function sent(form, key, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", JOBS);
    if (key !== null) {
      request.setRequestHeader("Authorization", `Bearer ${key}`);
    }
    request.upload.onprogress = (event) => onProgress(event.total > 0 ? event.loaded / event.total : 0);
    request.onload = () => resolve(request);
    request.onerror = () => reject(new ServerError(0, "unreachable", "The server does not answer, or hung up."));
    request.send(form);
  });
}

function errorOf(status, text) {
  try {
    const { code, message } = JSON.parse(text).error;
    return new ServerError(status, code, message);
  } catch {
    return new ServerError(status, "", `The server answers with an error (${status}).`);
  }
}

/** The server-sent events of a stream: `{name, id, data}`, data as JSON has it. */
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) {
      return;
    }
    text += value.replaceAll("\r", "");
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const event = eventOf(block);
      if (event !== null) {
        yield event;
      }
    }
  }
}

/** One event, or null for a comment, which is a sign of life. */
function eventOf(block) {
  const event = { name: "message", id: "", data: "" };
  for (const line of block.split("\n")) {
    const [, name, value] = /^(\w*): ?(.*)$/.exec(line) ?? [];
    if (name === "event") {
      event.name = value;
    } else if (name === "id") {
      event.id = value;
    } else if (name === "data") {
      event.data += value;
    }
  }
  if (event.data === "") {
    return event.name === "message" ? null : { ...event, data: {} };
  }
  return { ...event, data: JSON.parse(event.data) };
}
