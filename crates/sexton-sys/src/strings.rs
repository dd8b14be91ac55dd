//! Argument and environment lists in the kernel's own form: pointers to C strings, the last one null.

use core::ffi::CStr;
use core::marker::PhantomData;
use core::ptr;

/// One slot of a list that is being built: a C string, or its end.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Slot<'a> {
    string: *const u8,
    lives: PhantomData<&'a CStr>,
}

/// The number that `digits` say, 0 and leading zeroes included; `None` for anything else.
pub fn number(digits: &[u8]) -> Option<u32> {
    let (first, rest) = digits.split_first()?;
    let value = |digit: &u8| char::from(*digit).to_digit(10);
    rest.iter().try_fold(value(first)?, |sum, digit| sum.checked_mul(10)?.checked_add(value(digit)?))
}

/// `string` without its first `count` bytes; empty where it has no more.
pub fn behind(string: &CStr, count: usize) -> &CStr {
    let count = count.min(string.count_bytes());
    // SAFETY: it begins within the string, or at the zero that ends it.
    unsafe { CStr::from_ptr(string.as_ptr().wrapping_add(count)) }
}

impl<'a> Slot<'a> {
    /// Closes a list.
    pub const END: Slot<'static> = Slot { string: ptr::null(), lives: PhantomData };

    /// A slot that holds `string`.
    pub const fn of(string: &'a CStr) -> Slot<'a> {
        Slot { string: string.as_ptr().cast(), lives: PhantomData }
    }
}

/// A borrowed list of C strings, as `execve(2)` takes it.
#[derive(Clone, Copy, Debug)]
pub struct Strings<'a> {
    first: *const *const u8,
    len: usize,
    lives: PhantomData<&'a CStr>,
}

impl<'a> Strings<'a> {
    /// The list in `slots`, up to its first end; `None` where it has none.
    pub fn new(slots: &'a [Slot<'a>]) -> Option<Strings<'a>> {
        let len = slots.iter().position(|slot| slot.string.is_null())?;
        Some(Strings { first: slots.as_ptr().cast(), len, lives: PhantomData })
    }

    /// The list that begins at `first`.
    ///
    /// # Safety
    /// `first` points to pointers to C strings up to a null one, and all of it lives, unchanged, for `'a`.
    pub(crate) unsafe fn from_raw(first: *const *const u8) -> Strings<'a> {
        let mut len = 0;
        // SAFETY: the caller vouches for every slot up to the null one, where this loop ends.
        while unsafe { !(*first.wrapping_add(len)).is_null() } {
            len += 1;
        }
        Strings { first, len, lives: PhantomData }
    }

    /// How many strings there are.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The string at `index`.
    pub fn at(&self, index: usize) -> Option<&'a CStr> {
        if index >= self.len {
            return None;
        }
        // SAFETY: `index` is below the number of slots that were counted or checked at construction.
        let string = unsafe { *self.first.wrapping_add(index) };
        // SAFETY: a slot before the end points to a C string that lives for 'a.
        Some(unsafe { CStr::from_ptr(string.cast()) })
    }

    /// The list without its first `count` strings; empty where it has no more.
    pub fn skip(&self, count: usize) -> Strings<'a> {
        let count = count.min(self.len);
        Strings { first: self.first.wrapping_add(count), len: self.len - count, lives: PhantomData }
    }

    /// The strings one after the other.
    pub fn iter(&self) -> impl Iterator<Item = &'a CStr> + use<'a> {
        let list = *self;
        (0..list.len).filter_map(move |index| list.at(index))
    }

    /// The value of `NAME=value`, where the list is an environment; the first one counts, as in `getenv(3)`.
    pub fn value_of(&self, name: &[u8]) -> Option<&'a CStr> {
        let named = |entry: &&CStr| entry.to_bytes().strip_prefix(name).is_some_and(|rest| rest.starts_with(b"="));
        self.iter().find(named).map(|entry| behind(entry, name.len() + 1))
    }

    /// The kernel's pointer.
    pub(crate) const fn as_ptr(&self) -> *const *const u8 {
        self.first
    }
}
