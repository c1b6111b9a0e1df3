"""Work on many machines by Apache Beam, which is imported here alone."""

from collections.abc import Callable, Sequence

from rdcd_jax.core.errors import UserError


def parsed_options(options: str):
    """Options of a Beam pipeline, as on its command line, and the runner that they name.

    Raises:
        UserError: Apache Beam is not installed.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    except ImportError:
        raise UserError(
            "Beam's options were given but Apache Beam is not installed: pip install apache-beam, "
            "or leave them out to work on this machine alone."
        ) from None
    parsed = PipelineOptions(options.split())
    return parsed, parsed.view_as(StandardOptions).runner or "DirectRunner"


def run_each(function: Callable[[int], None], numbers: Sequence[int], options: str) -> None:
    """Calls a function with each number, on the machines of a pipeline; what it makes it writes to files.

    Args:
        function: can be pickled, and called again for the same number.
        numbers: of pieces of work.
        options: see `parsed_options`.

    Raises:
        UserError: Apache Beam is not installed, or a call raised one.
    """
    parsed, runner = parsed_options(options)
    import apache_beam as beam

    try:
        with beam.Pipeline(runner=runner, options=parsed) as pipeline:
            pieces = pipeline | beam.Create(list(numbers))
            # Without it one machine would be given all of them.
            pieces | beam.Reshuffle() | beam.Map(function)
    except UserError:
        raise
    except Exception as error:
        # Runners wrap what was raised on a machine, each in its own way.
        last = str(error).strip().splitlines()
        raise UserError(
            f"The Beam pipeline failed ({(last or [type(error).__name__])[0]:.300}); the same command goes on with what"
            " is not made yet."
        ) from error
