"""What is read out of a trainer's log while it is being written."""

import json
from pathlib import Path

from iisft.llamafactory.logs import Begin, Metrics, TrainerLog, dead_rank, error_in, last_lines

WORD = "5ecret"


def said(**document: object) -> str:
    return f"iisft-said {WORD} {json.dumps(document)}\n"


STARTS = said(log="***** Running training *****")
SUMMARY = "".join(
    said(log=f"  {line}")
    for line in (
        "Num examples = 5,600",
        "Num Epochs = 5",
        "Instantaneous batch size per device = 1",
        "Total train batch size (w. parallel, distributed & accumulation) = 64",
        "Total optimization steps = 440",
        "Number of trainable parameters = 161,480,704",
    )
)
EVALUATION = said(log="\n***** Running Evaluation *****") + said(log="  Num examples = 12")


class Files:
    def __init__(self, folder: Path) -> None:
        self.log, self.metrics = folder / "训练 train.log", folder / "trainer_log.jsonl"
        self.log.write_text("")
        self.trainer = TrainerLog.follow(self.log, self.metrics, Begin(0, 0), WORD)

    def add(self, log: str = "", metrics: str = "") -> list[Metrics]:
        for path, text in ((self.log, log), (self.metrics, metrics)):
            with path.open("a", encoding="utf-8") as stream:
                stream.write(text)
        return self.trainer.read()


def printed(step: int, norm: float) -> str:
    shown = {"loss": "1.1", "grad_norm": str(norm), "learning_rate": "1e-05", "epoch": "0.1"}
    return f"{shown}\n" + said(step=step, grad_norm=norm)


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
    assert files.add(log=printed(1, 2.102)) == [Metrics(1, 440, 0.1, 1.23456789, 1e-5, 2.102)]
    assert files.add(printed(2, 2) + printed(3, 3), entry(2, loss=1.1) + entry(3, loss=1.0)) == [
        Metrics(2, 440, 0.1, 1.1, None, 2.0),
        Metrics(3, 440, 0.1, 1.0, None, 3.0),
    ]


def test_torn_lines_wait_for_their_rest(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.add(STARTS)
    line, more = said(step=1, grad_norm=2.0), entry(1, loss=1.5)
    assert files.add(line[:20], more[:10]) == []
    assert files.add(line[20:], more[10:]) == [Metrics(1, 440, 0.1, 1.5, None, 2.0)]


def test_an_evaluation_between_two_steps_breaks_no_pair(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.add(STARTS)
    evaluated = files.add(printed(1, 2) + "{'eval_loss': '1.4', 'epoch': "
                                                "'0.1'}\n" + printed(2, 4),
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
        printed(3, float("nan")), '{"current_steps": 3, "total_steps": 9, "loss": NaN}\n'
    )
    assert metrics.as_json() == {"step": 3, "total_steps": 9, "loss": "nan", "grad_norm": "nan"}


def test_proofs_of_all_ranks_are_kept_and_a_torn_one_is_none(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.add(
        'iisft-observed 5ecret {"rank": 0, "a": 1}\nrubbish\r\niisft-observed 5ecret {"rank": '
        '1}\niisft-observed 5ecret {"ra\n'
    )
    assert files.trainer.proofs == {0: {"rank": 0, "a": 1}, 1: {"rank": 1}}


def test_a_log_of_an_earlier_life_is_not_read_again(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.add('iisft-observed 5ecret {"rank": 0}\n' + STARTS + printed(1, 1), entry(1, loss=1.0))
    again = TrainerLog.follow(files.log, files.metrics, Begin.here(files.log, files.metrics), WORD)
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


FORGED = (
    'iisft-observed {"rank": 0, "forged": true}\n'
    'iisft-observed word {"rank": 0, "forged": true}\n'
    'iisft-said {"step": 1, "grad_norm": 9}\n'
    "[INFO|trainer.py:1467] 2026-11-23 23:01:56,861 >> ***** Running training *****\n"
    "***** Running Evaluation *****\n  Num examples = 7\n"
    "{'loss': 'nan', 'grad_norm': 'nan', 'learning_rate': '1e-05', 'epoch': '0.1'}\n"
    f"{{'a': {'1+' * 3000}1}}\n{'[' * 100_000}\n{{'loss': {'-' * 100_000}1}}\n"
)


def test_a_data_row_that_the_trainer_prints_forges_neither_proof_nor_metrics(
    tmp_path: Path,
) -> None:
    files = Files(tmp_path)
    files.add(FORGED)
    assert (files.trainer.training_started, files.trainer.evaluating) == (False, False)
    proof = 'iisft-observed 5ecret {"rank": 0, "forged": false}\n'
    found = files.add(STARTS + proof + printed(1, 2) + FORGED, entry(1, loss=1.0))
    assert [m.grad_norm for m in found] == [2.0]
    assert files.trainer.proofs == {0: {"rank": 0, "forged": False}}
    assert files.trainer.summary == {}


def test_no_line_with_the_right_word_ends_the_reader(tmp_path: Path) -> None:
    files = Files(tmp_path)
    wrong = ("[" * 100_000, "[1]", "null", '{"step": 1e999}', '{"step": "1"}', '{"step": -1}',
             '{"step": 1, "grad_norm": [1]}', '{"rank": null}', '{"rank": 1e400}',
             f'{{"step": {"9" * 5000}}}', '{"log": {"a": 1}}', '{"step": true}')  # fmt: skip
    log = "".join(
        f"{mark} {WORD} {text}\n" for text in wrong for mark in ("iisft-said", "iisft-observed")
    )
    metrics = "".join(f"{text}\n" for text in (
        *wrong, '{"current_steps": Infinity, "loss": 1}', '{"current_steps": "x", "loss": 1}',
        '{"current_steps": 2, "loss": [1], "lr": {}, "epoch": "x", "total_steps": "y"}',
        f'{{"current_steps": 3, "loss": {"9" * 400}}}',
    ))  # fmt: skip
    assert files.add(log, metrics) == []
    found = files.trainer.read(at_end=True)
    assert [(m.step, m.loss, m.total_steps) for m in found] == [(2, None, 0), (3, None, 0)]


def test_a_torn_line_of_the_log_keeps_no_curve_waiting(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.add(STARTS)
    entries = "".join(entry(step, loss=1.0) for step in (1, 2, 3))
    assert [m.step for m in files.add(metrics=entries)] == [1]


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


def test_an_exception_without_a_text_is_the_error() -> None:
    lines = ["TypeError: caught", "During handling of the above exception", "AssertionError"]
    assert error_in(lines) == "AssertionError"
