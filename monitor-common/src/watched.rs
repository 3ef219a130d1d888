//! The values of the map of watched cgroups. The lower 31 bits are a handle, which all cgroups of a service share.

/// Bit of a value: the programs added the cgroup, because it was made inside a watched one.
pub const INHERITS: u32 = 1 << 31;
