"""What is said of a checkpoint with a record of top-k, with another one, and with none."""

import torch
from launched import plain_run
from resumed import CLEAN, KS, LOOP, START, check_resume, equal, go, weights, write

IDLE = """
for n in range(first, last):
    if not first:
        epoch(G, D, optG, optD, n)
    else:
        optG.zero_grad(); G(torch.randn(8, 3)).sum().backward(); optG.step()
"""
NO_LOADER = """
for n in range(first, last):
    epoch(G, D, optG, optD, n, data.split(8) if first else None)
"""


def test_the_verdict_of_a_resumed_run_counts_what_it_did_itself(folder):
    write(folder, CLEAN)
    done = check_resume(folder)
    assert "verdict: 12 generator steps gated, 60 of 96 rows dropped, 3 epochs ended" in done.err


def test_a_resumed_run_in_which_nothing_is_gated_is_an_error(folder):
    """The resumed part trains without the critic: the steps of the first part do not excuse it."""
    write(folder, CLEAN.replace(LOOP, IDLE))
    assert go(folder, 0, 3)[0].status == 0
    done, ks = go(folder, 3, 6)
    assert (done.status, ks) == (3, [])
    assert "NoEffectError" in done.err


def test_a_resumed_run_whose_k_never_decays_says_so(folder):
    write(folder, CLEAN.replace(LOOP, NO_LOADER))
    assert go(folder, 0, 3)[0].status == 0
    done, ks = go(folder, 3, 6)
    assert (done.status, ks) == (0, [4] * 12)
    assert "k never decayed (no DataLoader fed a generator step): pass --every N" in done.err


BARE = (
    START
    + """
from collections import OrderedDict
if first:
    old = torch.load("c.pt", weights_only=True)
    for it, state in zip((G, D, optG, optD), old): it.load_state_dict(state)
"""
    + LOOP
    + """
states = [OrderedDict(m.state_dict()) for m in (G, D)]
states += [{k: s[k] for k in ("state", "param_groups")} for s in
           (optG.state_dict(), optD.state_dict())]
torch.save(states, "c.pt")
"""
)


def test_start_epoch_resumes_where_nothing_is_recorded(folder):
    write(folder, BARE)
    check_resume(folder, "gan:Critic", "--start-epoch", "3")


def test_weights_without_a_record_are_warned_about(folder):
    write(folder, BARE)
    assert go(folder, 0, 3)[0].status == 0
    done, ks = go(folder, 3, 6)
    assert (done.status, ks) == (0, KS[:12])
    assert done.err.count("--start-epoch T") == 1
    assert "without a top-k record" in done.err
    assert "Warning" not in go(folder, 3, 6, "--start-epoch", "3")[0].err
    assert "Warning" not in go(folder, 3, 6, "--gamma", "1")[0].err
    assert "Warning" not in go(folder, 0, 3)[0].err  # nothing is loaded


def test_a_checkpoint_from_before_top_k_is_warned_about(folder):
    write(folder, CLEAN)
    assert plain_run(folder, "train.py", "0", "3").status == 0
    done, ks = go(folder, 3, 6)
    assert (done.status, ks) == (0, KS[:12])
    assert done.err.count("--start-epoch T") == 1


def test_a_checkpoint_is_an_ordinary_one_without_the_plugin(folder):
    write(folder, CLEAN)
    assert go(folder, 0, 3)[0].status == 0
    done = plain_run(folder, "train.py", "3", "6")  # strict, weights_only
    assert done.status == 0, done.err
    under = torch.load(folder / "c.pt", weights_only=True)
    assert go(folder, 0, 3, "--gamma", "1")[0].status == 0
    full = torch.load(folder / "c.pt", weights_only=True)
    assert plain_run(folder, "train.py", "0", "3").status == 0
    plain = torch.load(folder / "c.pt", weights_only=True)
    assert list(under["D"]) == list(full["D"]) == list(plain["D"])
    assert set(full["optG"]) - set(plain["optG"]) == {"topk_plugin"}
    assert full["optD"].keys() == plain["optD"].keys()  # only the generator's


MISMATCHES = {
    ("--gamma", "0.9"): "gamma: 0.8 in the checkpoint, 0.9 now",
    ("--nu", "0.5"): "nu: 0.25 in the checkpoint, 0.5 now",
    ("--every", "7"): "every: 'epoch' in the checkpoint, 7 now",
    ("--direction", "high"): "direction: 'auto' in the checkpoint, 'high' now",
    ("--start-epoch", "2"): "epoch: 3 in the checkpoint, start_epoch 2 now",
}


def test_other_settings_than_the_checkpoints_end_in_status_3(folder):
    write(folder, CLEAN)
    assert go(folder, 0, 3)[0].status == 0
    before = weights(folder, 0, 3)
    for flags, difference in MISMATCHES.items():
        done, ks = go(folder, 3, 6, *flags)
        assert done.status == 3
        assert "ResumeMismatch: the checkpoint was written under other top-k" in done.err
        assert f"settings:\n  {difference}\n" in done.err
        assert done.err.count("in the checkpoint") == 1
        assert "Resume with the settings of the checkpoint" in done.err
        assert "Traceback" not in done.err
        assert not ks
    done, ks = go(folder, 3, 6, "--gate", "shielded", "--start-epoch", "3")  # these may
    assert (done.status, ks) == (0, KS[12:])
    assert not equal(before, weights(folder, 3, 6))


def test_an_evaluation_of_a_checkpoint_says_that_nothing_stepped(folder):
    write(folder, CLEAN)
    assert go(folder, 0, 3)[0].status == 0
    done, ks = go(folder, 3, 3)
    assert (done.status, ks) == (0, [])
    assert "verdict: no optimizer stepped" in done.err
