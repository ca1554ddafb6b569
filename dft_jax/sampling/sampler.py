"""Completions from a model: prompts are prefilled once, samples decoded in slots.

A slot holds one completion in progress, and never waits for another. One `while_loop` on the
devices (decode.py) makes a token in every slot, until enough of them are finished; the host then
takes what is finished and puts waiting samples there. What a sample is depends on (seed, problem,
sample number) alone: not on its slot, its neighbours, or the order of the work.
"""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from dft_jax import sharding
from dft_jax.models import cached
from dft_jax.models.model import Model
from dft_jax.runtime import interrupts
from dft_jax.runtime.progress import bar, silent
from dft_jax.sampling import decode, filters, prompts, rereading
from dft_jax.sampling.decode import Admission, Prefilled, Report, Slots
from dft_jax.sampling.programs import Programs
from dft_jax.sampling.prompts import Arrays, Block, Request as Request, Shape
from dft_jax.types import Params, Weights

_SMALLEST_CACHE = 128  # tokens; the lengths of caches are this times powers of two
# Prefilled at once: more would need the memory of their activations beside the cache. So with many
# patches there are fewer prompts.
_PROMPTS_AT_ONCE = 8
_PATCHES_AT_ONCE = 8 * 4096

# Told of a completion each time that the host looks, and when it is finished: its request, and its
# tokens so far. Gives how many of them it ends with, 0 where it goes on.
Watch = Callable[[Request, tuple[int, ...]], int]


@dataclasses.dataclass(frozen=True)
class Completion:
    """`ids` ends in a stop token unless the limit, or whoever watched it, cut it.

    `entropy` is the mean over its tokens of the entropy of the distribution they were drawn from,
    in nats, before top-k and top-p; of a greedy one, that of the model's own distribution.
    """

    request: Request
    ids: tuple[int, ...]
    is_cut: bool
    entropy: float


@dataclasses.dataclass
class Usage:
    """Where decode steps went: `tokens` of `places` (steps × slots) belong to a completion."""

    places: int = 0
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class _Extent:
    """How many completions are in progress at once, and the tokens that each has room for."""

    n_slots: int
    n_outputs: int


@dataclasses.dataclass(frozen=True)
class _Ready:
    """A request whose prompt is prefilled, in this row."""

    row: int
    request: Request
    delta: int  # as in decode.Slots


class Progress:
    """A bar that moves with every token, and says how long the rest takes.

    How many tokens there will be is not known before the end. With n completions finished after t
    tokens, finished and unfinished ones together, the mean length is estimated as t/n, as for
    lifetimes of which some still last; but no completion is thought longer than its limit. Before
    the first is finished, all are as long as they may be.
    """

    def __init__(self, requests: list[Request], quiet: bool):
        self.n_requests = len(requests)
        self.tokens = 0
        self.finished = 0
        self.most = sum(request.max_new_tokens for request in requests)
        with silent(quiet):
            self.bar = bar(total=self.most, desc="sampling", unit="token")
        self.bar.set_postfix_str(f"0 of {self.n_requests} completions, compiling")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.close()

    def expected_tokens(self) -> int:
        """Of all completions together, as far as can be said by now."""
        if not self.finished:
            return self.most
        if self.finished == self.n_requests:
            return self.tokens
        estimate = self.tokens * self.n_requests // self.finished
        return min(self.most, max(self.tokens + 1, estimate))

    def update(self, tokens: int, finished: int) -> None:
        """Counts tokens and completions since the last update."""
        self.tokens += tokens
        self.finished += finished
        self.bar.total = self.expected_tokens()
        self.bar.set_postfix_str(f"{self.finished} of {self.n_requests} completions", refresh=False)
        self.bar.update(tokens)


