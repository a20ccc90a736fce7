"""Apply an exported policy in production: needs only the deployment install.

Run it with `python examples/apply.py example-policy.json`.
"""

import sys
from pathlib import Path

import varsearch
from varsearch.accel import labels_for
from varsearch.models.pictures import grid_png

if __name__ == "__main__":
    model = varsearch.load("mnist")
    policy = varsearch.load_policy(sys.argv[1])
    with varsearch.apply(model, policy) as fast:
        images = fast.images(labels_for(20, model.spec.classes), seed=0)
    Path("example.png").write_bytes(grid_png(images, columns=10, zoom=3))
    print(f"{len(images)} images of {tuple(images.shape[1:])} in example.png")
