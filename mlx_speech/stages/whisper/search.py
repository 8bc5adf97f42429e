"""A running batch of texts: greedy, sampled and beam search over rows that entries enter and leave.

Source: openai/whisper `decoding.py`, `GreedyDecoder` and `BeamSearchDecoder`. An entry that is done
leaves its row to the next one, so that no row waits for the longest text of a batch. Everything but
the choice among beams stays on the device; where a CPU computes in float32, all but the beams' rules
stays in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_speech.blas import on_cpu
from mlx_speech.models.whisper import Model
from mlx_speech.models.whisper_cache import Audio
from mlx_speech.ops.cpu import Array, module_of
from mlx_speech.ops.log_sum_exp import log_sum_exp
from mlx_speech.stages.whisper.rules import Limits, Rules, State, top, with_rows

# Steps of MLX between looks at what was chosen: the device has one step more to compute meanwhile, and
# a row that is done goes on until the look. On a CPU the next step waits for what was chosen anyway.
CHECK_EVERY_ON_CPU = 1
CHECK_EVERY_ON_GPU = 8


@dataclass(frozen=True, eq=False)
class Entry:
    """What a row is given to decode.

    key : whatever the caller knows it by
    encoded : (positions, width), the encoder's output
    prompt : tokens before those that are searched
    sot : the index of <|startoftranscript|> in the prompt, after which the model says whether there
        is speech
    limit : most tokens
    seeds : what samples depend on, each below 2**64
    """

    key: Any
    encoded: mx.array
    prompt: list[int]
    sot: int
    limit: int
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Hypothesis:
    """A text: its tokens, without the end of text, the log-probability of each, and the sum of
    these and that of the end of text, where it has come to one."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    total: float


@dataclass(frozen=True)
class SearchResult:
    """Of an entry that is done: at least one hypothesis, the probability of silence, and what the decoder
    attended to of the audio, where that lies in NumPy."""

    entry: Entry
    hypotheses: list[Hypothesis]
    no_speech_prob: float
    audio: Audio | None


@dataclass(eq=False)
class _Row:
    """An entry under way.

    no_speech : the probability of silence, a scalar
    steps : tokens of a hypothesis that were asked for; the device may not have come so far
    hypotheses : of a beam search; finished : those of them that have come to the end of text
    tokens, logprobs : of each sample, as far as they were looked at; totals : sums of the latter
    """

    entry: Entry
    no_speech: mx.array
    steps: int = 0
    hypotheses: list[Hypothesis] = field(default_factory=list)
    finished: list[Hypothesis] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)


