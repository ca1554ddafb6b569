"""Completions from a model: prompts are prefilled once, samples decoded in slots that never wait
for each other.

A slot holds one completion in progress. One `while_loop` on the devices makes a token in every
slot, until enough of them are finished; the host then takes what is finished and puts waiting
samples there. What a sample is depends on (seed, problem, sample number) alone: not on its slot,
its neighbours, or the order of the work.
"""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from dft_jax import sharding
from dft_jax.models import cached
from dft_jax.models.attention.cached import CACHE_SPEC
from dft_jax.models.model import Model
from dft_jax.sampling.categorical import draw
from dft_jax.types import Params

# tokens; the lengths of arrays are these times powers of two
_SMALLEST_PROMPT, _SMALLEST_CACHE = 64, 256
_STEPS_AT_ONCE = 64  # tokens of a slot between two looks of the host


@dataclasses.dataclass(frozen=True)
class Request:
    """One completion to be made. `problem` names the prompt, whose noise it determines with
    `sample`.

    A `temperature` of 0 is greedy. The completion has at most `max_new_tokens` tokens.
    """

    problem: str
    sample: int
    prompt_ids: tuple[int, ...]
    temperature: float
    max_new_tokens: int


@dataclasses.dataclass(frozen=True)
class Completion:
    """`ids` ends in a stop token unless the limit cut it.

    `entropy` is the mean over its tokens of the entropy of the distribution they were drawn from,
    in nats, before top-k and top-p; of a greedy one, that of the model's own distribution.
    """

    request: Request
    ids: tuple[int, ...]
    is_cut: bool
    entropy: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """What the devices know of B completions in progress. S is the length of the cache, T that of
    the longest output.

    The token that is drawn next comes from `hidden_BD`; it is number `made_B` of its completion.
    """

    hidden_BD: Float[Array, "B D"]
    cache: cached.Cache
    lengths_B: Int[Array, " B"]  # tokens in the cache
    outputs_BT: Int[Array, "B T"]
    made_B: Int[Array, " B"]
    limits_B: Int[Array, " B"]
    active_B: Bool[Array, " B"]
    keys_B: Array
    temperatures_B: Float[Array, " B"]
    entropy_sums_B: Float[Array, " B"]


@dataclasses.dataclass
class Usage:
    """Where decode steps went: `tokens` of `places` (steps × slots) belong to a completion."""

    places: int = 0
    tokens: int = 0


