"""Finds policies: `run` searches, `broker` owns a run, `front` reads what came out."""
