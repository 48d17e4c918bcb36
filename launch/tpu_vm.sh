#!/usr/bin/env bash
# Trains on Cloud TPU VMs: `run` queues for a slice, installs this checkout on every host, starts
# the program there, brings its log back, and does it all again after a preemption.
#
#   launch/tpu_vm.sh run --name=joint --zone=us-west4-a --type=v5litepod-16 --spot -- \
#       --config=configs/joint.py --workdir=gs://BUCKET/joint
#
#   run      what is after `--` are the program's flags; the workdir must be on gs://. It watches
#            until the program ends. Interrupted and run again, it goes on watching.
#   status   the request's state and the program's on each host
#   logs     the program's log; --worker=all or a number, --follow
#   stop     tells the program to save and end; the slice stays. `run` goes on from there
#   delete   gives the slice back
#
#   --name=NAME         of the queued resource, its node and the service on the hosts
#   --zone=ZONE         --project=PROJECT (gcloud's own if absent)
#   --type=TYPE         accelerator type, such as v5litepod-16, v5p-64, v6e-64
#   --runtime=VERSION   of the TPU VM's software (the type's own if absent)
#   --service_account=EMAIL   of the hosts, which must be allowed to write the workdir
#   --env=NAME=VALUE    a variable of the program's environment; may be repeated
#   --spot              cheaper, and may be preempted
#   --poll=SECONDS      between two looks (60)
#   --max_failures=N    how often in all the program may fail or a request be refused (3);
#                       preemptions do not count
#   --delete_when_done  gives the slice back when the program has ended well
#   --dry_run           prints the commands instead of running them
#
# If HF_TOKEN is set here, the program has it on every host, for gated models of the hub.

set -euo pipefail

name='' zone='' project='' type='' runtime='' service_account='' spot=no
poll=60 max_failures=3 delete_when_done=no dry_run=no worker=0 follow=no
failures=0 started=no ended=no environment=()

die() {
    echo "error: $*" >&2
    exit 1
}

note() {
    echo "$(date '+%F %T') $*"
}

# A command, or with --dry_run its text.
call() {
    if [[ $dry_run == yes ]]; then
        printf '%q ' "$@"
        printf '\n'
    else
        "$@" </dev/null
    fi
}

tpus() {
    call gcloud compute tpus "$@" --zone="$zone" ${project:+--project="$project"} --quiet
}

# on_hosts WORKER COMMAND: a host that is going away must not hold this script up.
on_hosts() {
    tpus tpu-vm ssh "$name" --worker="$1" --command="$2" \
        --ssh-flag=-oConnectTimeout=30 --ssh-flag=-oServerAliveInterval=15
}

create() {
    note "Queueing for $type as $name"
    local options=()
    [[ $spot == no ]] || options+=(--spot)
    [[ -z $service_account ]] || options+=(--service-account="$service_account")
    tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
        --runtime-version="$runtime" ${options[@]+"${options[@]}"}
}

delete() {
    tpus queued-resources delete "$name" --force
}

list_request() {
    tpus queued-resources list --filter="name ~ /$name\$" --format='value(state.state)'
}

# The request's state; ABSENT if there is none, UNKNOWN if gcloud could not tell.
request_state() {
    local state
    if state=$(list_request); then
        echo "${state:-ABSENT}"
    else
        echo UNKNOWN
    fi
}

# The checkout as it is: what git tracks and what it does not ignore.
pack() {
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
        if [[ -e $file ]]; then printf '%s\0' "$file"; fi
    done | tar --null --files-from=- --create --gzip --file "$1"
}

# The variables as systemd reads them, which is as a shell would.
print_environment() {
    local variable
    for variable in ${HF_TOKEN:+"HF_TOKEN=$HF_TOKEN"} ${environment[@]+"${environment[@]}"}; do
        printf '%s="%s"\n' "${variable%%=*}" "$(printf %s "${variable#*=}" | sed 's/["\\`$]/\\&/g')"
    done
}

# What is secret goes as a file that its owner alone reads: everybody sees command lines.
copy_environment() {
    [[ -n $(print_environment) ]] || return 0
    local file=${TMPDIR:-/tmp}/$name.environment status=0
    [[ $dry_run == yes ]] || (umask 077 && rm -f "$file" && print_environment >"$file") || return
    tpus tpu-vm scp "$file" "$name:$name.environment" --worker=all || status=$?
    [[ $dry_run == yes ]] || rm -f "$file"
    return "$status"
}

install() {
    note "Installing on every host"
    local archive=${TMPDIR:-/tmp}/$name.tar.gz forget=''
    [[ -n $(print_environment) ]] || forget="rm -f ~/$name.environment"
    [[ $dry_run == yes ]] || (pack "$archive") || return
    copy_environment || return
    # The TPU VM's own Python is too old.
    tpus tpu-vm scp "$archive" "$name:$name.tar.gz" --worker=all && on_hosts all "set -e
$forget
rm -rf ~/$name && mkdir ~/$name && cd ~/$name && tar -xzf ~/$name.tar.gz
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --python=3.12 .venv
python3 -m uv pip install --quiet --python=.venv --torch-backend=cpu '.[tpu,gcs,torch]'"
}

# As a service the program gets SIGTERM, with the network still up, when its host is preempted.
start() {
    note "Starting on every host"
    local flags
    flags=$(printf '%q ' "${@//\$/\$\$}") # systemd makes $$ a plain $ again.
    on_hosts all "set -e
sudo systemctl stop $name 2>/dev/null || true
sudo systemctl reset-failed $name 2>/dev/null || true
sudo systemd-run --quiet --unit=$name --uid=\$(id -un) --setenv=HOME=\$HOME \
--working-directory=\$HOME/$name --property=Type=exec --property=RemainAfterExit=yes \
--property=KillMode=mixed --property=TimeoutStopSec=120 --property=After=network-online.target \
--property=EnvironmentFile=-\$HOME/$name.environment \
-- \$HOME/$name/.venv/bin/python -u -m diffusionrl_jax.main $flags"
}

# What the first host's program has logged since the last look, then the service's state. The
# other hosts need no look: their programs end when one of them does.
look() {
    on_hosts 0 "sudo journalctl --unit=$name --output=cat --quiet --cursor-file=\$HOME/$name.cursor
systemctl show $name --property=SubState"
}

node_state() {
    tpus tpu-vm describe "$name" --format='value(state)'
}

count_failure() {
    failures=$((failures + 1))
    note "$* (failure $failures of at most $max_failures)"
    ((failures < max_failures)) || die "Given up. What exists stays until you delete it."
}

# Until the program ends: asks for a slice when there is none, and tends the program when there is.
run() {
    local state state_before=''
    while true; do
        state=$(request_state)
        [[ $state == "$state_before" ]] || note "The request is $state"
        [[ -n $state_before || $state != UNKNOWN ]] || die "gcloud cannot list the requests."
        state_before=$state
        case $state in
            ABSENT) create || count_failure "The request was refused" ;;
            ACTIVE) tend "$@" ;;
            SUSPENDED) ask_again ;;
            FAILED)
                count_failure "The request failed"
                ask_again
                ;;
        esac
        sleep "$poll"
    done
}

