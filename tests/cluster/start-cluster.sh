#!/bin/bash
# Start a real SLURM cluster of one node with four graphics cards that are null devices. It has two
# equal partitions, "test" and "gpu", and one whose jobs preempt theirs, "urgent".
#
#   sudo tests/cluster/start-cluster.sh FOLDER
#   sudo tests/cluster/start-cluster.sh FOLDER stop
#
# Needs root and Debian's packages slurm-wlm and munge. Everything lies in FOLDER but for a link to
# its configuration in /etc/slurm, where SLURM's commands look for it inside jobs too.
set -euo pipefail

folder=$(realpath -m "${1:?folder of the cluster}")
conf="$folder/slurm.conf"
export SLURM_CONF="$conf" # for the daemons, which look beside it for gres.conf
link=/etc/slurm/slurm.conf

stop() {
    for daemon in slurmd slurmctld munged; do
        if [ -s "$folder/$daemon.pid" ]; then
            pid=$(cat "$folder/$daemon.pid")
            kill "$pid" 2>/dev/null || true
            for _ in $(seq 100); do
                kill -0 "$pid" 2>/dev/null || break
                sleep 0.1
            done
        fi
    done
    if [ "$(readlink "$link")" = "$conf" ]; then
        rm "$link"
    fi
}

# Whether the link is one of ours whose cluster is gone: its machine was stopped, or its folder removed.
left_over() {
    [ -L "$link" ] || return 1
    local pid
    pid=$(cat "$(dirname "$(readlink "$link")")/slurmctld.pid" 2>/dev/null) || return 0
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != slurmctld ]
}

if [ "${2:-}" = stop ]; then
    stop
    exit 0
fi

[ "$(id -u)" = 0 ] || { echo "error: a cluster is started by root" >&2; exit 1; }
for program in munged slurmctld slurmd; do
    command -v "$program" >/dev/null || {
        echo "error: $program is missing: apt-get install slurm-wlm munge" >&2
        exit 1
    }
done

stop
if left_over; then rm "$link"; fi
[ ! -e "$link" ] || { echo "error: this machine has a cluster already: $link" >&2; exit 1; }
rm -rf "$folder"
mkdir -p "$folder"/{state,spool,munge}
chmod 755 "$folder"
host=$(hostname -s)

# Cards: SLURM counts device nodes and tells a job their numbers, and nothing opens them.
for card in 0 1 2 3; do
    mknod "$folder/card$card" c 1 3
done

# Cores and memory are what this file says, not what the machine has: jobs wait for cards, not cores.
# A requeued job waits as long as credentials live, two minutes unless said otherwise.
mkdir -p "$(dirname "$link")"
ln -s "$conf" "$link"
cat >"$conf" <<CONF
ClusterName=test
SlurmctldHost=$host
SlurmctldAddr=127.0.0.1
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
SlurmctldPort=${SLURMCTLD_PORT:-16817}
SlurmdPort=${SLURMD_PORT:-16818}
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=300
ReturnToService=2
GresTypes=gpu
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=16 RealMemory=400000 Gres=gpu:a100:4 State=UNKNOWN
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE State=UP
PartitionName=test Default=YES PriorityTier=1 GraceTime=60
PartitionName=gpu PriorityTier=1 GraceTime=60
PartitionName=urgent PriorityTier=2 PreemptMode=OFF
CONF
printf 'Name=gpu Type=a100 File=%s/card[0-3]\n' "$folder" >"$folder/gres.conf"

dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
chmod 400 "$folder/munge/key"
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
slurmctld
slurmd

for _ in $(seq 60); do
    if [ "$(sinfo --noheader --partition=test --format=%T 2>/dev/null)" = idle ]; then
        exit 0
    fi
    sleep 0.5
done
echo "error: the node did not come up within 30 s; see $folder/*.log" >&2
exit 1
