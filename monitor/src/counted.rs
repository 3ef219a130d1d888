//! Counts allocations, and holds those for each event against `tests/counted.txt`.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use bytemuck::Zeroable as _;
use monitor_common::record::{
    CGROUP_CREATED, Cgroup, EXIT_WATCHED, Exit, Header, KIND_EXIT, LIFE_EXEC, Life, OomMark, Process, Record,
};

use crate::{kernel::Event, observer::Observer};

/// The system's allocator, and a count of what this thread asked it for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends has nothing left to count in.
    ALLOCATIONS.try_with(|count| count.set(count.get() + 1)).ok();
}

// SAFETY: everything is the system's allocator's; the count is a plain number of this thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const UNIT: u64 = 70;
const EVENTS: u32 = 1000;

fn observer() -> Observer {
    let mut observer = Observer::new(None);
    let path = "/system.slice/web.service";
    let mut cgroup = Cgroup::zeroed();
    (cgroup.id, cgroup.event, cgroup.path_len) = (UNIT, CGROUP_CREATED, path.len() as u32);
    cgroup.path[..path.len()].copy_from_slice(path.as_bytes());
    observer.event(&Event { seen_ns: 0, span: None, record: Record::Cgroup(cgroup) });
    observer
}

fn process(tgid: u32, cgroup: u64) -> Process {
    Process { tgid, tid: tgid, parent_tgid: 1, parent_cgroup: 1, start_ns: u64::from(tgid), cgroup, ..Process::NONE }
}

fn exit(tgid: u32, cgroup: u64, status: u32, flags: u32) -> Record {
    let mut exit = Exit { process: process(tgid, cgroup), status, ..Exit::zeroed() };
    exit.header = Header { kind: KIND_EXIT, flags, kernel_ns: u64::from(tgid) };
    Record::Exit(exit)
}

/// Allocations for each event and its verdict, rounded up.
fn allocations(record: impl Fn(u32) -> Record) -> u64 {
    let mut observer = observer();
    let mut see = |number: u32| {
        observer.event(&Event { seen_ns: u64::from(number), span: None, record: record(number) });
        drop(observer.deaths(u64::MAX));
    };
    // What grows at first and then stays.
    (1..=EVENTS).for_each(&mut see);
    let before = ALLOCATIONS.get();
    (EVENTS + 1..=2 * EVENTS).for_each(&mut see);
    (ALLOCATIONS.get() - before).div_ceil(u64::from(EVENTS))
}

#[test]
fn an_event_costs_no_more_allocations_than_the_table_says() {
    let mark = |number| {
        Record::OomMark(OomMark {
            victim: process(number, UNIT),
            header: Header { kernel_ns: u64::from(number), ..Header::zeroed() },
            ..OomMark::zeroed()
        })
    };
    let exec = |number| {
        let header = Header { flags: LIFE_EXEC, kernel_ns: u64::from(number), ..Header::zeroed() };
        Record::Life(Life { header, process: process(number, UNIT) })
    };
    let all = [
        ("allocations/exec_of_a_service", allocations(exec)),
        ("allocations/oom_mark", allocations(mark)),
        ("allocations/failing_exit_of_nobody", allocations(|number| exit(number, 5, 0x100, 0))),
        ("allocations/clean_exit_of_a_service", allocations(|number| exit(number, UNIT, 0, EXIT_WATCHED))),
        ("allocations/failing_exit_of_a_service", allocations(|number| exit(number, UNIT, 0x100, EXIT_WATCHED))),
        ("allocations/segv_of_a_service", allocations(|number| exit(number, UNIT, 0x8b, EXIT_WATCHED))),
    ];
    let table = include_str!("../../tests/counted.txt");
    let allowed = |name: &str| {
        let line = table.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok())
    };
    let more: Vec<_> = all.iter().filter(|(name, count)| allowed(name).is_none_or(|most| *count > most)).collect();
    let lines: Vec<_> = more.iter().map(|(name, count)| format!("{name} {count} 0")).collect();
    assert!(
        lines.is_empty(),
        "more allocations than tests/counted.txt allows. If that is meant, write there:\n{}",
        lines.join("\n")
    );
}
