use std::process::{Child, Command, Stdio};

use super::*;

/// Processes of a crowd; `DEFIB_CROWD` sets another number.
fn size() -> usize {
    std::env::var("DEFIB_CROWD").ok().and_then(|size| size.parse().ok()).unwrap_or(300)
}

/// `count` processes in their own cgroup and in one below it; `None` where no cgroup can be made.
struct Crowd {
    hierarchy: Hierarchy,
    path: String,
    shell: Child,
}

impl Crowd {
    fn new(name: &str, count: usize) -> Option<Self> {
        let hierarchy = Hierarchy::detect().ok()?;
        let path = format!("/defib-fence-{}-{name}", std::process::id());
        hierarchy.create(&format!("{path}/below")).ok()?;
        let procs = |path: &str| hierarchy.directory(path).join("cgroup.procs").display().to_string();
        // A shell that forks at once and waits for ever, as its children do.
        let script = format!(
            "exec 3<&0; echo $$ > {} || exit 1\n i=0; while [ $i -lt {count} ]; do\n\
             [ $i -eq {} ] && echo 0 > {}\n ( read -r x <&3 ) & i=$((i+1)); done; read -r x",
            procs(&path),
            count / 2,
            procs(&format!("{path}/below")),
        );
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &script]).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut crowd = Self { hierarchy, path, shell: shell.spawn().ok()? };
        while crowd.members().len() <= count {
            if crowd.shell.try_wait().is_ok_and(|ended| ended.is_some()) {
                return None;
            }
            thread::sleep(PAUSE);
        }
        Some(crowd)
    }

    fn members(&self) -> Vec<u32> {
        self.hierarchy.members(&self.path).expect("listed").all().expect("not so many")
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shell.kill().ok();
        self.shell.wait().ok();
        while self.hierarchy.remove(&format!("{}/below", self.path)).and(self.hierarchy.remove(&self.path)).is_err() {
            if thread::panicking() {
                return;
            }
            thread::sleep(PAUSE);
        }
    }
}

#[tokio::test]
async fn all_of_a_cgroup_goes_and_nobody_else() {
    let (Some(crowd), Some(other)) = (Crowd::new("a", size()), Crowd::new("b", 1)) else { return };
    assert_eq!(crowd.members().len(), size() + 1);
    let strangers = other.members();
    let begin = Instant::now();
    clear(&crowd.hierarchy, &crowd.path, "crowd").await.expect("nothing is left");
    println!("a fence over {} processes took {:?}", size() + 1, begin.elapsed());
    // Zombies that were not reaped yet do not count as members.
    assert!(crowd.members().iter().all(|&pid| process::is_zombie(pid)));
    assert_eq!(other.members(), strangers);
    clear(&crowd.hierarchy, &crowd.path, "crowd").await.expect("there is nobody to kill");
    clear(&crowd.hierarchy, "/defib-fence-that-is-not-there", "crowd").await.expect("there is no cgroup");
}

#[tokio::test]
async fn a_pass_of_pidfds_does_the_same_where_a_cgroup_is_not_killed_as_one() {
    let (Some(crowd), Some(other)) = (Crowd::new("c", size()), Crowd::new("d", 1)) else { return };
    let strangers = other.members();
    let directory = crowd.hierarchy.directory(&crowd.path);
    let fence = Fence {
        directory,
        path: crowd.path.clone(),
        service: "crowd".to_owned(),
        hierarchy: (Version::V1, crowd.hierarchy.id),
    };
    let begin = Instant::now();
    fence.clear(begin + TIMEOUT).expect("nothing is left");
    println!("passes of pidfds over {} processes took {:?}", size() + 1, begin.elapsed());
    assert!(crowd.members().iter().all(|&pid| process::is_zombie(pid)));
    assert_eq!(other.members(), strangers);
}

#[test]
fn a_cgroup_that_holds_us_is_known_by_our_own_word() {
    let text = "12:memory:/system.slice/defib.service/sub\n1:name=systemd:/other\n0::/x\n";
    for (hierarchy, path, holds) in [
        (12, "/system.slice/defib.service", true),
        (12, "/system.slice", true),
        (12, "/", true),
        (12, "", true),
        (12, "/system.slice/defib", false),
        (12, "/system.slice/defib.service/sub/below", false),
        (12, "/other", false),
        (1, "/other", true),
        (0, "/x", true),
    ] {
        assert_eq!(names(text, hierarchy, path), holds, "{hierarchy} {path}");
    }
}

#[tokio::test]
async fn what_holds_this_process_is_refused_and_nobody_is_killed() {
    let Ok(hierarchy) = Hierarchy::detect() else { return };
    let error = clear(&hierarchy, "/", "web").await.expect_err("it holds us");
    assert!(error.to_string().contains("other processes than the service's"), "{error}");
}
