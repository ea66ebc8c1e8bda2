"""`shoestring import SOURCE`: arguments and help of each source; bodies lie beside, and load when called.

No annotation import from __future__ here: typer reads the annotations.
"""

from pathlib import Path
from typing import Annotated

import typer

from .app import Json, app

imports = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make a run file of what was made elsewhere.")
app.add_typer(imports, name="import")


@imports.command("openai")
def openai(
    job: Annotated[
        str | None, typer.Option("--job", metavar="ID", help="Fetch this job, ftjob-...; the key is in OPENAI_API_KEY.")
    ] = None,
    job_file: Annotated[
        Path | None, typer.Option("--job-file", metavar="FILE", help="The job's record as JSON, instead of --job.")
    ] = None,
    train: Annotated[
        Path | None, typer.Option("--train", metavar="FILE", help="Its training file, with --job-file.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option("--validation", metavar="FILE", help="Its validation file, with --job-file.")
    ] = None,
    models: Annotated[
        list[str] | None, typer.Option("--models", metavar="NAME", help="Train this instead of the model chosen.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the run file (default: imported/NAME).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a run file that is there.")] = False,
    is_json: Json = False,
) -> int:
    """Take a fine-tune from OpenAI, which ends fine-tuning on 6 January 2027.

    Brings the job's record and files, checks the rows, carries its hyperparameters over with reasons, picks an
    open model of equal or better published scores, and writes a run file. Says what the job cost there and what
    training is predicted to cost here. Models tuned there stop with their base models, from 14 January 2027.

    \b
    Example: shoestring import openai --job ftjob-abc123
             shoestring import openai --job-file job.json --train train.jsonl
    """
    from .import_openai import command

    return command(job, job_file, train, validation, models or [], out, force, is_json)


Models = Annotated[
    list[str] | None, typer.Option("--models", metavar="NAME", help="Model to try, once for each (default: embedded).")
]
Train = Annotated[
    Path | None,
    typer.Option("--train", metavar="FILE", help="Rows to learn from; all of the suite is then held out."),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write (default: imported/NAME).")]
Judge = Annotated[
    str | None, typer.Option("--judge", metavar="NAME", help="Judge for its rubrics, instead of the one used there.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a run file that is there.")]


@imports.command("promptfoo")
def promptfoo(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="promptfooconfig.yaml, or its folder.")],
    train: Train = None,
    models: Models = None,
    prompt: Annotated[int, typer.Option("--prompt", metavar="N", help="Which of its prompts, from 1.")] = 1,
    judge: Judge = None,
    out: Out = None,
    force: Force = False,
    is_json: Json = False,
) -> int:
    """Take prompts, tests and asserts of promptfoo: held-out rows, graders, a run file.

    Asserts that are code, and what no grader here measures, are listed with their test.

    \b
    Example: shoestring import promptfoo promptfooconfig.yaml --train train.jsonl
    """
    from .import_evals import command

    return command("promptfoo", source, train, models or [], prompt, judge, out, force, is_json)


@imports.command("openai-evals")
def openai_evals(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A saved eval, or a folder of eval, runs and data.")],
    train: Train = None,
    models: Models = None,
    judge: Judge = None,
    out: Out = None,
    force: Force = False,
    is_json: Json = False,
) -> int:
    """Take an eval from OpenAI, whose hosted Evals close on 30 November 2026, or of the openai/evals repository.

    Save what GET /v1/evals/ID, its runs and their output_items answer, with the data files, in one folder.

    \b
    Example: shoestring import openai-evals saved/ --train train.jsonl
    """
    from .import_evals import command

    return command("openai-evals", source, train, models or [], 1, judge, out, force, is_json)


@imports.command("inspect")
def inspect(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A log of inspect: .eval or .json.")],
    train: Train = None,
    models: Models = None,
    judge: Judge = None,
    out: Out = None,
    force: Force = False,
    is_json: Json = False,
) -> int:
    """Take the samples, targets and scorers of a log of inspect_ai.

    \b
    Example: shoestring import inspect logs/2026-11-20_task.eval --train train.jsonl
    """
    from .import_evals import command

    return command("inspect", source, train, models or [], 1, judge, out, force, is_json)
