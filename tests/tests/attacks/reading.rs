//! Attacks with data that is large for its readers.

use tests::{
    attacker::{Attacker, directory},
    cgroup::Cgroup,
    eventually, live,
};

use crate::scene::{Scene, attacking};

#[test]
fn mappings_without_end_are_read_within_bounds() {
    if !live::can_run("mappings_without_end_are_read_within_bounds") {
        return;
    }
    let places = [directory(), directory()];
    let [here, there] = [&places[0], &places[1]].map(|place| place.path().to_str().expect("UTF-8"));
    let cgroup = Cgroup::new(None);
    let mut scene = Scene::new(1, &attacking("mapped", &cgroup.path, "", &["mappings", there]));
    let _attack = Attacker::start(&[], &["mappings", here]);
    scene.go_through_all();
}

#[test]
fn a_command_line_without_end_is_read_within_bounds() {
    if !live::can_run("a_command_line_without_end_is_read_within_bounds") {
        return;
    }
    let cgroup = Cgroup::new(None);
    // It lives until it is measured.
    let liar = attacking("liar", &cgroup.path, "", &["command-line", "64", "--lives", "4000"]);
    let mut scene = Scene::new(1, &format!("[forecast]\nsample = '500ms'\n{liar}"));
    let deaths = "defib_deaths_total{cause=\"exit\",service=\"liar\"}";
    eventually("the service to die", || (scene.agent.metrics().get(deaths) >= Some(1.0)).then_some(()));
    scene.go_through_all();
    eventually("it to die again", || (scene.agent.metrics().get(deaths) >= Some(2.0)).then_some(()));
}

#[test]
fn names_without_end_in_a_crash_are_cut() {
    /// Longest log line, bytes: people read the log.
    const LINE_MAX: usize = 64 << 10;
    if !live::can_run("names_without_end_in_a_crash_are_cut") {
        return;
    }
    let (place, inside) = (directory(), directory());
    let [here, there] = [&place, &inside].map(|place| place.path().to_str().expect("UTF-8"));
    let cgroup = Cgroup::new(None);
    let mut scene = Scene::new(1, &attacking("named", &cgroup.path, "", &["long-names", there, "--once"]));
    let _attack = Attacker::start(&[], &["long-names", here]);
    let series = "defib_deaths_total{cause=\"crash\",service=\"named\"}";
    eventually("a crash to be told", || (scene.agent.metrics().get(series) >= Some(1.0)).then_some(()));
    scene.go_through_all();
    let longest = scene.agent.log().lines().map(str::len).max().unwrap_or(0);
    println!("the longest line of the log has {longest} bytes");
    assert!(longest <= LINE_MAX, "a line of {longest} bytes");
    let stored: usize = scene.agent.incidents("named").iter().map(|incident| incident.to_string().len()).sum();
    println!("the incidents of the service take {stored} bytes");
}
