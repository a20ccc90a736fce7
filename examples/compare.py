"""Put published systems and the policy of `search.py` side by side, on the same noise."""

import varsearch

found = varsearch.compare("hack", "fastvar", "example-policy.json", target="4090", images=64, storage="example.db")
for name in found:
    print(name, found[name].metrics["delta_fid"].value, found[name].metrics["speedup"].value)
