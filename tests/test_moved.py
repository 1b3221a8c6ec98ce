"""Names of version 0.1 still work for one version, and say where things are now."""

import importlib
import sys

import pytest

import moe_probe
from moe_probe.moved import MODULES, PACKAGE


@pytest.fixture(autouse=True)
def packages_as_they_were():
    """Importing a submodule sets an attribute of its package."""
    packages = {old.rpartition(".")[0] for old in MODULES}
    before = {name: dict(vars(importlib.import_module((PACKAGE + name).rstrip(".")))) for name in packages}
    yield
    for name, attributes in before.items():
        package = importlib.import_module((PACKAGE + name).rstrip("."))
        for added in vars(package).keys() - attributes.keys():
            if f"{name}.{added}".lstrip(".") in MODULES:
                delattr(package, added)
        vars(package).update(attributes)
    for old in MODULES:
        sys.modules.pop(PACKAGE + old, None)


@pytest.mark.parametrize("old", MODULES)
def test_a_module_is_found_under_its_old_name_with_a_warning(old):
    with pytest.warns(DeprecationWarning, match=f"{PACKAGE}{old} is now {PACKAGE}{MODULES[old]}"):
        module = importlib.import_module(PACKAGE + old)
    new = importlib.import_module(PACKAGE + MODULES[old])
    assert new.__spec__.name == PACKAGE + MODULES[old]
    public = [name for name in vars(new) if not name.startswith("_")]
    assert public
    assert all(getattr(module, name) is getattr(new, name) for name in public)


@pytest.mark.parametrize("old", ["static.similarity", "static.pca", "dynamic.run"])
def test_a_function_that_a_package_exports_under_such_a_name_can_still_be_called(old):
    package, _, name = old.rpartition(".")
    with pytest.warns(DeprecationWarning, match="is now"):
        importlib.import_module(PACKAGE + old)
    with pytest.raises(moe_probe.errors.MoEProbeError):
        getattr(getattr(moe_probe, package), name)("nowhere/at-all", ["a"])


def test_a_name_that_never_was_is_still_not_there():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("moe_probe.dynamic.never")


@pytest.mark.parametrize("name", ["expert_activation", "router_saturation", "routing_drift", "gating_residual"])
def test_comparisons_are_found_among_the_dynamic_analyses(name):
    with pytest.warns(DeprecationWarning, match=f"dynamic.{name} is now moe_probe.comparisons.{name}"):
        function = getattr(moe_probe.dynamic, name)
    assert function is getattr(moe_probe.comparisons, name)
