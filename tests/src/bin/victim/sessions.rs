//! A server that forgets to close its sessions, among much more memory that it releases.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    hint::black_box,
    thread::sleep,
    time::{Duration, Instant},
};

/// Bytes that a session takes, roughly.
const SESSION: f64 = 400.0;
/// Of a server that is asked without a pause: between two words of how much it has done.
const SAY: Duration = Duration::from_millis(250);

#[expect(dead_code, reason = "they are kept, which is the fault")]
struct Session {
    user: String,
    token: Vec<u8>,
}

/// Serves for ever and leaks so many KiB a second. `busy`: asked without a pause, it prints the requests served since the last line.
pub(crate) fn serve(kib_per_second: f64, busy: bool) -> ! {
    let (begun, mut said) = (Instant::now(), Instant::now());
    let (mut sessions, mut round, mut served) = (Vec::new(), 0_u64, 0_u64);
    loop {
        for _ in 0..5 {
            round += 1;
            black_box(render_page(round));
            black_box(parse_request(round));
        }
        served += 5;
        while (sessions.len() as f64) < begun.elapsed().as_secs_f64() * kib_per_second * 1024.0 / SESSION {
            open_session(&mut sessions);
        }
        if !busy {
            sleep(Duration::from_millis(2));
        } else if said.elapsed() >= SAY {
            println!("{}", served as f64 / said.elapsed().as_secs_f64());
            (served, said) = (0, Instant::now());
        }
    }
}

#[inline(never)]
fn open_session(sessions: &mut Vec<Session>) {
    let number = sessions.len();
    sessions.push(Session { user: format!("user number {number}"), token: vec![number as u8; 350] });
}

#[inline(never)]
fn render_page(round: u64) -> usize {
    let mut page = String::new();
    for item in 0..50 {
        write!(page, "<li>item {} of many that are on this page</li>", item * round).expect("memory can be written");
    }
    page.len()
}

#[inline(never)]
fn parse_request(round: u64) -> usize {
    let header = |number: u64| (format!("a header with number {}", number * round), "x".repeat(100));
    (0..20).map(header).collect::<BTreeMap<_, _>>().len()
}
