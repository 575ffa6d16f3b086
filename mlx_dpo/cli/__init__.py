"""The command line: thin commands over the library. Heavy imports happen inside commands."""

import shutil
import sys
from typing import Any

import click

from mlx_dpo.cli.adapter import adapter
from mlx_dpo.cli.audit import audit
from mlx_dpo.cli.compare import compare
from mlx_dpo.cli.convert import convert
from mlx_dpo.cli.data import data
from mlx_dpo.cli.doctor import doctor
from mlx_dpo.cli.evaluate import evaluate
from mlx_dpo.cli.export import export
from mlx_dpo.cli.footer import footer
from mlx_dpo.cli.generate import generate
from mlx_dpo.cli.habits import translated
from mlx_dpo.cli.options import quiet
from mlx_dpo.cli.plan import plan
from mlx_dpo.cli.profile import profile
from mlx_dpo.cli.push import push
from mlx_dpo.cli.report import report
from mlx_dpo.cli.score import score
from mlx_dpo.cli.screen import fitted, say
from mlx_dpo.cli.sweep import sweep
from mlx_dpo.cli.train import train
from mlx_dpo.errors import (
    DeviceFaultError,
    MlxDpoError,
    UsageError,
    device_fault,
    disk_error,
    is_device_fault,
    is_disk_fault,
    is_shortage,
)
from mlx_dpo.records import VERSION

_EPILOG = """\b
Exit codes
  0  done                        5  a loss or gradient was not finite
  1  the run failed              6  the run's folder is in use
  2  wrong usage or settings     7  a file could not be written
  3  bad data                    8  the GPU failed
  4  not enough memory           9  another rank is lost
 75  stopped; the last line says how to go on
"""


class Help(click.HelpFormatter):
    """Help that is wrapped as all output is: between words, the next line aligned with the text."""

    def __init__(self, **_: Any) -> None:
        super().__init__(width=10_000)  # a line a paragraph

    def getvalue(self) -> str:
        """See `click.HelpFormatter`."""
        return fitted(super().getvalue(), min(shutil.get_terminal_size().columns, 80))


class Context(click.Context):
    """A command's invocation."""

    formatter_class = Help


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="mlx_dpo")
def cli() -> None:
    """Make a language model better from pairs of answers, on this machine.

    Direct Preference Optimization (Rafailov et al. 2023) on Apple silicon: a policy learns to
    prefer the chosen answer of each pair over the rejected one, held near the model it started
    from.

    \b
    In a clone, this trains the small embedded model on the embedded pairs:
      mlx_dpo train
    and this your own model:
      mlx_dpo train --model path/to/sft-model --data pairs.jsonl
    """


for _command in (
    *(train, plan, profile, convert, export, data, generate, audit, evaluate),
    *(score, compare, report, sweep, doctor, adapter, push),
):
    cli.add_command(_command)
for _command in (cli, *cli.commands.values(), *data.commands.values(), *adapter.commands.values()):
    _command.context_class = Context
    if not isinstance(_command, click.Group):
        packs = _command.name in ("convert", "export")  # -q packs in mlx_lm.convert
        quiet(*() if packs else ("-q",))(_command)


def main(args: list[str] | None = None) -> Any:
    """Run a command and exit with its code; every error is one line on stderr."""
    footer.is_quiet = footer.keeps_stdout = False
    try:
        words = sys.argv[1:] if args is None else args
        _check_encoding(words)
        words = translated(words, cli, lambda line: say(line, err=True))
        code = cli.main(words, prog_name="mlx_dpo", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        code = 2
    except click.UsageError as error:
        where = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        code = _fail(error.format_message() + where, error.exit_code)
    except MlxDpoError as error:
        code = _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        code = _fail("interrupted", 75)  # click has ended the line the ^C stands on
    except Exception as error:  # one that nothing above expects
        code = _unexpected(error, words[:1] == ["train"])
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust, in tokenizers and safetensors
            raise
        code = _fail(f"a library failed: {error}", 1)
    finally:
        footer.clear()
    sys.exit(code if isinstance(code, int) else 0)


def _unexpected(error: Exception, trains: bool) -> int:
    if is_shortage(error):
        return _fail(f"not enough memory ({error}): close other programs, or shorten texts", 4)
    if is_device_fault(error):
        return _fail(str(device_fault(error, trains=trains)), DeviceFaultError.exit_code)
    if isinstance(error, OSError) and is_disk_fault(error):
        what = disk_error(error.filename or "a file", error, "failed")
        return _fail(str(what), what.exit_code)
    return _fail(f"{type(error).__name__}: {error}", 1)


def _check_encoding(args: list[str]) -> None:
    """Refuse arguments that are not UTF-8, which Python holds as halves of surrogate pairs.

    Raises:
        UsageError: If there is one.
    """
    for arg in args:
        try:
            arg.encode()
        except UnicodeEncodeError as error:
            byte = ord(arg[error.start]) & 0xFF
            raise UsageError(
                f"the argument {arg!r:.80} is not UTF-8 (byte 0x{byte:02x}); give it in UTF-8"
            ) from None


def _fail(message: str, code: int) -> int:
    footer.clear()
    say(f"mlx_dpo: {' '.join(message.split())}", err=True, colour="red")
    return code
