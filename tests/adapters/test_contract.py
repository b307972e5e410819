"""Every adapter that is offered passes the contract."""

from contract import (
    OFFERED,
    UPSTREAMS,
    TestContract,  # noqa: F401
    TestDeclaration,  # noqa: F401
    TestPatch,  # noqa: F401
    in_libraries,
)


def test_every_adapter_has_a_script_for_the_contract():
    assert {path.stem for path in UPSTREAMS.glob("*.py")} == set(OFFERED)


def test_lines_that_any_program_has_are_nobodys():
    """One of torch's and one of Python's own, with and without others."""
    common = {"for name, child in module.named_children():", "if __name__ == '__main__':"}
    own = {"for name, child in module.named_childrens_of_ours():", "for name, child in module"}
    assert in_libraries(common | own) == common
    assert in_libraries(own) == set()
    assert in_libraries(set()) == set()
