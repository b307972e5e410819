"""accelerate and Lightning: two ranks in DDP, four micro-batches a step, against top-k by hand."""

import json
from pathlib import Path

import pytest
from launched import plain_run

SCRIPT = Path(__file__).parents[1] / "frameworks.py"


@pytest.mark.parametrize("name", ["accelerate", "lightning"])
def test_weights_are_those_of_top_k_by_hand(name, tmp_path):
    pytest.importorskip(name)
    done = plain_run(tmp_path, str(SCRIPT), name)
    assert done.status == 0, done.err
    for found in json.loads((tmp_path / "ends.json").read_text()).values():
        assert found["by hand"] <= 1e-9
        assert found["without"] > 1e-3
        # 8, then 4, then 2 of 8 rows of each micro-batch; two steps a pass
        assert found["counted"] == [6, 192, 80]
