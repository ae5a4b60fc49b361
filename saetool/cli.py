"""The commands. No logic of its own: each reads a config, asks the pipeline for a stage and prints what came out.

`--help`, `info` and `verify` import neither torch nor timm, so everything heavy is imported where it is used.
"""

import io
import json
import logging
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from saetool.errors import RequestError, SaetoolError, printable
from saetool.program import INTERRUPTED, STOPPED, Interrupt, keep_heap, leave, noticing_interrupts

SWITCH_SECONDS = 2e-4
"""How long a thread keeps Python's lock while another wants it: by default 5 ms, in which threads that read and write
beside a GPU wait (its index pass was a sixth faster so)."""

app = typer.Typer(
    name="saetool",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[
    str, typer.Argument(help="A YAML file, a packaged config's name (demo, folder, …), or the folder of a run.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value …]", help="Overrides, e.g. training.lr=1e-3.")
]
Force = Annotated[bool, typer.Option("--force", help="Build anew and replace what stands at the same place.")]
Replace = Annotated[bool, typer.Option("--force", help="Replace what was made otherwise than asked for now.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="State tokens, disk, memory and time; start nothing.")]


_OVERRIDES_TOO = {"ignore_unknown_options": True}
"""What looks like an option and is none reaches the config, which says what to write."""


def _say_version(asked: bool) -> None:
    if asked:
        from saetool.version import __version__

        typer.echo(f"saetool {__version__}")
        raise typer.Exit


@app.callback()
def saetool(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Which version this is.")
    ] = False,
) -> None:
    """Open up vision transformers with sparse (and other) autoencoders: cache, train, index, evaluate, report."""


@app.command(context_settings=_OVERRIDES_TOO)
def run(config: Config, overrides: Overrides = None, force: Replace = False) -> None:
    """Cache, train, index, evaluate, report: skips what is done, resumes what was begun."""
    from saetool.pipeline import Run

    for member in Run.load(config, overrides).make_all(force="different" if force else False):
        _say(member.result())


@app.command(context_settings=_OVERRIDES_TOO)
def cache(config: Config, overrides: Overrides = None, force: Force = False, dry_run: DryRun = False) -> None:
    """Cache a model's activations over a set of images."""
    _stage("activations", config, overrides, force, dry_run)


@app.command(context_settings=_OVERRIDES_TOO)
def train(config: Config, overrides: Overrides = None, force: Force = False, dry_run: DryRun = False) -> None:
    """Train an autoencoder (or a sweep of them) on cached activations."""
    _stage("autoencoder", config, overrides, force, dry_run)


@app.command(context_settings=_OVERRIDES_TOO)
def index(config: Config, overrides: Overrides = None, force: Force = False) -> None:
    """Find what each latent responds to: top images, statistics, labels, neighbors."""
    _stage("features", config, overrides, force)


@app.command(context_settings=_OVERRIDES_TOO)
def evaluate(config: Config, overrides: Overrides = None, force: Force = False) -> None:
    """Held-out numbers, baselines, probes and the effect on the model."""
    _stage("evaluation", config, overrides, force)


@app.command(context_settings=_OVERRIDES_TOO)
def report(
    config: Annotated[
        str, typer.Argument(help="A config; with --check a report's directory; with --overview a folder of runs.")
    ],
    overrides: Overrides = None,
    force: Force = False,
    check: Annotated[
        bool, typer.Option("--check", help="Check a finished report: links, chunks, size, escaping.")
    ] = False,
    overview: Annotated[bool, typer.Option("--overview", help="Write one page over all runs below a folder.")] = False,
) -> None:
    """Write the web page; or check one; or write an overview of several runs."""
    if not (check or overview):
        _stage("report", config, overrides, force)
        return
    from saetool import report as pages
    from saetool.artifacts.remote import place_of

    if overview:
        typer.echo(printable(f"overview: {pages.write_overview(Path(config))}"))
        return
    place = place_of(config, "report")
    problems = pages.check(place / "report" if (place / "report").is_dir() else place)
    for problem in problems:
        typer.echo(printable(problem))
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{printable(config)}: every link and chunk resolves, nothing leads outside.")


@app.command(context_settings=_OVERRIDES_TOO)
def demo(
    overrides: Overrides = None,
    out: Annotated[str | None, typer.Option("--out", help="Where the artifacts go (default: runs/demo).")] = None,
    force: Replace = False,
) -> None:
    """Run the packaged demo: a real ViT on photographs of solar cells, no hub needed."""
    run("demo", [*([f"run={json.dumps(out)}"] if out else []), *(overrides or [])], force)


@app.command(context_settings=_OVERRIDES_TOO)
def serve(
    config: Config,
    overrides: Overrides = None,
    port: Annotated[
        int, typer.Option("--port", help="Where it listens, on this machine only; 0: any free one.")
    ] = 8017,
    member: Annotated[str | None, typer.Option("--member", help="Of a sweep: which of its models.")] = None,
    label: Annotated[
        str | None, typer.Option("--label", help="Answer in its classes by a probe, not by the model's own head.")
    ] = None,
) -> None:
    """Show a finished report, and ask its model: drop a photograph, click a patch, switch latents off."""
    from saetool.pipeline import Run
    from saetool.serving.app import HOST, PAGE, listen, serve as answer
    from saetool.serving.opening import open_site

    place = listen(port)
    site = open_site(Run.load(config, overrides), member, label)
    _say(f"http://{HOST}:{place.getsockname()[1]}/{PAGE}  (Ctrl-C ends it)")
    answer(site, place)


@app.command()
def verify(paths: Annotated[list[str], typer.Argument(help="Artifacts, or folders that hold some.")]) -> None:
    """Is it intact? Recompute every size and digest; exit 1 when anything has changed, or cannot be read here."""
    from saetool.artifacts.verification import bytes_of, find_artifacts, is_of_another_schema, verify as problems_of
    from saetool.progress import bar

    damaged = False
    for path in [artifact for given in paths for artifact in find_artifacts(given)]:
        with bar(f"verifying {path}", bytes_of(path), "bytes") as advance:
            problems = problems_of(path, advance)
        damaged |= bool(problems)
        state = "intact" if not problems else "ANOTHER VERSION'S" if is_of_another_schema(path) else "DAMAGED"
        typer.echo(printable(f"{path}: {state}"))
        for problem in problems:
            typer.echo(printable(f"  {problem}"))
    if damaged:
        raise typer.Exit(1)


@app.command()
def info(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Artifacts, or folders that hold some; none: this machine.")
    ] = None,
) -> None:
    """What is it? Where did it come from? Without a path: versions, devices, and what runs on them."""
    if not paths:
        from saetool.machine import describe_machine

        typer.echo(describe_machine())
        return
    from saetool.artifacts.describe import describe
    from saetool.artifacts.verification import find_artifacts

    problems = []
    for path in [artifact for given in paths for artifact in find_artifacts(given)]:
        try:
            typer.echo(printable(describe(path)))
        except RequestError as problem:  # the others are described all the same
            problems.append(str(problem))
    if problems:
        raise RequestError("\n".join(problems))


@app.command("import")
def import_(
    source: Annotated[
        str, typer.Argument(help="A path, or hf/OWNER/NAME[/FOLDER][@REVISION]: an autoencoder of any tool.")
    ],
    given: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value …]", help="What the file does not say, e.g. top_k=32.")
    ] = None,
    out: Annotated[str, typer.Option("--out", help="Where the sealed autoencoder goes.")] = "",
    format: Annotated[str | None, typer.Option("--format", help="Its format, where it is not recognized.")] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", help="The model it belongs to (timm/NAME, …).")] = None,
    layer: Annotated[str | None, typer.Option("--layer", help="The layer, from 1, or a module path.")] = None,
    tokens: Annotated[str | None, typer.Option("--tokens", help="patches, cls, all or mean.")] = None,
    activations: Annotated[
        str | None, typer.Option("--activations", help="A store of its site, in place of --backbone.")
    ] = None,
    another_site: Annotated[
        bool, typer.Option("--another-site", help="A site that the file does not come from is meant.")
    ] = False,
    force: Force = False,
) -> None:
    """Read an autoencoder of SAELens, sparsify, saev, … into a sealed one that every command takes."""
    from saetool.exchange.importing import Wanted, import_autoencoder, parse_given, parse_number

    if not out:
        raise RequestError("import: say where it goes: --out DIR, for example runs/NAME/autoencoder.")
    place = None if layer is None else parse_number(layer)
    wanted = Wanted(backbone, place if isinstance(place, int) else layer, tokens, activations, another_site)
    made = import_autoencoder(source, out, wanted, format=format, given=parse_given(given or []), force=force)
    origin = made.content["origin"]
    _say(f"{made.kind}: {made.path}  ({made.id})")
    _print_table({"format": origin["format"], **origin["converted"]})
    _say(f"  site: {(made.content['site'] or {}).get('label', 'open: any of its width')}")


