"""`import varsearch` is light, and what it names is there."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import varsearch

HEAVY = ("torch", "ray", "optuna", "sqlalchemy", "alembic", "scipy", "numpy", "pandas", "matplotlib", "pydantic")

COMMANDS = {
    "--help": (),
    "run --help": (),
    "presets": (),
    "models nope": (),
    "run --model nope --storage x.db": (),
    "status --storage x.db": ("sqlalchemy", "alembic", "numpy"),
}
"""Commands that load no model, with the heavy packages besides pydantic that they need."""


def loaded(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has after `code`."""
    script = f"import sys\n{code}\nprint('loaded', *sorted(set(sys.modules) & set({HEAVY})))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return set(out.split("loaded")[-1].split())


def test_importing_the_package_and_its_callable_parts_loads_nothing_heavy() -> None:
    assert loaded("import varsearch, varsearch.search, varsearch.explain; varsearch.search; varsearch.explain") == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_loads_no_model_loads_no_torch(command: str) -> None:
    code = f"from varsearch.cli.main import main; main({command.split()})"
    assert loaded(code) <= {"pydantic", *COMMANDS[command]}


def test_every_name_is_there() -> None:
    assert set(dir(varsearch)) == set(varsearch.__all__)
    for name in varsearch.__all__:
        assert getattr(varsearch, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        varsearch.nothing  # noqa: B018


def test_a_package_is_called_like_its_function_whatever_was_imported_before() -> None:
    code = "import varsearch.search.core.pareto, varsearch.explain, varsearch"
    code += "; assert callable(varsearch.search) and callable(varsearch.explain)"
    code += "; assert varsearch.search.core.pareto.dominates((0,), (1,))"
    assert "torch" not in loaded(code)
    assert "budget" in inspect.signature(varsearch.search).parameters
    assert "measure" in inspect.signature(varsearch.explain).parameters
    with pytest.raises(TypeError, match="budgets"):
        varsearch.search(budgets=3)  # type: ignore[call-arg]
