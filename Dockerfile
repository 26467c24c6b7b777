# Training image on the image that verl publishes for vLLM 0.24 (CUDA 13, torch 2.11.0, flash-attn 2.8.3 built in):
#
#   docker build -t verl-self-distill .
#   docker run --gpus all --ipc=host -v "$PWD/outputs:/workspace/outputs" -v "$PWD/data:/workspace/data" verl-self-distill \
#       python -m recipes.dasd.main experiment=qwen3_1_7b_dapo hardware=8xh100
ARG VERL_IMAGE=verlai/verl:vllm024.dev2
FROM ${VERL_IMAGE}

ENV PIP_NO_CACHE_DIR=1 PIP_BREAK_SYSTEM_PACKAGES=1 PYTHONUNBUFFERED=1
WORKDIR /opt/verl-self-distill

# What the image was built with stays: anything that would replace torch, vllm or flash-attn fails the build here.
RUN python3 -m pip freeze | grep -iE '^(torch|torchvision|torchaudio|vllm|flash[-_]attn)==' > /tmp/kept.txt && cat /tmp/kept.txt
COPY . .
RUN python3 -m pip install -c /tmp/kept.txt ".[wandb]" "transformers==5.9.0"
RUN python3 -c "import torch, vllm, flash_attn, verl, recipes.entry, workers.divergence; print(torch.__version__, vllm.__version__, verl.__version__)"

WORKDIR /workspace