class Batch:
    """Rows, each with an entry or free; `Samples` and `Beams` say how tokens are chosen.

    rules : what may be said, equal for all entries
    size : rows; group : hypotheses of each
    """

    def __init__(self, model: Model, rules: Rules, *, no_speech: int, size: int, group: int) -> None:
        self.rules = rules
        self.group = group
        self.rows: list[_Row | None] = [None] * size
        self.steps = 0  # so far
        self._decoder = model.decoder
        self._no_speech = no_speech  # the token
        self._cache = model.decoder.new_cache(size, group)

    @property
    def entries(self) -> list[Entry]:
        """Those under way."""
        return [row.entry for row in self.rows if row is not None]

    def enter(self, entries: Sequence[Entry]) -> None:
        """Prefill prompts, and choose their first tokens; there have to be free rows."""
        indices = [index for index, row in enumerate(self.rows) if row is None][: len(entries)]
        encoded = mx.stack([entry.encoded for entry in entries])
        prompts = [entry.prompt for entry in entries]
        at_sot = [entry.sot for entry in entries]
        logits, sot_logits = self._decoder.prefill(self._cache, indices, encoded, prompts, at_sot)
        no_speech = list(mx.exp(sot_logits - log_sum_exp(sot_logits))[:, self._no_speech])
        mx.async_eval(no_speech)
        for place, index in enumerate(indices):
            self.rows[index] = _Row(entries[place], no_speech[place])
        self._begin(indices, logits[:, None])

    def drop(self, unwanted: Callable[[Entry], bool]) -> None:
        """The rows of unwanted entries are free: nothing of them comes back."""
        for index, row in enumerate(self.rows):
            if row is not None and unwanted(row.entry):
                self._leave(index)

    def resize(self, size: int) -> None:
        """Have as many rows, at least as many as are in use."""
        used = [index for index, row in enumerate(self.rows) if row is not None]
        free = [index for index, row in enumerate(self.rows) if row is None]
        kept = (used + free)[:size]
        # new rows begin as copies of another one, of which nobody takes notice
        sources = kept + [kept[0]] * (size - len(kept))
        self.rows = [self.rows[index] for index in kept] + [None] * (size - len(kept))
        self._cache.keep(sources)
        self._keep(sources)
        for index in range(len(kept), size):
            self._cache.leave(index)

    def advance(self) -> list[SearchResult]:
        """Take a few steps, and look at them; returns the entries that are done."""
        raise NotImplementedError

    def _finish(self, index: int, row: _Row, hypotheses: list[Hypothesis]) -> SearchResult:
        """The row's entry is done, and leaves it."""
        audio = self._cache.audio_of(index)
        self._leave(index)
        return SearchResult(row.entry, hypotheses, float(np.array(row.no_speech)), audio)

    def _leave(self, index: int) -> None:
        """The row is free."""
        self.rows[index] = None
        self._cache.leave(index)

    def _begin(self, indices: list[int], logits: mx.array) -> None:
        """Choose the first tokens of the rows that have entered, from their logits, (rows, 1,
        vocabulary)."""
        raise NotImplementedError

    def _keep(self, indices: list[int]) -> None:
        """Rows are now those with these indices, in this order."""


# --- greedy, and samples --------------------------------------------------------------------------


@dataclass(frozen=True)
class Hypotheses:
    """Those of the rows of a batch; each array is (jobs, group), MLX's on the device, or NumPy's.

    state : of the tokens so far, for the rules
    totals : sums of their log-probabilities
    limits : most tokens
    keys : what their samples depend on
    """

    state: State
    totals: Any
    limits: Any
    keys: Any

    @classmethod
    def of(cls, arrays: Sequence[Any]) -> Hypotheses:
        """Made of `arrays`."""
        count, last, latest, paired, totals, limits, keys = arrays
        return cls(State(count, last, latest, paired), totals, limits, keys)

    @property
    def arrays(self) -> list[Any]:
        """What MLX's compiled functions take."""
        return [*self.state.arrays, self.totals, self.limits, self.keys]

    def as_numpy(self) -> Hypotheses:
        """A copy as NumPy's arrays."""
        return Hypotheses.of([np.array(array) for array in self.arrays])

    def take(self, rows: list[int]) -> Hypotheses:
        """Those of these rows, in this order."""
        index = module_of(self.totals).array(rows)
        return Hypotheses(self.state.take(index), self.totals[index], self.limits[index], self.keys[index])

    def put(self, rows: list[int], new: Hypotheses) -> Hypotheses:
        """With `new` in place of these rows."""
        index = module_of(self.totals).array(rows)
        return Hypotheses(
            state=self.state.put(index, new.state),
            totals=with_rows(self.totals, index, new.totals),
            limits=with_rows(self.limits, index, new.limits),
            keys=with_rows(self.keys, index, new.keys),
        )


@dataclass(frozen=True)
class _Step:
    """A step that nobody has looked at: what was chosen, (jobs, group), and whose it is."""

    tokens: Array
    logprobs: Array
    totals: Array
    rows: list[_Row | None]


