# Read by world.sh: a real sshd on each host, and an `ssh` that knows the way. Needs root, who has an account of his own
# here: his home is the scratch folder, so that nothing is read from, or written to, the one outside.
keys=$scratch/ssh
mkdir "$keys"
ssh-keygen -q -t ed25519 -N '' -f "$keys/host" && ssh-keygen -q -t ed25519 -N '' -f "$keys/user"
sed "s|^root:.*|root:x:0:0:root:$HOME:/bin/sh|" /etc/passwd >"$keys/passwd"
echo 'root:*:19000:0:99999:7:::' >"$keys/shadow" && chmod 600 "$keys/shadow"

serve() { # NAME PID
    cat >"$keys/$1.conf" <<END
HostKey $keys/host
AuthorizedKeysFile $keys/user.pub
StrictModes no
UsePAM no
PidFile none
PermitRootLogin prohibit-password
SetEnv TMPDIR=$scratch/$1
END
    # Not logged in by PAM, and with its own /run: what the machine's sshd keeps there is not touched.
    nsenter --target "$2" --mount --uts --ipc --net -- sh -c "mount --bind '$keys/passwd' /etc/passwd &&
        mount --bind '$keys/shadow' /etc/shadow && mount -t tmpfs tmpfs /run && mkdir /run/sshd &&
        exec '$sshd' -D -E '$keys/$1.log' -f '$keys/$1.conf'" &
}
serve host1 "$pid1"
serve host2 "$pid2"

cat >"$keys/config" <<END
IdentityFile $keys/user
IdentitiesOnly yes
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
END
printf '#!/bin/sh\nexec %s -F %s "$@"\n' "$(command -v ssh)" "$keys/config" >"$scratch/bin/ssh"
chmod +x "$scratch/bin/ssh"
for host in host1 host2; do
    tries=0
    until nsenter --target "$pid1" --mount --uts --net -- "$scratch/bin/ssh" "$host" true 2>"$keys/try"; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || { echo "two hosts: no ssh to $host: $(tail -n 1 "$keys/try")" >&2; exit 91; }
        sleep 0.05
    done
done