ask_again() {
    note "Asking again; the run goes on from its newest checkpoint"
    started=no
    if ! { delete && create; }; then count_failure "The request was refused"; fi
}

# Shows the log, and starts the program where it has not been started or has failed.
tend() {
    local seen log
    if ! seen=$(look); then
        note "The first host does not answer"
        # The request may stay ACTIVE when its node is gone.
        if [[ $(node_state) == @(PREEMPTED|TERMINATED) ]]; then ask_again; fi
        return
    fi
    log=${seen%SubState=*}
    printf '%s' "$log"
    case $started-${seen##*SubState=} in
        *-running) started=yes ended=no ;;
        yes-exited)
            # A preempted program ends well, too: is the slice still there at the next look?
            if [[ $ended == yes ]]; then finish; fi
            ended=yes
            ;;
        *-exited | *-failed | *-dead)
            if [[ $started == yes ]]; then count_failure "The program failed"; fi
            started=yes ended=no
            if ! { install && start "$@"; }; then
                started=no
                count_failure "The program could not be started"
            fi
            ;;
    esac
}

finish() {
    note "The program has ended: it is complete, or was stopped"
    [[ $delete_when_done == no ]] || delete
    exit
}

command=${1:-}
[[ $# == 0 ]] || shift
while (($#)); do
    case $1 in
        --name=*) name=${1#*=} ;;
        --zone=*) zone=${1#*=} ;;
        --project=*) project=${1#*=} ;;
        --type=*) type=${1#*=} ;;
        --runtime=*) runtime=${1#*=} ;;
        --service_account=*) service_account=${1#*=} ;;
        --env=*)
            [[ ${1#*=} =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die "$1 must be --env=NAME=VALUE."
            environment+=("${1#*=}")
            ;;
        --spot) spot=yes ;;
        --poll=*) poll=${1#*=} ;;
        --max_failures=*) max_failures=${1#*=} ;;
        --delete_when_done) delete_when_done=yes ;;
        --dry_run) dry_run=yes ;;
        --worker=*) worker=${1#*=} ;;
        --follow) follow=yes ;;
        --) shift && break ;;
        *) die "unknown option $1; see the head of ${BASH_SOURCE[0]}." ;;
    esac
    shift
done
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] || die "--name='$name' must be of a-z, 0-9 and dashes."
[[ -n $zone ]] || die "--zone is missing, such as --zone=us-west4-a."

case $command in
    run)
        [[ " $*" == *" --config="* ]] || die "give the program's --config=... after --."
        [[ " $*" == *" --workdir=gs://"* ]] ||
            die "give the program's --workdir=gs://... after --: a host's own disk goes with it."
        case $runtime-$type in
            -v4-*) runtime=tpu-ubuntu2204-base ;;
            -v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
            -v5p-*) runtime=v2-alpha-tpuv5 ;;
            -v6e-*) runtime=v2-alpha-tpuv6e ;;
            -*) die "--type='$type' is unknown: v4-, v5litepod-, v5p-, v6e-, or give --runtime." ;;
        esac
        if [[ $dry_run == no ]]; then
            run "$@"
        fi
        create
        echo "# every $poll s, until ACTIVE:"
        list_request
        install
        start "$@"
        echo "# every $poll s, until the program ends:"
        list_request
        look
        echo "# after a preemption, then all of it again:"
        delete
        ;;
    status)
        list_request
        on_hosts all "echo \$(hostname) \$(systemctl show $name --property=SubState,ExecMainStatus)"
        ;;
    logs)
        [[ $follow == no ]] || follow=--follow
        on_hosts "$worker" "sudo journalctl --unit=$name --output=cat --no-pager ${follow#no}"
        ;;
    stop) on_hosts all "sudo systemctl kill --kill-who=main --signal=TERM $name" ;;
    delete) delete ;;
    *) die "command '$command' must be run, status, logs, stop or delete." ;;
esac
