use super::*;

/// As a kernel 6.1 writes one mapping, figures that are not read left out but for some that look alike.
fn mapping(range: &str, permissions: &str, path: &str, resident: u64, swap: u64) -> String {
    format!(
        "{range} {permissions} 00000000 fe:00 1234                       {path}\n\
         Size:               9999 kB\nKernelPageSize:        4 kB\nRss:            {resident:>8} kB\nPss:                   7 kB\n\
         Shared_Clean:          8 kB\nAnonymous:             3 kB\nSwap:           {swap:>8} kB\nSwapPss:               5 kB\n\
         THPeligible:    0\nVmFlags: rd wr mr mw me ac sd\n"
    )
}

fn read(text: &str) -> Anatomy {
    let mut smaps = Smaps::default();
    smaps.feed(text.as_bytes());
    smaps.finish()
}

fn told(anatomy: &Anatomy) -> Vec<(Kind, &str, u64, u64)> {
    let told = |one: &Mapping| (one.kind, one.resident_bytes / 1024, one.swap_bytes / 1024);
    anatomy.largest.iter().map(|one| (told(one).0, one.name.as_str(), told(one).1, told(one).2)).collect()
}

#[test]
fn what_each_mapping_is_for_is_told_by_its_name() {
    for (path, permissions, kind, name) in [
        ("", "rw-p", Kind::Anonymous, ""),
        ("", "rw-s", Kind::Shared, ""),
        ("[heap]", "rw-p", Kind::Heap, ""),
        ("[stack]", "rw-p", Kind::Stack, ""),
        ("[stack:77]", "rw-p", Kind::Stack, ""),
        ("[anon:glibc: malloc arena]", "rw-p", Kind::Anonymous, "glibc: malloc arena"),
        ("[anon_shmem:frames]", "rw-s", Kind::Shared, "frames"),
        ("/usr/lib/libc.so.6", "r-xp", Kind::File, "/usr/lib/libc.so.6"),
        ("/srv/my data/a b.db", "rw-s", Kind::File, "/srv/my data/a b.db"),
        ("/opt/web (deleted)", "r-xp", Kind::File, "/opt/web (deleted)"),
        ("/tmp/two\\012lines", "r--p", Kind::File, "/tmp/two\\012lines"),
        ("/memfd:cache (deleted)", "rw-s", Kind::Shared, "/memfd:cache (deleted)"),
        ("/SYSV00000000 (deleted)", "rw-s", Kind::Shared, "/SYSV00000000 (deleted)"),
        ("/dev/shm/PostgreSQL.1", "rw-s", Kind::Shared, "/dev/shm/PostgreSQL.1"),
        ("/dev/zero (deleted)", "rw-s", Kind::Shared, "/dev/zero (deleted)"),
        ("/[aio] (deleted)", "rw-s", Kind::Kernel, "/[aio] (deleted)"),
        ("[vdso]", "r-xp", Kind::Kernel, "[vdso]"),
    ] {
        let anatomy = read(&mapping("7f00-7f01", permissions, path, 8, 4));
        assert_eq!(told(&anatomy), [(kind, name, 8, 4)], "{path:?}");
    }
}

#[test]
fn the_ten_largest_are_told_by_name_and_the_rest_by_kind() {
    let mut text = String::new();
    for number in 1..=30 {
        let path = if number % 3 == 0 { String::new() } else { format!("/lib/{number}") };
        // Swap counts as much as memory.
        let (resident, swap) = if number % 2 == 0 { (number, 0) } else { (0, number) };
        text += &mapping(&format!("{number}000-{number}fff"), "rw-p", &path, resident, swap);
    }
    text += &mapping("ff00-ff01", "rw-p", "[heap]", 0, 0);
    let anatomy = read(&text);
    let sizes: Vec<_> = told(&anatomy).iter().map(|one| one.2 + one.3).collect();
    assert_eq!(sizes, [30, 29, 28, 27, 26, 25, 24, 23, 22, 21]);
    assert_eq!((anatomy.mappings, anatomy.resident_bytes, anatomy.swap_bytes), (31, 240 * 1024, 225 * 1024));
    let rest: Vec<_> = anatomy.rest.iter().map(|sum| (sum.kind, sum.mappings)).collect();
    assert_eq!(rest, [(Kind::File, 14), (Kind::Anonymous, 6), (Kind::Heap, 1)]);
    let largest: u64 = anatomy.largest.iter().map(|one| one.resident_bytes).sum();
    let others: u64 = anatomy.rest.iter().map(|sum| sum.resident_bytes).sum();
    assert_eq!(largest + others, anatomy.resident_bytes, "each byte is told once");
}

