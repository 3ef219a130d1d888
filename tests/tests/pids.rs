//! A service that ends because its cgroup refuses it another thread (`pids.max`).

use std::{fs, path::Path};

use tests::{
    cgroup::{Cgroup, memory_hierarchy},
    defib::Agent,
    eventually, live,
    victim::binary,
};

#[test]
fn an_exit_after_a_refused_thread_says_so() {
    if !live::can_run("an_exit_after_a_refused_thread_says_so") {
        return;
    }
    // The agent sees this cgroup being made, so all refusals in it are new.
    let cgroup = Cgroup::new(None);
    fs::remove_dir(&cgroup.directory).expect("it is empty");
    let (mount, v2) = memory_hierarchy();
    let pids = if v2 { mount } else { Path::new("/sys/fs/cgroup/pids").to_owned() };
    if v2 {
        fs::write(pids.join("cgroup.subtree_control"), "+pids").expect("the controller can be passed on");
    }
    // On v1 the controller has its own hierarchy with the same paths.
    let limited = Cgroup { directory: pids.join(cgroup.path.trim_start_matches('/')), path: cgroup.path.clone() };
    let (directory, victim) = (limited.directory.display(), binary("victim"));
    let script = format!(
        "mkdir -p {directory}; echo 8 > {directory}/pids.max; exec {} --cgroup {directory} use-up-threads",
        victim.display()
    );
    let agent = Agent::start(&format!(
        "[[service]]\nname = \"web\"\nrestart = true\ngrace = \"100ms\"\n\
         command = {{ start = [\"/bin/sh\", \"-c\", \"{script}\"], cgroup = \"{}\" }}\n",
        cgroup.path
    ));
    let cause = eventually("a death of that cause", || {
        let causes = agent.incidents("web").into_iter().map(|incident| incident["cause"].clone());
        causes.into_iter().find(|cause| cause["reason"] == "pids_limit")
    });
    assert_eq!((cause["kind"].as_str(), cause["code"].as_u64()), (Some("exit"), Some(1)), "{cause}");
}
