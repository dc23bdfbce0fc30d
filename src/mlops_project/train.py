"""Train a skin-lesion classifier.

uv run src/mlops_project/train.py data=demo
uv run src/mlops_project/train.py model=efficientnet model.variant=b3 training.max_epochs=50
uv run src/mlops_project/train.py --help
"""

from __future__ import annotations

import sys

from mlops_project.command_line import run_command

OUT_OF_MEMORY = (
    "out of memory: try a smaller data.batch_size (with training.accumulate_grad_batches "
    "to make up for it) or data.image_size"
)


def main() -> int:
    # Here, where Ctrl-C has its message already.
    from mlops_project import settings
    from mlops_project.threads import wait_longer_if_alone

    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        from mlops_project.help_text import help_text

        print(help_text())
        return 0
    if any(a and not a.strip() for a in arguments):
        print(
            "warning: one argument is blank. A backslash must be the last character of its line: "
            "with a comment behind it the command ends there, and the lines below are not part of "
            "it.",
            file=sys.stderr,
        )
    if {"-m", "--multirun"} & set(arguments):
        from mlops_project.training.multirun import checked_jobs, run_each

        jobs = checked_jobs([a for a in arguments if a not in ("-m", "--multirun")])
        from mlops_project.evaluation.presentation.runs_page import show_new

        with show_new() as done:
            return run_each(jobs, done)
    if "--cfg" in arguments:
        import yaml

        config = settings.load([a for a in arguments if a not in ("--cfg", "job")])
        print(yaml.safe_dump(settings.to_container(config), sort_keys=False), end="")
        return 0
    config = settings.load(arguments)
    from mlops_project.data.folder import require_images

    require_images(config)
    wait_longer_if_alone()
    from mlops_project.training.run import train

    train(config, settings.given(arguments))
    return 0


if __name__ == "__main__":
    run_command(main, out_of_memory=OUT_OF_MEMORY)
