#!/bin/sh
# The first process of a machine: makes a root that looks like this host's and keeps what is written to it
# in memory, then becomes systemd. usage: machine.sh DIRECTORY, in namespaces of its own
set -eu
made=$1 root=$1/root
mount -t tmpfs none "$made"
mkdir "$made/upper" "$made/work" "$root"
mount -t overlay none -o "lowerdir=/,upperdir=$made/upper,workdir=$made/work" "$root"

mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
# systemd does this itself where it is not in a container.
mount -t bpf bpf "$root/sys/fs/bpf"
mount -t tmpfs -o mode=755 none "$root/run"
mount -t tmpfs none "$root/tmp"
mount -t tmpfs -o mode=755 none "$root/dev"
for device in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 666 "$root/dev/${device%:*}" c 1 "${device#*:}"
done
mknod -m 666 "$root/dev/tty" c 5 0
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue" "$root/dev/hugepages" "$root/run/written"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
# Where tests see which files were made.
mount --bind "$made/upper" "$root/run/written"
# Packages' services shall start here, whatever the host's administrator forbade.
rm -f "$root/usr/sbin/policy-rc.d"
# The index of all manual pages is not made again for each package.
rm -f "$root/var/lib/man-db/auto-update"
ip link set lo up

cd "$root"
pivot_root . mnt
umount -l /mnt
exec env -i container=test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=no
