# %% [markdown]
# # Fine-tune a model and look at it
#
# The small model that ships with the package (0.6 M parameters, pretrained on generated word
# problems) is fine-tuned with DFT for forty steps. Nothing is downloaded; it takes under two
# minutes on two CPU cores. With a model of your own, write its folder or hub id in the place of
# `assets.LAB`.

# %%
from pathlib import Path

import dft_jax as dft
from dft_jax import assets

CHECKOUT = Path(dft.__file__).parents[1]
base = dft.load(assets.LAB)
question = (
    "Dan has 25 stamps. Fay has 5 fewer stamps than Dan. Ben has 7 more stamps than Fay."
    " How many stamps does Ben have?"
)

# %% [markdown]
# ## Before
#
# Four answers at temperature 1. The right one is 27. Each is the same whenever it is asked for
# again: a sample depends on the seed, the question and its number alone.

# %%
for answer in dft.sample(base, question, n=4, temperature=1.0, show_progress=False):
    print(answer, end="\n\n")

# %% [markdown]
# ## The config
#
# A recipe is a Python file with `get_config`; any of its keys can be set. `dft.get_default()` is
# the complete default config without a recipe.

# %%
config = dft.recipe(CHECKOUT / "configs/lab.py", objective="dft", **{"train.steps": 40})
print(config.data.train)
print(config.objective, config.train.steps, config.train.global_batch)
print(config.optimizer.learning_rate, config.optimizer.schedule)

# %% [markdown]
# ## Fine-tuning
#
# If this is interrupted, the same call resumes from the newest checkpoint.

# %%
run = dft.finetune(base, config, workdir="runs/dft", show_progress=False)
print(f"step {run.step}")

# %% [markdown]
# Under DFT the probability of the demonstrated tokens rises (mean p), and so does the nll: the
# loss cares about tokens that are likely already, and gives up on unlikely ones.

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
run.plot("train/nll", axes[0])
run.plot("train/mean_p", axes[1])
plt.show()

# %% [markdown]
# ## After

# %%
for answer in dft.sample(run.lm, question, n=4, temperature=1.0, show_progress=False):
    print(answer, end="\n\n")

# %% [markdown]
# ## A Hugging Face folder
#
# `transformers` loads it, and so does `dft.load`.

# %%
rounding = dft.export(run.lm, "exports/dft")
print(f"{rounding.changed:,} of {rounding.weights:,} weights differ from the base")
again = dft.load("exports/dft")
assert dft.sample(again, question, temperature=0.0, show_progress=False) == dft.sample(
    run.lm, question, temperature=0.0, show_progress=False
)
