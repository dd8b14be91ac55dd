#!/bin/sh
# The first process of the machine: the host's root, below a layer in memory, becomes its own.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs dev /dev
for module in virtio_pci 9pnet_virtio 9p overlay; do
    $B modprobe $module 2>/dev/null
done
over=trans=virtio,version=9p2000.L,msize=512000
$B mount -t 9p -o $over,cache=loose,ro host /host
$B mount -t tmpfs -o size=60% layer /layer
$B mkdir -p /layer/upper /layer/work /layer/root
root=/layer/root
$B mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay $root
$B mkdir -p $root/proc $root/sys $root/dev $root/run $root/share $root/lib/modules
$B mount -t 9p -o $over share $root/share
# Other modules come on demand, by the kernel's own call of modprobe.
$B ln -s "$MODULES" $root/lib/modules/"$($B uname -r)"
$B cp $B $root/sbin/modprobe
for used in dev sys proc; do
    $B umount /$used
done
exec $B switch_root $root /bin/sh /share/guest.sh
