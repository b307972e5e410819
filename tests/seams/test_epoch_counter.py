"""An upstream's own counter of epochs and steps, beside what a record and the settings say."""

import pytest
import torch
from toy_upstream import make_seam

from topk_plugin import TopK
from topk_plugin.errors import ConfigError
from topk_plugin.loop.resume import ResumeRecord


def test_a_counter_tells_where_a_run_goes_on(toy):
    topk = TopK(gamma=0.5, nu=0.1)
    seam = make_seam(toy, topk=topk)
    seam.begin_at(0, 0)
    seam.reach_epoch(1)
    seam.reach_epoch(1, complete=True)
    assert (topk.epoch, topk.training.progress.pass_complete) == (1, True)
    seam.begin_at(3, 40)
    assert (topk.epoch, topk.steps, topk.training.progress.pass_complete) == (3, 40, False)
    assert topk.epoch - topk.training.progress.first_epoch == 2, "two epochs ended in this process"
    seam.reach_epoch(5)
    assert topk.epoch == 5


def test_a_counter_and_start_epoch(toy):
    topk = TopK(start_epoch=4)
    seam = make_seam(toy, topk=topk)
    seam.begin_at(0, 0)
    assert topk.epoch == 4
    seam.reach_epoch(2)
    assert topk.epoch == 6
    seam.begin_at(4, 9)
    assert topk.epoch == 4, "start_epoch repeats what the counter says"
    with pytest.raises(ConfigError, match="found 4, but someone/toygan goes on .* after 5 epochs"):
        seam.begin_at(5, 11)


def test_a_record_knows_of_epochs_before_the_counter(toy):
    critic, first = torch.nn.Linear(2, 1), TopK(start_epoch=4)
    record = ResumeRecord(critic, first)
    first.begin_at(6, 9)
    saved = critic.state_dict()
    record.remove()

    topk = TopK()
    seam = make_seam(toy, topk=topk)
    seam.keep_record(critic)
    critic.load_state_dict(saved)
    seam.begin_at(2, 9)
    assert topk.epoch == 6
    seam.reach_epoch(3)
    assert topk.epoch == 7
    seam.undo()


def test_steps_instead_of_epochs(toy):
    topk = TopK(every=5)
    seam = make_seam(toy, topk=topk)
    seam.begin_at(1, 13)
    assert topk.epoch == 2
    seam.reach_epoch(7, complete=True)
    assert (topk.epoch, topk.training.progress.pass_complete) == (2, False)


def test_a_record_knows_of_steps_that_were_skipped(toy):
    critic, first = torch.nn.Linear(2, 1), TopK(every=4)
    record = ResumeRecord(critic, first)
    first.begin_at(1, 7)  # two steps of the generator for each one that upstream counts
    saved = critic.state_dict()
    record.remove()

    topk = TopK(every=4)
    seam = make_seam(toy, topk=topk)
    seam.keep_record(critic)
    critic.load_state_dict(saved)
    seam.begin_at(0, 4)
    assert (topk.epoch, topk.steps) == (1, 7)
    seam.undo()


def test_a_second_training_goes_by_its_own_checkpoint(toy):
    topk = TopK()
    seam = make_seam(toy, topk=topk)
    seam.keep_record(torch.nn.Linear(2, 1))
    seam.begin_at(2, 9)  # resumed from a plain checkpoint, with nothing left to do
    seam.begin_at(5, 21)  # and so is the next one
    assert (topk.epoch, topk.steps) == (5, 21)
    seam.undo()
