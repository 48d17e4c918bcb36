"""Plays gcloud, the commands of a TPU host, kubectl, docker and Slurm, by the name it is called by.

Each call is recorded in the file FAKE_CALLS. The file FAKE_WORLD holds, for the queued resources:
  requests: of each that is created, the states that it passes through, one each time it is asked
    for; the last stays.
  services: of each start of the program, the states of its service likewise; "dead" before.
  jobset: of kubectl, the manifest and the conditions of the JobSet that there is, or none.
  exit: by command, the status to end with.
"""

import json
import os
import pathlib
import sys

WORLD = pathlib.Path(os.environ["FAKE_WORLD"])
name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
world = {"created": 0, "exists": False, "starts": 0} | json.loads(WORLD.read_text())


def record(*extra):
    with open(os.environ["FAKE_CALLS"], "a") as file:
        file.write(json.dumps([name, *arguments, *extra]) + "\n")


def option(key):
    return next((a.split("=", 1)[1] for a in arguments if a.startswith(f"--{key}=")), None)


def next_of(states):
    return states.pop(0) if len(states) > 1 else states[0]


def queued_resources(action):
    if action == "list":
        if world["exists"]:
            print(next_of(world["requests"][world["created"] - 1]))
    elif action == "create":
        if world["exists"] or world["created"] == len(world["requests"]):
            sys.exit("ALREADY_EXISTS, or more requests than the test expects")
        world.update(exists=True, created=world["created"] + 1, started=False)
    elif action == "delete":
        if not world["exists"]:
            sys.exit("NOT_FOUND")
        world["exists"] = False
    else:
        sys.exit(f"unknown action {action}")


def kubectl(action, given):
    """Of a JobSet that is there nothing can be changed, and one that has ended stays so."""
    jobset = world.get("jobset")
    if action == "get" and jobset:
        print(*jobset["conditions"])
    elif action == "delete":
        world["jobset"] = None
    elif action == "apply" and not jobset:
        world["jobset"] = {"manifest": given, "conditions": []}
    elif action == "apply" and jobset["manifest"] != given:
        sys.exit("The JobSet is invalid: spec.replicatedJobs: field is immutable")


def main():
    home = pathlib.Path(os.environ["HOME"])
    if name == "gcloud":
        record()
        if "queued-resources" in arguments:
            queued_resources(arguments[3])
        elif "scp" in arguments:
            (home / arguments[5].split(":")[1]).write_bytes(pathlib.Path(arguments[4]).read_bytes())
        elif "ssh" in arguments:
            WORLD.write_text(json.dumps(world))
            os.execvp("bash", ["bash", "-c", option("command")])
        elif "describe" in arguments:
            print(world.get("node", "READY"))
    elif name == "sudo":
        os.execvp(arguments[0], arguments)
    elif name == "systemd-run":
        record()
        world.update(started=True, starts=world["starts"] + 1)
    elif name == "systemctl" and arguments[0] == "show":
        if world.get("silent"):
            sys.exit(255)
        started = world.get("started")
        state = next_of(world["services"][world["starts"] - 1]) if started else "dead"
        print(f"SubState={state}")
    elif name == "journalctl":
        print(f"log of start {world['starts']}")
    elif name == "kubectl":
        given = "" if sys.stdin.isatty() else sys.stdin.read()
        record(given)
        kubectl(arguments[0], given)
    elif name == "srun":
        record(os.environ.get("JAX_LOCAL_DEVICE_IDS"))
    else:
        record()
    WORLD.write_text(json.dumps(world))
    sys.exit(world.get("exit", {}).get(name, 0))


main()
