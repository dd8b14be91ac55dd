//! Descriptors that outlive a worker: its listeners.

use sexton_sys::{Fd, RawFd};

use crate::wire::StoreName;

/// BOUND: a daemon has two listeners; the rest is for versions to come.
const BOUND: usize = 32;

/// Named descriptors, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Store([Option<(StoreName, Fd)>; BOUND]);

impl Store {
    /// None.
    pub(crate) fn new() -> Store {
        Store([const { None }; BOUND])
    }

    /// Keeps `fd`, in the place of one of the same name; `false` where there are too many.
    pub(crate) fn put(&mut self, name: StoreName, fd: Fd) -> bool {
        let known = self.0.iter().position(|slot| slot.as_ref().is_some_and(|(held, _)| *held == name));
        let place = known.or_else(|| self.0.iter().position(Option::is_none));
        match place.and_then(|place| self.0.get_mut(place)) {
            Some(slot) => {
                *slot = Some((name, fd));
                true
            }
            None => false,
        }
    }

    /// Closes the descriptor of that name.
    pub(crate) fn forget(&mut self, name: StoreName) {
        for slot in &mut self.0 {
            slot.take_if(|(held, _)| *held == name);
        }
    }

    /// The first descriptor from place `from` on, and the place behind it.
    pub(crate) fn from(&self, from: usize) -> Option<(StoreName, RawFd, usize)> {
        self.0
            .iter()
            .enumerate()
            .skip(from)
            .find_map(|(place, slot)| slot.as_ref().map(|(name, fd)| (*name, fd.raw(), place + 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sexton_sys::file::duplicate;
    use sexton_sys::poll::EventFd;

    #[test]
    fn a_name_has_one_descriptor_and_too_many_are_refused() {
        let bell = EventFd::new().unwrap();
        let fd = || duplicate(bell.raw()).unwrap();
        let name = |number: usize| StoreName::new(std::format!("n{number}").as_bytes()).unwrap();
        let mut store = Store::new();
        assert!((0..BOUND).all(|number| store.put(name(number), fd())));
        assert!(!store.put(name(BOUND), fd()));
        assert!(store.put(name(3), fd()));
        store.forget(name(0));
        let (first, _, next) = store.from(0).unwrap();
        assert_eq!((first, next), (name(1), 2));
        assert!(store.put(name(BOUND), fd()) && store.from(0).unwrap().0 == name(BOUND));
        assert!(store.from(BOUND).is_none());
    }
}
