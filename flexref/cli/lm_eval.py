"""`flexref lm-eval`: the lm-evaluation-harness's own command, with our model registered; it knows no task."""

import logging
import sys
from importlib.util import find_spec

import click

from flexref.errors import FlexrefError, install_hint

NO_MODEL = ("ls", "validate")
"""Commands of the harness that run no model."""


@click.command("lm-eval", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Run EleutherAI's lm-evaluation-harness on a flexref model.

    All arguments are those of its command, lm_eval, where the model is flexref unless --model names another:
    `flexref lm-eval --model_args path=opt-1.3b.h5 --tasks hellaswag`. Its own help: `flexref lm-eval run --help`.
    """
    if find_spec("lm_eval") is None:
        raise FlexrefError(f"flexref lm-eval needs the harness: {install_hint('lm-eval')}")
    from lm_eval.__main__ import cli_evaluate

    import flexref.harness.model  # noqa: F401  (registers it)

    sys.argv = ["lm_eval", *with_model(arguments)]
    try:
        cli_evaluate()
    except (FlexrefError, OSError, MemoryError):
        raise
    except Exception as error:
        logging.getLogger("lm_eval").debug("where it went wrong:", exc_info=True)
        raise FlexrefError(f"lm_eval: {type(error).__name__}: {str(error) or 'no details'}") from error


def with_model(arguments: tuple[str, ...]) -> list[str]:
    """The arguments with our model, unless they name one, or a file that may, or run none."""
    named = any(
        argument in ("-M", "-C", "-h") or argument.split("=")[0] in ("--model", "--config", "--help")
        for argument in arguments
    )
    if not arguments or named or arguments[0] in NO_MODEL:
        return list(arguments)
    return [*arguments, "--model", "flexref"]
