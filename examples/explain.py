"""Show what each change of the knee saves; `search.py` made the run."""

import varsearch

found = varsearch.explain(":knee", storage="example.db")
print(found.title)
for cells in found.cells():
    print(*cells, sep=" | ")
