"""The changes: a piece of text of one file, what it becomes, and the tests that should notice."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Change:
    """`old` occurs once in `file`; `only` is pytest's -k, for files with much in them."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    only: str = ""


def changed(text: str, change: Change) -> str:
    """The text of the file with the change made."""
    count = text.count(change.old)
    assert count == 1, f"{change.name}: {change.old!r} is {count} times in {change.file}"
    return text.replace(change.old, change.new)


# ---- losses and objectives

LOSSES = ("tests/losses/test_fused.py",)
SHARED_ROWS = ("tests/losses/test_shared_rows.py",)
OBJECTIVES = ("tests/losses/test_objectives.py",)
TARGETS = ("tests/losses/test_targets.py",)
OF_LOSSES = [
    Change(
        "loss-last-chunk-dropped",
        "dft_jax/losses/chunks.py",
        'lax.pmax(-(-mask_N.sum() // chunk_tokens), (*sharding.BATCH_AXES, "sequence"))',
        'lax.pmax(mask_N.sum() // chunk_tokens, (*sharding.BATCH_AXES, "sequence"))',
        LOSSES,
        "float64 and dft",
    ),
    Change(
        "loss-kl-the-other-way-round",
        "dft_jax/losses/statistics.py",
        "(jnp.exp(reference_logp_CV) * log_ratio_CV).sum",
        "(jnp.exp(logits.model_CV - model.logsumexp_C[:, None]) * -log_ratio_CV).sum",
        LOSSES,
        "float64 and asft",
    ),
    Change(
        "loss-kl-gradient-sign",
        "dft_jax/losses/statistics.py",
        "* (p_CV - reference_CV)",
        "* (reference_CV - p_CV)",
        LOSSES,
        "float64 and asft",
    ),
    Change(
        "loss-head-gradient-of-own-rows",
        "dft_jax/losses/devices.py",
        "lax.psum(sums.head, self.layout.row_axes).astype",
        "sums.head.astype",
        LOSSES,
        "float64 and dft",
    ),
    Change(
        "loss-top-tokens-of-each-device",
        "dft_jax/losses/statistics.py",
        "        top_CK = lax.top_k(top_CK, top_tokens)[0]\n",
        "",
        LOSSES,
        "float64 and eaft",
    ),
    Change(
        "loss-entropy-without-maximum",
        "dft_jax/losses/statistics.py",
        "entropy_C = logsumexp_C - sums.logits_C / sums.exp_C",
        "entropy_C = jnp.log(sums.exp_C) - sums.logits_C / sums.exp_C",
        LOSSES,
        "statistics_equal_dense",
    ),
    Change(
        "loss-shared-rows-all-the-first",
        "dft_jax/losses/devices.py",
        "lax.dynamic_slice_in_dim(array_B, lax.axis_index(self.sharing) * n_rows, n_rows)",
        "array_B[:n_rows]",
        SHARED_ROWS,
        "dense and sentence",
    ),
    Change(
        "loss-merged-sums-not-rescaled",
        "dft_jax/losses/statistics.py",
        "logits_1 * scale_1 + logits_2 * scale_2",
        "logits_1 + logits_2",
        LOSSES,
        "one_reading",
    ),
    Change(
        "objective-dft-weight-trained",
        "dft_jax/losses/objectives.py",
        "return -jax.lax.stop_gradient(weight(stats, **parameters)) * stats.logp_BL",
        "return -weight(stats, **parameters) * stats.logp_BL",
        OBJECTIVES,
    ),
    Change(
        "objective-mixed-turned-round",
        "dft_jax/losses/objectives.py",
        "return alpha * jnp.exp(stats.logp_BL) + (1.0 - alpha)",
        "return (1.0 - alpha) * jnp.exp(stats.logp_BL) + alpha",
        OBJECTIVES,
    ),
    Change(
        "objective-geometric-of-all-tokens",
        "dft_jax/losses/objectives.py",
        "    count_BL = _sum_per_example(jnp.ones_like(value_BL), stats)",
        "    count_BL = jnp.full_like(value_BL, value_BL.shape[1])",
        OBJECTIVES,
    ),
    Change(
        "objective-talr-with-untrained",
        "dft_jax/losses/objectives.py",
        "jnp.nanmedian(value_BL)",
        "jnp.median(jnp.nan_to_num(value_BL))",
        OBJECTIVES,
    ),
    Change(
        "loss-concentration-not-normalised",
        "dft_jax/losses/statistics.py",
        "sums.squares_C / sums.exp_C**2",
        "sums.squares_C / sums.exp_C",
        TARGETS,
        "every_mesh and deft",
    ),
    Change(
        "loss-reference-mass-of-one-device",
        "dft_jax/losses/statistics.py",
        "less_C = lax.psum(less_CV.sum(axis=-1), vocab_axes)",
        "less_C = less_CV.sum(axis=-1)",
        TARGETS,
        "every_mesh and prift_mass",
    ),
    Change(
        "objective-gift-share-turned-round",
        "dft_jax/losses/objectives.py",
        "return -share_BL * stats.logp_BL + (1.0 - share_BL) * stats.kl_BL",
        "return -(1.0 - share_BL) * stats.logp_BL + share_BL * stats.kl_BL",
        TARGETS,
        "gift",
    ),
    Change(
        "objective-cayley-mean-with-untrained",
        "dft_jax/losses/objectives.py",
        "jnp.where(is_trained_BL, value_BL, 0.0).sum()",
        "value_BL.sum()",
        OBJECTIVES,
    ),
    Change(
        "objective-asft-default",
        "dft_jax/losses/objectives.py",
        "kl: float = 0.05",
        "kl: float = 0.5",
        OBJECTIVES,
    ),
]

