from tests.kernels.conftest import interpreter

__all__ = ["interpreter"]
