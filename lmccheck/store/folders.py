"""What lies in a folder of a saved model, by its names: weights in safetensors, an index, an adapter, pickles."""

from __future__ import annotations

CONFIG = "config.json"
SINGLE = ("model", "diffusion_pytorch_model")  # as transformers and timm, and as diffusers call the weights
WEIGHTS = tuple(f"{stem}.safetensors" for stem in SINGLE)