# ---- data and packing

OF_DATA = [
    Change(
        "packing-one-segment",
        "dft_jax/data/packing.py",
        "segments[row, here] = segment",
        "segments[row, here] = 1",
        ("tests/data/test_packing.py",),
    ),
    Change(
        "packing-positions-go-on",
        "dft_jax/data/packing.py",
        "positions[row, here] = np.arange(slots(example))",
        "positions[row, here] = np.arange(here.start, here.stop)",
        ("tests/data/test_packing.py",),
    ),
    Change(
        "packing-mask-one-early",
        "dft_jax/data/templates.py",
        "return self.trained[1:]",
        "return self.trained[:-1]",
        ("tests/data/test_packing.py",),
    ),
    Change(
        "loss-without-weights",
        "dft_jax/losses/fused.py",
        "return losses if weights is None else losses * weights",
        "return losses",
        ("tests/losses/test_weights.py",),
    ),
    Change(
        "mixture-one-order-for-all-sources",
        "dft_jax/data/order.py",
        "    if source:\n",
        "    if False:\n",
        ("tests/data/test_mixture.py",),
    ),
    Change(
        "mixture-each-epoch-begins-anew",
        "dft_jax/data/order.py",
        "draw = epoch * self.shares[source].quota + ",
        "draw = ",
        ("tests/data/test_mixture.py",),
    ),
    Change(
        "mixture-hash-without-shares",
        "dft_jax/data/mixture.py",
        "share.n_examples, share.quota])",
        "share.n_examples])",
        ("tests/data/test_mixture.py",),
    ),
    Change(
        "data-hash-without-mask",
        "dft_jax/data/account.py",
        "return example.ids.tobytes() + example.trained.tobytes()",
        "return example.ids.tobytes()",
        ("tests/data/test_batches.py",),
    ),
]

# ---- optimizer and step

OF_TRAINING = [
    Change(
        "optimizer-decay-turned-round",
        "dft_jax/training/optimizer.py",
        'None if config.decay == "all" else _is_matrix',
        '_is_matrix if config.decay == "all" else None',
        ("tests/training/test_optimizer.py", "tests/training/test_step.py"),
        "adamw or decay",
    ),
    Change(
        "optimizer-small-gradients-scaled-up",
        "dft_jax/training/optimizer.py",
        "factor = largest / jnp.maximum(optax.tree.norm(grads), largest)",
        "factor = largest / optax.tree.norm(grads)",
        ("tests/training/test_optimizer.py", "tests/training/test_step.py"),
        "adamw or clip or golden",
    ),
    Change(
        "optimizer-second-moment-correction",
        "dft_jax/training/optimizer.py",
        "nu_hat = optax.tree.bias_correction(_like(nu, grads), b2, count)",
        "nu_hat = optax.tree.bias_correction(_like(nu, grads), b1, count)",
        ("tests/training/test_optimizer.py",),
        "adamw",
    ),
    Change(
        "optimizer-warmup-floor",
        "dft_jax/training/optimizer.py",
        "round(config.warmup_fraction * steps)",
        "int(config.warmup_fraction * steps)",
        ("tests/training/test_optimizer.py",),
        "rates",
    ),
    Change(
        "optimizer-rounding-always-down",
        "dft_jax/training/optimizer.py",
        " + jax.random.bits(key, x.shape, jnp.uint16)",
        "",
        ("tests/training/test_optimizer.py",),
    ),
    Change(
        "optimizer-same-bits-for-each-leaf",
        "dft_jax/training/optimizer.py",
        "leaf_key = jax.random.fold_in(key, number)",
        "leaf_key = key",
        ("tests/training/test_optimizer.py",),
    ),
    Change(
        "train-reference-resumed",
        "dft_jax/training/loop.py",
        "    frozen = job.frozen()\n",
        "    frozen = job.frozen()\n"
        "    if frozen.reference is not None:\n"
        "        resumed = __import__('jax').tree.map(lambda leaf: leaf + 0, state.params)\n"
        "        frozen = type(frozen)(frozen.hyperparameters, resumed)\n",
        ("tests/training/test_resume.py",),
        "compares_with",
    ),
    Change(
        "train-heldout-last-batch",
        "dft_jax/training/heldout.py",
        "total = _added(total, sums)",
        "total = sums",
        ("tests/training/test_step.py",),
        "held_out_metrics",
    ),
    Change(
        "train-sums-averaged",
        "dft_jax/training/step.py",
        "return grads, jax.tree.map(lambda x: x.sum(axis=0), sums_A)",
        "return grads, jax.tree.map(lambda x: x.mean(axis=0), sums_A)",
        ("tests/training/test_step.py",),
        "same_curve",
    ),
    Change(
        "train-rate-of-the-next-step",
        "dft_jax/training/step.py",
        "hyperparameters.rates_U[optimizer_lib.update_count(state.opt_state)]",
        "hyperparameters.rates_U[optimizer_lib.update_count(state.opt_state) + 1]",
        ("tests/training/test_step.py",),
        "golden",
    ),
    Change(
        "train-global-mean-of-micro-batches",
        "dft_jax/training/step.py",
        "n_tokens = n_tokens_A.sum() if is_global else n_tokens_A",
        "n_tokens = n_tokens_A",
        ("tests/training/test_step.py",),
        "same_curve",
    ),
    Change(
        "metrics-flops-attention",
        "dft_jax/training/metrics.py",
        "(mean_length / 2)",
        "mean_length",
        ("tests/training/test_metrics.py",),
    ),
    Change(
        "metrics-bins-one-too-high",
        "dft_jax/training/metrics.py",
        "P_BIN_EDGES[1:-1])",
        "P_BIN_EDGES[:-2])",
        ("tests/training/test_metrics.py",),
    ),
]

