#!/bin/sh
# Stands in for ssh between the two hosts of world.sh, which fills in the @...@ and puts it first on PATH.
# Like sshd it gives the command a bare environment, in the home folder: what a launcher does not pass on is not there.
host=
while [ $# -gt 0 ]; do
    case $1 in
        -[BbcDEeFIiJLlmOopQRSWw]) shift 2 ;;            # options with a value in the next word
        -*) shift ;;
        *) [ -z "$host" ] || break; host=${1#*@}; shift ;; # options may follow the host name too
    esac
done
case $host in
    host1 | 10.77.0.1) pid=@HOST1@ name=host1 ;;
    host2 | 10.77.0.2) pid=@HOST2@ name=host2 ;;
    *) echo "ssh: Could not resolve hostname $host" >&2; exit 255 ;;
esac
exec nsenter --target $pid --mount --uts --ipc --net --wd="@HOME@" -- \
    env -i HOME="@HOME@" USER="${USER:-root}" LOGNAME="${USER:-root}" SHELL=/bin/sh TMPDIR="@SCRATCH@/$name" \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -c "$*"
