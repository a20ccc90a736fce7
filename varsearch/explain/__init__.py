"""What each change of a policy saves and costs, and policies side by side.

`varsearch.explain(...)` and `varsearch.compare(...)` are in `api.py`.
"""

import sys

from varsearch.callable_package import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
