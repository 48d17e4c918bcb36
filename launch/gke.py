#!/usr/bin/env python3
"""Trains on a TPU slice of a GKE cluster, as a JobSet that comes back after a preemption.

    launch/gke.py build --image=IMAGE
    launch/gke.py run --name=joint --image=IMAGE --accelerator=tpu-v5-lite-podslice --topology=4x4 \
        -- --config=configs/joint.py --workdir=gs://BUCKET/joint
    launch/gke.py status|logs|stop|delete --name=joint

`stop` makes the program save and end, and gives the slice back; `run` goes on from there, also
where the JobSet has failed or is complete. --dry_run prints the manifest and the commands instead.
It needs nothing but Python, kubectl and docker.
"""

import argparse
import json
import math
import pathlib
import re
import shlex
import string
import subprocess
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
# The types of those conditions of a JobSet that are true, and those of one that has ended.
CONDITIONS = 'jsonpath={.status.conditions[?(@.status=="True")].type}'
ENDED = {"Completed", "Failed"}
ACCELERATORS = ("tpu-v4-podslice", "tpu-v5-lite-podslice", "tpu-v5p-slice", "tpu-v6e-slice")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options, with the program's flags, which follow a `--`, as `flags`."""
    flags = []
    if "--" in arguments:
        place = arguments.index("--")
        arguments, flags = arguments[:place], arguments[place + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "run", "status", "logs", "stop", "delete"):
        command = commands.add_parser(name, allow_abbrev=False)
        command.add_argument("--dry_run", action="store_true", help="print, do nothing")
        if name in ("build", "run"):
            command.add_argument("--image", required=True, help="REGISTRY/NAME:TAG")
        if name != "build":
            command.add_argument("--name", required=True, help="of the JobSet")
        if name == "run":
            command.add_argument("--accelerator", required=True, choices=ACCELERATORS)
            command.add_argument("--topology", required=True, help="of chips, such as 4x4")
            command.add_argument("--chips_per_host", type=int, help="if not 4, or all of fewer")
            command.add_argument("--spot", action="store_true", help="on Spot VMs")
            command.add_argument("--max_restarts", type=int, default=3, help="after failures")
            command.add_argument("--service_account", default="default", help="of Kubernetes")
            help = "NAME=VALUE, a variable of the program's environment; may be repeated"
            command.add_argument("--env", action="append", default=[], help=help)
        if name == "logs":
            command.add_argument("--host", default="0", help="its number, or all")
            command.add_argument("--follow", action="store_true")
    options = parser.parse_args(arguments, argparse.Namespace(flags=flags))
    if "name" in options and not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", options.name):
        parser.error(f"--name={options.name} must be at most 40 of a-z, 0-9 and dashes")
    for variable in getattr(options, "env", []):
        if not re.match(r"[A-Za-z_]\w*=", variable, re.ASCII):
            parser.error(f"--env={variable} must be NAME=VALUE")
    return options


def escape(text: str) -> str:
    """What Kubernetes makes the text of: in arguments and variables it would replace $(NAME)."""
    return text.replace("$(", "$$(")


def manifest(options: argparse.Namespace) -> str:
    """launch/jobset.yaml, filled in.

    Raises:
      ValueError: the topology is none, does not divide over the hosts, or a flag is missing.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", options.topology):
        raise ValueError(f"--topology={options.topology} must be like 4x4 or 2x2x4.")
    chips = math.prod(map(int, options.topology.split("x")))
    chips_per_host = options.chips_per_host or min(chips, 4)
    if chips_per_host < 1 or chips % chips_per_host:
        raise ValueError(
            f"--chips_per_host={chips_per_host} must divide the {chips} chips of "
            f"--topology={options.topology}."
        )
    for flag in ("--config=", "--workdir=gs://"):
        if not any(given.startswith(flag) for given in options.flags):
            raise ValueError(f"give the program's {flag}... after --.")
    variables = (variable.split("=", 1) for variable in options.env)
    variables = ({"name": name, "value": escape(value)} for name, value in variables)
    values = {
        "name": json.dumps(options.name),
        "image": json.dumps(options.image),
        "accelerator": options.accelerator,
        "topology": options.topology,
        "hosts": chips // chips_per_host,
        "chips_per_host": chips_per_host,
        "max_restarts": options.max_restarts,
        "service_account": json.dumps(options.service_account),
        "spot_selector": 'cloud.google.com/gke-spot: "true"' if options.spot else "",
        "arguments": json.dumps([*map(escape, options.flags)]),
        "environment": "".join(f"\n{20 * ' '}- {json.dumps(one)}" for one in variables),
    }
    return string.Template((FOLDER / "jobset.yaml").read_text()).substitute(values)


def commands(options: argparse.Namespace) -> list[list[str]]:
    """The commands of all but `run`."""
    name = getattr(options, "name", "")
    pods = f"--selector=jobset.sigs.k8s.io/jobset-name={name}"
    match options.command:
        case "build":
            build = ["docker", "build", f"--file={FOLDER / 'Dockerfile'}", f"--tag={options.image}"]
            return [[*build, str(FOLDER.parent)], ["docker", "push", options.image]]
        case "status":
            jobset = ["kubectl", "get", "jobset", name]
            return [jobset, ["kubectl", "get", "pods", pods, "--output=wide"]]
        case "logs":
            if options.host != "all":
                pods += f",batch.kubernetes.io/job-completion-index={options.host}"
            logs = ["kubectl", "logs", pods, "--tail=-1", "--prefix", "--max-log-requests=256"]
            return [[*logs, *(["--follow"] if options.follow else [])]]
        case "stop":
            patch = f"--patch={json.dumps({'spec': {'suspend': True}})}"
            return [["kubectl", "patch", "jobset", name, "--type=merge", patch]]
        case _:
            return [["kubectl", "delete", "jobset", name]]


def run(options: argparse.Namespace) -> None:
    """Makes the JobSet, or lets one go on that was stopped.

    One that has ended is deleted first: Kubernetes would leave it as it is.

    Raises:
      ValueError: as `manifest`, or kubectl refuses it.
    """
    name, text = options.name, manifest(options)
    ask = ["kubectl", "get", "jobset", name, "--ignore-not-found", f"--output={CONDITIONS}"]
    delete = ["kubectl", "delete", "jobset", name, "--cascade=foreground"]
    apply = ["kubectl", "apply", "--filename=-"]
    if options.dry_run:
        print(f"# {shlex.join(ask)}\n# if it has ended: {shlex.join(delete)}")
        print(f"{text}# {shlex.join(apply)}")
        return
    asked = subprocess.run(ask, stdout=subprocess.PIPE, text=True, check=True)
    if ENDED & set(asked.stdout.split()):
        subprocess.run(delete, check=True)
    if subprocess.run(apply, input=text, text=True).returncode:
        raise ValueError(
            f"kubectl refuses the JobSet {name}. If there is one with other options, which cannot "
            f"be changed: launch/gke.py delete --name={name}, then run again; the program goes on "
            "from its newest checkpoint."
        )


def main() -> None:
    """Runs, or prints, the commands; ends with the first status that is not 0."""
    options = parse(sys.argv[1:])
    try:
        if options.command == "run":
            return run(options)
        for words in commands(options):
            if options.dry_run:
                print(shlex.join(words))
            else:
                subprocess.run(words, check=True)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except FileNotFoundError as error:
        sys.exit(f"error: {error.filename} is not installed.")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)


if __name__ == "__main__":
    main()