@app.command()
def export(
    autoencoder: Annotated[str, typer.Argument(help="A sealed autoencoder.")],
    format: Annotated[str, typer.Option("--format", help="sae_lens, sparsify or safetensors.")],
    out: Annotated[str, typer.Option("--out", help="Where the files go.")],
) -> None:
    """Write an autoencoder as another tool loads it."""
    from saetool.exchange import export_autoencoder

    converted = export_autoencoder(autoencoder, out, format)
    _say(f"{format}: {out}")
    _print_table(converted)


@app.command()
def table(
    features: Annotated[str, typer.Argument(help="An index, or a run's directory; with --activations an autoencoder.")],
    out: Annotated[str, typer.Option("--out", help="FILE.parquet (all numbers), or FILE.npz (a scipy CSR array).")],
    rows: Annotated[str, typer.Option("--rows", help="images or patches.")] = "images",
    value: Annotated[str, typer.Option("--value", help="Of an array of images: max, sum or count.")] = "max",
    activations: Annotated[str | None, typer.Option("--activations", help="The store of activations.")] = None,
    force: Force = False,
) -> None:
    """Write what fires where: images × latents, or patches × latents, as one sparse table."""
    from saetool.artifacts.remote import place_of
    from saetool.features import table as make_table

    inside = place_of(features) / "features"
    made = make_table(inside if inside.is_dir() else features, activations, out, rows=rows, value=value, force=force)  # pyright: ignore[reportArgumentType]
    _say(f"{rows} × latents: {made}")


