# What a distribution has made by the time that a service starts, and then the tests. The last line is for `machine.rs`.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tmp/guest
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm $TMPDIR
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp $TMPDIR
mkdir -p /run/lock
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control
done
mount --make-rshared /
ip link set lo up
# Their device files are there before anybody asks for the modules.
modprobe -a tun fuse
# As systemd has it for a service.
ulimit -Hn 524288
cd $TMPDIR
failed=0
# Runs the rest of the line, and tells of it in one; all that it said is in the file of that name.
try() {
    name=$1
    shift
    began=$(cut -d. -f1 /proc/uptime)
    if timeout -k 5 "$EACH" "$@" > /share/said/"$name" 2>&1 < /dev/null; then
        told=ok
    else
        told="FAILED ($?)"
        failed=$((failed + 1))
    fi
    echo "$(uname -r) $name: $told in $(($(cut -d. -f1 /proc/uptime) - began)) s"
    grep -E '^test .* (FAILED|skipped)|^SKIP' /share/said/"$name"
}
export SEXTON_TEST_SKIPS=/dev/null
. /share/suite.sh
echo "kernels: $failed failed"
sync
echo o > /proc/sysrq-trigger
sleep 100
