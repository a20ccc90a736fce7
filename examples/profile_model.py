"""Measure what each setting of a model loses and saves on its own. Minutes on two cores, once per database."""

import varsearch

found = varsearch.profile(model="mnist", target="4090", storage="example.db")
for effect in found.rows[:5]:
    print(f"{effect.setting}: loss {effect.loss:.4f}, latency {effect.latency_ms:+.3f} ms, {effect.peak_bytes:+.0f} B")
