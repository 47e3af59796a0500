"""PANGAEA (Marsocci et al., arXiv 2412.04204): a frozen encoder, a small decoder, and a fixed protocol on many tasks.

- `protocol`: every number and rule of the benchmark as one value, in two versions, `published` and `corrected`.
- `decoders`: what is trained on the features, each as pure functions of plain dictionaries.
- `losses`, `metrics`, `optimization`, `tiling`: what a training step, a score and a large image need.

Arrays are channels-last throughout: features and logits [B, h, w, D], labels [B, H, W].
"""