# ---- the model

GOLDEN = ("tests/models/test_golden.py",)
OF_MODELS = [
    Change(
        "model-norm-in-bfloat16",
        "dft_jax/models/layers.py",
        "x32 = x.astype(jnp.promote_types(jnp.float32, x.dtype))",
        "x32 = x",
        ("tests/models/test_layers.py",),
    ),
    Change(
        "model-rope-in-bfloat16",
        "dft_jax/models/layers.py",
        "dtype = jnp.promote_types(jnp.float32, x_BLHK.dtype)",
        "dtype = x_BLHK.dtype",
        ("tests/models/test_layers.py",),
    ),
    Change(
        "model-embedding-gradient-in-bfloat16",
        "dft_jax/models/layers.py",
        "wide = jnp.promote_types(kind.dtype, jnp.float32)",
        "wide = kind.dtype",
        ("tests/models/test_layers.py",),
    ),
    Change(
        "model-no-query-and-key-norms",
        "dft_jax/models/decoder.py",
        "if self.layer.qk_norm:",
        "if self.layer.qk_norm and False:",
        GOLDEN,
        "logits and qwen3",
    ),
    Change(
        "model-cache-window-one-longer",
        "dft_jax/models/attention/cached.py",
        "may_see_BS & (age_BS < window)",
        "may_see_BS & (age_BS <= window)",
        ("tests/sampling/test_sampler.py",),
        "mistral",
    ),
    Change(
        "model-cache-heads-in-another-order",
        "dft_jax/models/attention/cached.py",
        "q_BGRK = q_BHK.reshape(B, G, H // G, K)",
        "q_BGRK = q_BHK.reshape(B, H // G, G, K).swapaxes(1, 2)",
        ("tests/sampling/test_sampler.py",),
        "cache_gives or greedy_equals",
    ),
]

# ---- sampling and scores

SCORES = ("tests/evals/test_scores.py",)
OF_EVALUATION = [
    Change(
        "sample-one-noise-for-both",
        "dft_jax/sampling/categorical.py",
        "noisy(candidates.logits_of(block_B), keys_B2[:, 1])",
        "noisy(candidates.logits_of(block_B), keys_B2[:, 0])",
        ("tests/sampling/test_sampler.py",),
        "frequencies",
    ),
    Change(
        "sample-temperature-not-within-blocks",
        "dft_jax/sampling/categorical.py",
        "jnp.where(is_greedy_B1, logits_BX, logits_BX / scale_B1 + noise_BX)",
        "jnp.where(is_greedy_B1, logits_BX, logits_BX + noise_BX)",
        ("tests/sampling/test_sampler.py",),
        "frequencies",
    ),
    Change(
        "sample-top-p-of-everything",
        "dft_jax/sampling/filters.py",
        "is_kept_BV &= keep_some(jnp.where(is_kept_BV, logits_BV, -jnp.inf))",
        "is_kept_BV &= keep_some(logits_BV)",
        ("tests/sampling/test_sampler.py",),
        "frequencies",
    ),
    Change(
        "sample-entropy-unscaled",
        "dft_jax/sampling/categorical.py",
        "mean_BM = below_BM + summaries.weighted_BM / summaries.sum_BM / scale_B1",
        "mean_BM = below_BM + summaries.weighted_BM / summaries.sum_BM",
        ("tests/sampling/test_sampler.py",),
        "frequencies or entropy",
    ),
    Change(
        "scores-pass-at-k-with-replacement",
        "dft_jax/evals/scores.py",
        "(wrong[..., None] - j_K) / (n_samples - j_K)",
        "(wrong[..., None] + 0 * j_K) / n_samples",
        SCORES,
    ),
    Change(
        "scores-variance-of-all",
        "dft_jax/evals/scores.py",
        "value_P.var(ddof=1)",
        "value_P.var(ddof=0)",
        SCORES,
    ),
    Change(
        "scores-no-answer-votes",
        "dft_jax/evals/scores.py",
        "collections.Counter(number for number in classes_S if number is not None)",
        "collections.Counter(classes_S)",
        SCORES,
    ),
    Change(
        "scores-imagined-by-draws",
        "dft_jax/evals/scores.py",
        "return -1 / math.sqrt(draws), 1 / math.sqrt(draws)",
        "return -1 / draws, 1 / draws",
        SCORES,
    ),
    Change(
        "extract-first-bare-box",
        "dft_jax/evals/graders/extraction.py",
        "return _BARE_BOX.findall(text)[-1]",
        "return _BARE_BOX.findall(text)[0]",
        ("tests/evals/graders/test_extraction.py",),
    ),
    Change(
        "stops-only-eos",
        "dft_jax/data/stops.py",
        "        TEMPLATE: template.markers(),\n",
        "",
        ("tests/data/test_stops.py",),
    ),
]

# ---- what a run leaves behind

