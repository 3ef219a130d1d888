//! Process functions of the test programs: fork(2), and becoming another user.

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
/// The caller has one thread: with more, the child may find locks held by threads that do not exist in it.
pub unsafe fn fork() -> Option<Pid> {
    // SAFETY: the caller has one thread.
    match unsafe { libc::fork() } {
        -1 => panic!("cannot fork: {}", std::io::Error::last_os_error()),
        child => Pid::from_raw(child),
    }
}

/// Waits for a child to end; returns at once when the process is not a child.
pub fn wait_for(child: Pid) {
    while matches!(waitpid(Some(child), WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
}

/// Becomes another user, without groups and privileges; does nothing when it is that user already. Only for a process
/// with one thread, since the calls change only the calling thread.
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
