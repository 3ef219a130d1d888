#!/bin/busybox sh
# First process of the guest: finds the disks, puts the test unit beside systemd's own, and hands over to systemd.
# vda: root file system, vdb: payload, vdc: kernel modules. Writes to vda and vdb are thrown away by the host.
BB=/bin/busybox

fail() {
    echo "init: $1"
    $BB poweroff -f
}

$BB mount -t proc proc /proc
$BB mount -t devtmpfs dev /dev
while read -r module; do
    $BB insmod "/modules/$module" || fail "cannot load $module"
done </modules/order

tries=0
until [ -b /dev/vda ] && [ -b /dev/vdb ] && [ -b /dev/vdc ]; do
    tries=$((tries + 1))
    [ "$tries" -le 100 ] || fail "no virtio disks after 10 s"
    $BB sleep 0.1
done

$BB mount -t ext4 /dev/vda /root || fail "cannot mount the root file system"
$BB mkdir -p /root/payload /root/lib/modules /root/usr/local/lib/defib-vm
$BB mount -t ext4 /dev/vdb /root/payload || fail "cannot mount the payload"
$BB mount -t ext4 -o ro /dev/vdc /root/lib/modules || fail "cannot mount the kernel modules"

units=/root/etc/systemd/system
$BB cp /guest/runner.sh /root/usr/local/lib/defib-vm/runner.sh
$BB mkdir -p $units/multi-user.target.wants
$BB cp /guest/defib-vm.service $units/
$BB ln -sf ../defib-vm.service $units/multi-user.target.wants/defib-vm.service
# Consoles belong to the harness; timers, and killers of memory hogs that a test did not start, would disturb it.
for unit in serial-getty@ttyS0.service getty@tty1.service e2scrub_reap.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer; do
    $BB ln -sf /dev/null "$units/$unit"
done

$BB umount /proc
exec $BB switch_root /root /sbin/init
fail "switch_root failed"