PLANNED_EXPERTS = ("tests/planner/test_experts.py",)
WALK = ("tests/planner/test_walk.py",)
OF_RUNS = [
    Change(
        "export-changed-as-written",
        "dft_jax/models/hf/rounding.py",
        "np.count_nonzero(written != old)",
        "np.count_nonzero(written != new)",
        ("tests/models/hf/test_rounding.py",),
        "whole_arrays",
    ),
    Change(
        "export-loss-of-the-weights",
        "dft_jax/models/hf/rounding.py",
        "np.square(written - new).sum()",
        "np.square(written - old).sum()",
        ("tests/models/hf/test_rounding.py",),
        "whole_arrays",
    ),
    Change(
        "fingerprint-without-template",
        "dft_jax/training/identity.py",
        '"chat_template_sha256": _sha256(\n',
        '"chat_template_sha256": _sha256("") or _sha256(\n',
        ("tests/training/test_resume.py",),
        "another_run",
    ),
    Change(
        "fingerprint-without-data",
        "dft_jax/training/identity.py",
        '"training_data_sha256": train.report["sha256"],',
        '"training_data_sha256": "",',
        ("tests/training/test_resume.py",),
        "another_run",
    ),
    Change(
        "plan-one-micro-batch",
        "dft_jax/planner/memory.py",
        "min(layout.accumulation, 2)",
        "1",
        ("tests/planner/test_plan.py",),
        "account",
    ),
    Change(
        "plan-all-experts-on-each-device",
        "dft_jax/planner/memory.py",
        "n_own = experts.count // cut.expert",
        "n_own = experts.count",
        PLANNED_EXPERTS,
        "parameters_are_cut",
    ),
    Change(
        "plan-tokens-not-gathered",
        "dft_jax/planner/shares.py",
        'others = layout.devices["expert"] - 1',
        "others = 0",
        PLANNED_EXPERTS,
        "gathered_tokens",
    ),
    Change(
        "plan-product-beside-the-sum",
        "dft_jax/planner/liveness.py",
        "if rules.adds_inside_products:",
        "if False:",
        WALK,
        "inside_of_the_sum",
    ),
    Change(
        "plan-product-that-others-read-is-no-array",
        "dft_jax/planner/operations.py",
        'elif operation.name == "dot_general" and reads[id(result)] == 1:',
        'elif operation.name == "dot_general":',
        WALK,
        "inside_of_the_sum",
    ),
    Change(
        "plan-gathered-before-the-cast",
        "dft_jax/planner/liveness.py",
        "operations = cast_before_gathered(inlining.needed(operations, outputs))",
        "operations = inlining.needed(operations, outputs)",
        WALK,
        "narrower_dtype",
    ),
    Change(
        "plan-summed-in-place",
        "dft_jax/planner/liveness.py",
        "self._add(_Event([(summed, False)], inside.arrays | _arrays_of(given)))",
        "self._add(_Event([(summed, True)], inside.arrays | _arrays_of(given)))",
        WALK,
        "summed_whole",
    ),
    Change(
        "plan-segments-of-a-part",
        "dft_jax/planner/models.py",
        "most_segments = max(length // _LEAST_MEAN_LENGTH, 1)",
        "most_segments = max(shape[-1] // _LEAST_MEAN_LENGTH, 1)",
        ("tests/planner/test_plan.py",),
        "segments_of_a_whole_row",
    ),
]

# ---- adapters

LORA = ("tests/models/test_lora.py",)
LORA_TRAINING = ("tests/training/test_lora.py",)
LORA_RUN = ("tests/test_lora_run.py",)
OF_ADAPTERS = [
    Change(
        "lora-scale-is-alpha",
        "dft_jax/models/lora.py",
        "return alpha / (math.sqrt(rank) if rslora else rank)",
        "return alpha",
        LORA,
        "peft and all_linear",
    ),
    Change(
        "lora-scale-of-rslora-always",
        "dft_jax/models/lora.py",
        "(math.sqrt(rank) if rslora else rank)",
        "math.sqrt(rank)",
        LORA,
        "peft and all_linear",
    ),
    Change(
        "lora-a-and-b-of-o-swapped",
        "dft_jax/models/hf/peft.py",
        "pairs[name] = Pair(a_ZI, b_OZ,",
        "if 'o_proj' in module:\n"
        "                a_ZI, b_OZ = b_OZ.T, a_ZI.T\n"
        "            pairs[name] = Pair(a_ZI, b_OZ,",
        LORA,
        "peft and all_linear",
    ),
    Change(
        "lora-scaled-twice-on-merge",
        "dft_jax/models/hf/merging.py",
        "*= np.float32(self.scale)",
        "*= np.float32(self.scale**2)",
        LORA,
        "merged_logits and all_linear",
    ),
    Change(
        "lora-scaled-twice-for-sampling",
        "dft_jax/models/adapters.py",
        "+ scale * update",
        "+ scale**2 * update",
        LORA,
        "float32_sums",
    ),
    Change(
        "lora-head-gradient-kept",
        "dft_jax/training/step.py",
        "head_gradient=model.trains_head",
        "head_gradient=True",
        LORA_TRAINING,
        "adapters_alone",
    ),
    Change(
        "lora-in-bfloat16",
        "dft_jax/models/layers.py",
        "init, None, shape, jnp.float32).value",
        "init, None, shape, jnp.bfloat16).value",
        LORA_TRAINING,
        "left_alone",
    ),
    Change(
        "lora-of-the-layer-before",
        "dft_jax/models/hf/peft.py",
        'a, b = node["a"][tensor.index], node["b"][tensor.index]',
        'a, b = node["a"][tensor.index - 1], node["b"][tensor.index - 1]',
        LORA,
        "adapted_logits and all_linear",
    ),
    Change(
        "lora-any-base-resumes",
        "dft_jax/training/adapters.py",
        'return {"base_sha256": require_base(what, trained_on, source)}',
        'return {"base_sha256": ""}',
        LORA_RUN,
        "another_base",
    ),
]

# ---- images