class Samples(Batch):
    """The most probable token, or above temperature 0 samples. Source: `GreedyDecoder`."""

    def __init__(
        self, model: Model, rules: Rules, *, no_speech: int, size: int, group: int, temperature: float
    ) -> None:
        super().__init__(model, rules, no_speech=no_speech, size=size, group=group)
        self._temperature = temperature
        self._divisor: Any = None  # of the logits; an array like theirs
        if temperature:
            self._divisor = np.array(temperature, np.float32) if self._cache.is_in_numpy else mx.array(temperature)
        self._choose = choose if on_cpu() else choose_on_gpu
        self._check_every = CHECK_EVERY_ON_CPU if on_cpu() else CHECK_EVERY_ON_GPU
        self._steps: list[_Step] = []  # from the oldest
        ended = State.of([[[rules.eot]] * group] * size, rules.begin)
        zeros = mx.zeros((size, group))
        nobody = Hypotheses(ended, zeros, zeros.astype(mx.int32), zeros.astype(mx.uint32))
        self._hypotheses = nobody.as_numpy() if self._cache.is_in_numpy else nobody

    def advance(self) -> list[SearchResult]:
        """Take steps up to the next look: one in NumPy, else some, so that the device has work meanwhile."""
        while any(row is not None and row.steps < row.entry.limit for row in self.rows):
            self.steps += 1
            self._hypotheses = self._note(self._step(), self.rows)
            if self._cache.is_in_numpy:  # nothing is under way
                break
            if len(self._steps) > self._check_every:
                return self._look(len(self._steps) - 1)
        return self._look(len(self._steps))

    def _step(self) -> tuple[Hypotheses, Array]:
        """One token more for every hypothesis, and its log-probability, (rows, group)."""
        step = self._decoder.step_in_numpy if self._cache.is_in_numpy else self._decoder.step
        logits: Any = step(self._cache, self._hypotheses.state.last)
        return self._choose(logits, self._hypotheses, self.rules.limits, self._divisor)

    def _begin(self, indices: list[int], logits: Any) -> None:
        rows = [self.rows[index] for index in indices]
        entries = [row.entry for row in rows if row is not None]
        for row in filter(None, rows):
            row.tokens = [[] for _ in range(self.group)]
            row.logprobs = [[] for _ in range(self.group)]
        shape = (len(indices), self.group)
        new = Hypotheses(
            state=State.of([[[]] * self.group] * len(indices), self.rules.begin),
            totals=mx.zeros(shape),
            limits=mx.array([[entry.limit] * self.group for entry in entries]),
            keys=mx.array(np.array([self._keys(entry) for entry in entries], dtype=np.uint32)),
        )
        if self._cache.is_in_numpy:
            new = new.as_numpy()
            logits = np.array(logits)
        logits = module_of(logits).broadcast_to(logits, (*shape, logits.shape[-1]))
        # not compiled: any number of rows may enter, and each would be compiled for itself
        new = self._note(choose(logits, new, self.rules.limits, self._divisor), rows)
        self._hypotheses = self._hypotheses.put(indices, new)

    def _keys(self, entry: Entry) -> list[int]:
        """A key for each sample: of the seeds and the temperature, and of no other entry."""
        seeds = [*entry.seeds, round(self._temperature * 1e6)]
        return np.random.SeedSequence(seeds).generate_state(self.group).tolist()

    def _note(self, chosen: tuple[Hypotheses, Array], rows: Sequence[_Row | None]) -> Hypotheses:
        """Note what was chosen for `rows`, to be looked at later; MLX begins to compute it."""
        after, logprobs = chosen
        mx.async_eval(logprobs, after.arrays)
        self._steps.append(_Step(after.state.last, logprobs, after.totals, list(rows)))
        for row in filter(None, rows):
            row.steps += 1
        return after

    def _keep(self, indices: list[int]) -> None:
        self._hypotheses = self._hypotheses.take(indices)

    def _look(self, count: int) -> list[SearchResult]:
        """Look at the oldest steps; the entries that are done leave."""
        if count:  # wait once: what was handed over before it is done as well
            newest = self._steps[count - 1]
            mx.eval(newest.tokens, newest.logprobs, newest.totals)
        done: list[SearchResult] = []
        for step in self._steps[:count]:
            tokens = np.array(step.tokens).tolist()
            logprobs = np.array(step.logprobs).tolist()
            totals = np.array(step.totals).tolist()
            for place, row in enumerate(step.rows):
                if row is None or row not in self.rows:  # it has left
                    continue
                row.totals = totals[place]
                for sample in range(self.group):
                    row.tokens[sample].append(tokens[place][sample])
                    row.logprobs[sample].append(logprobs[place][sample])
                if all(self._has_ended(sample, row.entry.limit) for sample in row.tokens):
                    done.append(self._finish(self.rows.index(row), row, self._texts(row)))
        del self._steps[:count]
        return done

    def _has_ended(self, tokens: list[int], limit: int) -> bool:
        return tokens[-1] == self.rules.eot or len(tokens) >= limit

    def _texts(self, row: _Row) -> list[Hypothesis]:
        hypotheses = []
        for tokens, logprobs, total in zip(row.tokens, row.logprobs, row.totals, strict=True):
            length = len(tokens)
            if self.rules.eot in tokens:
                length = tokens.index(self.rules.eot)
            hypotheses.append(Hypothesis(tuple(tokens[:length]), tuple(logprobs[:length]), total))
        return hypotheses


