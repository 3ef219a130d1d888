use std::{cmp::Reverse, collections::BinaryHeap};

use super::*;

const SECOND: u64 = 1_000_000_000;

#[test]
fn waits_grow_vary_and_end_with_what_is_granted() {
    let mut pace = Pace::new(7);
    assert_eq!(pace.wait(0), None);
    for (at, plain) in [5, 10, 20, 40, 80, 120, 120].into_iter().enumerate() {
        let wait = pace.refused(0).as_secs_f64();
        let plain = f64::from(plain);
        assert!((plain / 2.0..plain * 1.5).contains(&wait), "refusal {at}: {wait}");
        assert!(pace.wait(0).is_some() && pace.wait(180 * SECOND).is_none());
    }
    pace.granted();
    assert_eq!(pace.wait(0), None);
    let waits = |seed| (0..8).map(|_| Pace::new(seed).refused(0)).next();
    assert_ne!(waits(1), waits(2), "not all at once");
}

/// What a fleet does that wants to be restarted by plan all at once.
struct Roll {
    /// Until the last one is done, seconds.
    seconds: f64,
    /// Looks at the slots.
    looks: u64,
    /// The most looks in one second, the first two minutes aside.
    busiest: u64,
    /// The most in one of the first seconds.
    burst: u64,
    /// The longest that one had to wait, beside its own restart.
    longest: f64,
}

/// `hosts` begin to ask within `spread` seconds; each restart takes `restart` seconds; `slots` at once.
fn roll(hosts: u64, slots: usize, restart: u64, spread: u64) -> Roll {
    let mut paces: Vec<Pace> = (0..hosts).map(|host| Pace::new(host.wrapping_mul(GOLDEN))).collect();
    // Times of asking and of ends, the earliest first.
    let mut asks: BinaryHeap<Reverse<(u64, usize)>> =
        (0..hosts).map(|host| Reverse(((unit(host) * (spread * SECOND) as f64) as u64, host as usize))).collect();
    let begins: Vec<u64> = {
        let mut begins = vec![0; paces.len()];
        asks.iter().for_each(|Reverse((at, host))| begins[*host] = *at);
        begins
    };
    let mut ends: BinaryHeap<Reverse<u64>> = BinaryHeap::new();
    let (mut looks, mut last, mut longest) = (0, 0, 0);
    let mut each_second: Vec<u64> = Vec::new();
    while let Some(Reverse((now, host))) = asks.pop() {
        while ends.peek().is_some_and(|Reverse(end)| *end <= now) {
            ends.pop();
        }
        looks += 1;
        let second = (now / SECOND) as usize;
        each_second.resize(each_second.len().max(second + 1), 0);
        each_second[second] += 1;
        if ends.len() < slots {
            ends.push(Reverse(now + restart * SECOND));
            last = last.max(now + restart * SECOND);
            longest = longest.max(now - begins[host]);
        } else {
            let wait = paces[host].refused(now).as_nanos() as u64;
            asks.push(Reverse((now + wait, host)));
        }
    }
    let (first, rest) = each_second.split_at(each_second.len().min(120));
    let most = |seconds: &[u64]| seconds.iter().copied().max().unwrap_or(0);
    Roll {
        seconds: last as f64 / SECOND as f64,
        looks,
        busiest: most(rest),
        burst: most(first),
        longest: longest as f64 / SECOND as f64,
    }
}

/// The figures of docs/fleet.md. A restart takes a minute, and all hosts want it within a minute.
#[test]
fn a_fleet_rolls_almost_as_fast_as_its_slots_allow_and_does_not_crowd_etcd() {
    println!("hosts slots  ideal s   took s   looks  looks/s busiest/s burst/s longest wait s");
    for (hosts, slots, slower, looks_per_s) in
        [(1, 1, 1.01, 2), (100, 1, 1.15, 25), (100, 5, 1.4, 25), (10_000, 100, 1.15, 1500), (10_000, 500, 1.4, 1500)]
    {
        let Roll { seconds, looks, busiest, burst, longest } = roll(hosts, slots, 60, 60);
        let ideal = (hosts as f64 / slots as f64).ceil() * 60.0;
        println!(
            "{hosts:>5} {slots:>5} {ideal:>8.0} {seconds:>8.0} {looks:>7} {:>8.1} {busiest:>9} {burst:>7} {longest:>8.0}",
            looks as f64 / seconds
        );
        assert!(seconds <= ideal * slower + 60.0, "{hosts} hosts, {slots} slots: {seconds} s instead of {ideal}");
        assert!(burst.max(busiest) <= looks_per_s, "{hosts} hosts: {burst}, {busiest} looks in a second");
    }
}
