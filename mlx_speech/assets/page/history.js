/** Every state that a person has made, so that they can go back and forth between them. */

const MOST_STEPS = 1000; // states share what they have in common, and so cost little

export class History {
  /** @param {object} state the first one, which counts as saved */
  constructor(state) {
    this.states = [state];
    this.place = 0;
    this.saved = state;
  }

  get current() {
    return this.states[this.place];
  }

  get canUndo() {
    return this.place > 0;
  }

  get canRedo() {
    return this.place < this.states.length - 1;
  }

  /** Whether the current state is another than the one that was saved last. */
  get isUnsaved() {
    return this.current !== this.saved;
  }

  /** Take a new state; what had been undone is forgotten. Says whether anything changed. */
  change(state) {
    if (state === this.current) {
      return false;
    }
    this.states.length = this.place + 1;
    this.states.push(state);
    if (this.states.length > MOST_STEPS) {
      this.states.shift();
    }
    this.place = this.states.length - 1;
    return true;
  }

  undo() {
    this.place = Math.max(0, this.place - 1);
  }

  redo() {
    this.place = Math.min(this.states.length - 1, this.place + 1);
  }

  /** A state has been saved: by default the current one. */
  markSaved(state = this.current) {
    this.saved = state;
  }
}
