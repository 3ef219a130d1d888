//! Limits how many deaths of one service use the critical ring. A service can make any number of processes die, and the ring has room
//! for some thousands of deaths. So each service has a share for each second; further deaths go to the bulk ring and take no room from
//! other services.

use monitor_common::{counter::SPREAD, watched::INHERITS};

use crate::{
    maps::{CROWDS, SERVICES, WATCHED},
    task,
};

/// Length of a share's window, nanoseconds.
const WINDOW_NS: u64 = 1_000_000_000;
/// Deaths of a service in a window that may use the critical ring.
const SHARE: u64 = 256;

/// Weights: a death, and a crash site, which is four times as large.
pub(crate) const DEATH: u64 = 1;
pub(crate) const SITE: u64 = 4;

/// Counts `weight` deaths for the service of a watched cgroup; true when the service's share is used up.
#[inline(always)]
pub(crate) fn is_beyond_share(cgroup: u64, weight: u64) -> bool {
    // SAFETY: copied out at once.
    let Some(handle) = unsafe { WATCHED.get(cgroup) }.copied() else { return false };
    let service = u64::from(handle & !INHERITS);
    let slot = (service.wrapping_mul(SPREAD) >> (64 - SERVICES.ilog2())) as u32;
    let Some(window) = CROWDS.get_ptr_mut(slot) else { return false };
    let now = task::now_ns();
    // SAFETY: an aligned value of a map, which stays mapped. Processors that count at the same time may lose counts, and services with
    // the same slot share it, so a share may be a little more or less.
    unsafe {
        if now.wrapping_sub((*window).begin_ns) > WINDOW_NS {
            (*window).begin_ns = now;
            (*window).taken = 0;
        }
        (*window).taken += weight;
        (*window).taken > SHARE
    }
}
