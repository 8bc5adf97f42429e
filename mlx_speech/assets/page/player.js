/** The sound: plays, jumps, and says where it is, as often as the screen is drawn. */

export class Player {
  /**
   * @param {HTMLAudioElement} audio
   * @param {{onTime: function(number), onState: function(), onError: function()}} handlers
   *   onTime: gets seconds; onState: it began or ceased to play; onError: there is no sound, or none that the browser
   *   can play
   */
  constructor(audio, { onTime, onState, onError }) {
    this.audio = audio;
    this.onTime = onTime;
    this.address = null; // of a blob, to be given back
    audio.addEventListener("play", () => {
      onState();
      this.follow();
    });
    audio.addEventListener("pause", onState);
    audio.addEventListener("seeked", () => onTime(audio.currentTime));
    audio.addEventListener("loadedmetadata", () => onTime(audio.currentTime));
    audio.addEventListener("error", () => {
      if (audio.hasAttribute("src")) {
        onError();
      }
    });
  }

  /** What to play: an address, a `Blob`, or null for nothing. */
  open(source) {
    this.close();
    if (source instanceof Blob) {
      this.address = URL.createObjectURL(source);
      this.audio.src = this.address;
    } else if (source) {
      this.audio.src = source;
    }
  }

  close() {
    this.audio.pause();
    this.audio.removeAttribute("src");
    this.audio.load(); // lets go of the sound
    if (this.address !== null) {
      URL.revokeObjectURL(this.address);
      this.address = null;
    }
  }

  get isPlaying() {
    return !this.audio.paused && !this.audio.ended;
  }

  get hasSound() {
    return this.audio.hasAttribute("src") && this.audio.error === null;
  }

  /** Seconds from the start. */
  get time() {
    return this.audio.currentTime;
  }

  /** Seconds, or 0 where they are not known. */
  get duration() {
    return Number.isFinite(this.audio.duration) ? this.audio.duration : 0;
  }

  set speed(factor) {
    this.audio.playbackRate = factor;
  }

  toggle() {
    if (this.isPlaying) {
      this.audio.pause();
    } else {
      this.play();
    }
  }

  pause() {
    this.audio.pause();
  }

  play() {
    if (!this.hasSound) {
      return;
    }
    this.audio.play().catch(() => {
      // it was paused or closed before it began, or "error" has told of it
    });
  }

  seek(seconds) {
    if (this.hasSound) {
      this.audio.currentTime = Math.max(0, seconds);
    }
    this.onTime(Math.max(0, seconds));
  }

  /** Say the time for every picture that the screen shows, while it plays. */
  follow() {
    const step = () => {
      if (this.isPlaying) {
        this.onTime(this.audio.currentTime);
        requestAnimationFrame(step);
      }
    };
    requestAnimationFrame(step);
  }
}
