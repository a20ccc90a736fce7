"""Search policies for the shipped model, and export the knee of the front. A minute on two idle cores."""

import varsearch

front = varsearch.search("mnist", target="4090", budget=6, images=64, storage="example.db")
for entry in front:
    print(entry)
front.knee.export("example-policy.json")
