//! Traces to test with.

use jiff::Timestamp;

use crate::trace::growth::{Cost, Ended, Growth, Place, Program, Stack};

/// A place with a name.
pub(crate) fn place(function: &str) -> Place {
    Place {
        module: Some("/usr/bin/web".to_owned()),
        build_id: Some("3f9a0c1d2e4b5a697887".to_owned()),
        offset: 0x1000,
        function: Some(function.to_owned()),
        ..Place::default()
    }
}

/// A whole stack, the innermost frame first.
pub(crate) fn stack(mib_per_hour: f64, frames: &[&str]) -> Stack {
    Stack {
        bytes_per_hour: mib_per_hour * 1_048_576.0,
        allocations: 40,
        bytes: 40 << 20,
        frames: frames.iter().map(|name| place(name)).collect(),
        whole: true,
    }
}

/// A leak in a cache, something smaller that was cut, and others.
pub(crate) fn growth() -> Growth {
    let mut cache =
        stack(200.0, &["malloc", "operator new(unsigned long)", "web::cache::insert", "web::serve", "main", "_start"]);
    cache.frames[0].module = Some("/lib/x86_64-linux-gnu/libc.so.6".to_owned());
    (cache.frames[2].file, cache.frames[2].line) = (Some("src/cache.rs".to_owned()), Some(88));
    cache.frames[2].inlined = true;
    let tick = Stack { whole: false, ..stack(1.0, &["malloc", "vec_grow", "web::tick"]) };
    Growth {
        service: "web.service".to_owned(),
        began: Timestamp::from_second(1_700_000_000).expect("a time"),
        seconds: 300.0,
        ended: Ended::Done,
        programs: vec![Program {
            path: "/usr/bin/web".to_owned(),
            build_id: Some("3f9a0c1d2e4b5a697887".to_owned()),
            processes: 2,
            watched: vec!["libc.so.6".to_owned()],
        }],
        anonymous_bytes: [100 << 20, 117 << 20],
        stacks: vec![cache, tick],
        others_bytes_per_hour: 2.0 * 1_048_576.0,
        cut_share: 0.005,
        cost: Cost {
            watched_seconds: 12.5,
            watches: 50,
            calls: 123_456,
            lost: 7,
            share: 0.013,
            memory_bytes: 40 << 20,
            processor_seconds: 2.5,
        },
        notes: vec!["perf maps are not there: start node with --perf-basic-prof".to_owned()],
    }
}

/// So many stacks, with names that mean harm to terminals, pages, pictures and formats, and long ones.
pub(crate) fn hostile(stacks: usize) -> Growth {
    let names = [
        "</text><script>alert(1)</script>",
        "\x1b[2J\x07clear",
        "a;b c\n7 12",
        "]]><!--",
        "\u{202e}evil\u{200f}",
        "\" onload=\"alert(1)\" x=\"",
        "&lt;&amp;&#0;\0",
        " ",
        "1e9",
        "f inf",
    ];
    let long = format!("std::map<{}>::insert", "std::pair<int, std::string>, ".repeat(400));
    let mut growth = growth();
    growth.stacks = (0..stacks)
        .map(|at| {
            let mut frames = vec!["malloc", names[at % names.len()], names[(at / 7) % names.len()]];
            let numbered = format!("f{at} {at}");
            frames.push(&numbered);
            if at % 100 == 0 {
                frames.push(&long);
            }
            Stack { whole: at % 3 != 0, ..stack(1.0 + (stacks - at) as f64, &frames) }
        })
        .collect();
    growth.notes = vec!["\x1b[31mred\nline".to_owned()];
    growth
}
