#!/bin/sh
# Runs one command on "host1" of a world of two hosts, host1 (10.77.0.1) and host2 (10.77.0.2).
# Started by netns.py inside fresh pid, mount and net namespaces (as process 1 there), so nothing it makes
# is visible outside, and everything in it dies with it.
#   world.sh SCRATCH RATE SSHD COMMAND...      RATE: as in `tc`, e.g. 1gbit; "-" for no limit
#                                              SSHD: the ssh server to run on both; "-" for a stand-in
set -eu
here=$(dirname "$0")
scratch=$1 rate=$2 sshd=$3
shift 3

printf '127.0.0.1 localhost\n10.77.0.1 host1\n10.77.0.2 host2\n' >"$scratch/hosts"

start_host() { # NAME; sets $pid to a process that holds the host's namespaces
    # its own /dev/shm and IPC objects too: learners of different hosts must not meet in shared memory
    unshare --net --uts --ipc --mount sh -c '
        hostname "$1" && mount --bind "$2/hosts" /etc/hosts && mount -t tmpfs tmpfs /dev/shm && ip link set lo up &&
        touch "$2/$1.up" && exec sleep infinity' sh "$1" "$scratch" &
    pid=$!
    until [ -e "$scratch/$1.up" ]; do
        kill -0 $pid 2>/dev/null || { echo "two hosts: cannot start $1" >&2; exit 90; }
        sleep 0.02
    done
}
start_host host1; pid1=$pid
start_host host2; pid2=$pid

on() { nsenter --target "$1" --net -- sh -c "$2"; }
# both ends are called eth0, as Horovod looks for an interface name that all hosts have
on $pid1 "ip link add eth0 type veth peer name eth0 netns $pid2"
on $pid1 "ip addr add 10.77.0.1/24 dev eth0 && ip link set eth0 up"
on $pid2 "ip addr add 10.77.0.2/24 dev eth0 && ip link set eth0 up"
if [ "$rate" != - ]; then
    for pid in $pid1 $pid2; do on $pid "tc qdisc add dev eth0 root tbf rate $rate burst 256k latency 50ms"; done
fi

# a moment after "up" the kernel says so too; until then UCX finds no network
for pid in $pid1 $pid2; do
    until on $pid "ip link show eth0" | grep -q "state UP"; do sleep 0.05; done
done

# Launchers name their session folders in TMPDIR by process id. Every world counts from 1, so in a common /tmp it
# would meet those of a world that was killed; and Open MPI then stops.
mkdir "$scratch/bin" "$scratch/host1" "$scratch/host2"
if [ "$sshd" != - ]; then
    # shellcheck source=benchmarks/two_hosts/real_ssh.sh
    . "$here/real_ssh.sh"
else
    sed -e "s/@HOST1@/$pid1/; s/@HOST2@/$pid2/; s|@HOME@|$HOME|; s|@SCRATCH@|$scratch|" "$here/fake_ssh.sh" >"$scratch/bin/ssh"
fi
chmod +x "$scratch/bin/ssh"
export PATH="$scratch/bin:$PATH" HOSTNAME=host1 TMPDIR="$scratch/host1"

# not exec: process 1 has to stay, to reap orphans and to end the world when the command has ended
status=0
nsenter --target $pid1 --mount --uts --ipc --net --wd="$PWD" -- "$@" || status=$?
exit $status