ROWS_OF_IMAGES = ("tests/data/test_image_rows.py",)
PICTURES = ("tests/data/test_images.py",)
TOWER = ("tests/models/test_vision.py",)
VL = ("tests/models/test_qwen2_5_vl.py",)
SHOWN = ("tests/sampling/test_images.py",)
PROBLEMS_SHOWN = ("tests/evals/test_image_problems.py",)
OF_IMAGES = [
    Change(
        "sampling-position-ahead-of-its-image",
        "dft_jax/models/cached.py",
        "(places_B + deltas_B)[:, None, None]",
        "(places_B - deltas_B)[:, None, None]",
        SHOWN,
        "five_tokens",
    ),
    Change(
        "sampling-position-as-place-in-the-cache",
        "dft_jax/models/cached.py",
        "x_B1D, segments_B1, places_B1, cache",
        "x_B1D, segments_B1, places_B1 + deltas_B[:, None], cache",
        SHOWN,
        "five_tokens",
    ),
    Change(
        "sampling-position-of-another-slot",
        "dft_jax/sampling/decode.py",
        "deltas_B = select(new.deltas_B, slots.deltas_B)",
        "deltas_B = select(new.deltas_B[::-1], slots.deltas_B)",
        SHOWN,
        "full_forward",
    ),
    Change(
        "sampling-images-of-the-next-prompt",
        "dft_jax/data/image_files.py",
        "found.append([pool.submit(read, picture)",
        "found.insert(0, [pool.submit(read, picture)",
        SHOWN,
        "five_tokens",
    ),
    Change(
        "sampling-other-images-one-prompt",
        "dft_jax/sampling/prompts.py",
        "(request.prompt_ids, shown)",
        "(request.prompt_ids, ())",
        SHOWN,
        "prompts_are_one",
    ),
    Change(
        "evaluation-goes-on-with-other-images",
        "dft_jax/evals/journal.py",
        "row.get(IMAGES, []) != shown",
        "len(row.get(IMAGES, [])) != len(shown)",
        PROBLEMS_SHOWN,
        "says_which",
    ),
    Change(
        "image-rows-and-columns-swapped",
        "dft_jax/data/image_rows.py",
        "np.stack([np.zeros_like(row), row, col])",
        "np.stack([np.zeros_like(row), col, row])",
        ROWS_OF_IMAGES,
    ),
    Change(
        "image-position-goes-on-after-its-tokens",
        "dft_jax/data/image_rows.py",
        "now += max(n_rows, n_cols)",
        "now += n_rows * n_cols",
        ROWS_OF_IMAGES,
    ),
    Change(
        "image-windows-of-8-units",
        "dft_jax/models/spec.py",
        "return self.window_size // (self.patch_size * self.merge)",
        "return self.window_size // self.patch_size",
        ROWS_OF_IMAGES,
    ),
    Change(
        "image-tokens-in-the-order-of-windows",
        "dft_jax/data/image_rows.py",
        'places_J=np.argsort(order_J, kind="stable"),',
        "places_J=np.arange(len(order_J)),",
        ROWS_OF_IMAGES,
    ),
    Change(
        "image-windows-of-a-row-share-numbers",
        "dft_jax/data/image_rows.py",
        "1 + n_windows + order.windows_I",
        "1 + order.windows_I",
        ROWS_OF_IMAGES,
    ),
    Change(
        "image-sections-interleaved",
        "dft_jax/models/layers.py",
        "positions_BL3[:, :, np.array(rope.axes)]",
        "positions_BL3[:, :, np.arange(len(rope.axes)) % 3]",
        TOWER,
        "logits_equal",
    ),
    Change(
        "image-gelu-by-tanh",
        "dft_jax/models/vision.py",
        "approximate=False",
        "approximate=True",
        TOWER,
        "logits_equal",
    ),
    Change(
        "image-full-and-window-blocks-swapped",
        "dft_jax/models/vision.py",
        "is_full = np.isin(",
        "is_full = ~np.isin(",
        TOWER,
        "logits_equal",
    ),
    Change(
        "image-band-without-the-block-after",
        "dft_jax/models/vision.py",
        "[padded[:, :-2], padded[:, 1:-1], padded[:, 2:]]",
        "[padded[:, :-2], padded[:, 1:-1]]",
        TOWER,
        "by_blocks and 64",
    ),
    Change(
        "image-second-frame-forgotten",
        "dft_jax/models/vision.py",
        "kernel.sum(axis=2)",
        "kernel[:, :, 0]",
        TOWER,
        "normalised",
    ),
    Change(
        "image-rounded-half-up",
        "dft_jax/data/images.py",
        "high, wide = round(height / unit) * unit, round(width / unit) * unit",
        "high, wide = int(height / unit + 0.5) * unit, int(width / unit + 0.5) * unit",
        PICTURES,
        "sizes",
    ),
    Change(
        "image-columns-before-rows",
        "dft_jax/data/images.py",
        "cut.transpose(0, 3, 1, 4, 6, 2, 5)",
        "cut.transpose(0, 3, 4, 1, 6, 2, 5)",
        PICTURES,
        "order_of_patches",
    ),
    Change(
        "image-links-lead-out",
        "dft_jax/data/images.py",
        "found = Path(os.path.realpath(inside / file))",
        "found = Path(os.path.normpath(inside / file))",
        PICTURES,
        "folder",
    ),
    Change(
        "tower-written-as-the-text",
        "dft_jax/models/hf/tensor_files.py",
        "_Entry((tensor,), DTYPES[source.headers[tensor.name][1]], source)",
        "_Entry((tensor,), dtype, source)",
        VL,
        "keeps_its_bytes",
    ),
    Change(
        "tensors-in-our-spelling",
        "dft_jax/models/hf/tensor_files.py",
        "name if source is None else source.spelled(name)",
        "name",
        VL,
        "byte_for_byte",
    ),
]

# ---- Phi-3: tensors that hold several matrices, and frequencies by the length of a text

