"""The log of what was replaced puts back what was there, and names what somebody else replaced."""

import pytest

from topk_plugin.monkeypatch import PatchLog


def test_the_log_undoes_what_was_replaced_twice():
    class Owner:
        value = 1

    log = PatchLog()
    log.replace(Owner, "value", 2)
    log.replace(Owner, "value", 3)
    log.replace(Owner, "new", 4)
    assert log.verify() == []
    assert log.holds(Owner, "value")
    assert log.undo() == []
    assert Owner.value == 1
    assert not hasattr(Owner, "new")
    assert not log.holds(Owner, "value")
    log.replace(Owner, "value", 2)
    log.replace(Owner, "value", 3)
    Owner.value = 5
    assert log.undo() == ["Owner.value"]
    assert Owner.value == 5


def test_what_cannot_be_replaced_is_not_in_the_log():
    log = PatchLog()
    with pytest.raises(TypeError):
        log.replace(int, "bit_length", None)
    assert log.undo() == []
