# %% [markdown]
# # A tour in pictures
#
# What self-distillation does to the tokens of an answer, on the embedded model, in plain torch: no GPU, no network, two
# minutes. `make notebook` runs [tour.py](tour.py) and makes [tour.ipynb](tour.ipynb) of it; the functions that train
# are those of [dasd_in_torch.py](dasd_in_torch.py).

# %%
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

sys.path.insert(0, str(Path("examples").resolve() if Path("examples").is_dir() else Path.cwd()))
import dasd_in_torch as loop

from config import STARTER
from recipes.common.teacher.prompts import render, student_messages, teacher_messages
from rewards.math import compute_score
from workers.divergence import token_divergence

logging.disable_progress_bar()
STEPS = int(os.environ.get("TOUR_STEPS", "12"))  # of training, further down
BLUE, RED, GREY = "#2a78d6", "#c8452f", "#8a8a85"
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 100, "font.size": 9})

tokenizer = AutoTokenizer.from_pretrained(STARTER / "model")


def fresh() -> torch.nn.Module:
    """The embedded model, as it is before training."""
    return AutoModelForCausalLM.from_pretrained(STARTER / "model", dtype=torch.float32)


# %% [markdown]
# ## Student and teacher are one model
#
# The student answers a problem. The teacher is the same model, reading the same tokens after a prompt that also shows
# the worked solution. `delta` is how much more the teacher would have said each token, in nats.

# %%
torch.manual_seed(4)
model = fresh()
row = pd.read_parquet(STARTER / "data" / "train.parquet").iloc[7]
asked = [render(tokenizer, student_messages(row["problem"]), loop.TEMPLATE)] * 8
shown = [render(tokenizer, teacher_messages(row["problem"], row["solution"]), loop.TEMPLATE)] * 8
responses, mask = loop.sample(model, tokenizer, asked)
texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
rewards = torch.tensor([compute_score("starter", text, row["answer"])["score"] for text in texts])
with torch.no_grad():
    student, entropy = loop.scores(model, tokenizer, asked, responses)
    teacher, _ = loop.scores(model, tokenizer, shown, responses)
print(row["problem"].partition(": ")[2], "=", row["answer"])
for text, reward in zip(texts, rewards, strict=True):
    print(f"{reward:.0f}  {text!r}")

# %% [markdown]
# ## What a token earns
#
# GRPO gives every token of a response the same advantage. DASD adds the teacher's gap where the student is certain
# (attraction, omega above 0) and takes it away where the student is not (repulsion). Below, a wrong response: its
# entropy, the gap, the direction, and the product that is added, which is small on purpose.

# %%
wrong = int((rewards < 1).nonzero()[0]) if (rewards < 1).any() else 0
problem = [row["problem"]] * len(rewards)
credit = loop.credit(rewards, problem, mask, student, entropy, teacher, target_ratio=0.005)
length = int(mask[wrong].sum())
tokens = [tokenizer.decode([i]).replace("\n", "⏎") or "·" for i in responses[wrong, :length].tolist()]
tokens = [{"<|im_end|>": "end", "\\boxed{": "box"}.get(token, token) for token in tokens]
panels = {
    "entropy, nats": entropy,
    "δ, nats": teacher - student,
    "direction ω": credit.tokens["omega"],
    "added: β·ω·δ̄": credit.advantages - loop.group_advantage(rewards)[:, None],
}
figure, axes = plt.subplots(len(panels), 1, figsize=(9, 5.4), sharex=True)
for axis, (name, values) in zip(axes, panels.items(), strict=True):
    heights = values[wrong, :length].tolist()
    axis.bar(range(length), heights, color=[BLUE if value >= 0 else RED for value in heights])
    axis.axhline(0, color=GREY, linewidth=0.6)
    axis.set_ylabel(name, fontsize=8)
axes[-1].set_xticks(range(length), tokens, fontsize=8, family="monospace")
figure.suptitle("A wrong response, token by token: blue is above zero, red below")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## A loss over the whole vocabulary, and what a clip does to it
#
# OPSD trains KL(teacher ‖ student) over the vocabulary, each entry bounded from above. With two tokens and a teacher
# that gives the first 0.9: where the student gives it little, the entry is far above the bound, its gradient is gone,
# and what is left pushes the other way.

# %%
probabilities = torch.linspace(0.01, 0.99, 197)
logits = torch.stack([probabilities.log(), (1 - probabilities).log()], dim=1).requires_grad_()
of_teacher = torch.tensor([[0.9, 0.1]]).log().expand_as(logits)
figure, axes = plt.subplots(1, 2, figsize=(9, 3))
for clip, colour in ((None, BLUE), (0.05, RED)):
    loss = token_divergence(logits, of_teacher, kind="forward_kl", clip=clip)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    name = "no clip" if clip is None else f"clip {clip}"
    axes[0].plot(probabilities, loss.detach(), color=colour, label=name)
    axes[1].plot(probabilities, -gradient[:, 0], color=colour, label=name)
for axis, title in zip(axes, ("loss, nats", "descent's push on the teacher's token"), strict=True):
    axis.axhline(0, color=GREY, linewidth=0.6)
    axis.set(title=title, xlabel="student's probability of the teacher's token")
axes[0].legend(frameon=False)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Training
#
# GRPO is DASD with a ratio of 0. The same problems in the same order, a plain loop, one seed: a picture, not a
# measurement. The measured tables, with three seeds and intervals, are in the methods' pages.

# %%
problems = pd.read_parquet(STARTER / "data" / "train.parquet").sample(frac=1, random_state=1)
curves = {}
for name, ratio in {"GRPO": 0.0, "DASD, ratio 0.005": 0.005, "DASD, ratio 0.1": 0.1}.items():
    torch.manual_seed(1)
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    said = []
    for step in range(STEPS):
        rows = problems.iloc[step * loop.PROBLEMS : (step + 1) * loop.PROBLEMS].to_dict("records")
        said.append(loop.train_step(model, tokenizer, optimizer, rows, target_ratio=ratio))
    curves[name] = pd.DataFrame(said)

figure, axes = plt.subplots(1, 2, figsize=(9, 3))
for (name, table), colour in zip(curves.items(), (GREY, BLUE, RED), strict=True):
    for axis, column in zip(axes, ("reward", "entropy"), strict=True):
        axis.plot(table.index + 1, table[column], color=colour, alpha=0.25)
        axis.plot(table.index + 1, table[column].rolling(4, min_periods=1).mean(), color=colour, label=name)
        axis.set(title=f"{column} (running mean of 4 steps)", xlabel="step")
axes[0].legend(frameon=False)
figure.tight_layout()
plt.show()
pd.DataFrame({name: table.tail(4).mean() for name, table in curves.items()}).T.round(3)

# %% [markdown]
# ## From here
#
# - the same on verl's stack, with a report: `self-distill train dasd experiment=starter`
# - your own data and reward: `docs/own_data.md`; a method of your own: `CONTRIBUTING.md`
# - every function that was called here: `docs/python.md`