def choose(logits: Array, before: Hypotheses, rules: Limits, temperature: Array | None) -> tuple[Hypotheses, Any]:
    """One token more for every hypothesis: the most probable one, or a sample.

    logits : (jobs, group, vocabulary)
    temperature : of the samples, a scalar above 0

    Returns the hypotheses with it, and its log-probability, (jobs, group). One that has ended, or
    has as many tokens as it may have, gets the end of text. All arrays are MLX's or NumPy's, as the
    logits are.
    """
    module = module_of(logits)
    state = before.state
    if temperature is None:
        tokens, logprobs = rules.best(logits, state)
    else:
        logits, normaliser = rules.apply(logits, state)
        with np.errstate(over="ignore", invalid="ignore"):  # as MLX: of odd logits, or where nothing is allowed
            scores = logits / temperature + _noise(before, logits.shape[-1])
            tokens = module.argmax(scores, axis=-1).astype(module.int32)
            logprobs = (module.take_along_axis(logits, tokens[..., None], axis=-1) - normaliser)[..., 0]
    going = (state.last != rules.eot) & (state.count < before.limits)
    tokens = module.where(going, tokens, rules.eot)
    logprobs = module.where(going, logprobs, 0)
    state = state.after(tokens, rules.begin)
    return Hypotheses(state, before.totals + logprobs, before.limits, before.keys), logprobs


def choose_on_gpu(
    logits: mx.array, before: Hypotheses, rules: Limits, temperature: mx.array | None
) -> tuple[Hypotheses, mx.array]:
    """`choose`, whose sixty small operations MLX fuses to a few."""
    arrays, logprobs = _compiled_choose(logits, before.arrays, rules, temperature)
    return Hypotheses.of(arrays), logprobs


def choose_from_arrays(
    logits: mx.array, arrays: list[mx.array], rules: Limits, temperature: mx.array | None
) -> tuple[list[mx.array], mx.array]:
    """`choose`, from `Hypotheses.arrays` and to them."""
    after, logprobs = choose(logits, Hypotheses.of(arrays), rules, temperature)
    return after.arrays, logprobs


_compiled_choose = mx.compile(choose_from_arrays)


def _noise(before: Hypotheses, vocab: int) -> Any:
    """Gumbel noise for the next token of every hypothesis, (jobs, group, vocab); an array like theirs."""
    keys, count = before.keys, before.state.count
    if isinstance(keys, np.ndarray):
        return np.array(gumbel(mx.array(keys), mx.array(count), vocab))
    return gumbel(keys, count, vocab)


def gumbel(keys: mx.array, step: mx.array, vocab: int) -> mx.array:
    """Gumbel noise for one token of every hypothesis, from its key and its step; both (jobs,
    group).

    Returns (jobs, group, vocab). The token with the largest sum of logit and noise is a sample of
    the softmax.
    """
    pairs = mx.stack([keys.astype(mx.uint32), step.astype(mx.uint32)], axis=-1).reshape(-1, 2)
    noise = mx.vmap(lambda key: mx.random.gumbel((vocab,), key=key))(pairs)
    return noise.reshape(*keys.shape, vocab)


# --- beams ----------------------------------------------------------------------------------------


