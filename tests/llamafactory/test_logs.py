"""What is read out of a trainer's log while it is being written."""

import json
from pathlib import Path

from iisft.llamafactory.logs import Begin, Metrics, TrainerLog, dead_rank, error_in, last_lines

STARTS = "[INFO|trainer.py:1467] 2026-11-23 23:01:56,861 >> ***** Running training *****\n"
SUMMARY = """[INFO|trainer.py:1468] 2026-11-23 23:01:56,861 >>   Num examples = 5,600
[INFO|trainer.py:1469] 2026-11-23 23:01:56,861 >>   Num Epochs = 5
[INFO|trainer.py:1471] 2026-11-23 23:01:56,861 >>   Instantaneous batch size per device = 1
[INFO|trainer.py:1474] >>   Total train batch size (w. parallel, distributed & accumulation) = 64
[INFO|trainer.py:1476] 2026-11-23 23:01:56,861 >>   Total optimization steps = 440
[INFO|trainer.py:1477] 2026-11-23 23:01:56,861 >>   Number of trainable parameters = 161,480,704
"""
EVALUATION = "[INFO|trainer.py:2662] >> \n***** Running Evaluation *****\n  Num examples = 12\n"


class Files:
    def __init__(self, folder: Path) -> None:
        self.log, self.metrics = folder / "训练 train.log", folder / "trainer_log.jsonl"
        self.log.write_text("")
        self.trainer = TrainerLog.follow(self.log, self.metrics, Begin(0, 0))

    def add(self, log: str = "", metrics: str = "") -> list[Metrics]:
        for path, text in ((self.log, log), (self.metrics, metrics)):
            with path.open("a", encoding="utf-8") as stream:
                stream.write(text)
        return self.trainer.read()


def printed(loss: str, norm: str) -> str:
    return str({"loss": loss, "grad_norm": norm, "learning_rate": "1e-05", "epoch": "0.1"}) + "\n"


def entry(step: int, **values: float) -> str:
    return json.dumps({"current_steps": step, "total_steps": 440, "epoch": 0.1, **values}) + "\n"


def test_the_summary_is_that_of_training_and_not_of_an_evaluation(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.add(STARTS + SUMMARY + EVALUATION)
    assert files.trainer.training_started
    assert files.trainer.summary == {
        "rows": 5600,
        "global_batch": 64,
        "total_steps": 440,
        "trainable_parameters": 161480704,
    }


def test_metrics_pair_the_full_loss_with_the_printed_grad_norm(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.add(STARTS)
    # its grad_norm is still to come
    assert files.add(metrics=entry(1, loss=1.23456789, lr=1e-5)) == []
    assert files.add(log=printed("1.235", "2.102")) == [
        Metrics(1, 440, 0.1, 1.23456789, 1e-5, 2.102)
    ]
    assert files.add(
        printed("1.1", "2") + printed("1.0", "3"), entry(2, loss=1.1) + entry(3, loss=1.0)
    ) == [
        Metrics(2, 440, 0.1, 1.1, None, 2.0),
        Metrics(3, 440, 0.1, 1.0, None, 3.0),
    ]


def test_torn_lines_wait_for_their_rest(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.add(STARTS)
    line, more = printed("1.5", "2"), entry(1, loss=1.5)
    assert files.add(line[:20], more[:10]) == []
    assert files.add(line[20:], more[10:]) == [Metrics(1, 440, 0.1, 1.5, None, 2.0)]


def test_an_evaluation_between_two_steps_breaks_no_pair(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.add(STARTS)
    evaluated = files.add(printed("1.5", "2") + "{'eval_loss': '1.4', 'epoch': "
                                                "'0.1'}\n" + printed("1.3", "4"),
                          entry(1, loss=1.5) + entry(1, eval_loss=1.4) +
                          entry(2, loss=1.3))  # fmt: skip
    assert [(m.step, m.loss, m.grad_norm, m.eval_loss) for m in evaluated] == [
        (1, 1.5, 2.0, None),
        (1, None, None, 1.4),
        (2, 1.3, 4.0, None),
    ]


def test_nan_is_read_and_written_as_text_that_every_json_reader_takes(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.add(STARTS)
    [metrics] = files.add(
        printed("nan", "nan"), '{"current_steps": 3, "total_steps": 9, "loss": NaN}\n'
    )
    assert metrics.as_json() == {"step": 3, "total_steps": 9, "loss": "nan", "grad_norm": "nan"}


def test_proofs_of_all_ranks_are_kept_and_a_torn_one_is_none(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.add(
        'iisft-observed {"rank": 0, "a": 1}\nrubbish\r\niisft-observed {"rank": '
        '1}\niisft-observed {"ra\n'
    )
    assert files.trainer.proofs == {0: {"rank": 0, "a": 1}, 1: {"rank": 1}}


def test_a_log_of_an_earlier_life_is_not_read_again(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.add('iisft-observed {"rank": 0}\n' + STARTS + printed("1", "1"), entry(1, loss=1.0))
    again = TrainerLog.follow(files.log, files.metrics, Begin.here(files.log, files.metrics))
    assert (again.read(), again.proofs, again.training_started) == ([], {}, False)


def test_the_cause_is_found_behind_torchruns_own_error(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text(
        "[rank0]: Traceback (most recent call last):\n"
        "[rank0]: torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB\n"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
        "subprocess.CalledProcessError: Command '['torchrun']' returned non-zero exit status 1.\n"
    )
    assert (
        error_in(last_lines(log))
        == "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB"
    )
    log.write_text("all is well\n")
    assert error_in(last_lines(log)) == ""


def test_a_data_row_that_the_trainer_prints_forges_neither_proof_nor_metrics(
    tmp_path: Path,
) -> None:
    log, metrics = tmp_path / "log", tmp_path / "trainer_log.jsonl"
    trainer = TrainerLog.follow(log, metrics, Begin(0, 0), "5ecret")
    row = 'inputs:\niisft-observed {"rank": 0, "forged": true}\n' + printed("9", "9")
    log.write_text(
        row + STARTS + 'iisft-observed 5ecret {"rank": 0, "forged": false}\n' + printed("1", "2")
    )
    metrics.write_text(entry(1, loss=1.0))
    assert [m.grad_norm for m in trainer.read()] == [2.0]
    assert trainer.proofs == {0: {"rank": 0, "forged": False}}


def test_the_rank_that_was_killed_is_named_from_torchruns_report() -> None:
    report = """\
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
/venv/lib/llamafactory/launcher.py FAILED
------------------------------------------------------------
Failures:
  <NO_OTHER_FAILURES>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-24_03:40:10
  host      : box
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 31337)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 31337
============================================================"""
    assert (error_in(report.splitlines()), dead_rank(report.splitlines())) == (
        "",
        "rank 1 was killed (SIGKILL)",
    )
    assert (
        dead_rank(["  rank      : 1 (local_rank: 1)", "  traceback : To enable traceback see: ..."])
        == ""
    )
