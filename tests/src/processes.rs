//! What the programs of the tests do with processes: fork(2), and going on as another user.

use rustix::{
    process::{Pid, WaitOptions, waitpid},
    thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

/// fork(2): the child's pid in the parent, `None` in the child.
///
/// # Panics
/// When the kernel makes no process.
///
/// # Safety
/// The caller has one thread: in a child of more, locks may be held by threads that it does not have.
pub unsafe fn fork() -> Option<Pid> {
    // SAFETY: the caller has one thread.
    match unsafe { libc::fork() } {
        -1 => panic!("cannot fork: {}", std::io::Error::last_os_error()),
        child => Pid::from_raw(child),
    }
}

/// Waits for the end of a child, if it is one.
pub fn wait_for(child: Pid) {
    while matches!(waitpid(Some(child), WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
}

/// Goes on as another user, without groups and privileges, or stays that user. For a process with one thread: the calls change the
/// calling one.
///
/// # Panics
/// When that is refused.
pub fn become_user(uid: u32) {
    if rustix::process::getuid().as_raw() == uid {
        return;
    }
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    set_thread_groups(&[]).expect("groups can be given up");
    set_thread_res_gid(group, group, group).expect("a group can be taken");
    set_thread_res_uid(user, user, user).expect("a user can be taken");
}