class Progress:
    """A bar that moves with every token, and says how long the rest takes.

    How many tokens there will be is not known before the end. With n completions finished after t
    tokens, finished and unfinished ones together, the mean length is estimated as t/n, as for
    lifetimes of which some still last; but no completion is thought longer than its limit. Before
    the first is finished, all are as long as they may be.
    """

    def __init__(self, requests: list[Request], quiet: bool):
        self.n_requests = len(requests)
        self.tokens, self.finished = 0, 0
        self.most = sum(request.max_new_tokens for request in requests)
        self.bar = tqdm(total=self.most, desc="sampling", unit="token", disable=quiet)
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
        return min(self.most, max(self.tokens + 1, self.tokens * self.n_requests // self.finished))

    def update(self, tokens: int, finished: int) -> None:
        self.tokens, self.finished = self.tokens + tokens, self.finished + finished
        self.bar.total = self.expected_tokens()
        self.bar.set_postfix_str(f"{self.finished} of {self.n_requests} completions", refresh=False)
        self.bar.update(tokens)


class Sampler:
    """Makes completions with one model. What it compiles serves every call, whatever the
    parameters.

    Args:
      stop_ids: tokens that end a completion.
      max_length: tokens of prompt and completion together; the cache grows up to it as needed.
      slots: completions in progress at once, at most; rounded up to what the mesh's batch axes
      divide. top_k, top_p: keep the k most probable tokens (0: all), then the fewest that hold the
      share p. Tokens as
        probable as the last one kept are kept too.
      vocab_size: ids below this may be drawn; by default all that the model has rows for. Tables
      are often padded
        beyond the tokenizer's last token, and an id from there would count as a token that nobody
        sees in the text.
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
    ):
        self.vocab_size = min(vocab_size or model.config.vocab_size, model.config.vocab_size)
        self.model, self.max_length, self.seed = model, max_length, seed
        self.stop_ids = tuple(sorted(set(stop_ids)))
        self.n_slots = self._rounded(slots)
        self.n_prompts = self._rounded(min(8, slots))  # prefilled at once
        self.usage = Usage()
        self._unstack = jax.jit(functools.partial(cached.unstack, model=model))
        self._prefill = jax.jit(functools.partial(_prefill, model=model))
        self._admit = jax.jit(functools.partial(_admit, model=model), donate_argnums=0)
        drawing = dict(vocab_size=self.vocab_size, mesh=model.mesh, top_k=top_k, top_p=top_p)
        decode = functools.partial(_decode, model=model, stop_ids=self.stop_ids, drawing=drawing)
        self._decode = jax.jit(decode, donate_argnums=1)
        self._grow = jax.jit(functools.partial(_grow, model=model), static_argnames="size")
        self._empty = jax.jit(
            functools.partial(_empty, model=model), static_argnames=("n_slots", "size", "n_outputs")
        )

    def sample(
        self, params: Params, requests: Iterable[Request], progress: bool = True
    ) -> Iterator[Completion]:
        """Yields a completion for every request, as they are finished.

        `params` are as trained; a copy in the compute dtype is made, and freed at the end. All
        processes of a job call this with the same requests, and get the same completions.
        """
        requests = list(requests)
        if not requests:
            return
        params = self._unstack(params)
        blocks = self._prompt_blocks(requests)
        n_slots = min(self.n_slots, self._rounded(len(requests)))
        sizes = {
            "size": _bucket(1, _SMALLEST_CACHE, self.max_length),
            "n_outputs": _bucket(
                max(r.max_new_tokens for r in requests), _SMALLEST_PROMPT, self.max_length
            ),
        }
        slots = self._empty(n_slots=n_slots, **sizes)
        in_slot: dict[int, Request] = {}
        # (row of `prefilled`, request)
        ready: collections.deque[tuple[int, Request]] = collections.deque()
        prefilled, made_B = None, np.zeros(n_slots, np.int32)
        quiet = not progress or jax.process_index() > 0
        with Progress(requests, quiet) as progress_bar:
            while blocks or ready or in_slot:
                while len(in_slot) < n_slots and (blocks or ready):
                    if not ready:
                        prefilled, ready = self._prefill_block(params, blocks.popleft())
                    slots = self._fill(slots, n_slots, prefilled, ready, in_slot)
                longest = max(
                    len(request.prompt_ids) + int(made_B[slot]) for slot, request in in_slot.items()
                )
                slots = self._with_room(slots, longest + 1)
                # A few idle slots cost less than a stop for each.
                least_active = n_slots - n_slots // 32 if blocks or ready else 1
                slots, report = self._decode(params, slots, min(least_active, len(in_slot)))
                report = jax.device_get(report)
                made_B = np.where(report["active"], report["made"], 0)
                self.usage.places += n_slots * int(report["steps"])
                self.usage.tokens += int(report["tokens"])
                finished = [slot for slot in in_slot if not report["active"][slot]]
                progress_bar.update(int(report["tokens"]), len(finished))
                for slot in finished:
                    yield self._completion(in_slot.pop(slot), slot, report)

    def _rounded(self, n_rows: int) -> int:
        shards = sharding.batch_shards(self.model.mesh)
        return -(-n_rows // shards) * shards

    def _prompt_blocks(
        self, requests: list[Request]
    ) -> collections.deque[list[tuple[tuple[int, ...], list[Request]]]]:
        """Blocks of prompts to prefill together, each of one bucket of lengths, each prompt with
        all its requests.
        """
        of_prompt, of_length = collections.defaultdict(list), collections.defaultdict(list)
        for request in requests:
            n_prompt = len(request.prompt_ids)
            assert n_prompt > 0 and 0 < request.max_new_tokens <= self.max_length - n_prompt, (
                request
            )
            of_prompt[request.prompt_ids].append(request)
        for ids, own in of_prompt.items():
            of_length[_bucket(len(ids), _SMALLEST_PROMPT, self.max_length)].append((ids, own))
        n, groups = self.n_prompts, (of_length[length] for length in sorted(of_length))
        return collections.deque(
            prompts[i : i + n] for prompts in groups for i in range(0, len(prompts), n)
        )

    def _prefill_block(
        self, params, block
    ) -> tuple[tuple[Array, cached.Cache], collections.deque[tuple[int, Request]]]:
        longest = max(len(ids) for ids, _ in block)
        tokens_BL = np.zeros(
            (self.n_prompts, _bucket(longest, _SMALLEST_PROMPT, self.max_length)), np.int32
        )
        lengths_B = np.zeros(self.n_prompts, np.int32)
        for row, (ids, _) in enumerate(block):
            tokens_BL[row, : len(ids)], lengths_B[row] = ids, len(ids)
        prefilled = self._prefill(params, self._place(tokens_BL), self._place(lengths_B))
        return prefilled, collections.deque(
            (row, request) for row, (_, own) in enumerate(block) for request in own
        )

    def _fill(
        self, slots: Slots, n_slots: int, prefilled, ready, in_slot: dict[int, Request]
    ) -> Slots:
        """Puts ready requests into the idle slots, as far as they go."""
        columns = {
            "is_new": np.zeros(n_slots, bool),
            "row": np.zeros(n_slots, np.int32),
            "length": np.zeros(n_slots, np.int32),
            "limit": np.zeros(n_slots, np.int32),
            "temperature": np.zeros(n_slots, np.float32),
            "noise": np.zeros((n_slots, 4), np.uint32),
        }
        for slot in [slot for slot in range(n_slots) if slot not in in_slot][: len(ready)]:
            row, request = ready.popleft()
            in_slot[slot] = request
            noise = (self.seed, *_words(request.problem), request.sample)
            values = (
                True,
                row,
                len(request.prompt_ids),
                request.max_new_tokens,
                request.temperature,
                noise,
            )
            for column, value in zip(columns.values(), values, strict=True):
                column[slot] = value
        _, cache = prefilled
        slots = self._with_room(slots, cache[0][0].shape[2])
        return self._admit(
            slots, prefilled, {name: self._place(column) for name, column in columns.items()}
        )

    def _with_room(self, slots: Slots, n_tokens: int) -> Slots:
        """A cache of at least `n_tokens` places; the others are made from time to time, by
        doubling.
        """
        if n_tokens <= slots.cache[0][0].shape[2]:
            return slots
        return self._grow(slots, size=_bucket(n_tokens, _SMALLEST_CACHE, self.max_length))

    def _completion(self, request: Request, slot: int, report: dict[str, np.ndarray]) -> Completion:
        n = int(report["made"][slot])
        ids = tuple(report["outputs"][slot, :n].tolist())
        return Completion(
            request, ids, ids[-1] not in self.stop_ids, float(report["entropy_sums"][slot]) / n
        )

    def _place(self, host: np.ndarray) -> jax.Array:
        """On every device of every process."""
        return jax.make_array_from_callback(
            host.shape, sharding.named(self.model.mesh), lambda index: host[index]
        )


def _bucket(n: int, smallest: int, largest: int) -> int:
    """The first of smallest · 1, 2, 4, … that is at least n, but not above `largest`: few lengths,
    few compilations.
    """
    size = smallest
    while size < n:
        size *= 2
    return min(size, largest)


def _words(text: str) -> tuple[int, int]:
    """64 bits that name a text, the same in every process."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4]), int.from_bytes(digest[4:8])


# ---- what runs on the devices
# ---------------------------------------------------------------------------------------


def _pinned(slots: Slots, model: Model) -> Slots:
    """Rows along the batch axes of the mesh, the heads of the cache along `tensor`."""

    def pin(x):
        return sharding.with_layout(
            x, model.mesh, *(CACHE_SPEC if x.ndim == 4 else [sharding.BATCH_AXES])
        )

    return jax.tree.map(pin, slots)


def _empty(*, n_slots: int, size: int, n_outputs: int, model: Model) -> Slots:
    c, dtype = model.config, model.module.compute_dtype
    zeros_B = jnp.zeros(n_slots, jnp.int32)
    part = jnp.zeros((n_slots, c.num_kv_heads, size, c.head_dim), dtype)
    slots = Slots(
        hidden_BD=jnp.zeros((n_slots, c.hidden_size), dtype),
        cache=[(part, part)] * c.num_layers,
        lengths_B=zeros_B,
        outputs_BT=jnp.zeros((n_slots, n_outputs), jnp.int32),
        made_B=zeros_B,
        limits_B=zeros_B,
        active_B=zeros_B > 0,
        keys_B=jnp.zeros((n_slots, 2), jnp.uint32),
        temperatures_B=zeros_B.astype(jnp.float32),
        entropy_sums_B=zeros_B.astype(jnp.float32),
    )
    return _pinned(slots, model)


def _prefill(params, tokens_BL, lengths_B, *, model: Model):
    hidden_BD, cache = cached.prefill(params, model, tokens_BL, lengths_B)
    # Any slot may take any prompt, so every device of the batch axes has all of them.
    return sharding.with_layout(hidden_BD, model.mesh), sharding.with_layout(
        cache, model.mesh, None, "tensor"
    )


def _grow(slots: Slots, *, size: int, model: Model) -> Slots:
    def pad(part_BGSK):
        return jnp.pad(part_BGSK, ((0, 0), (0, 0), (0, size - part_BGSK.shape[2]), (0, 0)))

    return _pinned(dataclasses.replace(slots, cache=jax.tree.map(pad, slots.cache)), model)


def _admit(slots: Slots, prefilled, columns: dict[str, Array], *, model: Model) -> Slots:
    """Begins the requests of `columns` in their slots: prompt in the cache, nothing made."""
    is_new_B, row_B = columns["is_new"], columns["row"]

    def select(new, old):
        return jnp.where(jnp.expand_dims(is_new_B, tuple(range(1, old.ndim))), new, old)

    def write(old_BGSK, new_PGLK):
        L = new_PGLK.shape[2]
        return old_BGSK.at[:, :, :L].set(select(new_PGLK[row_B], old_BGSK[:, :, :L]))

    def key(noise):
        begin = jax.random.key(noise[0], impl="threefry2x32")
        return jax.random.key_data(functools.reduce(jax.random.fold_in, noise[1:], begin))

    hidden_PD, cache = prefilled
    new = dataclasses.replace(
        slots,
        hidden_BD=select(hidden_PD[row_B], slots.hidden_BD),
        cache=jax.tree.map(write, slots.cache, cache),
        lengths_B=select(columns["length"], slots.lengths_B),
        made_B=select(0, slots.made_B),
        limits_B=select(columns["limit"], slots.limits_B),
        active_B=slots.active_B | is_new_B,
        keys_B=select(jax.vmap(key)(columns["noise"]), slots.keys_B),
        temperatures_B=select(columns["temperature"], slots.temperatures_B),
        entropy_sums_B=select(0.0, slots.entropy_sums_B),
    )
    return _pinned(new, model)


def _decode(params, slots: Slots, least_active, *, model: Model, stop_ids, drawing: dict):
    """Makes a token in every active slot, over and over, while at least `least_active` are active.

    `drawing` are the settings of `draw`.

    Returns:
      The slots, and what the host has to know: replicated, so that every process can read it.
    """
    rows_B, size = jnp.arange(slots.active_B.size), slots.cache[0][0].shape[2]

    def goes_on(carry):
        slots, step, _ = carry
        has_room = jnp.max(jnp.where(slots.active_B, slots.lengths_B, 0)) < size
        return (step < _STEPS_AT_ONCE) & (slots.active_B.sum() >= least_active) & has_room

    def one_token(carry):
        slots, step, tokens = carry
        was_active_B = slots.active_B
        keys_B = jax.random.wrap_key_data(slots.keys_B, impl="threefry2x32")
        keys_B = jax.vmap(jax.random.fold_in)(keys_B, slots.made_B)
        token_B, entropy_B = draw(
            slots.hidden_BD, params["head"], keys_B, slots.temperatures_B, **drawing
        )
        made_B = slots.made_B + was_active_B
        stops_B = jnp.isin(token_B, jnp.array(stop_ids, jnp.int32)) | (made_B >= slots.limits_B)
        active_B = was_active_B & ~stops_B
        # Idle slots compute too; what they write is beyond their end, and never read.
        places_B = jnp.where(active_B, slots.lengths_B, size - 1)
        hidden_BD, cache = cached.decode(params, model, token_B, places_B, slots.cache)
        column_B = jnp.where(was_active_B, slots.made_B, slots.outputs_BT.shape[1])
        outputs_BT = slots.outputs_BT.at[rows_B, column_B].set(token_B, mode="drop")
        slots = dataclasses.replace(
            slots,
            hidden_BD=hidden_BD,
            cache=cache,
            lengths_B=slots.lengths_B + active_B,
            outputs_BT=outputs_BT,
            made_B=made_B,
            active_B=active_B,
            entropy_sums_B=slots.entropy_sums_B + jnp.where(was_active_B, entropy_B, 0.0),
        )
        return _pinned(slots, model), step + 1, tokens + was_active_B.sum()

    slots, steps, tokens = lax.while_loop(goes_on, one_token, (slots, 0, 0))
    report = {
        "active": slots.active_B,
        "made": slots.made_B,
        "outputs": slots.outputs_BT,
        "entropy_sums": slots.entropy_sums_B,
        "steps": steps,
        "tokens": tokens,
    }
    return slots, sharding.with_layout(report, model.mesh)