class Sampler:
    """Makes completions with one model.

    What it compiles serves every call, whatever the parameters.

    Args:
      stop_ids: tokens that end a completion.
      max_length: tokens of prompt and completion together; the cache grows up to it as needed.
      slots: completions in progress at once, at most; rounded up to what the mesh's batch axes
        divide.
      top_k, top_p: keep the k most probable tokens (0: all), then the fewest that hold the share p.
        Tokens as probable as the last one kept are kept too.
      vocab_size: ids below this may be drawn; by default all that the model has rows for. Tables
        are often padded beyond the tokenizer's last token, and an id from there would count as a
        token that nobody sees in the text.
      steps_at_once: tokens of a completion between two looks of the host. Fewer are seen sooner,
        and cost more; what is sampled is the same.
    """

    def __init__(
        self,
        model: Model,
        *,
        stop_ids: Iterable[int],
        max_length: int,
        slots: int = 64,
        seed: int = 0,
        top_k: int = 0,
        top_p: float = 1.0,
        vocab_size: int | None = None,
        steps_at_once: int = decode.STEPS_AT_ONCE,
    ):
        self.model = model
        self.max_length = max_length
        self.seed = seed
        self.vocab_size = min(vocab_size or model.config.vocab_size, model.config.vocab_size)
        self.stop_ids = tuple(sorted(set(stop_ids)))
        self.n_slots = self._rounded(slots)
        self.vision = None if model.tower is None else model.tower.config
        self.usage = Usage()
        self._compiled = _Extent(0, 0)  # by `compile_programs`
        # Of what each program gives, so that any other one may take it.
        layouts, replicated = decode.slot_layouts(model), sharding.named(model.mesh)
        self._unstack = Programs(functools.partial(cached.unstack, model=model))
        self._empty = Programs(
            functools.partial(decode.empty, model=model),
            static_argnames=("n_slots", "size", "n_outputs"),
            out_shardings=layouts,
        )
        applied = {"compiler_options": model.compiler_options}
        self._prefill = Programs(functools.partial(decode.prefill, model=model), **applied)
        # Donated, here and in decoding: two caches at once would halve the slots that fit.
        self._admit = Programs(
            functools.partial(decode.admit, model=model), donate_argnums=0, out_shardings=layouts
        )
        self._grow = Programs(
            functools.partial(decode.grow, model=model),
            static_argnames="size",
            out_shardings=layouts,
        )
        self._end = Programs(
            functools.partial(decode.end, model=model), donate_argnums=0, out_shardings=layouts
        )
        decode_slots = functools.partial(
            decode.decode,
            model=model,
            stop_ids=self.stop_ids,
            vocab_size=self.vocab_size,
            filters=filters.make(top_k, top_p),
            steps_at_once=steps_at_once,
        )
        outputs = (layouts, replicated)
        self._decode = Programs(decode_slots, donate_argnums=1, out_shardings=outputs, **applied)

    def compile_programs(self, requests: Iterable[Request], watched: bool = False) -> None:
        """Compiles all that sampling these requests, or any part of them, may need; `watched` is
        whether there will be a `watch`.

        Nothing is allocated on the devices. A part of the requests, such as a killed evaluation has
        left, is then sampled in as many slots as all of them: by the same programs.

        How far the cache grows depends on how long completions turn out to be, so there is a
        program for every size that it may have.
        """
        requests = list(requests)
        if not requests:
            return
        self._compiled = self._extent(requests)
        programs = self._each_program(requests, watched)
        for _ in bar(programs, desc="compile", unit="program", leave=False):
            interrupts.check()

    def _each_program(self, requests: list[Request], watched: bool) -> Iterator[None]:
        """Does what `sample` does, with shapes in place of arrays; yields after each program."""
        n_slots, n_outputs = self._compiled.n_slots, self._compiled.n_outputs
        largest_of = self._largest_caches(requests)
        params = self._unstack.compile(self.model.abstract_weights)
        yield
        # A cache may take on every size from that of the shortest prompts to the largest.
        smallest = self._cache_size(min(largest_of).length)
        size = self._cache_size(1)
        slots_of = {size: self._empty.compile(n_slots=n_slots, size=size, n_outputs=n_outputs)}
        yield
        while size < max(largest_of.values()):
            before, size = size, self._cache_size(max(size + 1, smallest))
            slots_of[size] = self._grow.compile(slots_of[before], size=size)
            yield
        new = jax.tree.map(self._shape_of, self._no_admission(n_slots))
        for shape, largest in largest_of.items():
            block = jax.tree.map(self._shape_of, self._arrays(Block(shape, [])))
            prefilled = self._prefill.compile(
                params, block.tokens_PL, block.lengths_P, block.images
            )
            yield
            enough = self._cache_size(shape.length)
            for size, slots in slots_of.items():
                if size < enough:
                    self._grow.compile(slots, size=enough)
                elif size <= largest:
                    self._admit.compile(slots, prefilled, new)
                yield
        for size, slots in slots_of.items():
            if size >= smallest:
                self._decode.compile(params, slots, self._shape_of(_count(0)))
                yield
                if watched:
                    self._end.compile(slots, self._shape_of(np.zeros(n_slots, bool)))
                    yield

    def _largest_caches(self, requests: list[Request]) -> dict[Shape, int]:
        """Shape of prompts -> the largest cache there may be when such prompts begin."""
        largest_of, longest = {}, 0
        for block in self._prompt_blocks(requests):
            for prompt in block.prompts:
                most_new = max(request.max_new_tokens for request in prompt.requests)
                longest = max(longest, len(prompt.ids) + most_new)
            # The short prompts are first: by now the cache may have grown for any of these.
            largest_of[block.shape] = self._cache_size(longest)
        spec = self.model.config
        if any(rereading.first_limit(one, spec) < one.max_new_tokens for one in requests):
            # Texts are read again whenever they get there.
            again = rereading.shape(spec, self.max_length)
            largest_of[again] = self._cache_size(longest)
        return largest_of

    def sample(
        self,
        weights: Weights,
        requests: Iterable[Request],
        progress: bool = True,
        watch: Watch | None = None,
    ) -> Iterator[Completion]:
        """Yields a completion for every request, as they are finished.

        `weights` are as trained; a copy in the compute dtype is made, and freed at the end. All
        processes of a job call this with the same requests, and get the same completions; a `watch`
        has to end the same ones on all of them.
        """
        requests = list(requests)
        if not requests:
            return
        params = self._unstack(weights)
        blocks = self._prompt_blocks(requests)
        extent = self._extent(requests)
        n_slots = extent.n_slots
        slots = self._empty(n_slots=n_slots, size=self._cache_size(1), n_outputs=extent.n_outputs)
        in_slot: dict[int, Request] = {}
        ready: collections.deque[_Ready] = collections.deque()
        prefilled: Prefilled | None = None
        made_B = np.zeros(n_slots, np.int32)
        with Progress(requests, quiet=not progress) as progress_bar:
            while blocks or ready or in_slot:
                # Waiting requests into idle slots, prefilling their prompts as they come up.
                while len(in_slot) < n_slots and (blocks or ready):
                    if not ready:
                        block = blocks.popleft()
                        prefilled = self._prefill_block(params, block)
                        ready.extend(self._ready_requests(block))
                    assert prefilled is not None
                    slots = self._fill(slots, n_slots, prefilled, ready, in_slot)
                # Room for one more token in the longest slot; decoding stops where it is used up.
                longest = max(
                    len(request.prompt_ids) + int(made_B[slot]) for slot, request in in_slot.items()
                )
                slots = self._with_room(slots, longest + 1)
                # A few idle slots cost less than a stop for each.
                least_active = 1
                if blocks or ready:
                    least_active = n_slots - n_slots // 32
                wanted = _count(min(least_active, len(in_slot)))
                slots, on_devices = self._decode(params, slots, self._place(wanted))
                report: Report = jax.device_get(on_devices)
                outgrown = rereading.outgrown(in_slot, report, self.stop_ids)
                report = rereading.with_active(report, outgrown)
                if watch is not None:
                    slots, report = self._watched(watch, slots, in_slot, report)
                slots = self._read_again(params, slots, outgrown, in_slot, report)
                made_B = np.where(report.active_B, report.made_B, 0)
                self.usage.places += n_slots * int(report.steps)
                self.usage.tokens += int(report.tokens)
                finished = [slot for slot in in_slot if not report.active_B[slot]]
                progress_bar.update(int(report.tokens), len(finished))
                for slot in finished:
                    yield self._completion(in_slot.pop(slot), slot, report)

    def _rounded(self, n_rows: int) -> int:
        """So many rows, or a few more, that the batch axes of the mesh divide."""
        shards = sharding.batch_shards(self.model.mesh)
        return -(-n_rows // shards) * shards

    def _extent(self, requests: list[Request]) -> _Extent:
        """Of these requests; at least what is compiled."""
        n_slots = min(self.n_slots, self._rounded(len(requests)))
        most_new = max(request.max_new_tokens for request in requests)
        n_outputs = prompts.bucket(most_new, prompts.SMALLEST, self.max_length)
        return _Extent(
            max(n_slots, self._compiled.n_slots), max(n_outputs, self._compiled.n_outputs)
        )

    def _cache_size(self, n_tokens: int) -> int:
        """Places of a cache that has room for so many tokens."""
        return prompts.bucket(n_tokens, _SMALLEST_CACHE, self.max_length)

    def _prompt_blocks(self, requests: list[Request]) -> collections.deque[Block]:
        """Blocks of prompts to prefill together, the short first."""
        for request in requests:
            n_prompt = len(request.prompt_ids)
            assert n_prompt > 0, request
            assert 0 < request.max_new_tokens <= self.max_length - n_prompt, request
        found = prompts.distinct(requests)
        return prompts.in_blocks(found, self.max_length, self.vision, self._n_prompts)

    def _n_prompts(self, n_patches: int) -> int:
        """Prompts with so many patches each that are prefilled together (P)."""
        n_prompts = min(_PROMPTS_AT_ONCE, self.n_slots)
        if n_patches:
            n_prompts = min(n_prompts, max(1, _PATCHES_AT_ONCE // n_patches))
        return self._rounded(n_prompts)

    def _arrays(self, block: Block) -> Arrays:
        """The prompts of a block, padded to its shape, on the host."""
        n_rows = self._n_prompts(block.shape.n_patches)
        return prompts.fill(block.prompts, block.shape, n_rows, self.vision)

    def _prefill_block(self, params: Params, block: Block) -> Prefilled:
        placed = jax.tree.map(self._place, self._arrays(block))
        return self._prefill(params, placed.tokens_PL, placed.lengths_P, placed.images)

    def _fill(
        self,
        slots: Slots,
        n_slots: int,
        prefilled: Prefilled,
        ready: collections.deque[_Ready],
        in_slot: dict[int, Request],
    ) -> Slots:
        """Puts ready requests into the idle slots, as far as they go."""
        new = self._no_admission(n_slots)
        idle = [slot for slot in range(n_slots) if slot not in in_slot]
        for slot in idle[: len(ready)]:
            one = ready.popleft()
            in_slot[slot] = one.request
            self._put(new, slot, one)
        slots = self._with_room(slots, prefilled.length)
        return self._admit(slots, prefilled, jax.tree.map(self._place, new))

    def _put(self, new: Admission, slot: int, one: _Ready, n_made: int = 0) -> None:
        """A request into a slot; of its text the last `n_made` tokens are of the completion."""
        request, limit = one.request, one.request.max_new_tokens
        if not n_made:
            limit = rereading.first_limit(request, self.model.config)
        new.is_new_B[slot] = True
        new.row_B[slot] = one.row
        new.lengths_B[slot] = len(request.prompt_ids) + n_made
        new.made_B[slot] = n_made
        new.limits_B[slot] = limit
        new.temperatures_B[slot] = request.temperature
        new.noise_B4[slot] = (self.seed, *_words(request.problem), request.sample)
        if new.deltas_B is not None:
            new.deltas_B[slot] = one.delta

    def _read_again(
        self,
        params: Params,
        slots: Slots,
        outgrown: list[int],
        in_slot: dict[int, Request],
        report: Report,
    ) -> Slots:
        """The same slots, of which these have a cache that was made anew of their whole text.

        A watch may have ended some of them in between.
        """
        outgrown = [slot for slot in outgrown if report.active_B[slot]]
        n_rows = self._n_prompts(0)
        for first in range(0, len(outgrown), n_rows):
            new, texts = self._no_admission(len(report.active_B)), []
            for row, slot in enumerate(outgrown[first : first + n_rows]):
                request = in_slot[slot]
                texts.append(rereading.text_of(slot, request, report))
                self._put(new, slot, _Ready(row, request, 0), int(report.made_B[slot]))
            shape = rereading.shape(self.model.config, self.max_length)
            prefilled = self._prefill_block(params, Block(shape, texts))
            slots = self._with_room(slots, prefilled.length)
            slots = self._admit(slots, prefilled, jax.tree.map(self._place, new))
        return slots

    def _ready_requests(self, block: Block) -> Iterator[_Ready]:
        """The requests of a block that was prefilled, with the rows of their prompts."""
        for row, prompt in enumerate(block.prompts):
            delta = prompt.delta(self.vision)
            for request in prompt.requests:
                yield _Ready(row, request, delta)

    def _no_admission(self, n_slots: int) -> Admission:
        """Nothing that begins, in NumPy arrays: to be filled in."""
        return Admission(
            is_new_B=np.zeros(n_slots, bool),
            row_B=np.zeros(n_slots, np.int32),
            lengths_B=np.zeros(n_slots, np.int32),
            made_B=np.zeros(n_slots, np.int32),
            limits_B=np.zeros(n_slots, np.int32),
            temperatures_B=np.zeros(n_slots, np.float32),
            noise_B4=np.zeros((n_slots, 4), np.uint32),
            deltas_B=None if self.vision is None else np.zeros(n_slots, np.int32),
        )

    def _with_room(self, slots: Slots, n_tokens: int) -> Slots:
        """A cache of at least `n_tokens` places; more are made from time to time, by doubling."""
        if n_tokens <= slots.cache_length:
            return slots
        return self._grow(slots, size=self._cache_size(n_tokens))

    def _watched(
        self, watch: Watch, slots: Slots, in_slot: dict[int, Request], report: Report
    ) -> tuple[Slots, Report]:
        """Tells of each completion. In what is returned, those that were ended are idle, and have
        the tokens that they end with.
        """
        ended_B = np.zeros(len(report.active_B), bool)
        made_B = report.made_B.copy()
        for slot, request in in_slot.items():
            n = int(report.made_B[slot])
            n_kept = n and watch(request, tuple(report.outputs_BT[slot, :n].tolist()))
            if n_kept:
                made_B[slot] = n_kept
                ended_B[slot] = report.active_B[slot]
        if ended_B.any():
            # Else the devices would write on in them, up to the limit.
            slots = self._end(slots, self._place(ended_B))
        active_B = report.active_B & ~ended_B
        return slots, dataclasses.replace(report, made_B=made_B, active_B=active_B)

    def _completion(self, request: Request, slot: int, report: Report) -> Completion:
        n = int(report.made_B[slot])
        ids = tuple(report.outputs_BT[slot, :n].tolist())
        # One after another, in float32, as ever: their order changes the last of the digits.
        entropy = float(np.add.accumulate(report.entropies_BT[slot, :n])[-1]) / n
        return Completion(request, ids, ids[-1] not in self.stop_ids, entropy)

    def _place(self, host: np.ndarray) -> jax.Array:
        """On every device of every process, all of which have the same array."""
        layout = sharding.named(self.model.mesh)
        return jax.make_array_from_callback(host.shape, layout, lambda index: host[index])

    def _shape_of(self, host: np.ndarray) -> jax.ShapeDtypeStruct:
        """Of what `_place` makes."""
        layout = sharding.named(self.model.mesh)
        return jax.ShapeDtypeStruct(host.shape, host.dtype, sharding=layout)


def _count(n: int) -> np.ndarray:
    return np.array(n, np.int32)


def _words(text: str) -> tuple[int, int]:
    """64 bits that name a text, the same in every process."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4]), int.from_bytes(digest[4:8])
