//! Attacks with very many cgroups.

use tests::{
    attacker::{Attacker, Delegated},
    live,
};

use crate::scene::{Scene, is_numbered_unit};

/// Nearly as many as the memory controller has ids for (MEM_CGROUP_ID_MAX, mm/memcontrol.c); some are left for others.
const MANY: &str = "60000";

#[test]
fn cgroups_without_end_keep_no_service_unwatched() {
    if !live::can_run("cgroups_without_end_keep_no_service_unwatched") {
        return;
    }
    // On v2 these cgroups have no controller, and the kernel does not limit their number.
    let delegated = Delegated::new();
    let mut scene = Scene::new(2, "");
    let attack =
        Attacker::start(&[delegated.directory()], &["cgroups", delegated.directory().to_str().expect("UTF-8"), MANY]);
    scene.go_through_all();
    drop(attack);
    println!("{} cgroups known", scene.agent.metrics().get("defib_cgroups").unwrap_or(f64::NAN));
}

#[test]
fn cgroups_that_are_called_as_services_become_none() {
    const COUNT: &str = "2000";
    if !live::can_run("cgroups_that_are_called_as_services_become_none") {
        return;
    }
    let delegated = Delegated::new();
    let mut scene = Scene::new(1, "[[service]]\nunit = 'a*.service'\n");
    let before = scene.agent.metrics().0.len();
    let words = ["cgroups", delegated.directory().to_str().expect("UTF-8"), COUNT, "--name", "a{}.service", "--keep"];
    let attack = Attacker::start(&[delegated.directory()], &words);
    scene.go_through_all();
    let labels = scene.labels();
    let services: Vec<_> = labels.keys().filter(|name| is_numbered_unit(name)).collect();
    println!("{} services by name, metrics {} bytes, {before} before", services.len(), scene.agent.metrics().0.len());
    assert!(services.is_empty(), "{} services that no owner confirmed, {:?} among them", services.len(), services[0]);
    assert!(scene.agent.metrics().0.len() < before * 2, "what nobody confirmed has series of its own");
    drop(attack);
}
