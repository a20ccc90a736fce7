"""Draw images with the policy of `search.py`; it takes nothing but the deployment install."""

import torch

import varsearch

model = varsearch.load("mnist")
with varsearch.apply(model, varsearch.load_policy("example-policy.json")) as fast:
    images = fast.images(torch.arange(10), seed=0)
print(images.shape)  # one image per class: (10, 1, 32, 32), in [0, 1]
