//! Deaths of one service in a crowd. A service decides how many processes it has and when they die; the critical ring has room for
//! some thousands of deaths. So each service has a share of it for each second, and what dies beyond that goes to the bulk ring,
//! where it cannot take the room of another service's death.

use monitor_common::counter::SPREAD;

use crate::{
    cgroup::INHERITS,
    maps::{CROWDS, SERVICES, WATCHED},
    task,
};

/// Length of a share's time.
const WINDOW_NS: u64 = 1_000_000_000;
/// Deaths of a service in that time that are on the critical ring.
const SHARE: u64 = 256;

/// A death, and a crash site, which is four times as large.
pub(crate) const DEATH: u64 = 1;
pub(crate) const SITE: u64 = 4;

/// True when the service that a watched cgroup belongs to has used up its share. Counts `weight` deaths.
#[inline(always)]
pub(crate) fn is_beyond_share(cgroup: u64, weight: u64) -> bool {
    // SAFETY: copied out at once.
    let Some(handle) = unsafe { WATCHED.get(cgroup) }.copied() else { return false };
    let service = u64::from(handle & !INHERITS);
    let slot = (service.wrapping_mul(SPREAD) >> (64 - SERVICES.ilog2())) as u32;
    let Some(window) = CROWDS.get_ptr_mut(slot) else { return false };
    let now = task::now_ns();
    // SAFETY: an aligned value of a map, which stays mapped. Processors that count at the same time may lose a count, and services
    // whose slot is the same share it: each has a little more or less than its share.
    unsafe {
        if now.wrapping_sub((*window).begin_ns) > WINDOW_NS {
            (*window).begin_ns = now;
            (*window).taken = 0;
        }
        (*window).taken += weight;
        (*window).taken > SHARE
    }
}
