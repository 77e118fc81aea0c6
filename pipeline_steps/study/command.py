"""Command lines from signatures: each parameter is described once, in its function's docstring.

A step's function becomes its command line. What a signature says in its types, the command line
takes: a `Path` is a path, a `Sequence[Path]` any number of them, `int | None` a number that may be
left out, a `Literal` one of its words. Two parameters are special:

* `frozen: Frozen[...]` is read from the file of `--config`; a sequence of them, from several.
* `device: str` is no flag: the command leases a GPU, or computes on the CPU.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, get_args, get_origin

from pipeline_steps.runtime.errors import Interrupted, StepError, outer_cause
from pipeline_steps.runtime.lease import gpu_lease
from pipeline_steps.runtime.logs import tell_machine, tell_usage
from pipeline_steps.runtime.run_lock import VARIABLE, join_run
from pipeline_steps.study.settings.base import Frozen, load_frozen


class Main(Protocol):
    """The ``main`` of a module."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


CONFIG = "frozen configuration (JSON)"


def command(function: Callable[..., Any], *, hidden: Sequence[str] = ()) -> Main:
    """The ``main`` of a module: it parses ``argv`` (None: the process's) and calls ``function``.

    Args:
        function: A function of the module; its docstring's ``Args`` are the help of its flags, and
            the module's docstring is the help as a whole.
        hidden: Parameters with defaults that only other code passes.

    Returns:
        A function from arguments to the exit status: what ``function`` returns where its return
        annotation is ``ExitStatus``, else 0.
    """

    leased = "device" in inspect.signature(function).parameters

    def main(argv: Sequence[str] | None = None) -> int:
        import tyro  # here, for importers of a step need no command line

        module = sys.modules[function.__module__]
        name = f"-m {module.__spec__.name}" if module.__spec__ else Path(sys.argv[0]).name
        given: dict[str, Any] = tyro.cli(
            _collector(function, vars(module), hidden),
            prog=f"python {name}",
            description=(module.__doc__ or "").replace("\nOut:", "\n\nOut:"),  # keeps the line
            args=sys.argv[1:] if argv is None else list(argv),
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        with gpu_lease() if leased else contextlib.nullcontext() as device:
            result = function(**given, **({"device": device} if leased else {}))
        return int(result) if isinstance(result, ExitStatus) else 0

    return main


class ExitStatus(int):
    """An exit status that a command's function returns; 0 is success."""


def run_main(main: Callable[[], int]) -> int:
    """Run a step's ``main``; turn a :class:`StepError` into one line and exit status 2.

    A full disk, too little memory and a failing GPU become such a line, too: :func:`outer_cause`.
    :class:`Interrupted` becomes one line and status 75 (EX_TEMPFAIL of sysexits.h: try again). Any
    other exception keeps its traceback: it is a defect, not a user's mistake.
    """
    in_workflow = VARIABLE in os.environ  # a command may begin a run of its own
    try:
        join_run()
        tell_machine()
        return main()
    except StepError as error:
        _say("error", str(error))
        return 2
    except Interrupted as interruption:
        _say("stopped", str(interruption))
        return os.EX_TEMPFAIL
    except Exception as error:
        cause = outer_cause(error)
        if cause is None:
            raise
        _say("error", cause)
        return 2
    finally:
        if in_workflow:
            tell_usage()


def _say(kind: str, text: str) -> None:
    with contextlib.suppress(OSError):  # the log may lie on a disk that is full
        print(f"{kind}: {' '.join(text.split())}", file=sys.stderr, flush=True)


def _collector(
    function: Callable[..., Any], names: dict[str, Any], hidden: Sequence[str]
) -> Callable[..., dict[str, Any]]:
    """A function whose signature is the command line, and which returns what to call with."""
    import tyro

    parameters, configured = [], {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name in hidden or name == "device":
            continue
        annotation = parameter.annotation
        if isinstance(annotation, str):  # one by one: hidden ones may name what is not imported
            annotation = eval(annotation, dict(names))
        model = _settings_class(annotation)
        if model is not None:
            many = get_origin(annotation) is not Frozen
            configured[name] = model, many
            kind: Any = tuple[Path, ...] if many else Path
            name, annotation = "config", Annotated[kind, tyro.conf.arg(help=CONFIG)]
        parameters.append(
            parameter.replace(name=name, annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY)
        )

    def collect(**given: Any) -> dict[str, Any]:
        for name, (model, many) in configured.items():
            path = given.pop("config")
            loaded = [load_frozen(one, model) for one in (path if many else [path])]
            given[name] = loaded if many else loaded[0]
        return given

    collect.__doc__ = function.__doc__
    collect.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    collect.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return collect


def _settings_class(annotation: Any) -> type[Any] | None:
    """The settings model of ``Frozen[model]`` or of a sequence of such; None for other types."""
    if get_origin(annotation) is Frozen:
        model: type[Any] = get_args(annotation)[0]
        return model
    inside = get_args(annotation)
    return _settings_class(inside[0]) if len(inside) == 1 else None
