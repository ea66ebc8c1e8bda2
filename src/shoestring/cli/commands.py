"""The commands as typer sees them: arguments and help. Bodies live beside, and load when called.

No annotation import from __future__ here: typer reads the annotations.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from .app import RUNS, Json, RunsDir, Target
from .app import app as app
from .importing import imports as imports


@app.command()
def init(
    data_file: Annotated[str, typer.Argument(metavar="DATA_FILE", help="JSONL, JSON, CSV or Parquet; .gz of each.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Run file to write.")] = Path("run.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run file.")] = False,
    is_json: Json = False,
) -> int:
    """Write a commented run file for a data file.

    Detects the format, which field is asked and which is answered, and from the answers the kind of
    task; proposes a metric and a bar. Read the file before you run it.

    \b
    Example: shoestring init tickets.jsonl --out tickets.yaml
    """
    from .init import command

    return command(data_file, out, force, is_json)


@app.command()
def run(target: Target, runs_dir: RunsDir = RUNS, is_json: Json = False) -> int:
    """Do the whole recipe, or continue it.

    Curate, decide, plan, train and evaluate rung by rung, export, report. Stops at the first
    arm or rung whose lower confidence bound meets the bar. Finished stages are not repeated, so
    the same command continues an interrupted run.

    \b
    Example: shoestring run run.yaml
    """
    return _stages(target, runs_dir, is_json, None)


@app.command()
def curate(
    targets: Annotated[list[str], typer.Argument(metavar="RUN | FILES...", help="A run, or data files.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where the rows of data files go (default: curated).")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="local, or ray for data that outgrow one machine.")] = "local",
    restored: Annotated[
        list[str] | None,
        typer.Option("--restore", metavar="CODE|LINE", help="Bring back dropped rows: fault code, LINE, SOURCE:LINE."),
    ] = None,
    runs_dir: RunsDir = RUNS,
    is_json: Json = False,
) -> int:
    """Validate, clean and split the data.

    Every fault is reported with its line in one pass; every dropped row is kept with its reason.
    Given a run, it is the run's first stage. Given data files, it needs no run file: train.jsonl,
    dev.jsonl, eval.jsonl, dropped.jsonl, faults.jsonl, review.csv, receipt.json and report.html go to DIR.
    What you write into the column decision of review.csv (keep, drop, fix) holds from the next time on.

    \b
    Example: shoestring curate tickets.jsonl --out curated
    """
    from .curate import command

    return command(targets, out, engine, restored or [], runs_dir, is_json)


@app.command()
def decide(target: Target, runs_dir: RunsDir = RUNS, is_json: Json = False) -> int:
    """Measure what needs no training.

    Prompting by several instructions, with examples, with the nearest ones, with your documents;
    linear models; configured endpoints. All are scored on the same held-out rows. If one meets
    the bar, fine-tuning is not needed.

    \b
    Example: shoestring decide run.yaml
    """
    return _stages(target, runs_dir, is_json, "decide")


@app.command()
def plan(
    target: Target,
    show_all: Annotated[
        bool, typer.Option("--all", help="List every option, and what is out with its reason.")
    ] = False,
    probes: Annotated[
        bool, typer.Option("--probe", help="Time a few real steps of each rung on this machine first.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(help="Simulate spot machines on this record of when there were some.", show_default=False),
    ] = None,
    runs_dir: RunsDir = RUNS,
    is_json: Json = False,
) -> int:
    """Predict memory, time and dollars, and choose.

    Nothing is spent. Of every model, method, machine, seller and service: what fits, how long, how
    much; the few worth choosing among, and the one to take. With traffic in the run file also the bill
    over the months against prompting a larger model. Needs neither the network nor the models; where
    they are at hand, each rung on this machine too, every training value with its reason.
    A probe takes about a minute a rung and makes the intervals narrow; later plans of the run use it.
    Spot machines are simulated: when half and nine in ten are done, the bill, and with deadline_h what
    switching to on demand in time costs.

    \b
    Example: shoestring plan run.yaml
             shoestring plan run.yaml --probe
             shoestring plan run.yaml --trace us-west-2b_v100_1.json
    """
    from .planning import command

    return command(target, runs_dir, show_all, probes, trace, is_json)


@app.command()
def check(
    target: Target,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Look at this rung alone.", show_default=False)
    ] = None,
    runs_dir: RunsDir = RUNS,
    is_json: Json = False,
) -> int:
    """Look for what would go wrong in training without a word.

    Curates and plans, then asks rows, template, tokenizer and model: does every answer bear loss and end,
    are prompts those that serving sends, does every adapter matrix learn, does packing or accumulation
    change a gradient, does a checkpoint continue? Seconds, and nothing is trained. Training asks the same first.

    \b
    Example: shoestring check run.yaml
    """
    from .check import command

    return command(target, model, runs_dir, is_json)


@app.command()
def train(target: Target, runs_dir: RunsDir = RUNS, is_json: Json = False) -> int:
    """Train the cheapest rung that fits.

    Continues from its newest checkpoint. Baselines are measured first; if one meets the bar
    nothing is trained, unless the run file says decide.train_anyway.

    \b
    Example: shoestring train run.yaml
    """
    return _stages(target, runs_dir, is_json, "train")


@app.command("eval")
def evaluate(target: Target, runs_dir: RunsDir = RUNS, is_json: Json = False) -> int:
    """Train and score rung by rung until one meets the bar.

    What 'run' does, without the export.

    \b
    Example: shoestring eval run.yaml
    """
    return _stages(target, runs_dir, is_json, "eval")


from . import export_command as export_command  # noqa: E402  # listed here


@app.command()
def report(target: Target, runs_dir: RunsDir = RUNS, is_json: Json = False) -> int:
    """Write the run's report again.

    One HTML file that needs nothing else, made from the files of the run folder.

    \b
    Example: shoestring report runs/tickets
    """
    from .running import report_command

    return report_command(target, runs_dir, is_json)


@app.command()
def runs(
    orphans: Annotated[bool, typer.Option("--orphans", help="Ask every place what of yours bills there now.")] = False,
    runs_dir: RunsDir = RUNS,
    is_json: Json = False,
) -> int:
    """List the runs, the launches, and what they cost.

    Stage reached, verdict, score, predicted and actual dollars, when; launches from any folder that go on,
    with their cost so far. With --orphans also what no run folder knows, and the command that ends it.

    \b
    Example: shoestring runs
             shoestring runs --orphans
    """
    from .listing import command, orphans_command

    return orphans_command(is_json) if orphans else command(runs_dir, is_json)


@app.command()
def models(
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="TEXT", help="Part of the licence's name, or 'permissive'.")
    ] = None,
    max_params: Annotated[
        str | None, typer.Option("--max-params", metavar="SIZE", help="At most so many parameters: 8B, 500M.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--fits", metavar="GPU", help="Say what trains on it: RTX4090, A100-80GB, '24 GB'.")
    ] = None,
    is_json: Json = False,
) -> int:
    """List the models the planner knows.

    Parameters, context, licence, whether the hub asks for consent, and what fits a GPU: LoRA on
    the 16-bit model, or QLoRA. Any other model can be planned from its folder or config.json.

    \b
    Example: shoestring models --licence permissive --max-params 8B --fits "RTX 4090"
    """
    from .models import command

    return command(licence, max_params, gpu, is_json)


@app.command()
def prices(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="refresh SOURCES", help="Fetch prices anew, all or of sources.")
    ] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="Only this GPU; H100 finds each H100.")] = None,
    seller: Annotated[str | None, typer.Option("--seller", help="Only sellers with this in their name.")] = None,
    only_spot: Annotated[bool, typer.Option("--spot", help="Only machines that may be taken away.")] = False,
    max_usd: Annotated[
        float | None, typer.Option("--max-usd", metavar="USD", help="At most this per GPU-hour.")
    ] = None,
    is_json: Json = False,
) -> int:
    """List what GPU machines cost, with source and date.

    From a dated snapshot in the package, offline. 'prices refresh' asks the sellers and keeps each good
    answer in your cache folder; a source that fails, or says what cannot be, keeps its last table.
    The table shows the cheapest of each seller, --json all.

    \b
    Example: shoestring prices --gpu H100 --max-usd 4
             shoestring prices refresh vast runpod
    """
    from .prices import Wanted, command

    return command(words or [], Wanted(gpu, seller, only_spot, max_usd), is_json)


@app.command()
def explain(
    key: Annotated[str | None, typer.Argument(metavar="KEY", help="Dotted key; without one, all are listed.")] = None,
    run_target: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="Also say the value it has in this run, and why.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the run file's JSON Schema.")] = False,
    runs_dir: RunsDir = RUNS,
    is_json: Json = False,
) -> int:
    """Say what a key of the run file means.

    Its type, default and limits; with --run, the value it has in a run and where it came from.

    \b
    Example: shoestring explain task.bar
             shoestring explain train.lora_rank --run runs/tickets
    """
    from .explain import command

    return command(key, run_target, schema, runs_dir, is_json)


@app.command()
def synth(
    run_file: Annotated[str, typer.Argument(metavar="RUN_FILE", help="Run file.", show_default=False)],
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILES...]", help="Documents, inputs, or distilabel output.")
    ] = None,
    mode: Annotated[
        str, typer.Option("--from", metavar="WHAT", help="seeds, documents, task, inputs, or distilabel.")
    ] = "seeds",
    num_rows: Annotated[
        int | None, typer.Option("--num", metavar="N", help="Rows wanted (default: 200; of inputs: all).")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of this synthesis.")] = Path("synthetic"),
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", metavar="NAME", help="The teacher (default: synth.teacher).")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="builtin, or distilabel in its own environment.")] = "builtin",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the first prompt and the cost; ask nothing.")
    ] = False,
    is_json: Json = False,
) -> int:
    """Make rows with a teacher model.

    From seeds: new inputs and answers like data.train. From documents: about their passages. From
    task: by task.instruction alone. From inputs: answers to inputs you have. From distilabel: its
    output files. Each row is checked, agreed upon by several answers, and compared with training
    and held-out rows. budget_usd stops it; the same command continues, answers paid for are kept.

    \b
    Example: shoestring synth run.yaml --num 200 --out synthetic --dry-run
             shoestring synth run.yaml tickets.txt --from inputs --out answered
    """
    from .synth import command

    return command(run_file, files or [], mode, num_rows, out, endpoint, engine, dry_run, is_json)


@app.command()
def demo(
    runs_dir: RunsDir = RUNS,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    is_json: Json = False,
) -> int:
    """Run the whole recipe on generated tickets.

    Takes a few minutes on two cores, with the embedded models. Writes the tickets and a run
    file to demo/ beside the runs folder, then does what 'shoestring run demo/demo.yaml' does.
    Needs no network and no GPU.

    \b
    Example: shoestring demo
    """
    from .demo import command

    return command(runs_dir, fresh, is_json)


def _stages(target: str, runs_dir: Path, is_json: bool, until: Any) -> int:
    from .running import command

    return command(target, runs_dir, is_json, until)


from . import bench_command as bench_command  # noqa: E402  # listed behind the others
from . import judge_commands as judge_commands  # noqa: E402
from . import launch_command as launch_command  # noqa: E402
from . import serve_command as serve_command  # noqa: E402
from . import ui_command as ui_command  # noqa: E402
