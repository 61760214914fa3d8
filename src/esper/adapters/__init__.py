"""Adapters: small kernels beside the layers of a pretrained, frozen network."""
