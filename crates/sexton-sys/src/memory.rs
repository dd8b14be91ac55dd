//! Memory straight from the kernel, for a program that has no allocator.
//!
//! A page of it costs nothing until it is first written, so a large table may be reserved for the worst case.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use crate::arch::{nr, syscall};
use crate::error::SysError;

const PROT_READ_WRITE: usize = 3;
const MAP_SHARED: usize = 0x01;
const MAP_PRIVATE: usize = 0x02;
const MAP_ANONYMOUS: usize = 0x20;
/// Do not count the reservation against the overcommit limit: most of it is never touched.
const MAP_NORESERVE: usize = 0x4000;

mod sealed {
    use crate::error::{Call, Errno};

    /// What all zeroes are a value of, and which needs no dropping.
    pub trait Zeroed: Copy {}
    impl Zeroed for u8 {}
    impl Zeroed for u16 {}
    impl Zeroed for u32 {}
    impl Zeroed for u64 {}
    impl Zeroed for i32 {}
    impl Zeroed for i64 {}
    impl Zeroed for usize {}
    impl Zeroed for Errno {}
    /// It is a pointer that is never null, so zeroes are `None`.
    impl Zeroed for Option<Call> {}
    impl<T: Zeroed, const N: usize> Zeroed for [T; N] {}
    impl<A: Zeroed, B: Zeroed> Zeroed for (A, B) {}
    impl<A: Zeroed, B: Zeroed, C: Zeroed> Zeroed for (A, B, C) {}
}
pub(crate) use sealed::Zeroed;

/// Memory of our own, given back when dropped.
#[derive(Debug)]
struct Mapping {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the memory belongs to this value alone, as a `Vec`'s buffer does.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` of zeroes; `None` stands for more than can be counted.
    fn new(bytes: Option<usize>, flags: usize) -> Result<Mapping, SysError> {
        let bytes = bytes.unwrap_or(usize::MAX);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let ret = unsafe { syscall(nr::MMAP, [0, bytes, PROT_READ_WRITE, flags | MAP_ANONYMOUS, usize::MAX, 0]) };
        ret.map(|start| Mapping { start: start as *mut u8, bytes }).map_err(|errno| SysError::of(c"mmap", errno))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; nothing borrows from it any more.
        let _unmapped = unsafe { syscall(nr::MUNMAP, [self.start as usize, self.bytes]) };
    }
}

/// A table of zeroes.
#[derive(Debug)]
pub struct Table<T> {
    memory: Mapping,
    len: usize,
    owns: PhantomData<T>,
}

impl<T: Zeroed> Table<T> {
    /// Reserves `len` zeroes; a page is taken when it is first written.
    ///
    /// # Errors
    /// `ENOMEM` where the address space is used up or limited, `EINVAL` for none at all.
    pub fn new(len: usize) -> Result<Table<T>, SysError> {
        Table::mapped(len, MAP_PRIVATE | MAP_NORESERVE)
    }

    /// Like `new`, but a forked child writes into the same memory.
    pub(crate) fn shared_with_children(len: usize) -> Result<Table<T>, SysError> {
        Table::mapped(len, MAP_SHARED)
    }

    fn mapped(len: usize, flags: usize) -> Result<Table<T>, SysError> {
        let memory = Mapping::new(len.checked_mul(size_of::<T>()), flags)?;
        Ok(Table { memory, len, owns: PhantomData })
    }
}

impl<T: Zeroed> Deref for Table<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` values lie there, zeroed by the kernel, aligned to a page, and owned by this value.
        unsafe { core::slice::from_raw_parts(self.memory.start.cast(), self.len) }
    }
}

impl<T: Zeroed> DerefMut for Table<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed alone.
        unsafe { core::slice::from_raw_parts_mut(self.memory.start.cast(), self.len) }
    }
}
