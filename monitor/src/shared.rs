//! Equal values, kept once: thousands of services have a handful of different rules.

use std::sync::Arc;

/// Remembers the last value; services with the same rules are met in a row.
#[derive(Debug)]
pub(crate) struct Shared<T>(Option<Arc<T>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: PartialEq> Shared<T> {
    /// The value, shared with the one before it when that is equal.
    pub(crate) fn share(&mut self, value: T) -> Arc<T> {
        match &self.0 {
            Some(last) if **last == value => Arc::clone(last),
            _ => Arc::clone(self.0.insert(Arc::new(value))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_in_a_row_are_one() {
        let mut shared = Shared::default();
        let (one, same, other) = (shared.share(1), shared.share(1), shared.share(2));
        assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &other));
        assert_eq!((*one, *other), (1, 2));
    }
}