@app.command()
def push(
    directory: Annotated[str, typer.Argument(help="A sealed artifact, or a run's directory.")],
    to: Annotated[str, typer.Argument(help="hf/OWNER/NAME")],
    include: Annotated[
        str | None, typer.Option("--include", help="autoencoder,features,evaluation,report: which of a run's.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="A new repository is public (else private).")] = False,
    license: Annotated[str | None, typer.Option("--license", help="Of the weights, for the model card.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Answer yes where a public repository is asked about.")] = False,
) -> None:
    """Upload sealed artifacts to the Hugging Face hub, with a model card."""
    from saetool.exchange import pushing

    kinds = include.split(",") if include is not None else None
    if kinds is None and sys.stdin.isatty():
        there = ",".join(pushing.find_artifacts(directory))
        kinds = typer.prompt("Push which", default=there).replace(" ", "").split(",") if "," in there else None
    confirm = (lambda question: True) if yes else (lambda question: sys.stdin.isatty() and typer.confirm(question))
    for address in pushing.push(directory, to, include=kinds, public=public, license=license, confirm=confirm):
        _say(f"pushed: {address}")


def _stage(name: str, config: str, overrides: list[str] | None, force: bool, dry_run: bool = False) -> None:
    from saetool.pipeline import Run

    run_ = Run.load(config, overrides)
    if dry_run:
        estimate = run_.estimate(name)
        _print_estimate(estimate)
        run_.require_space(estimate)
        return
    for artifact in run_.make(name, force=force):
        _say(f"{artifact.kind}: {artifact.path}  ({artifact.id})")
        if name == "evaluation":
            from saetool.evaluation.summary import summary_lines

            _say("\n".join(f"  {line}" for line in summary_lines(artifact)))


def _say(text: str) -> None:
    """Print a result once, whatever the number of processes."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(printable(text))


def _print_table(rows: dict[str, str]) -> None:
    width = max(map(len, rows), default=0)
    for key, words in rows.items():
        _say(f"  {key:<{width}}  {words}")


def _print_estimate(estimate: dict[str, Any]) -> None:
    from saetool.progress import size_words, time_words

    rows = {}
    for key, value in estimate.items():
        words = key.replace("_", " ")
        if words.startswith(("bytes ", "memory bytes")):
            rows[words.removeprefix("bytes ").removeprefix("of ").removesuffix(" bytes")] = size_words(value)
        elif key == "seconds":
            rows["time"] = time_words(value)
        else:
            rows[words] = f"{value:,}" if isinstance(value, int | float) else str(value)
    _print_table(rows)


def main() -> None:
    """Run the command line: exit 0 done, 1 the work failed, 2 the request was wrong, 130 stopped by Ctrl-C.

    One message, no traceback.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    # The sentence alone: the place in the code says nothing to who wrote the config.
    warnings.showwarning = lambda message, *_: _tell(f"warning: {message}")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    keep_heap()
    sys.setswitchinterval(SWITCH_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal in latin-1 has no arrow, and that is no failure
    try:
        with noticing_interrupts() as interrupt:
            code = _run_command(interrupt)
        if code:
            leave(code)
    finally:
        _leave_group()


def _run_command(interrupt: Interrupt) -> int:
    """Run the command of this process's arguments and say how it failed, if it did; return the exit code."""
    try:
        try:
            app()
            return 0
        except SystemExit as end:
            if end.code != INTERRUPTED and not (interrupt.came and end.code):  # typer turns Ctrl-C into this
                return end.code if isinstance(end.code, int) else int(end.code is not None)
            raise KeyboardInterrupt from None
        except Exception as error:
            if interrupt.came:
                raise KeyboardInterrupt from None
            return _say_failure(error)
    except KeyboardInterrupt:
        interrupt.heard = True
        _tell(STOPPED)
        return INTERRUPTED


def _say_failure(error: Exception) -> int:
    """Say in one message what went wrong, and return the exit code."""
    from saetool.artifacts.files import explain

    known = error if isinstance(error, SaetoolError) else explain(error, Path.cwd())
    if known is None:
        _tell(
            f"unexpected failure: {type(error).__name__}: {error}\n"
            f"This is a bug; {_keep_traceback()} says where. What was finished is kept."
        )
        return 1
    _tell(str(known))
    return known.exit_code


def _tell(message: str) -> None:
    typer.echo(printable(f"saetool: {message}"), err=True)


def _keep_traceback() -> str:
    """Write the traceback of the current error to a file and return its name."""
    with tempfile.NamedTemporaryFile("w", prefix="saetool-", suffix=".txt", delete=False) as file:
        traceback.print_exc(file=file)
    return file.name


def _leave_group() -> None:
    """Leave `torchrun`'s process group before the interpreter ends: its threads must not outlive it."""
    if "WORLD_SIZE" in os.environ and "torch" in sys.modules:
        from saetool import distributed

        distributed.stop()


if __name__ == "__main__":
    main()