PHI3 = ("tests/models/test_phi3.py",)
OF_PHI3 = [
    Change(
        "joined-by-the-alphabet",
        "dft_jax/models/hf/tensors.py",
        "for tensor in sorted(table, key=lambda tensor: _place_in(order, tensor)):",
        "for tensor in table:",
        GOLDEN,
        "logits_equal and phi3",
    ),
    Change(
        "joined-written-backwards",
        "dft_jax/models/hf/tensor_files.py",
        "parts.sort(key=lambda part: part.rows.start if part.rows else 0)",
        "parts.sort(key=lambda part: -part.rows.start if part.rows else 0)",
        ("tests/models/hf/test_export.py",),
        "byte_identical and phi3",
    ),
    Change(
        "joined-measured-as-its-first-rows",
        "dft_jax/models/hf/rounding.py",
        "base.read(tensor.name, tensor.row_slice)",
        "base.read(tensor.name)[: tensor.shape[0]]",
        PHI3,
        "measured",
    ),
    Change(
        "joined-adapter-in-the-first-rows",
        "dft_jax/models/hf/peft.py",
        "b_OZ[tensor.row_slice] = pair.b_OZ",
        "b_OZ[: len(pair.b_OZ)] = pair.b_OZ",
        PHI3,
        "as_peft",
    ),
    Change(
        "joined-adapter-of-a-third-of-the-scale",
        "dft_jax/models/hf/peft.py",
        "replace(lora, rank=rank, alpha=alpha)",
        "replace(lora, rank=rank)",
        PHI3,
        "as_peft",
    ),
    Change(
        "rope-turns-all-of-a-head",
        "dft_jax/models/families/phi3.py",
        "return Rope(theta) if share == 1 else PartialRope(theta, share=share)",
        "return Rope(theta)",
        PHI3,
        "positions_without",
    ),
    Change(
        "rope-frequencies-of-the-whole-head",
        "dft_jax/models/layers.py",
        "/ np.float32(width)\n    return np.float32(rope.theta)",
        "/ np.float32(head_dim)\n    return np.float32(rope.theta)",
        GOLDEN,
        "logits_equal and phi3",
    ),
    Change(
        "rope-turns-the-last-dimensions",
        "dft_jax/models/layers.py",
        "turned_BLHK = rotate(x_BLHK[..., :width], angles_BLk, factor)",
        "x_BLHK = x_BLHK[..., ::-1]\n        "
        "turned_BLHK = rotate(x_BLHK[..., :width], angles_BLk, factor)",
        GOLDEN,
        "logits_equal and phi3",
    ),
    Change(
        "longrope-without-attention-factor",
        "dft_jax/models/decoder.py",
        "q_BLHK = layers.rotate(q_BLHK, angles_BLk, rope.attention_factor)",
        "q_BLHK = layers.rotate(q_BLHK, angles_BLk)",
        GOLDEN,
        "logits_equal and phi3",
    ),
    Change(
        "longrope-by-the-length-of-the-row",
        "dft_jax/models/longrope.py",
        "return (there_BL < L) & (found_BL == segments_BL) & (segments_BL > 0)",
        "return segments_BL > 0",
        GOLDEN,
        "example_alone",
    ),
    Change(
        "longrope-by-position",
        "dft_jax/models/longrope.py",
        "return (there_BL < L) & (found_BL == segments_BL) & (segments_BL > 0)",
        "return positions_BL >= context",
        GOLDEN,
        "example_alone",
    ),
    Change(
        "longrope-one-token-early",
        "dft_jax/models/longrope.py",
        "- positions_BL + context",
        "- positions_BL + context - 1",
        GOLDEN,
        "example_alone",
    ),
    Change(
        "longrope-cache-of-another-length",
        "dft_jax/sampling/rereading.py",
        "return before if 0 < before < request.max_new_tokens else request.max_new_tokens",
        "return request.max_new_tokens",
        ("tests/sampling/test_sampler.py",),
        "greedy_equals and phi3_long",
    ),
    Change(
        "longrope-prompts-always-short",
        "dft_jax/models/cached.py",
        "(lengths_B > rope.original_context)",
        "(lengths_B < 0)",
        ("tests/sampling/test_sampler.py",),
        "greedy_equals and phi3_long",
    ),
]

# ---- rows that are cut, and experts

