"""Whom top-k is on for: processes that a script starts, ranks, and nobody after a run."""

import textwrap

import pytest
from launched import plain_run, topk_run
from short_scripts import SETTINGS, TRAIN, TRAIN_AND_WRITE, largest_difference, script, weights

SPAWN = """
import torch
import torch.multiprocessing as mp

def work(rank, *rest):
    import sys
    print("child", rank, __name__, sys.argv[1:], flush=True)

if __name__ == "__main__":
    mp.spawn(work, nprocs=1)
    process = mp.get_context("spawn").Process(target=work, args=(7,))
    process.start()
    process.join()
    assert process.exitcode == 0
"""


@pytest.mark.slow
def test_a_parent_that_only_spawns_is_no_error(folder):
    script(folder, SPAWN)
    done = topk_run(folder, "train.py", "--arg")
    assert (done.status, done.out.splitlines()) == (
        0,
        ["child 0 __mp_main__ ['--arg']", "child 7 __mp_main__ ['--arg']"],
    ), done.err
    assert done.err.count("verdict") == 1


def test_forked_children_say_nothing_and_change_nothing(folder):
    script(
        folder,
        TRAIN
        + textwrap.dedent("""
        import os, sys
        if not os.fork():
            sys.exit(3)
        print(os.waitstatus_to_exitcode(os.wait()[1]))
        """),
    )
    done = topk_run(folder, "train.py")
    assert (done.status, done.out) == (0, "3\n"), done.err
    assert done.err.count("generator steps gated") == 1


def test_of_a_torchrun_only_rank_0_speaks_and_all_gate(folder):
    script(folder, TRAIN_AND_WRITE + "print('trained')\n")
    found = []
    for rank in ("0", "1"):
        flags = [*SETTINGS, "--log", f"log of {rank}"]
        done = topk_run(folder, "train.py", env={"RANK": rank}, flags=flags)
        assert (done.status, done.out) == (0, "trained\n")
        found.append((done.err.count("verdict: 12 gen"), weights(folder)))
    assert [said for said, _ in found] == [1, 0]
    assert done.err == ""
    assert len((folder / "log of 0").read_text().splitlines()) == 12
    assert not (folder / "log of 1").exists()
    assert largest_difference(found[0][1], found[1][1]) == 0
    plain_run(folder, "train.py")
    assert largest_difference(weights(folder), found[1][1]) > 1e-6


def test_errors_of_other_ranks_are_not_silent(folder):
    script(folder, TRAIN)
    done = topk_run(folder, "train.py", env={"RANK": "1"}, critic="gan:Other")
    assert done.status == 3
    assert "SeamNotFound" in done.err


def test_a_run_leaves_the_process_as_it_found_it(folder):
    script(folder, TRAIN)
    script(
        folder,
        """
        import sys, torch
        from torch.optim.optimizer import _global_optimizer_post_hooks as post_hooks
        from torch.optim.optimizer import _global_optimizer_pre_hooks as pre_hooks
        from torch.utils.data.dataloader import _BaseDataLoaderIter as It
        from topk_plugin import cli

        def patched():
            methods = [torch.nn.Module.__init__, torch.nn.DataParallel.__init__]
            methods += [It.__init__, It.__next__, It._reset]
            methods += [torch.optim.Optimizer.state_dict, torch.optim.Optimizer.load_state_dict]
            return methods, len(post_hooks), len(pre_hooks)

        before = patched()
        sys.path.insert(0, ".")
        status = cli.main(["run", "--critic", "gan:Critic", "--", "train.py"])
        assert status == 0
        assert patched() == before, (patched(), before)
        import gan
        for name in ("_save_to_state_dict", "_load_from_state_dict"):
            assert name not in vars(gan.Critic)
        assert gan.Critic.forward.__qualname__ == "Critic.forward"
        assert not hasattr(gan.Critic.forward, "__wrapped__")
        """,
        "outer.py",
    )
    done = plain_run(folder, "outer.py")
    assert done.status == 0, done.err