#[test]
fn of_equal_ones_the_first_are_told() {
    let text: String =
        (10..40).map(|number| mapping(&format!("{number}-{number}"), "rw-p", &format!("/{number}"), 4, 0)).collect();
    let anatomy = read(&text);
    let names: Vec<_> = told(&anatomy).iter().map(|one| one.1.to_owned()).collect();
    assert_eq!(names, (10..20).map(|number| format!("/{number}")).collect::<Vec<_>>());
}

#[test]
fn text_that_ends_anywhere_gives_what_was_whole() {
    let text = mapping("1000-2000", "rw-p", "[heap]", 600, 0) + &mapping("3000-4000", "rw-p", "", 123_456, 0);
    for end in 0..text.len() {
        let anatomy = read(&text[..end]);
        let second = anatomy.largest.iter().find(|one| one.kind == Kind::Anonymous);
        assert!(second.is_none_or(|one| one.resident_bytes == 123_456 * 1024), "half a number: {second:?}");
        assert!(anatomy.mappings <= 2);
    }
    assert_eq!(read(""), Anatomy::default());
}

#[test]
fn pieces_of_any_size_tell_the_same() {
    let text = mapping("1000-2000", "rw-p", "/a b", 600, 1) + &mapping("3000-4000", "r-xs", "/c (deleted)", 7, 0);
    let whole = read(&text);
    for size in 1..text.len() {
        let mut smaps = Smaps::default();
        text.as_bytes().chunks(size).for_each(|piece| smaps.feed(piece));
        assert_eq!(smaps.finish(), whole, "{size}");
    }
}

#[test]
fn what_is_no_mapping_and_no_figure_counts_for_nothing() {
    for text in [
        "Rss: 5 kB\nSwap: 5 kB\n",
        "x-y rw-p 0 0:0 0 /a\nRss: 5 kB\n",
        "-2000 rw-p\n1000- rw-p\n1000 rw-p\n",
        "\n\n\u{0}\n",
    ] {
        assert_eq!(read(text).mappings, 0, "{text:?}");
    }
    for figure in ["5", "kB", "-5 kB", "5 MB", "99999999999999999999 kB", ""] {
        assert_eq!(read(&format!("1-2 rw-p 0 0:0 0 /a\nRss: {figure}\n")).resident_bytes, 0, "{figure:?}");
    }
    let most = format!("1-2 rw-p 0 0:0 0 /a\nRss: {} kB\nSwap: {} kB\n", u64::MAX, u64::MAX).repeat(3);
    assert_eq!(read(&most).resident_bytes, u64::MAX, "no overflow");
}

#[test]
fn a_long_line_and_a_long_name_are_cut() {
    let long = format!("/{}end", "x".repeat(1_000_000));
    let mut smaps = Smaps::default();
    for piece in mapping("1000-2000", "rw-p", &long, 600, 0).as_bytes().chunks(1000) {
        smaps.feed(piece);
        assert!(smaps.line.len() <= LINE);
    }
    let anatomy = smaps.finish();
    assert_eq!(anatomy.largest[0].name.chars().count(), NAME);
    assert_eq!(anatomy.resident_bytes, 600 * 1024);
}

#[test]
fn a_rollup_is_one_mapping_and_a_kernel_without_one_says_nothing() {
    let text = mapping("55d0c8a00000-7ffd0f5fb000", "---p", "[rollup]", 4321, 7);
    assert_eq!(rollup(text.as_bytes()), Some((4321 * 1024, 7 * 1024)));
    assert_eq!(rollup(b""), None);
}

#[test]
fn the_first_picture_of_each_moment_stays_and_a_command_that_ran_outdoes_one_that_did_not() {
    let at = |second| Timestamp::from_second(second).expect("a time");
    let picture = |second, moment| Picture {
        taken: at(second),
        took_ms: 0,
        moment,
        missed: None,
        processes: Vec::new(),
        others: 0,
    };
    let one = |picture, ended: Option<Ended>| BeforeOom {
        pictures: vec![picture],
        command: ended.map(|ended| Ran { at: at(1), ended, text: String::new(), directory: None }),
    };
    let mut all = BeforeOom::default();
    assert!(all.is_empty());
    all.add(one(picture(9, Moment::Marked), Some(Ended::NotRun)));
    all.add(one(picture(10, Moment::Marked), None));
    all.add(one(picture(2, Moment::Foreseen), Some(Ended::Ok)));
    all.add(one(picture(3, Moment::Foreseen), Some(Ended::NotRun)));
    let told: Vec<_> = all.pictures.iter().map(|picture| picture.taken.as_second()).collect();
    assert_eq!((told, all.command.map(|ran| ran.ended)), (vec![2, 9], Some(Ended::Ok)));
}
