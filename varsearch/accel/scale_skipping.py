"""Scale skipping: a scale contributes no tokens, and the next one reads the latent estimate as it stands.

FastVAR (arXiv 2503.23367) and SkipVAR (arXiv 2506.08908) skip the last scales; here any scale but the first may be.
"""

from __future__ import annotations

from varsearch.policy import Policy


def run_scales(policy: Policy) -> tuple[int, ...]:
    """Indices of the scales that the model runs, in order: none of a refiner's."""
    return tuple(k for k, scale in enumerate(policy.scales) if scale.run and not policy.refined(k))