SEQUENCE = ("tests/models/attention/test_sequence.py",)
EXPERTS = ("tests/models/test_moe.py",)
EXPERT_AXIS = ("tests/models/test_expert_axis.py",)
ROUTING = ("tests/models/test_routing.py",)
OF_SEQUENCE = [
    Change(
        "sequence-queries-of-the-first-part",
        "dft_jax/models/attention/sequence.py",
        "early = number * n_in_piece",
        "early = 0 * number",
        SEQUENCE,
        "equals_dense",
    ),
    Change(
        "sequence-window-one-key-short",
        "dft_jax/models/attention/sequence.py",
        "min(n_reached, n_queries + window - 1)",
        "min(n_reached, n_queries + window - 2)",
        SEQUENCE,
        "equals_dense",
    ),
    Change(
        "sequence-keys-of-one-part",
        "dft_jax/models/attention/sequence.py",
        "lax.all_gather(x_BlX, AXIS, axis=1, tiled=True)",
        "lax.concatenate([x_BlX] * lax.axis_size(AXIS), 1)",
        SEQUENCE,
        "equals_dense",
    ),
    Change(
        "sequence-segments-of-the-first-part",
        "dft_jax/models/attention/sequence.py",
        "lax.axis_index(AXIS) * l, l, axis=1)",
        "0 * lax.axis_index(AXIS), l, axis=1)",
        SEQUENCE,
        "splash_equals",
    ),
    Change(
        "sequence-late-pieces-not-in-reverse",
        "dft_jax/sharding.py",
        "late_BnpX = halves_B2npX[:, 0], halves_B2npX[:, 1, ::-1]",
        "late_BnpX = halves_B2npX[:, 0], halves_B2npX[:, 1]",
        SEQUENCE,
        "early_and_a_late",
    ),
    Change(
        "sequence-splash-takes-queries-in-the-order-of-the-row",
        "dft_jax/models/attention/kernels.py",
        "    if n_parts > 1:\n        # The places",
        "    if n_parts < 1:\n        # The places",
        SEQUENCE,
        "tiles_on_every_device",
    ),
    Change(
        "sequence-scores-as-they-lie",
        "dft_jax/analysis/token_scores.py",
        "in_row_order(x_BL, batch.n_parts)",
        "in_row_order(x_BL, 1)",
        SEQUENCE,
        "scores_are",
    ),
    Change(
        "sequence-long-texts-by-lying-places",
        "dft_jax/models/decoder.py",
        "sharding.in_row_order(positions_BL, n)",
        "positions_BL",
        SEQUENCE,
        "loss_and_gradients and phi3_long",
    ),
    Change(
        "sequence-positions-of-images-stay",
        "dft_jax/models/model.py",
        "sharding.in_parts(images.positions_BL3, n)",
        "images.positions_BL3",
        ("tests/training/test_images.py",),
        "are_cut",
    ),
    Change(
        "sequence-gradient-of-the-head-of-one-part",
        "dft_jax/losses/devices.py",
        "row_axes.append(positions)",
        "pass",
        SEQUENCE,
        "loss_and_gradients and gemma3",
    ),
]
OF_EXPERTS = [
    Change(
        "experts-shares-do-not-add-up",
        "dft_jax/models/moe.py",
        "if experts.normalised:",
        "if not experts.normalised:",
        GOLDEN,
        "logits_equal and qwen3_moe",
    ),
    Change(
        "experts-one-fewer",
        "dft_jax/models/moe.py",
        "jax.lax.top_k(shares_NE, experts.per_token)",
        "jax.lax.top_k(shares_NE, experts.per_token - 1)",
        GOLDEN,
        "logits_equal and mixtral",
    ),
    Change(
        "experts-sorted-and-not-put-back",
        "dft_jax/models/moe.py",
        """    return y_PD[places_P]


def""",
        """    return y_PD


def""",
        EXPERTS,
    ),
    Change(
        "experts-width-not-summed",
        "dft_jax/models/moe.py",
        "y_bLD = jax.lax.psum(y_bLD, width)",
        "pass",
        EXPERTS,
    ),
    Change(
        "experts-numbers-of-the-first-device",
        "dft_jax/models/moe.py",
        "_part(through, jax.lax.axis_index(EXPERT) * n_own, n_own)",
        "_part(through, 0 * jax.lax.axis_index(EXPERT), n_own)",
        EXPERT_AXIS,
        "every_pair",
    ),
    Change(
        "experts-of-others-are-the-last-one",
        "dft_jax/models/moe.py",
        "jnp.where(is_here_NS, number_NS, n_own)",
        "jnp.where(is_here_NS, number_NS, n_own - 1)",
        EXPERT_AXIS,
        "every_pair",
    ),
    Change(
        "experts-parts-added-up-in-another-place",
        "dft_jax/models/moe.py",
        "jax.lax.psum_scatter(y_MND, EXPERT, scatter_dimension=0)",
        "jax.lax.psum_scatter(y_MND[::-1], EXPERT, scatter_dimension=0)",
        EXPERT_AXIS,
        "every_pair",
    ),
    Change(
        "experts-undefined-rows-are-read",
        "dft_jax/models/moe.py",
        "return present(jax.lax.ragged_dot(x_PI, kernel_EOI.swapaxes(1, 2), pairs.sizes_E))",
        "return jax.lax.ragged_dot(x_PI, kernel_EOI.swapaxes(1, 2), pairs.sizes_E)",
        EXPERT_AXIS,
        "undefined",
    ),
    Change(
        "experts-gradient-lies-as-it-is-made",
        "dft_jax/models/moe.py",
        "down_eDF = with_layout_constraint(down_eDF, Layout(major_to_minor=(0, 1, 2)))",
        "pass",
        EXPERTS,
        "lies_in_a_tpus_memory",
    ),
    Change(
        "experts-dense-parts-are-copies",
        "dft_jax/sharding.py",
        '_PARAMETERS = ("fsdp", "expert", "sequence")',
        '_PARAMETERS = ("fsdp", "sequence")',
        EXPERT_AXIS,
        "parameters_are_cut",
    ),
    Change(
        "balance-counts-padding",
        "dft_jax/models/routing.py",
        "is_chosen_BLSE &= is_token_BL[..., None, None]",
        "pass",
        ROUTING,
        "that_of_transformers",
    ),
    Change(
        "balance-per-pair",
        "dft_jax/models/routing.py",
        "jnp.maximum(pairs_E.sum() / per_token, 1)",
        "jnp.maximum(pairs_E.sum(), 1)",
        ROUTING,
        "that_of_transformers",
    ),
    Change(
        "balance-not-divided-over-the-step",
        "dft_jax/training/step.py",
        'balance_weight * sums["balance"] / n_routed',
        'balance_weight * sums["balance"]',
        ROUTING,
        "balanced_step",
    ),
]

# ---- files that processes share out

