//! The order in which kernel modules must be loaded, from `modules.dep` (written by depmod).

use std::collections::HashMap;

/// Paths of the modules `wanted` and of all that they need, each before its users. A name that is not listed is built
/// into the kernel and needs nothing.
pub(super) fn load_order<'a>(modules_dep: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let table: HashMap<String, (&str, Vec<&str>)> = modules_dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (name(path), (path, needs.split_whitespace().collect())))
        .collect();
    let mut order = Vec::new();
    for wanted in wanted {
        visit(&table, wanted, &mut order);
    }
    order
}

fn visit<'a>(table: &HashMap<String, (&'a str, Vec<&'a str>)>, wanted: &str, order: &mut Vec<&'a str>) {
    let Some((path, needs)) = table.get(wanted) else { return };
    if order.contains(path) {
        return;
    }
    for need in needs {
        visit(table, &name(need), order);
    }
    order.push(path);
}

/// A module's name in the kernel: `kernel/lib/crc32c-intel.ko.xz` is `crc32c_intel`.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::load_order;

    #[test]
    fn every_module_comes_after_what_it_needs_and_once() {
        let list = "\
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/block/virtio-blk.ko.xz: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/fs/fuse/fuse.ko:
";
        let expected = [
            "kernel/drivers/virtio/virtio_ring.ko",
            "kernel/drivers/virtio/virtio.ko",
            "kernel/drivers/virtio/virtio_pci.ko",
            "kernel/drivers/block/virtio-blk.ko.xz",
        ];
        assert_eq!(load_order(list, &["virtio_pci", "virtio_blk", "ext4"]), expected);
    }
}
