//! Attacks with many processes at once, and with many deaths in a row.

use std::{thread::sleep, time::Duration};

use tests::{
    attacker::{Attacker, Delegated},
    cgroup::Cgroup,
    eventually, live,
};

use crate::scene::{GRACE, Scene, attacking};

/// Longest restart without waiting for others, on the slowest machine.
const GENEROUS: Duration = Duration::from_secs(5);

#[test]
fn crowds_that_services_leave_behind_delay_nobody_else() {
    if !live::can_run("crowds_that_services_leave_behind_delay_nobody_else") {
        return;
    }
    let cgroups = [(); 2].map(|()| Cgroup::new(None));
    let crowd = |number: usize| attacking(&format!("crowd-{number}"), &cgroups[number].path, "", &["crowd", "1500"]);
    let mut scene = Scene::new(1, &format!("{}{}", crowd(0), crowd(1)));
    let deaths = |number: usize| {
        let series = format!("defib_deaths_total{{cause=\"exit\",service=\"crowd-{number}\"}}");
        scene.agent.metrics().get(&series).unwrap_or(0.0)
    };
    let before = eventually("both to leave their crowds", || {
        let deaths = [deaths(0), deaths(1)];
        deaths.iter().all(|&count| count >= 1.0).then_some(deaths)
    });
    scene.settled(0);
    // Without an attack, a restart takes the grace and the start.
    let back = scene.kill(0, ("exit 3", "exit"));
    println!("back after {} ms", back.as_millis());
    assert!(back < GRACE + GENEROUS, "{back:?}");
    scene.go_through_all();
    // Each attacking service is restarted too, after its left-over processes are killed.
    let deaths = |number: usize| {
        let series = format!("defib_deaths_total{{cause=\"exit\",service=\"crowd-{number}\"}}");
        scene.agent.metrics().get(&series).unwrap_or(0.0)
    };
    eventually("both to be started again and to die again", || {
        (deaths(0) > before[0] && deaths(1) > before[1]).then_some(())
    });
}

#[test]
fn four_thousand_processes_that_a_service_leaves_are_ended_and_it_is_started() {
    if !live::can_run("four_thousand_processes_that_a_service_leaves_are_ended_and_it_is_started") {
        return;
    }
    let cgroup = Cgroup::new(None);
    let mut scene = Scene::new(1, &attacking("crowd", &cgroup.path, "", &["crowd", "4000", "--lives", "1000"]));
    let deaths = "defib_deaths_total{cause=\"exit\",service=\"crowd\"}";
    eventually("the crowd's third round", || (scene.agent.metrics().get(deaths) >= Some(3.0)).then_some(()));
    scene.go_through_all();
}

#[test]
fn failing_exits_without_end_ask_nobody_and_hide_no_death() {
    const RATE: &str = "400";
    if !live::can_run("failing_exits_without_end_ask_nobody_and_hide_no_death") {
        return;
    }
    let (cgroup, others) = (Cgroup::new(None), Delegated::new());
    let mut scene = Scene::new(1, &attacking("failing", &cgroup.path, "", &["failures", RATE]));
    let _attack = Attacker::start(&[others.directory()], &["failures", RATE]);
    scene.go_through_all();
    sleep(Duration::from_secs(2));
    let metrics = scene.agent.metrics();
    let told = metrics.get("defib_deaths_total{cause=\"exit\",service=\"failing\"}").unwrap_or(0.0);
    println!("{told} failing exits of the service told, {} tasks refused", scene.cage.refused_tasks().unwrap_or(0));
    assert!(told > 500.0, "they are seen: {told}");
    assert_eq!(scene.cage.refused_tasks().unwrap_or(0), 0, "the agent met its limit of tasks");
}