SHARES = ("tests/models/hf/test_shares.py",)
MESHES = "every_mesh and phi3_long"
OF_SHARES = [
    Change(
        "shares-of-the-first-parameter",
        "dft_jax/models/hf/load.py",
        "rows = slice(start + first, start + first + n_read)",
        "rows = slice(first, first + n_read)",
        SHARES,
        MESHES,
    ),
    Change(
        "shares-gathered-whole",
        "dft_jax/models/hf/load.py",
        "rows = sharding.with_layout(rows, layout.mesh, sharding.cutting(layout))",
        "pass",
        SHARES,
        "exchange_no_more",
    ),
    Change(
        "shares-read-after-a-bad-value",
        "dft_jax/models/hf/load.py",
        "if n_read <= 0 or problems:",
        "if n_read <= 0:",
        SHARES,
        "bad_value",
    ),
    Change(
        "shares-of-an-update-by-themselves",
        "dft_jax/models/hf/merging.py",
        "range(start - start % _BLOCK_ROWS, stop, _BLOCK_ROWS)",
        "range(start, stop, _BLOCK_ROWS)",
        SHARES,
        "bits_of_the_whole",
    ),
    Change(
        "shares-nothing-added-to-a-row",
        "dft_jax/models/hf/merging.py",
        "where=is_changed[:, None]",
        "where=True",
        SHARES,
        "bits_of_the_whole",
    ),
    Change(
        "shares-in-the-order-of-devices",
        "dft_jax/models/hf/fetch.py",
        "tensor = slots[shard.index[0].start or 0]",
        "tensor = slots[shard.device.id]",
        SHARES,
        MESHES,
    ),
    Change(
        "shares-all-written-by-one",
        "dft_jax/models/hf/tensor_files.py",
        "files_of[writers[number % len(writers)]].append(file_name)",
        "files_of[writers[0]].append(file_name)",
        SHARES,
        "processes_share_out and two",
    ),
    Change(
        "shares-written-unseen",
        "dft_jax/runtime/folders.py",
        "is_there = file.read_text() == word",
        "is_there = file.read_text() == word or True",
        SHARES,
        "processes_share_out and two",
    ),
]

# ---- runs in a bucket

BUCKET = ("tests/runtime/test_bucket.py",)
IN_BUCKET = ("tests/checkpoints/test_in_bucket.py",)
OF_BUCKETS = [
    Change(
        "bucket-manifest-goes-last",
        "dft_jax/checkpoints/storage.py",
        "key=lambda name: name != MANIFEST",
        "key=lambda name: name == MANIFEST, reverse=False",
        IN_BUCKET,
        "manifest_comes_last",
    ),
    Change(
        "bucket-unanswered-is-absent",
        "dft_jax/runtime/bucket.py",
        """            self.info(path)
        except FileNotFoundError:""",
        """            self.info(path)
        except OSError:""",
        BUCKET,
        "taken_for_absent",
    ),
    Change(
        "bucket-unanswered-is-damage",
        "dft_jax/checkpoints/manifest.py",
        """    except ConnectionError:
        # Of a bucket that cannot be asked nothing is known.
        raise
""",
        "",
        IN_BUCKET,
        "no_damage",
    ),
    Change(
        "bucket-listing-taken-as-it-is",
        "dft_jax/runtime/bucket.py",
        "        if not wrong:",
        "        if True:",
        BUCKET,
        "lags_behind",
    ),
    Change(
        "bucket-lease-without-precondition",
        "dft_jax/runtime/lease.py",
        "        bucket.write_if(self.address, content, generation)",
        "        bucket.write(self.address, content)",
        BUCKET,
        "lease or job",
    ),
    Change(
        "bucket-lease-of-the-living-taken",
        "dft_jax/runtime/lease.py",
        "time.monotonic() - since >= STALE_S",
        "time.monotonic() - since >= 0",
        BUCKET,
        "second_job",
    ),
    Change(
        "bucket-copy-of-before-the-lease",
        "dft_jax/runtime/working_copy.py",
        "        self.there = fetch(folder)",
        "        self.there = _files(folder)",
        BUCKET,
        "copy_follows",
    ),
    Change(
        "bucket-rows-after-their-checkpoint",
        "dft_jax/training/folder.py",
        """        self.publish()
        self.checkpoints.save(int(jax.device_get(state.step)), state, self.identity)
""",
        """        self.checkpoints.save(int(jax.device_get(state.step)), state, self.identity)
        self.publish()
""",
        ("tests/training/test_folder.py",),
    ),
]

# ---- layers' inputs on the host

OF_OFFLOADING = [
    Change(
        "offload-saves-nothing",
        "dft_jax/models/rematerialisation.py",
        "names_which_can_be_offloaded=(LAYER_INPUT,),",
        "names_which_can_be_offloaded=(),",
        ("tests/models/test_rematerialisation.py",),
        "on_the_host",
    ),
    Change(
        "offload-where-there-is-no-such-memory",
        "dft_jax/models/rematerialisation.py",
        "_HOST_MEMORY not in kinds",
        "not kinds",
        ("tests/models/test_rematerialisation.py",),
        "refused",
    ),
    Change(
        "offload-counted-on-the-device",
        "dft_jax/planner/liveness.py",
        "aval.memory_space == jax.memory.Space.Host",
        "False",
        ("tests/planner/test_offload.py",),
        "leave_the_device",
    ),
]

CHANGES = [
    *OF_LOSSES,
    *OF_DATA,
    *OF_TRAINING,
    *OF_MODELS,
    *OF_EVALUATION,
    *OF_RUNS,
    *OF_ADAPTERS,
    *OF_IMAGES,
    *OF_PHI3,
    *OF_SEQUENCE,
    *OF_EXPERTS,
    *OF_SHARES,
    *OF_BUCKETS,
    *OF_OFFLOADING,
]
