"""Every adapter that is offered passes the contract."""

from contract import OFFERED, UPSTREAMS, TestContract, TestDeclaration, TestPatch  # noqa: F401


def test_every_adapter_has_a_script_for_the_contract():
    assert {path.stem for path in UPSTREAMS.glob("*.py")} == set(OFFERED)