class Beams(Batch):
    """Beam search with patience (Kasai et al. 2022). Source: `BeamSearchDecoder`.

    candidates : finished hypotheses that end the search of an entry

    Of every beam the best group + 1 tokens come to the host at each step, and on a GPU nothing else.
    """

    def __init__(self, model: Model, rules: Rules, *, no_speech: int, size: int, group: int, candidates: int) -> None:
        super().__init__(model, rules, no_speech=no_speech, size=size, group=group)
        self._candidates = candidates
        self._done: list[SearchResult] = []

    def advance(self) -> list[SearchResult]:
        """Take a step, unless an entry was done when it entered."""
        if not self._done and self.entries:
            self._step()
        done = self._done
        self._done = []
        return done

    def drop(self, unwanted: Callable[[Entry], bool]) -> None:
        super().drop(unwanted)
        self._done = [result for result in self._done if not unwanted(result.entry)]

    def _begin(self, indices: list[int], logits: mx.array) -> None:
        state = State.of([[[]] for _ in indices], self.rules.begin)  # all beams are still the same
        values, tokens = self._top(logits, state)
        for place, index in enumerate(indices):
            row = self.rows[index]
            if row is not None:
                row.hypotheses = [Hypothesis((), (), 0.0)]
                self._extend(index, row, values[place], tokens[place])

    def _step(self) -> None:
        """One token more for every beam."""
        self.steps += 1
        unchanged = list(range(self.group))
        nobody = [(self.rules.eot,)] * self.group
        sequences = []
        for row in self.rows:
            sequences.append(nobody if row is None else [beam.tokens for beam in row.hypotheses])
        last = mx.array([[tokens[-1] for tokens in group] for group in sequences])
        logits = self._decoder.step(self._cache, last)
        values, tokens = self._top(logits, State.of(sequences, self.rules.begin))
        sources = []
        for index, row in enumerate(self.rows):
            if row is None:
                sources.append(unchanged)
            else:
                sources.append(self._extend(index, row, values[index], tokens[index]))
        if any(continued != unchanged for continued in sources):
            self._cache.reorder(sources)

    def _top(self, logits: mx.array, state: State) -> tuple[np.ndarray, np.ndarray]:
        """The log-probabilities of the best tokens of every beam, and these, (jobs, beams, group +
        1)."""
        logits, normaliser = self.rules(logits, state)
        values, tokens = top(logits, self.group + 1)
        values = values - normaliser
        mx.eval(values, tokens)
        return np.array(values), np.array(tokens)

    def _extend(self, index: int, row: _Row, values: np.ndarray, tokens: np.ndarray) -> list[int]:
        """The next beams of a row, from the best tokens of each, (beams, group + 1); returns which
        ones they continue.

        The row leaves when enough of its hypotheses are finished.
        """
        totals = np.array([beam.total for beam in row.hypotheses], dtype=np.float32)
        scores = totals[:, None] + values
        order = np.argsort(-scores, axis=None, kind="stable").tolist()
        sources: list[int] = []
        beams: list[Hypothesis] = []
        finished: list[Hypothesis] = []
        for place in order:
            source = place // values.shape[1]
            beam = row.hypotheses[source]
            token = int(tokens.flat[place])
            score = float(scores.flat[place])
            if token == self.rules.eot:
                finished.append(Hypothesis(beam.tokens, beam.logprobs, score))
                continue
            logprobs = (*beam.logprobs, float(values.flat[place]))
            beams.append(Hypothesis((*beam.tokens, token), logprobs, score))
            sources.append(source)
            if len(beams) == self.group:
                break
        row.finished += finished[: self._candidates - len(row.finished)]
        row.hypotheses = beams
        row.steps += 1
        if len(row.finished) >= self._candidates or row.steps >= row.entry.limit:
            self._done.append(self._finish(index, row, self._best(row)))
        return sources

    def _best(self, row: _Row) -> list[Hypothesis]:
        """The finished hypotheses, and where too few are, the best of the others."""
        missing = max(0, self.group - len(row.finished))
        totals = np.array([beam.total for beam in row.hypotheses])
        order = np.argsort(totals)[::-1][:missing]
        return row.finished + [row.hypotheses[place] for place in order]
