//! Pictures of memory in words, for terminal, report and page. Names are a process' own and are not made safe here.

use super::{record::Incident, report::offset};
use crate::{
    figures::bytes,
    memory::picture::{Moment, Picture, Portrait},
};

/// When a picture was taken, why, and what is not on it.
pub(crate) fn heading(incident: &Incident, picture: &Picture) -> String {
    let at = offset(incident.began, picture.taken);
    let mut text = match (picture.moment, &picture.missed) {
        (Moment::Foreseen, _) => format!("{at}, when memory was about to run out"),
        (Moment::Marked, None) => {
            format!("{at}, when the kernel had chosen it; what it had given back by then is missing")
        }
        (Moment::Marked, Some(missed)) => format!("{at}, when the kernel had chosen its victim, which was {missed}"),
    };
    match (picture.processes.len(), picture.others) {
        (0, 0) => {}
        (0, others) => text += &format!("; {others} other processes of the service could not be read either"),
        (_, 0) => {}
        (_, others) => text += &format!("; {others} other processes are not shown"),
    }
    if picture.took_ms > 0 {
        text += &format!("; it took {} ms", picture.took_ms);
    }
    text
}

/// A process and its sums.
pub(crate) fn process(portrait: &Portrait) -> String {
    let mut text = format!(
        "pid {} ({}): {} in memory, {} in swap, {} mappings",
        portrait.tgid,
        portrait.comm,
        bytes(portrait.resident_bytes),
        bytes(portrait.swap_bytes),
        portrait.mappings
    );
    for (count, what) in [(portrait.threads, "threads"), (portrait.open_files, "open files")] {
        if let Some(count) = count {
            text += &format!(", {count} {what}");
        }
    }
    if let Some(cut) = portrait.cut {
        text += &format!("; {}", cut.as_str());
    }
    text
}

/// What it consists of: bytes in memory, in swap, and of what. The largest mappings first, then sums of the rest.
pub(crate) fn rows(portrait: &Portrait) -> Vec<(u64, u64, String)> {
    let largest = portrait.largest.iter().map(|one| {
        let what = if one.name.is_empty() {
            one.kind.as_str().to_owned()
        } else {
            format!("{}: {}", one.kind.as_str(), one.name)
        };
        (one.resident_bytes, one.swap_bytes, what)
    });
    let rest = portrait.rest.iter().map(|sum| {
        let what =
            format!("{}: {} {}", sum.kind.as_str(), sum.mappings, if sum.mappings == 1 { "more" } else { "others" });
        (sum.resident_bytes, sum.swap_bytes, what)
    });
    largest.chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::picture::{Cut, Kind, Mapping, Sum};
    use jiff::Timestamp;

    #[test]
    fn what_is_not_known_is_not_told_and_what_is_missing_is() {
        let portrait = Portrait {
            tgid: 7,
            comm: "web".to_owned(),
            threads: Some(3),
            open_files: None,
            resident_bytes: 3 << 20,
            swap_bytes: 0,
            mappings: 3,
            largest: vec![
                Mapping { kind: Kind::Heap, name: String::new(), resident_bytes: 2 << 20, swap_bytes: 0 },
                Mapping { kind: Kind::File, name: "/lib/a b".to_owned(), resident_bytes: 1 << 20, swap_bytes: 0 },
            ],
            rest: vec![Sum { kind: Kind::Kernel, mappings: 1, resident_bytes: 0, swap_bytes: 0 }],
            cut: Some(Cut::Died),
        };
        let text = process(&portrait);
        assert!(
            text.starts_with("pid 7 (web): 3.0 MiB in memory, 0 B in swap, 3 mappings, 3 threads; it died"),
            "{text}"
        );
        let rows: Vec<_> = rows(&portrait).into_iter().map(|row| row.2).collect();
        assert_eq!(rows, ["heap", "file: /lib/a b", "kernel: 1 more"]);
        let at = Timestamp::from_second(1_700_000_000).expect("a time");
        let incident = super::super::report::tests::incident();
        let picture = |missed: Option<&str>, others| Picture {
            taken: at,
            took_ms: 0,
            moment: Moment::Marked,
            missed: missed.map(str::to_owned),
            processes: Vec::new(),
            others,
        };
        assert_eq!(
            heading(&incident, &picture(None, 0)),
            "+0.000 s, when the kernel had chosen it; what it had given back by then is missing"
        );
        let missed = heading(&incident, &picture(Some("gone"), 2));
        assert!(
            missed.ends_with("its victim, which was gone; 2 other processes of the service could not be read either")
        );
    }
}
