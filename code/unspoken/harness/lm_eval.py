"""lm-evaluation-harness with a model more: `unspoken`, a pair of agents and a channel between them.

    python -m unspoken.harness.lm_eval --model unspoken --model_args pretrained=smollm2-135m,channel=kv --tasks ...

The harness looks for models in its own table alone, so this registers ours and hands over to its command line.
"""

from __future__ import annotations

import sys

from unspoken.errors import UnspokenError, UsageError

NAME = "unspoken"
MODEL = "unspoken.harness.lm_eval_model:PairLM"


def register() -> None:
    """Make the model `unspoken` known to lm-evaluation-harness, for `simple_evaluate(model="unspoken", ...)`.

    Raises:
        UsageError: If the harness is not installed.
    """
    try:
        import lm_eval.models
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise UsageError(
            f"lm-evaluation-harness cannot be used: {error}.", 'Install it: pip install "unspoken[lm-eval]".'
        ) from error
    del lm_eval  # Imported for what it registers: a table that is not empty is not filled any more.
    if NAME not in model_registry:
        model_registry.register(NAME, target=MODEL)


def main() -> None:
    """Run the harness' command line with the model `unspoken`; exit code 2 for what this package refuses."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except UnspokenError as error:
        sys.stderr.write(f"Error: {error.problem}\n{error.hint}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
